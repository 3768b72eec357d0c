"""A plan folded for reading: edits that differ in nothing but the layer become one entry."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.anatomy.site import Core
from surgery.planning.plan import Edit, Plan, Tensor
from surgery.reports.figures import Family, families
from surgery.reports.formula import Standing, formula_of


@dataclass(frozen=True)
class Addition:
    """A tensor that an edit adds, named from the module it goes to."""

    name: str
    shape: tuple[int, ...]
    init: str
    trained: bool
    shared: bool
    dtype: str

    @property
    def marks(self) -> list[str]:
        """What is uncommon about it."""
        return ["frozen"] * (not self.trained) + ["shared"] * self.shared


@dataclass(frozen=True)
class Entry:
    """Edits that read the same. ``formula`` is the change to what stands at the site, `y`."""

    edits: tuple[Edit, ...]
    formula: str
    additions: tuple[Addition, ...]

    @property
    def first(self) -> Edit:
        return self.edits[0]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(e.site for e in self.edits)

    @property
    def families(self) -> list[Family]:
        return families(self.sites)

    @property
    def kind(self) -> str:
        """What the sites are, with the sizes that the rule sees: `linear 576 → 576`."""
        return kind_of(self.first)

    @property
    def reason(self) -> str | None:
        """Why the edits do not merge back, or None if they do."""
        return None if self.first.merges else self.first.obstacle or self.first.reason


def kind_of(edit: Edit) -> str:
    """`linear 576 → 576`, `module 576 → 576`, `attention 9 heads × 64`, `tokens 576`."""
    if edit.tokens is not None:
        return f"tokens {edit.sizes['n']}"
    if edit.core is not None:
        core = edit.core
        return f"attention {core.query_heads} heads × {core.keys}{_grouped(core)}"
    if edit.layer is None:
        sizes = f"{edit.sizes['m']} → {edit.sizes['n']}" if edit.sizes else ""
        return f"{'region' if edit.site.endswith(']') else 'module'} {sizes}".rstrip()
    layer = edit.layer
    name = layer.title
    groups = f", {layer.groups} groups" if layer.groups > 1 else ""
    if layer.experts:
        return f"{layer.experts} experts, {name} {layer.into} → {layer.out}"
    out = edit.rows.size if edit.rows else layer.out
    return f"{name} {layer.into} → {out}{groups}"


def _grouped(core: Core) -> str:
    return f", {core.heads} of keys" if core.heads != core.query_heads else ""


def entries_of(plan: Plan, standing: Standing) -> list[Entry]:
    """The edits of ``plan`` folded, in the order of the spec and then of the model."""
    groups: dict[object, list[Edit]] = {}
    for edit in plan.edits:
        groups.setdefault(_likeness(edit), []).append(edit)
    return [
        Entry(tuple(edits), formula_of(plan, edits[0], standing), additions_of(edits[0]))
        for edits in groups.values()
    ]


def _likeness(edit: Edit) -> object:
    sizes = tuple(sorted(edit.sizes.items()))
    derived = (edit.formula, edit.identity, edit.merges, edit.reason, edit.obstacle, edit.flops)
    return (edit.statement, edit.child, edit.layer, edit.rows, sizes, additions_of(edit), *derived)


def additions_of(edit: Edit) -> tuple[Addition, ...]:
    """The tensors of ``edit`` with the names that its rule gives them."""
    return tuple(
        Addition(local_name(edit, t), t.shape, t.init, t.trained, t.shared is not None, t.dtype)
        for t in edit.tensors
    )


def local_name(edit: Edit, tensor: Tensor) -> str:
    """The name of a tensor below its method: `A` of `q_proj.lora.A`."""
    owner = edit.owner
    return tensor.name.removeprefix(f"{owner}." if owner else "").removeprefix(f"{edit.graft}.")
