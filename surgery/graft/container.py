"""The child module that holds the parameters a method added to a module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from surgery.anatomy.modules import all_modules, module_at


class Graft(nn.Module):
    """Parameters of one method at one module, reached as `q_proj.lora.A`.

    One that several sites share is registered at the first of them alone, so that a state dict has
    it once; the others have it as an attribute that leads there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._links: dict[str, Graft] = {}

    def __getattr__(self, name: str) -> Any:
        holder = self.__dict__.get("_links", {}).get(name)
        return super().__getattr__(name) if holder is None else getattr(holder, name)

    def _put(self, name: str, parameter: Tensor, holders: Holders | None = None) -> None:
        """Have ``parameter``, or a state, under a dotted name, making children on the way.

        ``holders`` knows where parameters are registered, and learns of this one.
        """
        head, _, rest = name.partition(".")
        if rest:
            if head not in self._modules:
                self.add_module(head, Graft())
            child = self._modules[head]
            assert isinstance(child, Graft)
            child._put(rest, parameter, holders)
            return
        holder = self if holders is None else holders.setdefault(parameter, self)
        if holder is self:
            self._links = {n: h for n, h in self._links.items() if n != head}
            if isinstance(parameter, nn.Parameter):
                self.register_parameter(head, parameter)
            else:
                self.register_buffer(head, parameter)
        else:
            self._links = {**self._links, head: holder}

    def extra_repr(self) -> str:
        held = {**self._parameters, **self._buffers}
        shapes = {n: p.shape for n, p in held.items() if p is not None}
        shared = {n: getattr(holder, n).shape for n, holder in self._links.items()}
        return ", ".join(
            [f"{n}: {[*s]}" for n, s in shapes.items()]
            + [f"{n}: {[*s]} (shared)" for n, s in shared.items()]
        )


Holders = dict[Tensor, Graft]
"""The graft at which each parameter, or state, is registered."""


def rehome(model: nn.Module) -> None:
    """Register what is shared at those that are left, where its holder has gone from ``model``."""
    grafts = [m for m in all_modules(model) if isinstance(m, Graft)]
    left = set(grafts)
    heirs: Holders = {}
    for graft in grafts:
        for name, holder in list(graft._links.items()):
            if holder not in left:
                graft._put(name, getattr(holder, name), heirs)


def find_graft(module: nn.Module, path: str) -> Graft | None:
    """The graft on ``module`` at ``path`` (`lora`, or `q.lora` on a slice), or None."""
    name, _, rest = path.partition(".")
    child = module._modules.get(name)
    if not isinstance(child, Graft):
        return None
    return find_graft(child, rest) if rest else child


def graft_at(model: nn.Module, owner: str, path: str) -> Graft | None:
    """The graft at ``path`` on the module of ``model`` at ``owner``, if both are there."""
    try:
        return find_graft(module_at(model, owner), path)
    except AttributeError:
        return None


def drop_graft(module: nn.Module, path: str) -> None:
    """Take the graft at ``path`` off ``module``, and those around it that are left empty."""
    above, _, name = path.rpartition(".")
    holder = find_graft(module, above) if above else module
    if holder is None or not isinstance(holder._modules.get(name), Graft):
        return
    del holder._modules[name]
    if above and not (holder._modules or holder._parameters or holder._buffers):
        drop_graft(module, above)


def take_grafts(model: nn.Module) -> None:
    """Take every graft off the modules of ``model``."""
    for module in all_modules(model):
        children = module._modules
        for name in [n for n, m in children.items() if isinstance(m, Graft)] if children else ():
            del children[name]


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
