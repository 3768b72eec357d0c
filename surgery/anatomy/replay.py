"""Running part of a record again, to see which features of one value reach others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from surgery.anatomy.record import Op, Record, Value
from surgery.anatomy.tensors import tensors_in


def reaching(record: Record, source: int, axis: int, ends: Iterable[int]) -> list[list[int]] | None:
    """For each value of ``ends`` the features of ``source`` along ``axis`` that it is made of.

    The operators between are run on random numbers: a feature reaches a value if the value has a
    gradient for it. None if they cannot be run apart from the model.
    """
    ends = tuple(ends)
    made = replayed(record, source, ends)
    if made is None:
        return None
    return _told(made, axis, [made.values[end] for end in ends])


def parted(record: Record, source: int, axis: int, end: int) -> list[list[int]] | None:
    """For each axis of ``end`` the features of ``source`` that its first slice is made of.

    None if the operators between cannot be run apart from the model.
    """
    made = replayed(record, source, (end,))
    if made is None:
        return None
    found = made.values[end]
    return _told(made, axis, [found.select(at, 0) for at in range(found.dim())])


def replayed(
    record: Record, source: int, ends: Iterable[int], seen: bool = True, scale: float = 1
) -> Replay | None:
    """The operators from ``source`` to ``ends``, run on random numbers times ``scale``.

    ``seen`` is what stands for masks. None if they cannot be run apart from the model.
    """
    generator = torch.Generator().manual_seed(0)
    start = _stand_in(record, source, generator).mul(scale).requires_grad_()
    strides = record.strides[source] if record.strides else start.stride()
    if is_dense(start.shape, strides):
        # Windows are strided over memory: what is cut by them has to lie as it did.
        laid = torch.empty_strided(start.shape, strides, dtype=start.dtype)
        start = laid.copy_(start.detach()).requires_grad_()
    replay = Replay(record, start, generator, seen)
    try:
        # A copy: operators that write into their input may not write into a leaf.
        replay.run(between(record, source, ends), {source: start.clone()})
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
        return None
    return replay if all(end in replay.values for end in ends) else None


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


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor fills its memory, each place once."""
    if len(strides) != len(shape):
        return False
    size = 1
    for stride, count in sorted((t, n) for t, n in zip(strides, shape, strict=True) if n != 1):
        if stride != size:
            return False
        size *= count
    return True


def _told(made: Replay, axis: int, parts: Iterable[Tensor]) -> list[list[int]] | None:
    try:
        return [_features(made.start, axis, part, made.generator) for part in parts]
    except RuntimeError:  # what has no gradient
        return None


def _features(start: Tensor, axis: int, end: Tensor, generator: torch.Generator) -> list[int]:
    if not end.requires_grad:
        return []
    weights = torch.rand(end.shape, dtype=end.dtype, generator=generator) + 0.5
    found = torch.autograd.grad(end, start, weights, retain_graph=True, materialize_grads=True)
    reached: Any = found[0].ne(0).movedim(axis, 0).flatten(1).any(1)
    return cast("list[int]", reached.nonzero().flatten().tolist())


def _stand_in(record: Record, value: int, generator: torch.Generator, seen: bool = True) -> Tensor:
    """A tensor of the shape and type of a value: tame positive numbers, zeros, or all ``seen``."""
    shape, dtype = record.shapes[value], record.dtypes[value]
    if value in record.counts:
        return torch.tensor(record.counts[value], dtype=dtype)
    if value in record.indices:
        return record.indices[value]
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) / 2 + 0.25).to(dtype)
    return torch.full(shape, seen and dtype is torch.bool, dtype=dtype)


class Replay:
    """Runs operators on real tensors; what they need from elsewhere is made up.

    ``start`` is what gradients can be taken for.
    """

    def __init__(self, record: Record, start: Tensor, generator: torch.Generator, seen: bool):
        self.record = record
        self.start = start
        self.generator = generator
        self.seen = seen
        self.values: dict[int, Tensor] = {}

    def run(self, ops: Iterable[Op], given: Mapping[int, Tensor]) -> None:
        self.values = dict(given)
        for op in ops:
            self.one(op)

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
        if number not in self.values and self.told(number):
            self.one(self.record.ops[self.record.producer[number]])
        if number not in self.values:
            self.values[number] = _stand_in(self.record, number, self.generator, self.seen)
        return self.values[number]

    def told(self, number: int) -> bool:
        """Whether a value is made of nothing but what is known of the model: an index, a count."""
        producer = self.record.producer[number]
        if producer < 0:
            return number in self.record.indices
        op, dtype = self.record.ops[producer], self.record.dtypes[number]
        whole = not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
        sized = not self.record.shapes[number] or (whole and op.inputs)
        return bool(op.function and sized) and all(map(self.told, op.inputs))

    def filled(self, thing: Any) -> Any:
        """Noted arguments with tensors in the place of values."""
        if isinstance(thing, Value):
            return self.value(thing.number)
        if isinstance(thing, tuple):
            return tuple(self.filled(item) for item in cast("tuple[Any, ...]", thing))
        if isinstance(thing, dict):
            return {key: self.filled(item) for key, item in cast("dict[Any, Any]", thing).items()}
        return thing
