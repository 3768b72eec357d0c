"""Values with several dims of features: summed over by name, split, joined and exchanged.

Such a value always has its features last. Where a layer has its one dim of features in front of the
places (a convolution's output), it is moved behind them when it is split, and back when it is one.
"""

from __future__ import annotations

from typing import Any

import torch

from surgery.graft.graphs import kernels
from surgery.graft.graphs.host import Emitting
from surgery.rules.expression import Expression, features_of
from surgery.rules.primitives import PRIMITIVES


def has_several(e: Expression) -> bool:
    """Whether the features of what flows have several dims, and so stand last."""
    if not e.varies or not e.arguments:
        return False
    primitive = PRIMITIVES.get(e.op)
    if primitive is not None and primitive.form == "dims":
        return len(features_of(e.shape)) > 1
    return any(map(has_several, e.arguments))


def emit_dims(emitter: Emitting, e: Expression) -> Any:
    """A primitive of the form `dims`: its attributes are all that tells it what to do."""
    like = next(a for a in e.arguments if not emitter.is_number(a))
    values = [_last(emitter, a, like) for a in e.arguments]
    attributes = dict(e.attributes)
    call = emitter.host.call
    if "_equation" in attributes:
        result = call(torch.einsum, attributes["_equation"], *values)
        if "_kept" in attributes:
            result = call("unsqueeze", result, -1)
    elif "_first" in attributes:
        result = call("transpose", values[0], attributes["_first"], attributes["_second"])
    else:
        sizes = [int(emitter.scalar(v)) for k, v in e.attributes if k.startswith("_size")]
        shape = kernels.unflatten if PRIMITIVES[e.op].undoes == "join" else kernels.flatten
        result = call(shape, values[0], attributes["axis"], tuple(sizes))
    if _moves(emitter, e) and len(features_of(e.shape)) == 1:
        return call("movedim", result, -1, -1 - emitter.spatial)
    return result


def _moves(emitter: Emitting, e: Expression) -> bool:
    return emitter.first and bool(emitter.spatial) and e.varies


def _last(emitter: Emitting, e: Expression, like: Expression) -> Any:
    """The value of ``e`` with its features last."""
    value = emitter.tensor(e, like)
    if _moves(emitter, e) and not has_several(e):
        return emitter.host.call("movedim", value, -1 - emitter.spatial, -1)
    return value
