"""Expressions that shape values: repeated, cut out and put back, or made from nothing."""

from __future__ import annotations

from typing import Any

import torch

from surgery.graft.graphs import kernels
from surgery.graft.graphs.host import Emitting
from surgery.graft.weights import slices
from surgery.rules.expression import Expression, operand
from surgery.rules.slices import rows_in, step


def expand(emitter: Emitting, e: Expression) -> Any:
    value, like = e.arguments
    sizes = tuple(int(d.value(emitter.sizes)) for d in e.shape)
    if emitter.is_number(value):
        return emitter.host.call(kernels.filled, emitter.emit(like), sizes, emitter.emit(value))
    repeated = emitter.host.call("expand", emitter.emit(value), *sizes)
    return emitter.host.call("contiguous", repeated)


def spread(emitter: Emitting, e: Expression) -> Any:
    value, like = e.arguments
    shape = emitter.emit(like)
    if emitter.is_number(value):
        return emitter.host.call(torch.full_like, shape, emitter.emit(value))
    return emitter.host.call("expand_as", emitter.aligned(value, e), shape)


def vector(emitter: Emitting, e: Expression) -> Any:
    value = emitter.emit(e.arguments[0])
    return value if emitter.is_number(e.arguments[0]) else emitter.host.call("reshape", value, -1)


def eye(emitter: Emitting, e: Expression) -> Any:
    size = emitter.scalar(e.attribute("size"))
    matrix = emitter.host.call(kernels.eye, emitter.emit(e.arguments[0]), int(size))
    beside = [int(emitter.scalar(d)) for d in e.shape[:-2]]
    return emitter.host.call("expand", matrix, *beside, -1, -1) if beside else matrix


def counted(emitter: Emitting, e: Expression) -> Any:
    size = int(emitter.scalar(e.attribute("size")))
    return emitter.host.call(kernels.counted, emitter.emit(e.arguments[0]), size)


def rows(emitter: Emitting, e: Expression) -> Any:
    """Some rows: of what there is already, else of what it would be made of."""
    inner = e.arguments[0]
    made = inner in emitter.done
    inside = None if made or (emitter.layer and not emitter.layer.native) else step(e)
    if inside is not None:
        return emitter.emit(inside)
    axis = _features(emitter) if e.varies else 0
    return emitter.host.call(slices.take_rows, emitter.emit(inner), rows_in(e).layout, axis)


def put(emitter: Emitting, e: Expression) -> Any:
    whole, part = e.arguments
    rows = rows_in(e)
    axis = _features(emitter) if e.varies else 0
    if whole.number is not None:
        value = emitter.scalar(whole.number)
        vector = emitter.tensor(part, operand("W", ()))
        return emitter.host.call(slices.put_elements, vector, rows.layout, rows.total, value)
    onto = emitter.emit(whole)
    if emitter.is_number(part):
        old = emitter.host.call(slices.take_rows, onto, rows.layout, axis)
        new = emitter.host.call(torch.full_like, old, emitter.emit(part))
    elif e.varies and not part.varies:
        old = emitter.host.call(slices.take_rows, onto, rows.layout, axis)
        new = emitter.host.call("expand_as", emitter.aligned(part, e), old)
    else:
        new = emitter.emit(part)
    return emitter.host.call(slices.put_rows, onto, new, rows.layout, axis)


def _features(emitter: Emitting) -> int:
    """The axis of the features of what flows."""
    return -1 - emitter.spatial if emitter.first else -1
