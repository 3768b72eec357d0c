"""The anatomy of a model: its roles, its layers, and what passes its modules."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from surgery.anatomy.dims import TURNED, Sizes
from surgery.anatomy.graph import ModuleCall, Recording, shape_of
from surgery.anatomy.kept import kept
from surgery.anatomy.numbers import deciding
from surgery.anatomy.paths import Paths
from surgery.anatomy.roles.axes import Layout, layout
from surgery.anatomy.roles.places import Reading
from surgery.anatomy.run import record
from surgery.anatomy.site import BareParameter, LinearMap, Port, Site, Tokens, WholeModule, covers
from surgery.anatomy.state import uncollected
from surgery.anatomy.uses import ParameterUses
from surgery.anatomy.varied import LentSizes, Varied
from surgery.language.diagnostics import SurgeryError


def read(model: nn.Module, example_inputs: Any = None) -> Anatomy:
    """The anatomy of ``model``, read from one forward; the model is left exactly as it was.

    A reading is kept until the model changes (see kept.py).

    Raises:
        SurgeryError: S501 if no inputs can be made up, S502 if the model does not run on them.

    >>> from torch import nn
    >>> anatomy = read(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    >>> [site.path for site in anatomy.places["mlp"]]
    ['[linear1..linear2]']

    """
    try:
        found = forward(model, example_inputs, cheap=True)
    except SurgeryError:
        found = forward(model, example_inputs)
    return found.anatomy.of(model, found.lend(model, example_inputs))


def forward(
    model: nn.Module, example_inputs: Any = None, training: bool = False, cheap: bool = False
) -> Forward:
    """One recorded forward of ``model``, in evaluation or in training; see :func:`record`."""

    def recorded(paths: Paths) -> Forward:
        return Forward(record(model, example_inputs, paths, training, cheap), paths)

    return kept(model, example_inputs, (training, cheap), recorded)


class Forward:
    """One recorded forward, and what is read from it."""

    def __init__(self, recording: Recording, paths: Paths):
        self.recording = recording
        self.paths = paths
        self.sizes = LentSizes()
        self.lasting = recording.release()
        self.deciding = deciding(recording)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The roles of modules, and what passes these."""
        return Anatomy(self.recording, self.paths, self.sizes)

    def lend(self, model: nn.Module, example_inputs: Any) -> Varied:
        """Have the inputs at hand, to be varied as long as the caller keeps what this returns."""
        return self.sizes.lend(Varied(model, example_inputs, self.paths, self.recording))

    @cached_property
    def uses(self) -> ParameterUses:
        """Who uses which parameter."""
        return ParameterUses(self.recording, self.paths)


@dataclass(frozen=True)
class Passage:
    """How a module was called: the shape of what it returned, where features are, how often."""

    output_shape: tuple[int, ...]
    layout: Layout
    times: int


class Anatomy:
    """What one forward of a model tells of it, and where ``sizes`` say too little, some more."""

    model: nn.Module | None = None

    def __init__(self, recording: Recording, paths: Paths, sizes: Sizes | None = None):
        self.recording = recording
        self.paths = paths
        self.sizes = sizes

    def of(self, model: nn.Module, sizes: Sizes) -> Anatomy:
        """The same for use apart: with it lives ``model``, whose names are in it, and ``sizes``."""
        _ = self.reading
        found = copy(self)
        found.model, found.sizes = model, sizes
        return found

    @cached_property
    def reading(self) -> Reading:
        """The analysis behind the roles."""
        # What depends on what is told by gradients, whatever mode the caller is in.
        with torch.inference_mode(False), torch.enable_grad(), uncollected():
            return Reading(self.recording, self.paths, self.sizes)

    @property
    def places(self) -> dict[str, tuple[Site, ...]]:
        """The sites of each role that occurs, in model order."""
        return self.reading.places

    @cached_property
    def _roles(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for role, sites in self.places.items():
            # What is a linear has mostly a role that says more.
            for site in sites if role != "linear" else ():
                for path in site.paths:
                    found.setdefault(path, []).append(role)
        return found

    def roles_of(self, path: str) -> tuple[str, ...]:
        """The roles of the module, or region, at ``path``."""
        return tuple(self._roles.get(path, ()))

    def place_of(self, site: Site) -> Site:
        """``site`` with its ports, residual, norm and layer as the forward showed them.

        A site that a role has found is complete, and so is what is no module. A module gets its
        main hidden states; where it never ran, it stays as it is, but for its layer.
        """
        operator, path = site.operator, self.paths.canonical(site.exit.path)
        if not isinstance(operator, WholeModule | LinearMap) or site.path != site.exit.path:
            return site
        if site.role is not None and site.entry.argument is not None:
            return site
        for role in ("attention", "mlp"):
            for place in self.places.get(role, ()):
                if isinstance(place.operator, WholeModule) and place.path == path:
                    found = replace(place, path=site.path, paths=site.paths, role=site.role or role)
                    return found if site.layer is None else replace(found, operator=operator)
        index, calls = self.layer_of(path), self._calls(path)
        if not calls:
            return replace(site, index=index)
        found = self.reading.sites.described(calls[0], site.role)
        return replace(
            found, path=site.path, paths=site.paths, operator=operator, role=site.role, index=index
        )

    def experts_in(self, site: Site) -> tuple[Site, ...]:
        """The weights of experts that a module holds, or the parameter that is one."""
        held = self.reading.sites.expert_weights
        place = self.paths.canonical(site.path)
        whole, index = isinstance(site.operator, WholeModule), self.layer_of(site.exit.path)
        names = [n for n in held if n == place or (whole and covers(place, n))]
        found = (replace(self.paths.parameter(n), operator=LinearMap(held[n])) for n in names)
        return tuple(replace(weight, role=site.role, index=index) for weight in found)

    def matrix_at(self, site: Site) -> Site | None:
        """The linear map whose weight is the parameter at ``site``, or the only one of a module."""
        place = self.paths.canonical(site.path)
        for name, (matrix, linear) in self.reading.sites.matrices.items():
            owner = name.rpartition(".")[0]
            calls, weight = self._calls(owner), self.paths.parameter(name)
            # In a graph it is not known what a module returns beside what is used of it.
            path = owner if calls and calls[0].virtual else linear.path
            if calls and place == (name if isinstance(site.operator, BareParameter) else path):
                entry = self.reading.ports.input(calls[0], linear.source) or weight.entry
                index = self.layer_of(weight.exit.path)
                found = replace(weight, role=site.role, index=index, entry=entry)
                return replace(found, operator=LinearMap(matrix))
        return None

    def call(self, path: str) -> Passage | None:
        """How the module at ``path`` was called, or None if it never was."""
        calls = self._calls(path)
        if not calls:
            return None
        flow = self.reading.flow
        value = flow.main_output(calls[0])
        if value is None:
            value = next((value for _, value in calls[0].outputs), None)
        if value is None:
            return Passage((), "last", len(calls))
        return Passage(shape_of(value), layout(flow, value), len(calls))

    def port_shape(self, port: Port) -> tuple[int, ...]:
        """The shape of the value at ``port`` in the recorded forward; () if it was never seen."""
        value = self._value(port)
        return () if value is None else shape_of(value)

    def tokens_at(self, port: Port) -> Tokens | None:
        """The last of the token sequences that the value at ``port`` is made of.

        Decoders' states are made of their own tokens and, later, of their encoder's too.
        """
        value = self._value(port)
        found: Tokens | None = None
        for place in self.places.get("tokens", ()):
            embedded, tokens = self._value(place.entry), place.operator
            if value is not None and embedded is not None and isinstance(tokens, Tokens):
                found = tokens if self.reading.flow.depends(value, embedded) else found
        return found

    def length_first(self, port: Port) -> bool:
        """Whether the states at ``port`` are [length, batch, features], as the record can tell.

        They are made of ids [batch, length] or of embedded ones, and have their dims the other way
        round; as many of one as of the other tell nothing.
        """
        value, flow = self._value(port), self.reading.flow
        if value is None:
            return False
        given = [
            argument
            for argument in self.recording.arguments
            if len(shape_of(argument)) == (3 if flow.is_number(argument) else 2)
            and flow.depends(value, argument)
        ]
        if any(flow.dims.alike(value, argument) for argument in given):
            return False
        return any(flow.dims.alike(value, argument, TURNED) for argument in given)

    def sequences(self, port: Port) -> Port | None:
        """Where states [batch, length, features] come into a call around ``port``, whose value has

        them as rows, [batch · length, features], or with dims of 1 between.
        """
        rows = [size for size in self.port_shape(port)[:-1] if size != 1]
        for call in self._calls(port.path)[:1]:
            for around in self.recording.stack(call.parent):
                value = self.reading.flow.main_input(around)
                shape = () if value is None else shape_of(value)
                whole = len(shape) == 3 and rows in ([shape[0] * shape[1]], [*shape[:2]])
                if value is not None and whole:
                    return self.reading.ports.input(around, value)
        return None

    def _value(self, port: Port) -> Node | None:
        for call in self._calls(port.path):
            if port.side == "output":
                values = call.outputs
            elif port.argument is None:
                return self.reading.flow.main_input(call)
            else:
                values = call.inputs.get(port.argument, [])
            for key, value in values:
                if key == port.index:
                    return value
        return None

    def layer_of(self, path: str) -> int | None:
        """The number of the layer that ``path`` lies in, or None outside of all."""
        return self.reading.sites.regions.layer(self.paths.canonical(path))

    def stack_of(self, place: Site | str) -> str | None:
        """The path of the list of layers that ``place`` lies in, or None outside of all."""
        path = place if isinstance(place, str) else place.spans[0]
        found = self.reading.sites.regions.layer_at(self.paths.canonical(path))
        return found.stack if found is not None else None

    def _calls(self, path: str) -> list[ModuleCall]:
        return self.recording.calls_of.get(self.paths.canonical(path), [])
