"""A model as a tree, with layers that are alike folded into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery.planning.layers import read_layer
from surgery.reports.figures import dimensions, families, millions


@dataclass(frozen=True)
class Branch:
    """One module, or several that are alike: ``names`` are theirs, the first stands for all."""

    names: tuple[str, ...]
    path: str
    kind: str
    roles: tuple[str, ...]
    elements: int
    extras: tuple[tuple[str, tuple[str, ...]], ...]
    """Parameters of its own that have no usual name, and regions within it, with their roles."""
    children: tuple[Branch, ...]

    @property
    def label(self) -> str:
        """`q_proj`, or `{0…29}` for folded layers."""
        first, *others = self.names
        return str(families(self.names)[0]) if others else first

    def likeness(self) -> object:
        """What is equal for branches that read the same, whatever they are called."""
        below = tuple((c.names, c.likeness()) for c in self.children)
        extras = tuple((name, roles) for name, roles in self.extras)
        return (self.kind, self.roles, self.elements, extras, below)

    def as_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "path": self.path,
            "kind": self.kind,
            "roles": list(self.roles),
            "elements": self.elements,
            "extras": [{"name": n, "roles": list(r)} for n, r in self.extras],
            "children": [c.as_dict() for c in self.children],
        }


Roles = Callable[[str], tuple[str, ...]]


def tree_of(model: nn.Module, roles_of: Roles, regions: dict[str, list[str]]) -> Branch:
    """The tree of ``model``; ``regions`` are paths of regions by the module they lie in."""
    return _branch(model, "", "", roles_of, regions)


def _branch(
    module: nn.Module, name: str, path: str, roles_of: Roles, regions: dict[str, list[str]]
) -> Branch:
    children = [
        _branch(child, key, f"{path}.{key}" if path else key, roles_of, regions)
        for key, child in module._modules.items()
        if child is not None
    ]
    extras = [
        (f"{key} [{dimensions(p.shape)}]", roles_of(f"{path}.{key}" if path else key))
        for key, p in module._parameters.items()
        if p is not None and (children or key not in ("weight", "bias"))
    ]
    extras += [
        (region[len(path) :].lstrip("."), roles_of(region)) for region in regions.get(path, ())
    ]
    elements = sum(p.numel() for p in module.parameters())
    folded = tuple(_folded(children))
    return Branch((name,), path, kind_of(module), roles_of(path), elements, tuple(extras), folded)


def _folded(children: list[Branch]) -> Iterator[Branch]:
    """Neighbours that are numbered and alike become one."""
    run: list[Branch] = []
    for child in children:
        alike = run and child.names[0].isdigit() and run[0].likeness() == child.likeness()
        if run and not alike:
            yield _joined(run)
            run = []
        run.append(child)
        if not child.names[0].isdigit():
            yield _joined(run)
            run = []
    if run:
        yield _joined(run)


def _joined(run: list[Branch]) -> Branch:
    first = run[0]
    if len(run) == 1:
        return first
    names = tuple(b.names[0] for b in run)
    return Branch(
        names, first.path, first.kind, first.roles, first.elements, first.extras, first.children
    )


def kind_of(module: nn.Module) -> str:
    name = type(module).__name__
    layer = read_layer(module)
    if layer is not None and not layer.columns:
        bias = "" if layer.bias or layer.kind.one_hot else ", no bias"
        return f"{name} {layer.into} → {layer.out}{bias}"
    weight = module._parameters.get("weight")
    if weight is not None:
        return f"{name} [{dimensions(weight.shape)}]"
    return name


def rows_of(branch: Branch, depth: int = 0) -> Iterator[tuple[str, str, str, str]]:
    """Lines as cells: name, kind, roles, elements."""
    times = f" × {len(branch.names)}" if len(branch.names) > 1 else ""
    label = f"{'  ' * depth}{branch.label or '(the model)'}{times}"
    size = millions(branch.elements) if branch.elements else ""
    yield (label, branch.kind, ", ".join(branch.roles), size)
    for name, roles in branch.extras:
        yield (f"{'  ' * (depth + 1)}{name}", "", ", ".join(roles), "")
    for child in branch.children:
        yield from rows_of(child, depth + 1)
