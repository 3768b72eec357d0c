"""The model as a list of names: every module and parameter with all the paths that reach it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice, takewhile
from weakref import WeakValueDictionary

from torch import Tensor, nn

from surgery.anatomy.site import Site, module_site, parameter_site
from surgery.rules.rows import Rows


class Paths:
    """Names of the modules and parameters of one model, read once.

    ``parameters`` has a tied one once under each of its names. Names hold nothing of the model: it
    is freed as soon as it is let go, whoever keeps them.
    """

    def __init__(self, model: nn.Module):
        self.modules: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
        self.parameters: WeakValueDictionary[str, nn.Parameter] = WeakValueDictionary()
        self._aliases: dict[int, list[str]] = {}
        self.rank: dict[str, int] = {}
        named = list(_walk(model, "", ()))
        for path, module in named:
            self.modules[path] = module
            self.rank[path] = len(self.rank)
            self._aliases.setdefault(id(module), []).append(path)
        for path, module in named:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    full = f"{path}.{name}" if path else name
                    self.parameters[full] = parameter
                    self._aliases.setdefault(id(parameter), []).append(full)

    def of(self, thing: nn.Module | nn.Parameter) -> tuple[str, ...]:
        """All paths of one module or parameter, the first in module order first."""
        return tuple(self._aliases.get(id(thing), ()))

    def tensor(self, path: str) -> Tensor:
        """The parameter or buffer at ``path``."""
        owner, _, name = path.rpartition(".")
        module = self.modules[owner]
        found = module._parameters.get(name)
        found = module._buffers.get(name) if found is None else found
        assert found is not None
        return found

    def canonical(self, path: str) -> str:
        """The first of the paths under which the thing at ``path`` is reached."""
        thing = self.modules.get(path)
        if thing is None:
            thing = self.parameters.get(path)
        return path if thing is None else self.of(thing)[0]

    def module(self, path: str) -> Site:
        """The site of the module at ``path``."""
        paths = self.of(self.modules[path])
        return module_site(paths[0], paths)

    def parameter(self, path: str) -> Site:
        """The site of the parameter at ``path``."""
        paths = self.of(self.parameters[path])
        return parameter_site(paths[0], paths)

    def inside(self, path: str) -> Iterator[str]:
        """The modules under the one at ``path``, in order."""
        names = islice(self._names, self.rank.get(path, len(self.rank)) + 1, None)
        return takewhile(lambda name: not path or name.startswith(f"{path}."), names)

    @cached_property
    def _names(self) -> list[str]:
        return list(self.rank)

    def below(self, path: str) -> list[str]:
        """The parameters of the module at ``path`` and of everything under it."""
        return self._below.get(path, [])

    @cached_property
    def _below(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.parameters:
            found.setdefault("", []).append(name)
            owner = name.rpartition(".")[0]
            while owner:
                found.setdefault(owner, []).append(name)
                owner = owner.rpartition(".")[0]
        return found

    def order(self, path: str) -> tuple[int, str]:
        """A key that sorts paths as the modules stand in the model."""
        owner = path
        while owner not in self.rank:
            owner = owner.rpartition(".")[0]
        return self.rank[owner], path


def elements_of(layer: nn.Module, rows: Rows) -> int:
    """How many elements of a layer's own parameters belong to ``rows`` of its outputs."""
    own = [p for p in layer._parameters.values() if p is not None and rows.total in p.shape]
    return sum(p.numel() * rows.size // rows.total for p in own)


def _walk(module: nn.Module, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
    # Written out since named_modules(remove_duplicate=False) never ends on a module that holds
    # one of its own ancestors.
    yield path, module
    inside = (*above, id(module))
    for name, child in module._modules.items():  # pyright: ignore[reportPrivateUsage]
        if child is not None and id(child) not in inside:
            yield from _walk(child, f"{path}.{name}" if path else name, inside)
