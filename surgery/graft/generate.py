"""From an fx graph to a subclass of a module's own class whose forward is that graph."""

from __future__ import annotations

import inspect
import linecache
from typing import Any

import torch
from torch import fx, nn

from surgery.graft.container import HidesGrafts

_GENERATED: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}


def _source(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    code = graph.python_code("self")
    return code.src, code.globals


def _function(name: str, source: str, names: dict[str, Any], label: str) -> Any:
    filename = f"<surgery {label} {len(linecache.cache)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    scope = dict(names)
    exec(compile(source, filename, "exec"), scope)
    return scope[name]


def adapted_class(
    base: type[nn.Module],
    graph: fx.Graph,
    folds: dict[str, fx.Graph],
    extra: dict[str, Any] | None = None,
) -> type[nn.Module]:
    """A subclass of ``base`` that runs ``graph``, of which the first placeholder is `self`.

    ``folds`` are the computations on parameters alone that the forward keeps between calls. The
    subclass has the base's name and module, and its instances pickle by their source.
    """
    recipe = {"forward": _source(graph)} | {key: _source(g) for key, g in folds.items()}
    return _from_recipe(base, recipe, extra or {})


def _from_recipe(
    base: type[nn.Module], recipe: dict[str, tuple[str, dict[str, Any]]], extra: dict[str, Any]
) -> type[nn.Module]:
    key = (base, repr([(k, v[0], sorted(map(repr, v[1].items()))) for k, v in recipe.items()]) + repr(extra))
    if key in _GENERATED:
        return _GENERATED[key]
    functions = {
        name: _function("forward", source, names, f"{base.__name__}.{name}")
        for name, (source, names) in recipe.items()
    }
    forward = functions.pop("forward")
    forward.__signature__ = inspect.signature(base.forward)
    forward.__qualname__ = f"{base.__qualname__}.forward"
    bases = (HidesGrafts, base) if issubclass(base, nn.Sequential | nn.ModuleList) else (base,)
    body: dict[str, Any] = {
        "forward": forward,
        "surgery_base": base,
        "surgery_folds": functions,
        "surgery_recipe": (recipe, extra),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        **extra,
    }
    made = type(base.__name__, bases, body)
    _GENERATED[key] = made
    return made


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    cls: Any = type(self)
    recipe, extra = cls.surgery_recipe
    return _restore, (cls.surgery_base, recipe, extra), self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__


def _restore(base: type[nn.Module], recipe: Any, extra: dict[str, Any]) -> nn.Module:
    return base.__new__(_from_recipe(base, recipe, extra))


def is_adapted(module: nn.Module) -> bool:
    """Whether ``module`` runs a generated forward."""
    return "surgery_base" in type(module).__dict__


def base_class(module: nn.Module) -> type[nn.Module]:
    """The class ``module`` had before it was adapted."""
    cls: Any = type(module)
    return cls.surgery_base if is_adapted(module) else cls


