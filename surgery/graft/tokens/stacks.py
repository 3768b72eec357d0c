"""A module's part in what becomes of a stack's tokens (see graft/tokens/sequences.py), in its forward."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from surgery.anatomy.site import Port
from surgery.graft.design import StackPart
from surgery.graft.graphs import calls
from surgery.graft.graphs.builder import ForwardBuilder, emitter_for
from surgery.graft.tokens import memory, sequences
from surgery.rules.prompts import token_change


def begin(builder: ForwardBuilder, stack: StackPart) -> None:
    """Change what the module is given, as its part in a stack has it."""
    if stack.role == "decoder":
        _replace(builder, memory.attended, builder.attribute(stack.shared))
    elif stack.role == "reader":
        _read(builder, stack)


def _read(builder: ForwardBuilder, stack: StackPart) -> None:
    """Change the arguments of a reader as its program says."""
    part, shared = stack.program, builder.attribute(stack.shared)
    assert part is not None
    emitter = emitter_for(builder, part, None)
    change = token_change(part.program.result, emitter.sizes)
    calls: list[tuple[Any, ...]] = []
    if change.places:
        vectors = tuple(emitter.emit(vectors) for _, vectors in change.places)
        calls.append((sequences.noticed, shared, vectors))
    if change.shift:
        calls.append((sequences.shifted, shared, change.shift))
    if change.prompts:
        builder.reads = shared
        prompts = tuple(emitter.emit(e) for e in change.prompts)
        prompt = prompts[0] if len(prompts) == 1 else builder.call(torch.cat, prompts, 0)
        calls.append((sequences.extended, shared, prompt))
    for function, *given in calls:
        _replace(builder, function, *given)


def _replace(builder: ForwardBuilder, function: Callable[..., Any], *given: Any) -> None:
    """Go on with the arguments that ``function`` makes of those of the call."""
    pair = builder.call(function, *given, builder.args, builder.kwargs)
    builder.args, builder.kwargs = (builder.call(operator.getitem, pair, i) for i in (0, 1))
    builder.inputs.clear()


def end(builder: ForwardBuilder, stack: StackPart, result: fx.Node) -> fx.Node:
    """What the module gives, as its part in a stack has it."""
    shared = builder.attribute(stack.shared)
    if stack.role == "reader":
        return builder.call(sequences.restored, shared, result)
    if stack.role == "decoder":
        return builder.call(memory.told, shared, result)
    if stack.role == "around":
        return builder.call(memory.handed, shared, result)
    if stack.role == "embedding":
        ids = builder.only if builder.plain else builder.input(Port("", "input"))

        def embedded(found: fx.Node) -> fx.Node:
            if stack.places:
                found = builder.call(sequences.placed, shared, ids, stack.places, found)
            return builder.call(sequences.filled, shared, found)

        return _changed(builder, stack, result, embedded)
    return _changed(
        builder, stack, result, lambda hidden: builder.call(sequences.trimmed, shared, hidden)
    )


def _changed(
    builder: ForwardBuilder, stack: StackPart, result: fx.Node, change: Callable[[fx.Node], fx.Node]
) -> fx.Node:
    """``result`` with the states in it as ``change`` has them."""
    index = stack.port.index
    if builder.plain or index is None:
        return change(result)
    return builder.call(
        calls.with_first, result, index, change(builder.call(calls.first, result, index))
    )
