"""How work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told the stage, how much is done, and how much there is."""
