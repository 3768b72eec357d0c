"""The parameters of a plan, made before anything of the model changes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from surgery.anatomy.modules import module_at
from surgery.anatomy.site import Tokens
from surgery.graft.initialise import generator, initial, initial_of_each
from surgery.graft.seeds import draw_key, seed_of
from surgery.graft.sites import program_of
from surgery.graft.state import Surgery
from surgery.graft.structure import set_flag
from surgery.graft.tokens.words import embedded_words
from surgery.language.diagnostics import error
from surgery.layers import Layer
from surgery.planning.edit import Edit
from surgery.planning.edit import Tensor as Planned
from surgery.planning.plan import Plan
from surgery.rules.expression import Expression
from surgery.rules.values import Declaration

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
    parameters = dict(model.named_parameters(remove_duplicate=False))
    standing = surgery.standing()
    shared: dict[tuple[Any, ...], Tensor] = {}
    fresh: dict[str, Tensor] = {}
    created: list[tuple[Edit, dict[str, Tensor]]] = []
    for edit in plan.edits:
        wraps = standing.setdefault(edit.site.whole, [])
        wraps.append(edit.wrapped)
        declarations = dict(program_of(edit, wraps).declarations)[edit.graft]
        owner = edit.owner
        like = _like(module_at(model, owner), edit)
        made: dict[str, Tensor] = {}

        def value(e: Expression, owner: str = owner, layer: Layer | None = edit.layer) -> Tensor:
            name = layer.names[e.name] if layer and e.op == "operand" else e.name
            full = f"{owner}.{name}" if owner else name
            held = e.op != "operand" or layer is None or layer.plain
            found = fresh.get(full, parameters.get(full) if held else None)
            # A weight that is not held is what the module makes of others, as parametrizations do.
            return (getattr(module_at(model, owner), name) if found is None else found).detach()

        for declaration, tensor in zip(declarations, edit.tensors, strict=True):
            key = edit.shared_key(tensor)
            if key not in shared:
                stream = f"{start.seed}:{key or tensor.name}"
                saved = start.values.get(tensor.name)
                if declaration.drawn:
                    stream = draw_key(seed_of(start.seed), edit, tensor, 0)
                if saved is not None and saved.shape == tensor.shape and tensor.state:
                    first = saved.to(like.device, copy=True)
                elif saved is not None and saved.shape == tensor.shape:
                    first = nn.Parameter(saved.to(like.device, copy=True), tensor.trained)
                elif declaration.init.distribution == "vocabulary":
                    first = _words(model, edit, declaration, tensor.shape[0], like, stream, start)
                else:
                    with _room_for(tensor):
                        form = like.to(getattr(torch, tensor.dtype)) if tensor.state else like
                        first = _first(declaration, stream, edit, form, value)
                first = _as_planned(first, tensor, start.seed)
                if key:
                    shared[key] = first
            else:
                first = shared[key]
            made[declaration.name] = fresh[tensor.name] = first
        created.append((edit, made))
    return created


def _as_planned(first: Tensor, planned: Planned, seed: int) -> Tensor:
    """A new tensor with the flag that it is to have; a state is no parameter."""
    if not planned.state:
        assert isinstance(first, nn.Parameter)
        set_flag(first, planned.trained)
        return first
    state = first.detach()
    if planned.dtype == "int64" and not state.is_meta and not state.any():
        state.copy_(torch.tensor([0, seed_of(seed)]))
    return state


def _first(
    declaration: Declaration,
    stream: str,
    edit: Edit,
    like: Tensor,
    value: Callable[[Expression], Tensor],
) -> nn.Parameter:
    if edit.layer and edit.layer.experts:
        return initial_of_each(declaration, stream, edit.layer, edit.sizes, like, value)
    return initial(declaration, stream, edit.layer, edit.sizes, like, value)


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


def _words(
    model: nn.Module,
    edit: Edit,
    declaration: Declaration,
    count: int,
    like: Tensor,
    stream: str,
    start: Start,
) -> nn.Parameter:
    assert isinstance(edit.site.operator, Tokens)
    table: Any = model.get_submodule(edit.site.operator.embedding).weight
    text = str(dict(declaration.init.arguments)["text"])
    rows = embedded_words(table, count, text, start.tokenizer, generator(stream))
    return nn.Parameter(rows.to(like), requires_grad=not declaration.frozen)


def _like(module: nn.Module, edit: Edit) -> Tensor:
    """An empty tensor with the dtype and device that the new parameters take."""
    own = next((p.device for p in module._parameters.values() if p is not None), None)
    device = own or next((p.device for p in module.parameters()), torch.device("cpu"))
    dtype = getattr(torch, edit.tensors[0].dtype) if edit.tensors else torch.get_default_dtype()
    return torch.empty(0, dtype=dtype, device=device)
