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
from surgery.graft.graphs.frame import Frame, emitter_for
from surgery.graft.tokens import memory, sequences
from surgery.rules.prompts import token_change


def begin(frame: Frame, stack: StackPart) -> None:
    """Change what the module is given, as its part in a stack has it."""
    if stack.role == "decoder":
        _replace(frame, memory.attended, frame.attribute(stack.shared))
    elif stack.role == "reader":
        _read(frame, stack)


def _read(frame: Frame, stack: StackPart) -> None:
    """Change the arguments of a reader as its program says."""
    part, shared = stack.program, frame.attribute(stack.shared)
    assert part is not None
    emitter = emitter_for(frame, part, None)
    change = token_change(part.program.result, emitter.sizes)
    calls: list[tuple[Any, ...]] = []
    if change.places:
        vectors = tuple(emitter.emit(vectors) for _, vectors in change.places)
        calls.append((sequences.noticed, shared, vectors))
    if change.shift:
        calls.append((sequences.shifted, shared, change.shift))
    if change.prompts:
        frame.reads = shared
        prompts = tuple(emitter.emit(e) for e in change.prompts)
        prompt = prompts[0] if len(prompts) == 1 else frame.call(torch.cat, prompts, 0)
        calls.append((sequences.extended, shared, prompt))
    for function, *given in calls:
        _replace(frame, function, *given)


def _replace(frame: Frame, function: Callable[..., Any], *given: Any) -> None:
    """Go on with the arguments that ``function`` makes of those of the call."""
    pair = frame.call(function, *given, frame.args, frame.kwargs)
    frame.args, frame.kwargs = (frame.call(operator.getitem, pair, i) for i in (0, 1))
    frame.inputs.clear()


def end(frame: Frame, stack: StackPart, result: fx.Node) -> fx.Node:
    """What the module gives, as its part in a stack has it."""
    shared = frame.attribute(stack.shared)
    if stack.role == "reader":
        return frame.call(sequences.restored, shared, result)
    if stack.role == "decoder":
        return frame.call(memory.told, shared, result)
    if stack.role == "around":
        return frame.call(memory.handed, shared, result)
    if stack.role == "embedding":
        ids = frame.only if frame.plain else frame.input(Port("", "input"))

        def embedded(found: fx.Node) -> fx.Node:
            if stack.places:
                found = frame.call(sequences.placed, shared, ids, stack.places, found)
            return frame.call(sequences.filled, shared, found)

        return _changed(frame, stack, result, embedded)
    return _changed(
        frame, stack, result, lambda hidden: frame.call(sequences.trimmed, shared, hidden)
    )


def _changed(
    frame: Frame, stack: StackPart, result: fx.Node, change: Callable[[fx.Node], fx.Node]
) -> fx.Node:
    """``result`` with the states in it as ``change`` has them."""
    index = stack.port.index
    if frame.plain or index is None:
        return change(result)
    return frame.call(
        calls.with_first, result, index, change(frame.call(calls.first, result, index))
    )
