"""What code the modules of a model run: their classes, and the functions and globals these read.

Names tell what is read: from the `forward` of a class on, those that its code mentions, found in the
class or among the globals of the function, and so on through the functions found. Code of torch and
of the standard library is taken as it is; that its functions are still the same counts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cached_property, lru_cache, partialmethod
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, cast

from torch import Tensor, nn

from surgery.anatomy.notes import WalkNotes

_FOREIGN = frozenset(("torch", "numpy", "surgery", *sys.stdlib_module_names))
_STARTS = ("forward", "__call__", "__getattr__", "__getattribute__")


class Code:
    """WalkNotes the code that a walk meets."""

    def __init__(self, walk: WalkNotes):
        self.walk = walk
        self.noted: set[type[Any]] = set()
        self.running: set[type[Any]] = set()

    def kind(self, cls: type[Any], runs: bool = False) -> None:
        """Note the class of something; that of a module also by what its forward ``runs``."""
        if cls in self.noted:
            self.walk.tokens.append(id(cls))
        else:
            self.noted.add(cls)
            self.cls(cls)
        if runs and cls not in self.running:
            self.running.add(cls)
            self._methods(cls)

    def cls(self, cls: type[Any]) -> None:
        """Note a class with all that stands in it and in those above it."""
        self.walk.same(cls)
        if type(cls) is not type and looked_into(type(cls).__module__):
            self.kind(type(cls))
        for base in cls.__mro__[:-1]:
            if id(base) not in self.walk.known and self.walk.first(base):
                self.walk.same(base)
                self._space(base)

    def _space(self, cls: type[Any]) -> None:
        for name, value in vars(cls).items():
            if name.startswith("__") and not isinstance(value, FunctionType):
                continue  # what Python keeps there
            self.walk.tokens.append(name)
            for part in _parts(value):
                self._entry(part)

    def _entry(self, value: Any) -> None:
        if isinstance(value, FunctionType):
            self.walk.same(value)
            self.walk.same(value.__code__)
        elif isinstance(value, int | float | str | tuple | list | dict | set | None):
            self.walk.thing(value)
        else:
            self.walk.same(value)

    def _methods(self, cls: type[Any]) -> None:
        """The functions of a class that its forward may call, by their names."""
        waiting: list[str] = [*_STARTS]
        asked = set(waiting)
        for name in waiting:
            for base in cls.__mro__:
                found = vars(base).get(name)
                for part in _parts(found) if found is not None else ():
                    if isinstance(part, FunctionType):
                        self.function(part)
                        fresh = _names(part.__code__) - asked if _is_own(part) else frozenset[str]()
                        asked.update(fresh)
                        waiting += fresh

    def function(self, function: FunctionType) -> None:
        """Note a function: its code, what is bound to it, and what it reads of its globals."""
        if not self.walk.first(function):
            return
        self.walk.same(function)
        self.walk.same(function.__code__)
        self.walk.thing(function.__defaults__)
        self.walk.thing(function.__kwdefaults__)
        self.walk.attributes(function)
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                continue
            self.walk.thing(content)
        if _is_own(function):
            names = _names(function.__code__)
            for name in sorted(names & function.__globals__.keys()):
                self.walk.tokens.append(name)
                self._global(function.__globals__[name], names)

    def _global(self, value: Any, names: frozenset[str]) -> None:
        """A global that a function reads: of an object what goes by one of the ``names`` there."""
        plain = isinstance(value, int | float | str | tuple | list | set | Mapping | None)
        if plain or isinstance(value, FunctionType | Tensor | nn.Module | ContextVar):
            self.walk.thing(value)
        elif hasattr(value, "cache_clear") and hasattr(value, "__wrapped__"):
            self.walk.same(value)
            self.walk.thing(value.__wrapped__)
        elif isinstance(value, type):
            self.cls(value) if looked_into(value.__module__) else self.walk.same(value)
        else:
            self.walk.same(value)
            own = cast("dict[str, Any]", getattr(value, "__dict__", {}))
            foreign = isinstance(value, ModuleType) and not looked_into(value.__name__)
            for name in sorted(names & own.keys()):
                self.walk.tokens.append(name)
                self._part(own[name], foreign)

    def _part(self, value: Any, foreign: bool) -> None:
        if isinstance(value, FunctionType):
            self.function(value)
        elif isinstance(value, BuiltinFunctionType | type | ModuleType):
            self.walk.same(value)
        elif isinstance(value, int | float | str | None) or not foreign or value is os.environ:
            self.walk.thing(value)
        else:
            self.walk.same(value)


def _parts(value: Any) -> Iterator[Any]:
    """The functions in what stands in a class, or the thing itself."""
    if isinstance(value, staticmethod | classmethod):
        yield cast(Any, value).__func__
    elif isinstance(value, property):
        yield from (value.fget, value.fset, value.fdel)
    elif isinstance(value, cached_property | partialmethod):
        yield cast(Any, value).func
    elif hasattr(value, "cache_clear") and hasattr(value, "__wrapped__"):
        yield value.__wrapped__
    else:
        yield value


def _is_own(function: FunctionType) -> bool:
    return looked_into(str(function.__globals__.get("__name__", "")))


@lru_cache(maxsize=4096)
def looked_into(module: str) -> bool:
    """Whether the code of a Python module is looked into."""
    return module.partition(".")[0] not in _FOREIGN


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """The names that code, and functions within it, mention; `getattr` is given them as strings."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    texts = (part for part in code.co_consts if isinstance(part, str) and part.isidentifier())
    return frozenset(code.co_names).union(texts, *map(_names, inner))
