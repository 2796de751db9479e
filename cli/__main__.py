"""`python -m medssl.cli` is the command `medssl`."""

from . import main

main()
