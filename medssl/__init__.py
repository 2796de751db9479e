"""Medical images without clean or labelled data: denoise, reconstruct, pretrain, segment.

Everything is resolved at first use, so that `import medssl` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import version

    from medssl import api
    from medssl.core.errors import MedsslError
    from medssl.core.geometry import Geometry
    from medssl.core.image import Image
    from medssl.core.kspace import KSpace
    from medssl.io.read import read
    from medssl.io.series import Series, list_series
    from medssl.io.write import write

    __version__ = version("medssl")

_HOMES = {
    "api": "medssl.api",
    "Geometry": "medssl.core.geometry",
    "Image": "medssl.core.image",
    "KSpace": "medssl.core.kspace",
    "MedsslError": "medssl.core.errors",
    "Series": "medssl.io.series",
    "list_series": "medssl.io.series",
    "read": "medssl.io.read",
    "write": "medssl.io.write",
}

__all__ = [
    "Geometry",
    "Image",
    "KSpace",
    "MedsslError",
    "Series",
    "__version__",
    "api",
    "list_series",
    "read",
    "write",
]


def __getattr__(name: str) -> Any:
    """The noun, imported when it is first asked for."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("medssl")
    if name not in _HOMES:
        raise AttributeError(f"module 'medssl' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    return module if name == "api" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
