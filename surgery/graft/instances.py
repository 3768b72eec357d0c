"""The methods of a model as what trains sees them: each at each of its sites, with its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from surgery.anatomy.modules import module_at
from surgery.graft.computing import Tensors, by_expert
from surgery.graft.graphs.emit import Emitter
from surgery.graft.sites import sites_of
from surgery.graft.state import Applied, Surgery
from surgery.planning.edit import Edit
from surgery.rules.dims import STEP, Scalar
from surgery.rules.expression import SITES, Expression
from surgery.rules.trained import CLOCK, Trained
from surgery.rules.values import Declaration


@dataclass(eq=False)
class Instance:
    """A method at one site, or at one of its experts."""

    model: nn.Module
    applied: Applied
    edit: Edit
    said: tuple[Trained, ...]
    declared: tuple[Declaration, ...]
    expert: int | None = None
    sites: int = 1
    values: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What has a name only while the steps of a rule run."""

    def held(self, name: str) -> Tensor:
        """The tensor of the model that a rule's param or state is, in the names of the program."""
        found: Any = module_at(self.model, self.edit.owner)
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def tensor(self, name: str) -> Tensor:
        """The same as the rule sees it: of experts, that of one of them."""
        if name in self.values:
            return self.values[name]
        held = self.held(name)
        return held if self.expert is None or name == self._clock else held[self.expert]

    @property
    def _clock(self) -> str:
        return f"{self.edit.graft}.{CLOCK}"

    @property
    def clock(self) -> Tensor | None:
        """What counts its steps, [steps, seed]; None if nothing does."""
        named = any(d.name == self._clock for d in self.declared)
        return self.held(self._clock) if named else None

    @property
    def steps(self) -> int | None:
        clock = self.clock
        return None if clock is None else int(clock[0])

    @property
    def sizes(self) -> Mapping[str, Scalar]:
        """The numbers that the rule knows at this site, the step among them."""
        steps = self.steps
        known: dict[str, Scalar] = {**self.edit.sizes, SITES: self.sites}
        return known if steps is None else {**known, STEP: steps}

    def value(self, e: Expression, known: Mapping[Expression, Any] | None = None) -> Any:
        """What ``e`` is here: a tensor, or a number."""
        return Emitter(Tensors(self._leaf), self.edit.layer, self.sizes, known=known).emit(e)

    def _leaf(self, e: Expression) -> Tensor:
        if e.op == "param":
            return self.tensor(e.name)
        layer = self.edit.layer
        assert layer is not None
        weight = getattr(module_at(self.model, self.edit.owner), layer.names[e.name])
        return weight if self.expert is None else by_expert(weight, layer)[self.expert]


def instances(model: nn.Module, surgery: Surgery) -> list[Instance]:
    """All methods in force, in order of application; those of one statement know how many they are."""
    programs = {site: methods.program for site, methods in sites_of(surgery).items()}
    found = [i for a in surgery.applied for e in a.edits for i in _at(model, a, e, programs)]
    for group in by_statement(found):
        for instance in group:
            instance.sites = len(group)
    return found


def by_statement(found: list[Instance]) -> list[list[Instance]]:
    """The instances of each statement of each spec together."""
    groups: dict[tuple[int, int], list[Instance]] = {}
    for instance in found:
        key = (id(instance.applied), instance.edit.method.statement)
        groups.setdefault(key, []).append(instance)
    return list(groups.values())


def _at(
    model: nn.Module, applied: Applied, edit: Edit, programs: Mapping[str, Any]
) -> Iterator[Instance]:
    program = programs[edit.site.whole]
    said = dict(program.training).get(edit.graft, ())
    declared = dict(program.declarations)[edit.graft]
    experts = edit.layer.experts if edit.layer else 0
    for expert in range(experts) if experts else (None,):
        yield Instance(model, applied, edit, said, declared, expert)
