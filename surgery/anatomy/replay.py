"""Running part of a record again, to see which features of one value reach others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from surgery.anatomy.record import Op, Record, Value
from surgery.anatomy.trace import tensors_in


def reaching(record: Record, source: int, axis: int, ends: Iterable[int]) -> list[list[int]] | None:
    """For each value of ``ends`` the features of ``source`` along ``axis`` that it is made of.

    The operators between are run on random numbers: a feature reaches a value if the value has a
    gradient for it. None if they cannot be run apart from the model.
    """
    ends = tuple(ends)
    generator = torch.Generator().manual_seed(0)
    start = _stand_in(record, source, generator).requires_grad_()
    replay = _Replay(record, between(record, source, ends), generator)
    try:
        with torch.enable_grad():
            # A copy: operators that write into their input may not write into a leaf.
            values = replay.run({source: start.clone()})
            return [_features(start, axis, values[end], generator) for end in ends]
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
        return None


def parted(record: Record, source: int, axis: int, end: int) -> list[list[int]] | None:
    """For each axis of ``end`` the features of ``source`` that its first slice is made of.

    None if the operators between cannot be run apart from the model.
    """
    generator = torch.Generator().manual_seed(0)
    start = _stand_in(record, source, generator).requires_grad_()
    replay = _Replay(record, between(record, source, (end,)), generator)
    try:
        with torch.enable_grad():
            found = replay.run({source: start.clone()})[end]
            slices = [found.select(at, 0) for at in range(found.dim())]
            return [_features(start, axis, part, generator) for part in slices]
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
        return None


def between(record: Record, source: int, ends: Iterable[int]) -> list[Op]:
    """The operators that lead from ``source`` to any of ``ends``, in order."""
    ends = tuple(ends)
    first, last = record.producer[source], max(record.producer[end] for end in ends)
    reached = {source}
    forward: list[Op] = []
    for op in record.ops[first + 1 : last + 1]:
        if reached.intersection(op.inputs):
            reached.update(op.outputs)
            forward.append(op)
    wanted = set(ends)
    kept: list[Op] = []
    for op in reversed(forward):
        if wanted.intersection(op.outputs):
            wanted.update(op.inputs)
            kept.append(op)
    return kept[::-1]


def _features(start: Tensor, axis: int, end: Tensor, generator: torch.Generator) -> list[int]:
    if not end.requires_grad:
        return []
    weights = torch.rand(end.shape, dtype=end.dtype, generator=generator) + 0.5
    found = torch.autograd.grad(end, start, weights, retain_graph=True, materialize_grads=True)
    reached: Any = found[0].ne(0).movedim(axis, 0).flatten(1).any(1)
    return cast("list[int]", reached.nonzero().flatten().tolist())


def _stand_in(record: Record, value: int, generator: torch.Generator) -> Tensor:
    """A tensor of the shape and type of a value: tame positive numbers, zeros, or all true."""
    shape, dtype = record.shapes[value], record.dtypes[value]
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) / 2 + 0.25).to(dtype)
    return torch.full(shape, dtype is torch.bool, dtype=dtype)


class _Replay:
    """Runs operators on real tensors; what they need from elsewhere is made up."""

    def __init__(self, record: Record, ops: list[Op], generator: torch.Generator):
        self.record = record
        self.ops = ops
        self.generator = generator
        self.values: dict[int, Tensor] = {}

    def run(self, given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        self.values = dict(given)
        for op in self.ops:
            self.one(op)
        return self.values

    def one(self, op: Op) -> None:
        if op.function is None:
            raise ValueError(f"{op.name} was not seen as a function")
        args, kwargs = self.filled(op.args), self.filled(op.kwargs)
        before = [(t, t._version) for t in tensors_in((args, kwargs))]
        result = op.function(*args, **kwargs)
        written = [t for t, version in before if t._version != version]
        seen = {id(t) for t, _ in before} - {id(t) for t in written}
        made = [t for t in tensors_in(result) if id(t) not in seen]
        made += [t for t in written if not any(t is m for m in made)]
        # What shows the same memory as something written stands last, among inputs as well.
        aliases = len(op.outputs) - len(made)
        if aliases < 0:
            raise ValueError(f"{op.name} gives more than it did")
        made += [self.value(v) for v in op.inputs[len(op.inputs) - aliases :]]
        self.values |= dict(zip(op.outputs, made, strict=True))

    def value(self, number: int) -> Tensor:
        if number not in self.values:
            self.values[number] = _stand_in(self.record, number, self.generator)
        return self.values[number]

    def filled(self, thing: Any) -> Any:
        """Noted arguments with tensors in the place of values."""
        if isinstance(thing, Value):
            return self.value(thing.number)
        if isinstance(thing, tuple):
            return tuple(self.filled(item) for item in cast("tuple[Any, ...]", thing))
        if isinstance(thing, dict):
            return {key: self.filled(item) for key, item in cast("dict[Any, Any]", thing).items()}
        return thing
