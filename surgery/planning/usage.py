"""What the recorded forward says of a site: who reads its weight, and whether it has a part in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import fx, nn

from surgery.anatomy.graph import call_of
from surgery.anatomy.modes import may_read_in_training
from surgery.anatomy.paths import Paths
from surgery.anatomy.read import Anatomy, Forward, forward, read
from surgery.anatomy.site import Port, Site, Tokens, covers
from surgery.anatomy.uses import ParameterUse, ParameterUses
from surgery.language.diagnostics import SurgeryError
from surgery.layers import Layer

NEVER = "never run"
LOST = "run, but nothing of what they give reaches the result"
BLIND = "reach the result only where the model takes no gradients, so nothing would train"


class Usage:
    """One model's forward, recorded when something asks for it; in training only where it matters."""

    def __init__(self, model: nn.Module, example_inputs: Any = None):
        self.model = model
        self.example_inputs = example_inputs

    @cached_property
    def paths(self) -> Paths:
        """The names of the model's modules and parameters."""
        return Paths(self.model)

    @cached_property
    def anatomy(self) -> Anatomy:
        """What roles are read from.

        Raises:
            SurgeryError: S501 or S502 if the model cannot be run.

        """
        found = self._recorded
        if isinstance(found, SurgeryError):
            return read(self.model, self.example_inputs)
        self._lent = found.lend(self.model, self.example_inputs)
        return found.anatomy

    @cached_property
    def _recorded(self) -> Forward | SurgeryError:
        return self._try(training=False)

    def _try(self, training: bool) -> Forward | SurgeryError:
        try:
            return forward(self.model, self.example_inputs, training, cheap=True)
        except SurgeryError as problem:
            return problem

    @cached_property
    def uses(self) -> ParameterUses | None:
        """Who takes part in a forward in evaluation; None if none could be recorded."""
        found = self._recorded
        return None if isinstance(found, SurgeryError) else found.uses

    @cached_property
    def uses_in_training(self) -> ParameterUses | None:
        """The same in training; None if none could be recorded."""
        found = self._try(training=True)
        return None if isinstance(found, SurgeryError) else found.uses

    @cached_property
    def unchecked(self) -> str | None:
        """Why it is not known what has a part in the result, or None if it is."""
        found = self._recorded
        if isinstance(found, SurgeryError):
            return found.diagnostics[0].message
        if self.uses is not None and not self.uses.certain:
            return "some of what its forward computes is out of sight"
        return None

    # who reads a weight

    def read(self, layer: Layer, path: str) -> Layer:
        """``layer`` of the module at ``path`` as others read it, if they do.

        A table that is looked up in, and is a head's weight by use alone, is changed as a table
        only, as one is that is tied by name.
        """
        weight = f"{path}.{layer.weight}" if path else layer.weight
        outside, inside, bias = self._reads(weight, path, layer)
        if not outside or layer.read or isinstance(self.model, fx.GraphModule):
            return layer
        called = self.uses is not None and self.uses.runs(path)
        if (called and layer.kind.one_hot) or not (layer.plain or layer.native):
            return layer
        straight = all(_is_straight(use, layer) for use in (*outside, *inside))
        states = {(use.states, use.length_first) for use in outside}
        same, length_first = states.pop() if straight and len(states) == 1 else (None, False)
        adds = called or bias
        return replace(
            layer,
            read=True,
            straight=straight,
            bias=layer.bias and adds,
            adds=adds,
            states=same,
            length_first=length_first,
        )

    def _reads(
        self, weight: str, path: str, layer: Layer
    ) -> tuple[list[ParameterUse], list[ParameterUse], bool]:
        """The uses of a weight by others than its module, those by it, and if they take its bias."""
        outside: list[ParameterUse] = []
        inside: list[ParameterUse] = []
        bias = False
        offset = f"{path}.{layer.offset}" if path else layer.offset
        for uses in self._told(weight):
            if uses.taken(weight):
                others = uses.outside(weight)
                outside += others
                inside += [use for use in uses.of(weight) if use not in others]
                bias = bias or uses.taken(offset)
        return outside, inside, bias

    def _told(self, weight: str) -> Sequence[ParameterUses]:
        """The uses in the modes in which others than its module use a parameter."""
        if weight not in self.paths.parameters:
            return ()
        first = self.paths.canonical(weight)
        return [uses for uses in self._modes if first in uses.read_outside]

    @cached_property
    def _modes(self) -> tuple[ParameterUses, ...]:
        """The uses in evaluation, and those in training where they may be others."""
        other = self.uses_in_training if may_read_in_training(self.paths) else None
        return tuple(uses for uses in (self.uses, other) if uses is not None)

    def reader(self, name: str) -> str | None:
        """A module that reads the parameter ``name`` though it is not its own, if there is one."""
        for uses in self._told(name):
            for use in uses.outside(name):
                return use.reader
        return None

    def entry(self, site: Site) -> Port | None:
        """Where the states enter that another module multiplies with the weight at ``site``."""
        layer = site.layer
        if layer is None or not layer.read or self.uses is None:
            return None
        outside = self.uses.outside(f"{site.exit.path}.{layer.weight}".lstrip("."))
        if not outside:
            return None
        call = self.uses.recording.calls[call_of(outside[0].op)]
        return self.anatomy.reading.ports.main_input(call)

    # what has a part in the result

    def idle(self, site: Site, tensors: Sequence[str] = "W") -> str | None:
        """Why a change at ``site`` would change nothing of the result, or None if it might.

        Where others read what its layer holds, the change is one of these ``tensors``.
        """
        uses, path, layer = self.uses, site.exit.path, site.layer
        if uses is None or isinstance(site.operator, Tokens):
            return None
        if layer is not None and (layer.read or self._taken_alone(path)):
            names = [f"{site.exit.path}.{layer.names[t]}".lstrip(".") for t in tensors or "W"]
            reasons = [self.unused(name, alone=True) for name in names]
            return reasons[0] if all(reasons) else None
        if path in uses.live:
            return None
        found = self._idle(lambda u: u.runs(path), lambda u, t: u.reaches(path, t), path)
        if found == NEVER and layer is not None:
            weight = f"{path}.{layer.weight}" if path else layer.weight
            reader = self.reader(weight)
            if reader is not None:
                who = f"`{reader}`" if reader else "the model"
                return f"never run: {who} reads their weight where no method can change it"
        return found

    def _taken_alone(self, path: str) -> bool:
        """Whether a graph takes the parameters of the module at ``path``, and never runs it."""
        uses = self.uses
        return isinstance(self.model, fx.GraphModule) and uses is not None and not uses.runs(path)

    def unused(self, name: str, alone: bool = False) -> str | None:
        """Why the parameter ``name`` has no part in the result, or None if it might have one.

        Of a tied one only what is taken by that name counts ``alone``.
        """
        return self._idle(lambda u: bool(u.of(name)), lambda u, t: u.acts(name, t, alone), name)

    def _idle(
        self,
        runs: Callable[[ParameterUses], bool],
        reaches: Callable[[ParameterUses, bool], bool],
        path: str,
    ) -> str | None:
        uses = self.uses
        if uses is None or not uses.recording.followed:
            return None
        ran = runs(uses)
        if reaches(uses, True) or (ran and not uses.certain):
            return None
        acts = reaches(uses, False)
        other = self.uses_in_training
        if other is not None and runs(other):
            if reaches(other, True) or not other.certain:
                return None
            acts = acts or reaches(other, False)
        if not ran and not acts and self._is_of_an_expert(path):
            return None
        return BLIND if acts else LOST if ran else NEVER

    def _is_of_an_expert(self, path: str) -> bool:
        """Whether ``path`` lies in an expert to which a router might send other inputs."""
        try:
            return any(path == e or covers(e, path) for e in self._experts)
        except SurgeryError:
            return False

    @cached_property
    def _experts(self) -> tuple[str, ...]:
        assert self.uses is not None
        mixtures = self.anatomy.reading.mixtures
        return tuple(
            expert
            for mixture in mixtures
            if any(map(self.uses.reaches, mixture.expert))
            for expert in mixture.expert
        )


def _is_straight(use: ParameterUse, layer: Layer) -> bool:
    """Whether a weight is multiplied with as its layer does it."""
    kind = layer.kind
    return kind.features and use.states is not None and use.transposed == kind.transposed
