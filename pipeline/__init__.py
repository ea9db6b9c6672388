"""g2l from Python: ``import pipeline as g2l``, then ``g2l.tile(...)``, ``g2l.extract(...)``, ``g2l.distill(...)``.

What is public is listed in `__all__` and described in ``docs/reference/api.md``. Importing the package loads neither
torch nor NumPy: a name is loaded when it is used. `pipeline` may import `stores`, never `cli`.

Some functions have the name of a room of the package: ``pipeline.tile`` is the function, and ``from pipeline.tile.grid
import find_patches`` imports from the room. See ``docs/decisions/0021-functions-named-as-rooms.md``.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import (
        distill,
        embed,
        export,
        extract,
        family,
        import_features,
        plan,
        plan_student,
        prototypes,
        push_student,
        tile,
        verify,
    )
    from pipeline.data.dataset import ViewDataset
    from pipeline.encoders.load import load_encoder

__all__ = [
    "ViewDataset",
    "distill",
    "embed",
    "export",
    "extract",
    "family",
    "import_features",
    "load_encoder",
    "plan",
    "plan_student",
    "prototypes",
    "push_student",
    "tile",
    "verify",
]


class _Public:
    """An attribute of the package that is loaded when it is used, and stays when a room of its name is imported.

    The import system binds every module that it loads as an attribute of the package. This is a data descriptor, which
    Python asks before the attributes of an object, and its setter ignores modules.
    """

    def __init__(self, home: str) -> None:
        self._home = home

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, package: types.ModuleType | None, owner: type) -> Any:
        if package is None:
            return self
        if self._name not in package.__dict__:
            package.__dict__[self._name] = getattr(importlib.import_module(self._home), self._name)
        return package.__dict__[self._name]

    def __set__(self, package: types.ModuleType, value: Any) -> None:
        if not isinstance(value, types.ModuleType):
            package.__dict__[self._name] = value


class _Package(types.ModuleType):
    tile = _Public("pipeline.api")
    plan = _Public("pipeline.api")
    plan_student = _Public("pipeline.api")
    extract = _Public("pipeline.api")
    family = _Public("pipeline.api")
    distill = _Public("pipeline.api")
    prototypes = _Public("pipeline.api")
    embed = _Public("pipeline.api")
    export = _Public("pipeline.api")
    push_student = _Public("pipeline.api")
    import_features = _Public("pipeline.api")
    verify = _Public("pipeline.api")
    load_encoder = _Public("pipeline.encoders.load")
    ViewDataset = _Public("pipeline.data.dataset")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *__all__]


sys.modules[__name__].__class__ = _Package
