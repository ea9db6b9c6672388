"""A store: the teacher features of many slides on disk, with all that is needed to make them again.

`open` gives a `Store` from a folder or a URL; its `Recipe` says how the features were made; `errors` holds every
error that is raised on purpose. Importing the package loads neither NumPy, Zarr nor PyArrow. It knows nothing of
models or slides.
"""

from typing import TYPE_CHECKING, Any

from stores import errors

if TYPE_CHECKING:
    from stores.format.recipe import Recipe
    from stores.store import Store, open

__all__ = ["Recipe", "Store", "errors", "open"]

_HOMES = {"Recipe": "stores.format.recipe", "Store": "stores.store", "open": "stores.store"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
