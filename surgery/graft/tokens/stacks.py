"""A module's part in what becomes of a stack's tokens (see graft/tokens/sequences.py), in its forward."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from surgery.anatomy.site import Port
from surgery.graft.design import Stack
from surgery.graft.graphs import kernels, taps
from surgery.graft.graphs.frame import Frame, emitter_for
from surgery.graft.tokens import memory, sequences
from surgery.rules.prompts import token_change


def begin(frame: Frame, stack: Stack) -> None:
    """Change what the module is given, as its part in a stack has it."""
    tap = frame.attribute(stack.tap)
    if stack.role == "around":
        frame.call(memory.entered, tap)
    elif stack.role == "decoder":
        _replace(frame, memory.attended, tap)
    elif stack.role == "reader":
        _read(frame, stack)


def _read(frame: Frame, stack: Stack) -> None:
    """Change the arguments of a reader as its program says."""
    part, tap = stack.program, frame.attribute(stack.tap)
    assert part is not None
    emitter = emitter_for(frame, part, None)
    change = token_change(part.program.result, emitter.sizes)
    calls: list[tuple[Any, ...]] = [(sequences.noticed, tap)] if change.places else []
    if change.shift:
        calls.append((sequences.shifted, tap, change.shift))
    if change.prompts:
        frame.reads = tap
        prompts = tuple(emitter.emit(e) for e in change.prompts)
        prompt = prompts[0] if len(prompts) == 1 else frame.call(torch.cat, prompts, 0)
        calls.append((sequences.extended, tap, prompt))
    for (name, _), (_, vectors) in zip(stack.places, change.places, strict=True):
        frame.call(taps.write_tap, frame.attribute(name), emitter.emit(vectors))
    for function, *given in calls:
        _replace(frame, function, *given)


def _replace(frame: Frame, function: Callable[..., Any], *given: Any) -> None:
    """Go on with the arguments that ``function`` makes of those of the call."""
    pair = frame.call(function, *given, frame.args, frame.kwargs)
    frame.args, frame.kwargs = (frame.call(operator.getitem, pair, i) for i in (0, 1))
    frame.inputs.clear()


def end(frame: Frame, stack: Stack, result: fx.Node) -> fx.Node:
    """What the module gives, as its part in a stack has it."""
    tap = frame.attribute(stack.tap)
    if stack.role == "reader":
        return frame.call(sequences.restored, tap, result)
    if stack.role == "decoder":
        return frame.call(memory.told, tap, result)
    if stack.role == "around":
        return frame.call(memory.handed, tap, result)
    if stack.role == "embedding":
        ids = frame.only if frame.plain else frame.input(Port("", "input"))

        def embedded(found: fx.Node) -> fx.Node:
            for name, token in stack.places:
                vectors = frame.call(taps.peek_tap, frame.attribute(name))
                found = frame.call(sequences.placed, tap, ids, token, vectors, found)
            return frame.call(sequences.filled, tap, found)

        return _changed(frame, stack, result, embedded)
    return _changed(frame, stack, result, lambda hidden: frame.call(sequences.trimmed, tap, hidden))


def _changed(
    frame: Frame, stack: Stack, result: fx.Node, change: Callable[[fx.Node], fx.Node]
) -> fx.Node:
    """``result`` with the states in it as ``change`` has them."""
    index = stack.port.index
    if frame.plain or index is None:
        return change(result)
    return frame.call(
        kernels.with_first, result, index, change(frame.call(kernels.first, result, index))
    )
