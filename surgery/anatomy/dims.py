"""What the dims of recorded values are: the batch, a length, a number of the model's own, or neither.

One forward tells sizes alone, and different dims may have the same size: a batch of 16 texts of 16
tokens. Recordings at other sizes, one at a time, and one of other contents tell them apart: a dim
that changes with the batch is made of it, and one that stays is fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Protocol

from torch.fx import Node

from surgery.anatomy.graph import Recording, call_of, inputs_of, name_of, outputs_of, shape_of

BATCH = "batch"

STRAIGHT = ((0, 0), (1, 1))
TURNED = ((0, 1), (1, 0))
"""Pairs of axes: the first two of one value as of another, and the other way round."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same whatever the model is given."""

    size: int


@dataclass(frozen=True, slots=True)
class Sized:
    """``factor`` times the product of the sizes that are named, and ``offset`` more."""

    names: tuple[str, ...]
    factor: Fraction
    offset: Fraction


@dataclass(frozen=True, slots=True)
class Data:
    """Another for other contents of the same sizes: how many tokens an expert got."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """It cannot be told: what made the value ran otherwise at other sizes."""


Dim = Fixed | Sized | Data | Unknown


@dataclass(frozen=True, slots=True)
class Variation:
    """A recording in which the size called ``name`` was ``size`` in place of ``before``."""

    name: str
    before: int
    size: int
    recording: Recording


@dataclass(frozen=True, slots=True)
class Recordings:
    """Those at other sizes, and one of other contents.

    Where not all sizes could be varied they are not ``whole``: a dim that never changes may have a
    size that never did.
    """

    varied: Sequence[Variation]
    other: Recording | None
    whole: bool


class Sizes(Protocol):
    """The sizes of what a model was given, which can be varied."""

    @property
    def known(self) -> Mapping[str, int]:
        """Each size by its name."""
        ...

    def recordings(self) -> Recordings:
        """The model recorded at other sizes."""
        ...


class Dims:
    """The dims of one recording's values; ``sizes`` is None where these cannot be varied.

    To identify them the model runs some times more. Where a size could be but one thing, no more
    than the sizes are looked at.
    """

    def __init__(self, recording: Recording, sizes: Sizes | None = None):
        self.recording = recording
        self.sizes = sizes

    def of(self, value: Node) -> tuple[Dim, ...]:
        """What the dims of ``value`` are."""
        unknown = (Unknown(),) * len(shape_of(value))
        return self._identified.get(value, unknown)

    def alike(
        self,
        one: Node,
        other: Node,
        axes: Sequence[tuple[int, int]] = STRAIGHT,
        doubt: bool = True,
    ) -> bool:
        """Whether axes of one value are the same as those of another; of both the first two.

        ``doubt`` is said of what has the same size where more cannot be told.
        """
        return all(self._same(one, at, other, there, doubt) for at, there in axes)

    def _same(self, one: Node, at: int, other: Node, there: int, doubt: bool) -> bool:
        shape, others = shape_of(one), shape_of(other)
        if at >= len(shape) or there >= len(others) or shape[at] != others[there]:
            return False
        if shape[at] not in self._coincident:
            return True
        found, wanted = self.of(one)[at], self.of(other)[there]
        return doubt if Unknown() in (found, wanted) else found == wanted

    @cached_property
    def _coincident(self) -> set[int]:
        """The sizes that may be several things: a length that is as large as the batch, or as features."""
        known = dict(self.sizes.known) if self.sizes is not None else {}
        batch = known.pop(BATCH, None)
        owned = (*self.recording.parameters, *self.recording.buffers)
        features = {size for value in owned for size in shape_of(value)}
        return {size for size in known.values() if size == batch or size in features}

    @cached_property
    def _identified(self) -> dict[Node, tuple[Dim, ...]]:
        return identified(self.recording, self.sizes.recordings()) if self.sizes is not None else {}


def identified(base: Recording, others: Recordings) -> dict[Node, tuple[Dim, ...]]:
    """The dims of the values of ``base``; those of values that are not here are unknown."""
    varied = others.varied
    streams = [_paired(base, variation.recording) for variation in varied]
    if others.other is not None:
        streams.append(_paired(base, others.other))
    found: dict[Node, tuple[Dim, ...]] = {}
    for value in base.values:
        shape = shape_of(value)
        shapes = [shape_of(pairs[value]) for pairs in streams if value in pairs]
        if len(shapes) < len(streams) or any(len(other) != len(shape) for other in shapes):
            continue
        again = shape if others.other is None else shapes.pop()
        found[value] = tuple(
            Data() if again[at] != size else _dim(size, [o[at] for o in shapes], others)
            for at, size in enumerate(shape)
        )
    return found


def _dim(size: int, found: list[int], others: Recordings) -> Dim:
    """What a dim of ``size`` is that has the sizes ``found`` in the recordings."""
    moved = [(v, at) for v, at in zip(others.varied, found, strict=True) if at != size]
    if not moved:
        return Fixed(size) if others.whole else Unknown()
    if len(moved) == 1:
        ((variation, at),) = moved
        factor = Fraction(at - size, variation.size - variation.before)
        offset = size - factor * variation.before
        # A batch has no ends to which something could be added.
        if offset and variation.name == BATCH:
            return Unknown()
        return Sized((variation.name,), factor, offset)
    factor = Fraction(size)
    for variation, at in moved:
        if Fraction(at, max(size, 1)) != Fraction(variation.size, variation.before):
            return Unknown()
        factor /= variation.before
    return Sized(tuple(variation.name for variation, _ in moved), factor, Fraction(0))


def foretold(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """How large ``dim`` is at other sizes; None if that is not known.

    >>> foretold(Sized(("length",), Fraction(2), Fraction(1)), {"length": 8})
    17

    """
    if isinstance(dim, Fixed):
        return dim.size
    if not isinstance(dim, Sized):
        return None
    size = dim.factor
    for name in dim.names:
        size *= sizes[name]
    return int(size + dim.offset)


def _paired(base: Recording, other: Recording) -> dict[Node, Node]:
    """The values of ``base``, each with that of ``other`` that took its place.

    Operators pair call by call: where a module ran others, what it made itself has no like, while
    what is made in the modules around it and inside it may.
    """
    pairs: dict[Node, Node] = {}
    there = dict(_runs(other))
    for key, (inputs, made) in _runs(base):
        if key not in there:
            continue
        other_inputs, other_made = there[key]
        _note(pairs, inputs, other_inputs)
        if [*map(name_of, made)] != [*map(name_of, other_made)]:
            continue
        for one, two in zip(made, other_made, strict=True):
            _note(pairs, inputs_of(one), inputs_of(two))
            _note(pairs, outputs_of(one), outputs_of(two))
    return pairs


def _note(pairs: dict[Node, Node], values: Sequence[Node], others: Sequence[Node]) -> None:
    if len(values) == len(others):
        for value, other in zip(values, others, strict=True):
            pairs.setdefault(value, other)


def _runs(recording: Recording) -> Iterator[tuple[tuple[str, int], tuple[list[Node], list[Node]]]]:
    """The calls, by path and how often it was called before: what each was given, and its operators."""
    made: dict[int, list[Node]] = {}
    for op in recording.ops:
        made.setdefault(call_of(op), []).append(op)
    counts: dict[str, int] = {}
    for call in recording.calls:
        count = counts[call.path] = counts.get(call.path, -1) + 1
        given = [value for values in call.inputs.values() for _, value in values]
        yield (call.path, count), (given, made.get(call.number, []))
