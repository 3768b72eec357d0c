"""Running a recording, or part of it, again: as it was, or to see which features reach others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from surgery.anatomy.graph import (
    Recording,
    before_of,
    count_of,
    dtype_of,
    function_of,
    index_of,
    inputs_of,
    maker_of,
    outputs_of,
    shape_of,
    strides_of,
)


class Rerun(fx.Interpreter):
    """Runs all of a recording on other inputs of the same sizes, with the parameters of ``model``."""

    def __init__(self, recording: Recording, model: nn.Module):
        super().__init__(model, graph=recording.graph)
        self.constants = recording.constants

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A copy of a constant: operators may write to it."""
        constant = self.constants.get(target)
        return super().get_attr(target, args, kwargs) if constant is None else constant.clone()


class PartialRun(fx.Interpreter):
    """Runs some operators of a recording; what they need from elsewhere is made up.

    ``start`` is what gradients can be taken for, and ``env`` has what was made of it. ``seen`` is
    what stands for masks.
    """

    def __init__(self, recording: Recording, start: Tensor, generator: torch.Generator, seen: bool):
        super().__init__(nn.Module(), garbage_collect_values=False, graph=recording.graph)
        self.recording = recording
        self.start = start
        self.generator = generator
        self.seen = seen

    def run_ops(self, ops: Iterable[Node], source: Node, given: Tensor) -> None:
        """Run ``ops`` with ``given`` in the place of ``source``."""
        self.env = {source: given}
        for op in ops:
            self.operator(op)

    def operator(self, op: Node) -> None:
        """Run an operator, and tell what it gave and wrote to apart."""
        if function_of(op) is None:
            raise ValueError(f"{op.name} was not seen as a function")
        for node in (op, *outputs_of(op)):
            if node is op or node not in self.env:
                self.env[node] = self.run_node(node)

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[Any, Any]:
        """The arguments of a node, those made up that nothing has run to give."""
        for value in n.all_input_nodes:
            if value not in self.env:
                self.make(value)
        return super().fetch_args_kwargs_from_env(n)

    def make(self, value: Node) -> None:
        maker = maker_of(value)
        if maker is not None and self.told(value):
            self.operator(maker)
        if value not in self.env:
            self.env[value] = _stand_in(self.recording, value, self.generator, self.seen)

    def told(self, value: Node) -> bool:
        """Whether a value is made of nothing but what is known of the model: an index, a count."""
        op = maker_of(value)
        if op is None:
            return value in self.recording.indices
        dtype = dtype_of(value)
        whole = not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
        sized = not shape_of(value) or (whole and inputs_of(op))
        before = before_of(value)
        known = bool(function_of(op) and sized) and all(map(self.told, inputs_of(op)))
        return known and (before is None or self.told(before))


def reaching(
    recording: Recording, source: Node, axis: int, ends: Iterable[Node]
) -> list[list[int]] | None:
    """For each value of ``ends`` the features of ``source`` along ``axis`` that it is made of.

    The operators between are run on random numbers: a feature reaches a value if the value has a
    gradient for it. None if they cannot be run apart from the model.
    """
    ends = tuple(ends)
    made = rerun(recording, source, ends)
    if made is None:
        return None
    return _told(made, axis, [made.env[end] for end in ends])


def parted(recording: Recording, source: Node, axis: int, end: Node) -> list[list[int]] | None:
    """For each axis of ``end`` the features of ``source`` that its first slice is made of.

    None if the operators between cannot be run apart from the model.
    """
    made = rerun(recording, source, (end,))
    if made is None:
        return None
    found = made.env[end]
    return _told(made, axis, [found.select(at, 0) for at in range(found.dim())])


def rerun(
    recording: Recording, source: Node, ends: Iterable[Node], seen: bool = True, scale: float = 1
) -> PartialRun | None:
    """The operators from ``source`` to ``ends``, run on random numbers times ``scale``.

    ``seen`` is what stands for masks. None if they cannot be run apart from the model.
    """
    generator = torch.Generator().manual_seed(0)
    start = _stand_in(recording, source, generator).mul(scale).requires_grad_()
    strides = strides_of(source) or start.stride()
    if is_dense(start.shape, strides):
        # Windows are strided over memory: what is cut by them has to lie as it did.
        laid = torch.empty_strided(start.shape, strides, dtype=start.dtype)
        start = laid.copy_(start.detach()).requires_grad_()
    part = PartialRun(recording, start, generator, seen)
    try:
        # A copy: operators that write into their input may not write into a leaf.
        part.run_ops(between(recording, source, ends), source, start.clone())
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
        return None
    return part if all(end in part.env for end in ends) else None


def between(recording: Recording, source: Node, ends: Iterable[Node]) -> list[Node]:
    """The operators that lead from ``source`` to any of ``ends``, in order."""
    ends = tuple(ends)
    first, last = _index(source), max(map(_index, ends))
    reached = {source}
    forward: list[Node] = []
    for op in recording.ops[first + 1 : last + 1]:
        if not reached.isdisjoint(inputs_of(op)):
            reached.update(outputs_of(op))
            forward.append(op)
    wanted = set(ends)
    kept: list[Node] = []
    for op in reversed(forward):
        if not wanted.isdisjoint(outputs_of(op)):
            wanted.update(inputs_of(op))
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


def _index(value: Node) -> int:
    op = maker_of(value)
    return -1 if op is None else index_of(op)


def _told(made: PartialRun, axis: int, parts: Iterable[Tensor]) -> list[list[int]] | None:
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


def _stand_in(
    recording: Recording, value: Node, generator: torch.Generator, seen: bool = True
) -> Tensor:
    """A tensor of the shape and type of a value: tame positive numbers, zeros, or all ``seen``."""
    shape, dtype, count = shape_of(value), dtype_of(value), count_of(value)
    if count is not None:
        return torch.tensor(count, dtype=dtype)
    if value in recording.indices:
        return recording.indices[value]
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=generator) / 2 + 0.25).to(dtype)
    return torch.full(shape, seen and dtype is torch.bool, dtype=dtype)
