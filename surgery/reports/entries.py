"""A plan folded for reading: edits that differ in nothing but the layer become one entry."""

from __future__ import annotations

from dataclasses import dataclass

from surgery.anatomy.attention_core import AttentionCore
from surgery.anatomy.site import Region, Tokens
from surgery.planning.edit import Edit, Tensor
from surgery.planning.plan import Plan
from surgery.reports.figures import Family, families
from surgery.reports.formula import Standing, formula_of


@dataclass(frozen=True)
class Entry:
    """Edits that read the same. ``formula`` is the change to what stands at the site, `y`.

    The tensors ``added`` have the names that the rule gives them.
    """

    edits: tuple[Edit, ...]
    formula: str
    added: tuple[Tensor, ...]

    @property
    def first(self) -> Edit:
        return self.edits[0]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(e.site.name for e in self.edits)

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
        return self.first.derived.unmerged


def kind_of(edit: Edit) -> str:
    """`linear 576 → 576`, `module 576 → 576`, `attention 9 heads × 64`, `tokens 576`."""
    if isinstance(edit.site.operator, Tokens):
        return f"tokens {edit.sizes['n']}"
    if edit.core is not None:
        core = edit.core
        return f"attention {core.query_heads} heads × {core.keys}{_grouped(core)}"
    if edit.layer is None:
        sizes = f"{edit.sizes['m']} → {edit.sizes['n']}" if edit.sizes else ""
        kind = "region" if isinstance(edit.site.operator, Region) else "module"
        return f"{kind} {sizes}".rstrip()
    layer = edit.layer
    name = layer.title
    groups = f", {layer.groups} groups" if layer.groups > 1 else ""
    if layer.experts:
        return f"{layer.experts} experts, {name} {layer.into} → {layer.out}"
    out = edit.site.rows.size if edit.site.rows else layer.out
    return f"{name} {layer.into} → {out}{groups}"


def _grouped(core: AttentionCore) -> str:
    return f", {core.heads} of keys" if core.heads != core.query_heads else ""


def entries_of(plan: Plan, standing: Standing) -> list[Entry]:
    """The edits of ``plan`` folded, in the order of the spec and then of the model."""
    groups: dict[object, list[Edit]] = {}
    for edit in plan.edits:
        groups.setdefault(_likeness(edit), []).append(edit)
    return [
        Entry(tuple(edits), formula_of(plan, edits[0], standing), edits[0].added)
        for edits in groups.values()
    ]


def _likeness(edit: Edit) -> object:
    sizes = tuple(sorted(edit.sizes.items()))
    method, rows = edit.method, edit.site.rows
    return (method.statement, method.child, edit.layer, rows, sizes, edit.added, edit.derived)
