"""Files that lie in memory as they are needed."""

import mmap
from typing import Any

from numpy.typing import NDArray


def forget(array: NDArray[Any]) -> None:
    """Give back the memory of a mapped file; what is needed again is read again.

    Args:
        array: A view of a memory map; nothing happens to any other array.
    """
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
