"""A model as a tree, with layers that are alike folded into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from surgery.anatomy.site import Region, Site
from surgery.planning.layers import read_layer
from surgery.reports.figures import dimensions, families, millions
from surgery.reports.marks import NOTHING, Marks


@dataclass(frozen=True)
class Extra:
    """What a module has beside its children: a parameter with no usual name, a region, a slice."""

    label: str
    path: str
    roles: tuple[str, ...]
    marks: Marks = NOTHING


@dataclass(frozen=True)
class Branch:
    """One module, or several that are alike: ``names`` are theirs, the first stands for all."""

    names: tuple[str, ...]
    path: str
    kind: str
    roles: tuple[str, ...]
    elements: int
    extras: tuple[Extra, ...]
    children: tuple[Branch, ...]
    marks: Marks = NOTHING

    @property
    def label(self) -> str:
        """`q_proj`, or `{0…29}` for folded layers."""
        first, *others = self.names
        return str(families(self.names)[0]) if others else first

    def likeness(self) -> object:
        """What is equal for branches that read the same, whatever they are called."""
        below = tuple((c.names, c.likeness()) for c in self.children)
        extras = tuple((e.label, e.roles, e.marks) for e in self.extras)
        return (self.kind, self.roles, self.elements, self.marks, extras, below)

    def as_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "path": self.path,
            "kind": self.kind,
            "roles": list(self.roles),
            "elements": self.elements,
            "extras": [{"name": e.label, "roles": list(e.roles)} for e in self.extras],
            "children": [c.as_dict() for c in self.children],
        }


Roles = Callable[[str], tuple[str, ...]]


def tree_of(
    model: nn.Module,
    roles_of: Roles,
    sites: Iterable[Site] = (),
    marks: Mapping[str, Marks] | None = None,
) -> Branch:
    """The tree of ``model``, with those of ``sites`` that are no modules of their own.

    Layers that are told apart by their ``marks`` are not folded.
    """
    return _Tree(roles_of, _held(sites), marks or {}).branch(model, "", "", ())


def _held(sites: Iterable[Site]) -> dict[str, list[str]]:
    """The paths of regions, slices and parameters by the module that holds them."""
    found: dict[str, dict[str, None]] = {}
    for site in sites:
        if site.path != site.owner:
            region = isinstance(site.operator, Region)
            at = site.path.partition("[")[0] if region else site.owner
            found.setdefault(at, {})[site.path] = None
    return {at: list(paths) for at, paths in found.items()}


@dataclass(frozen=True)
class _Tree:
    roles_of: Roles
    held: Mapping[str, Sequence[str]]
    marks: Mapping[str, Marks]

    def branch(self, module: nn.Module, name: str, path: str, above: tuple[int, ...]) -> Branch:
        inside = (*above, id(module))
        children = [
            self.branch(child, key, _joined_path(path, key), inside)
            for key, child in module._modules.items()
            # A module may hold one of its own ancestors.
            if child is not None and id(child) not in inside
        ]
        return Branch(
            (name,),
            path,
            kind_of(module),
            self.roles_of(path),
            sum(p.numel() for p in module.parameters()),
            tuple(self.extras(module, path, bool(children))),
            tuple(_folded(children)),
            self.marks.get(path, NOTHING),
        )

    def extras(self, module: nn.Module, path: str, every: bool) -> Iterator[Extra]:
        held = list(self.held.get(path, ()))
        for key, parameter in module._parameters.items():
            own = _joined_path(path, key)
            if parameter is not None and (every or key not in ("weight", "bias") or own in held):
                yield self.extra(f"{key} [{dimensions(parameter.shape)}]", own)
                held = [other for other in held if other != own]
        for other in held:
            yield self.extra(other[len(path) :].lstrip("."), other)

    def extra(self, label: str, path: str) -> Extra:
        return Extra(label, path, self.roles_of(path), self.marks.get(path, NOTHING))


def _joined_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


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
    return replace(first, names=tuple(b.names[0] for b in run))


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
    for extra in branch.extras:
        yield (f"{'  ' * (depth + 1)}{extra.label}", "", ", ".join(extra.roles), "")
    for child in branch.children:
        yield from rows_of(child, depth + 1)
