"""The parameters of a plan, made before anything of the model changes."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import all_parameters, module_at
from surgery.anatomy.site import Tokens
from surgery.graft.initialise import generator, initial, initial_of_each
from surgery.graft.seeds import draw_key, seed_of
from surgery.graft.sites import program_of
from surgery.graft.state import Surgery
from surgery.graft.tokens.words import embedded_words
from surgery.language.diagnostics import error
from surgery.planning.edit import Edit
from surgery.planning.edit import Tensor as Planned
from surgery.planning.plan import Plan
from surgery.rules.expand import Wrapped
from surgery.rules.expression import Expression
from surgery.rules.values import Declaration, is_clock

_LARGE = 1 << 28
"""Bytes below which torch does not fail for want of room."""


@dataclass(frozen=True)
class Start:
    """Where first values come from: a seed, a tokenizer for texts, or ``values`` by name."""

    seed: int
    tokenizer: Any = None
    values: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def create(
    model: nn.Module, surgery: Surgery, plan: Plan, start: Start
) -> list[tuple[Edit, dict[str, Tensor]]]:
    """All new parameters and states of ``plan`` by their names below the module that gets them."""
    creation = _Creation(model, start, surgery.standing(), dict(all_parameters(model)))
    return [(edit, creation.method(edit)) for edit in plan.edits]


@dataclass
class _Creation:
    """A plan's tensors while they are made, beside those that the model has, by name."""

    model: nn.Module
    start: Start
    standing: dict[str, list[Wrapped]]
    known: dict[str, Tensor]
    shared: dict[tuple[Any, ...], Tensor] = field(default_factory=dict[tuple[Any, ...], Tensor])

    def method(self, edit: Edit) -> dict[str, Tensor]:
        """The tensors of one method, by their names below the module that gets them."""
        wraps = self.standing.setdefault(edit.site.whole, [])
        wraps.append(edit.wrapped)
        declarations = dict(program_of(edit, wraps).declarations)[edit.graft]
        made: dict[str, Tensor] = {}
        for declaration, planned in zip(declarations, edit.tensors, strict=True):
            tensor = self.tensor(edit, declaration, planned)
            made[declaration.name] = self.known[planned.name] = tensor
        return made

    def tensor(self, edit: Edit, declaration: Declaration, planned: Planned) -> Tensor:
        """One of them; one that several sites share is made at the first. A state is no parameter."""
        key = edit.shared_key(planned)
        if key is not None and key in self.shared:
            return self.shared[key]
        value = self.first(edit, declaration, planned)
        made = value if planned.state else nn.Parameter(value, requires_grad=planned.trained)
        if key is not None:
            self.shared[key] = made
        return made

    def first(self, edit: Edit, declaration: Declaration, planned: Planned) -> Tensor:
        """Its first value: from a file, from a tokenizer's words, or as the rule says."""
        device = _device(module_at(self.model, edit.owner))
        saved, seed = self.start.values.get(planned.name), self.start.seed
        if saved is not None and saved.shape == planned.shape:
            return saved.to(device, copy=True)
        if is_clock(declaration):
            return torch.tensor([0, seed_of(seed)], device=device)
        key = f"{seed}:{edit.shared_key(planned) or planned.name}"
        if declaration.drawn:
            key = draw_key(seed_of(seed), edit, planned, 0)
        like = torch.empty(0, dtype=getattr(torch, planned.dtype), device=device)
        if declaration.init.distribution == "vocabulary":
            return self.words(edit, declaration, planned, key).to(like)
        with _room_for(planned):
            given = (edit.sizes, like, partial(self.value, edit))
            if edit.layer and edit.layer.experts:
                return initial_of_each(declaration, key, edit.layer, *given)
            return initial(declaration, key, edit.layer, *given)

    def words(self, edit: Edit, declaration: Declaration, planned: Planned, key: str) -> Tensor:
        """Rows of the model's own table of embeddings."""
        assert isinstance(edit.site.operator, Tokens)
        table: Any = self.model.get_submodule(edit.site.operator.embedding).weight
        text = str(dict(declaration.init.arguments)["text"])
        return embedded_words(table, planned.shape[0], text, self.start.tokenizer, generator(key))

    def value(self, edit: Edit, e: Expression) -> Tensor:
        """What a first value reads: a tensor of the layer, or a param of the method."""
        layer, owned = edit.layer, e.op == "operand"
        name = layer.names[e.name] if layer and owned else e.name
        if not owned or layer is None or layer.plain:
            found = self.known.get(edit.prefix + name)
            if found is not None:
                return found.detach()
        # A weight that is not held is what the module makes of others, as parametrizations do.
        return getattr(module_at(self.model, edit.owner), name).detach()


@contextmanager
def _room_for(tensor: Planned) -> Generator[None]:
    """What torch cannot allocate is an error of the spec that asks for it."""
    try:
        yield
    except (MemoryError, RuntimeError) as cause:
        size = prod(tensor.shape) * getattr(torch, tensor.dtype).itemsize
        if isinstance(cause, RuntimeError) and size < _LARGE:
            raise
        raise error(
            "S406", f"no memory here holds `{tensor.name}`: {[*tensor.shape]}, {size:.2g} bytes"
        ) from cause


def _device(module: nn.Module) -> torch.device:
    """Where new tensors of ``module`` are: where its own parameters are, or those in it."""
    own = next((p.device for p in module._parameters.values() if p is not None), None)
    return own or next((p.device for p in module.parameters()), torch.device("cpu"))
