"""The child module that holds the parameters a method added to a module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


class Graft(nn.Module):
    """Parameters of one method at one module, reached as `q_proj.lora.A`."""

    def put(self, name: str, parameter: nn.Parameter) -> None:
        """Register ``parameter`` under a dotted name, making children on the way."""
        head, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(head, parameter)
            return
        if head not in self._modules:
            self.add_module(head, Graft())
        child = self._modules[head]
        assert isinstance(child, Graft)
        child.put(rest, parameter)

    def extra_repr(self) -> str:
        return ", ".join(
            f"{n}: {list(p.shape)}" for n, p in self._parameters.items() if p is not None
        )


def find_graft(module: nn.Module, path: str) -> Graft | None:
    """The graft on ``module`` at ``path`` (`lora`, or `q.lora` on a slice), or None."""
    name, _, rest = path.partition(".")
    child = module._modules.get(name)
    if not isinstance(child, Graft):
        return None
    return find_graft(child, rest) if rest else child


def drop_graft(module: nn.Module, path: str) -> None:
    """Take the graft at ``path`` off ``module``, and those around it that are left empty."""
    above, _, name = path.rpartition(".")
    holder = find_graft(module, above) if above else module
    if holder is None or not isinstance(holder._modules.get(name), Graft):
        return
    del holder._modules[name]
    if above and not holder._modules and not holder._parameters:
        drop_graft(module, above)


def tables(
    module: nn.Module,
) -> list[tuple[dict[str, nn.Module | None], dict[str, nn.Module | None]]]:
    """The tables of children of ``module`` and of its grafts, each with what it holds now."""
    found = [(module._modules, dict(module._modules))]
    for child in module._modules.values():
        if isinstance(child, Graft):
            found += tables(child)
    return found


class HidesGrafts:
    """For containers that iterate over their children: grafts are not among the things they run."""

    _modules: dict[str, nn.Module | None]

    def _own(self) -> list[nn.Module | None]:
        return [m for m in self._modules.values() if not isinstance(m, Graft)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())

    def __getitem__(self, index: Any) -> Any:
        own = self._own()
        return nn.Sequential(*own[index]) if isinstance(index, slice) else own[index]  # type: ignore[arg-type]
