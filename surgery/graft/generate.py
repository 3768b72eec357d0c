"""From an fx graph to a subclass of a module's own class whose forward is that graph."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import CodeType, ModuleType
from typing import Any

from torch import fx, nn

from surgery.graft.attention.rerouting import CoreChange
from surgery.graft.container import HidesGrafts
from surgery.graft.passing import within
from surgery.huggingface.attention_functions import opened

SELF = "surgery_self"
"""The attribute by which a graph refers to the module it runs on."""

_OWN = "surgery_own"
"""By this name a generated forward knows the class it was made for."""

_GENERATED: dict[tuple[type[nn.Module], Recipe], type[nn.Module]] = {}


Names = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Recipe:
    """The sources of a generated class, with the functions they name: enough to make it again."""

    sources: tuple[tuple[str, str, Names], ...]
    properties: tuple[str, ...]
    cores: tuple[CoreChange, ...] = ()
    opens: tuple[str, ...] = ()

    def __deepcopy__(self, memo: object) -> Recipe:
        return self


@dataclass(frozen=True)
class _Module:
    """A module by its name, since modules do not pickle."""

    name: str


def _source(name: str, graph: fx.Graph) -> tuple[str, str, Names]:
    code = graph.python_code("self")
    # Defaults of arguments stand before the code of the function.
    constants = compile(code.src, name, "exec").co_consts
    used = {"torch", *next(c for c in constants if isinstance(c, CodeType)).co_names}
    names = tuple(
        (k, _Module(v.__name__) if isinstance(v, ModuleType) else v)
        for k, v in sorted(code.globals.items())
        if k in used
    )
    return name, code.src, names


def _dispatching(source: str) -> str:
    """``source`` of a forward that is right also where somebody kept it bound to its module.

    accelerate's `prepare` and its hooks put a function on the instance that calls the forward that
    the module had. What the module runs may have changed since: its class tells.
    """
    head, body = source.split(":\n", 1)
    given = head[head.index("(") + 1 : head.rindex(")")]
    guard = f"    if not isinstance(self, {_OWN}):\n        return type(self).forward({given})\n"
    return f"{head}:\n{guard}{body}"


def _function(source: str, names: Names, label: str) -> Any:
    filename = f"<surgery {label} {len(linecache.cache)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    scope = {k: import_module(v.name) if isinstance(v, _Module) else v for k, v in names}
    exec(compile(source, filename, "exec"), scope)
    return scope["forward"]


def adapted_class(
    base: type[nn.Module],
    graph: fx.Graph,
    functions: dict[str, fx.Graph],
    properties: dict[str, fx.Graph],
    cores: tuple[CoreChange, ...] = (),
    opens: tuple[str, ...] = (),
) -> type[nn.Module]:
    """A subclass of ``base`` that runs ``graph``, whose attributes are those of the module.

    ``functions`` are what the forward calls by name: computations on parameters alone that it
    keeps between calls, and changes to ``cores`` that run within. ``properties`` are attributes that are computed where they are read.
    While it runs, the slots are open that are its attributes in ``opens``. The subclass has the
    base's name and module, and its instances pickle by their source.
    """
    graphs = {"forward": graph, **functions, **properties}
    sources = tuple(_source(name, g) for name, g in graphs.items())
    return _from_recipe(base, Recipe(sources, tuple(properties), cores, opens))


def _from_recipe(base: type[nn.Module], recipe: Recipe) -> type[nn.Module]:
    key = (base, recipe)
    if key in _GENERATED:
        return _GENERATED[key]
    functions = {
        name: _function(source, names, f"{base.__name__}.{name}")
        for name, source, names in recipe.sources
        if name != "forward"
    }
    _, source, names = next(s for s in recipe.sources if s[0] == "forward")
    forward = inner = _function(_dispatching(source), names, f"{base.__name__}.forward")
    own: list[type[nn.Module]] = []
    if recipe.opens:
        forward = _opening(inner, recipe.opens, own)
    forward.__signature__ = inspect.signature(base.forward)
    forward.__qualname__ = f"{base.__qualname__}.forward"
    given: Any = base.forward
    through = any(change.core.how == "interface" for change in recipe.cores)
    bases = (HidesGrafts, base) if issubclass(base, nn.Sequential | nn.ModuleList) else (base,)
    body: dict[str, Any] = {
        "forward": forward,
        SELF: property(lambda self: self),
        "surgery_base": base,
        "surgery_functions": functions,
        "surgery_cores": recipe.cores,
        "surgery_attending": opened(given) if through else given,
        "surgery_recipe": recipe,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        **{name: property(functions[name]) for name in recipe.properties},
    }
    made = type(base.__name__, bases, body)
    inner.__globals__[_OWN] = made
    own.append(made)
    _GENERATED[key] = made
    return made


def _opening(
    forward: Callable[..., Any], names: tuple[str, ...], own: list[type[nn.Module]]
) -> Any:
    """``forward``, with the slots in the attributes ``names`` open while it runs.

    ``own`` holds the class that it is made for; see :func:`_dispatching`.
    """

    def opening(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, own[0]):
            return type(self).forward(self, *args, **kwargs)
        return within([getattr(self, name) for name in names], forward, self, args, kwargs)

    return opening


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    cls: Any = type(self)
    state = super(cls, self).__reduce_ex__(protocol)[2]
    return _restore, (cls.surgery_base, cls.surgery_recipe), state


def _restore(base: type[nn.Module], recipe: Recipe) -> nn.Module:
    return base.__new__(_from_recipe(base, recipe))


def is_adapted(module: nn.Module) -> bool:
    """Whether ``module`` runs a generated forward."""
    return "surgery_base" in type(module).__dict__


def base_class(module: nn.Module) -> type[nn.Module]:
    """The class ``module`` had before it was adapted."""
    cls: Any = type(module)
    return cls.surgery_base if is_adapted(module) else cls
