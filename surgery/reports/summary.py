"""What a plan comes to: the figures of its last line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from surgery.planning.plan import Plan
from surgery.reports.context import ModelContext
from surgery.reports.figures import millions, operations, percent, some


@dataclass(frozen=True)
class Summary:
    """Counts of a plan; ``elements`` and ``trainable`` count a shared parameter once.

    ``flops`` are those added for one token when every site runs.
    """

    sites: int
    edits: int
    parameters: int
    elements: int
    base_elements: int
    trainable: int
    thawed: int
    frozen: int
    merging: int
    identity: bool
    flops: int
    base_flops: int | None
    steered: bool = False
    """Whether statements speak of methods' params, the optimizer or the loss."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all would change."""
        return not (self.edits or self.thawed or self.frozen or self.steered)

    @property
    def share(self) -> str:
        """Which part of all parameters trains, added ones included."""
        return percent(self.trainable, self.base_elements + self.elements)

    def as_dict(self) -> dict[str, Any]:
        total = self.base_elements + self.elements
        percentage = round(100 * self.trainable / total, 6) if total else 0.0
        own = asdict(self)
        if not own.pop("steered"):
            return own | {"trainable_percent": percentage, "empty": self.is_empty}
        return own | {"steered": True, "trainable_percent": percentage, "empty": self.is_empty}

    def __str__(self) -> str:
        if self.is_empty:
            return "No changes."
        if not self.edits:
            changes = [f"{some(self.thawed, 'base parameter')} made trainable"] * bool(self.thawed)
            changes += [f"{self.frozen:,} frozen"] * bool(self.frozen)
            changes += ["what methods train by is changed"] * self.steered
            return f"Plan: {', '.join(changes)} ({self.share} of all parameters trainable)."
        added = some(self.parameters, "tensor")
        figures = f"{millions(self.elements)} parameters; {self.share} of all parameters trainable"
        text = f"Plan: {some(self.sites, 'site')} changed, {added} added ({figures})."
        return f"{text} {self.merges}"

    @property
    def merges(self) -> str:
        """Whether the edits can be merged into the base weights, as a sentence."""
        if self.merging == self.edits:
            return "All can be merged."
        if not self.merging:
            return "None can be merged."
        return f"{self.merging:,} of {self.edits:,} can be merged."

    @property
    def cost(self) -> str | None:
        """What the edits compute more, as a phrase; None if nothing."""
        if not self.flops:
            return None
        text = f"+{operations(self.flops)} per token"
        if self.base_flops:
            share = percent(self.flops, self.base_flops)
            text += f" (+{share} of the base model's matrix products)"
        return text


def summary_of(plan: Plan, context: ModelContext) -> Summary:
    """Add up ``plan``."""
    last = {e.site.name: e for e in plan.edits}
    return Summary(
        sites=len(last),
        edits=len(plan.edits),
        parameters=sum(not t.state for t in plan.distinct),
        elements=plan.added,
        base_elements=plan.parameters,
        trainable=plan.trainable,
        thawed=sum(not context.flags[n] for n in plan.trained),
        frozen=sum(context.flags[n] for n in plan.frozen),
        merging=sum(e.derived.merges for e in plan.edits),
        identity=all(e.derived.identity for e in last.values()),
        flops=sum(e.derived.flops for e in plan.edits),
        base_flops=context.flops,
        steered=bool(plan.flags or plan.options or plan.penalties),
    )
