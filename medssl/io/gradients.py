"""The b-values of a diffusion series, from FSL's text file."""

import math
from pathlib import Path

from medssl.core.errors import InputError, naming, printable

LARGEST = 1 << 20
"""Bytes; thousands of volumes need far less."""


def read_b_values(path: str | Path) -> tuple[float, ...]:
    """Diffusion weighting of each volume, s/mm^2: numbers with spaces, commas or lines between.

    Args:
        path: A `.bval` file.

    Raises:
        InputError: It is not there, or does not hold numbers of at least 0.
    """
    path = Path(path)
    with naming(path):
        try:
            if path.stat().st_size > LARGEST:
                raise InputError("is too large for b-values", "check which file it is")
            words = path.read_text(encoding="utf-8").replace(",", " ").split()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", "check the path") from error
        except UnicodeDecodeError as error:
            raise InputError("is not text", "give FSL's .bval file") from error
        return tuple(_b_value(word) for word in words)


def _b_value(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{printable(word)} is not a b-value", "give s/mm^2, 0 or more")
    return value
