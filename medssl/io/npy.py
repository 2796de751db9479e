"""The header of an NPY file; what follows it is never a pickle."""

from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from medssl.core.errors import InputError

MAGIC = b"\x93NUMPY"
_DAMAGE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, TokenError)
"""What numpy raises on headers that are none."""


def read_header(handle: BinaryIO, remedy: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis runs fastest, and type; the handle is left behind them.

    Args:
        handle: At the start of the file.
        remedy: What to do where it is damaged.

    Raises:
        InputError: It is damaged.
    """
    try:
        version = npy_format.read_magic(handle)
        reader = (
            npy_format.read_array_header_1_0
            if version == (1, 0)
            else npy_format.read_array_header_2_0
        )
        shape, fortran, dtype = reader(handle)
    except _DAMAGE as error:
        raise InputError("its NPY header is damaged", remedy) from error
    return shape, fortran, dtype
