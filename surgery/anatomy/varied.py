"""The same inputs at other sizes, one at a time, and with other contents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.anatomy.dims import BATCH, Recordings, Variation
from surgery.anatomy.graph import Recording, shape_of
from surgery.anatomy.inputs import Inputs, candidates
from surgery.anatomy.paths import Paths
from surgery.anatomy.run import recorded

_STEP = 16
"""Lengths are multiples of this, so that windows, strides and chunks divide them."""

_OF_DECODER = ("decoder", "tgt", "target")

Place = tuple[str, int]
"""An argument, and one of its axes."""


class Varied:
    """The sizes of the inputs on which ``base`` was recorded, and recordings at others.

    ``given`` are the example inputs that the caller gave, if any.
    """

    def __init__(self, model: nn.Module, given: Any, paths: Paths, base: Recording):
        self.model = model
        self.given = given
        self.paths = paths
        self.base = base

    @property
    def known(self) -> Mapping[str, int]:
        """Each size that can be told by its name."""
        return self._inputs.known if self._inputs is not None else {}

    def recordings(self) -> Recordings:
        """One for each size that the model runs at another of, and one of other contents."""
        inputs = self._inputs
        if inputs is None:
            return Recordings((), None, False)
        owned = (*self.base.parameters, *self.base.buffers)
        taken = {size for value in owned for size in shape_of(value)}
        found: list[Variation] = []
        for name, before, sizes in inputs.others(taken):
            for size in sizes:
                again = self._recorded(inputs.resized(name, size))
                if again is not None:
                    found.append(Variation(name, before, size, again))
                    break
        whole = len(found) == len(inputs.places) and BATCH in inputs.places
        return Recordings(found, self._recorded(inputs.shuffled()), whole)

    def _recorded(self, arguments: dict[str, Any]) -> Recording | None:
        try:
            return recorded(self.model, ((), arguments), self.paths, self.base.how)
        except Exception:
            # A model may refuse a size: more places than it has positions for.
            return None

    @cached_property
    def _inputs(self) -> _Sizes | None:
        """The inputs of the base: the first ones that have its shapes."""
        values = self.base.calls[0].inputs.values()
        shapes = sorted(shape_of(value) for pairs in values for _, value in pairs)
        for args, kwargs in candidates(self.model, self.given):
            leaves = pytree.tree_leaves((args, kwargs))
            if sorted(tuple(t.shape) for t in leaves if isinstance(t, Tensor)) == shapes:
                return _sizes_of(self.model, (args, kwargs))
        return None


class LentSizes:
    """The sizes of inputs that are not kept with a reading: who reads now lends them."""

    def __init__(self) -> None:
        self._lent: WeakSet[Varied] = WeakSet()

    def lend(self, sizes: Varied) -> Varied:
        """Use ``sizes`` as long as the caller keeps them."""
        self._lent.add(sizes)
        return sizes

    @property
    def known(self) -> Mapping[str, int]:
        """Each size that can be told by its name."""
        one = next(iter(self._lent), None)
        return one.known if one is not None else {}

    def recordings(self) -> Recordings:
        """The model recorded at other sizes."""
        one = next(iter(self._lent), None)
        return one.recordings() if one is not None else Recordings((), None, False)


@dataclass(frozen=True)
class _Sizes:
    """The sizes of ``arguments``, and the axes of which arguments have them."""

    arguments: Mapping[str, Any]
    places: Mapping[str, tuple[Place, ...]]

    @property
    def known(self) -> dict[str, int]:
        firsts = {name: places[0] for name, places in self.places.items()}
        return {name: self.arguments[n].shape[axis] for name, (n, axis) in firsts.items()}

    def resized(self, name: str, size: int) -> dict[str, Any]:
        """The arguments with one size changed; what is there more repeats what was there."""
        made = dict(self.arguments)
        for argument, axis in self.places[name]:
            made[argument] = _stretched(made[argument], axis, size)
        return made

    def shuffled(self) -> dict[str, Any]:
        """The arguments with the tokens in another order: other contents of the same kind."""
        made = dict(self.arguments)
        for argument, axis in {p for n, ps in self.places.items() if n != BATCH for p in ps}:
            if _is_whole(made[argument]) and made[argument].dim() == 2:
                made[argument] = made[argument].roll(1, 0).flip(axis)
        return made

    def others(self, taken: set[int]) -> Iterator[tuple[str, int, list[int]]]:
        """Each size by name, as it is, and others to try in turn.

        The first is one that nothing of ``taken`` has, the last one less: a model may have as many
        positions as there were tokens.
        """
        used = {*taken, *self.known.values()}
        for name, size in self.known.items():
            step = 1 if name == BATCH else _STEP
            next_one = size - size % step + step
            free = next_one
            while free in used:
                free += step
            before = size - 1 - (size - 1) % step
            tried = dict.fromkeys((free, next_one, before, size - 1))
            yield name, size, [other for other in tried if other > 0]


def _sizes_of(model: nn.Module, inputs: Inputs) -> _Sizes:
    """The sizes of ``inputs``, as far as their dims can be told.

    The batch is the first dim of all tensors. A length is the second of token ids and of what has
    as many, an encoder's and a decoder's apart; where no ids are given, of features.
    """
    arguments = _bound(model, inputs)
    tensors = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and v.dim() > 0}
    places: dict[str, tuple[Place, ...]] = {}
    whole = max((tensor.shape[0] for tensor in tensors.values()), default=0)
    if {tensor.shape[0] for tensor in tensors.values()} <= {1, whole} and tensors:
        # Positions [1, length] are those of every text.
        places[BATCH] = tuple((n, 0) for n, t in tensors.items() if t.shape[0] == whole)
    ids = [n for n, t in tensors.items() if t.dim() == 2 and _is_whole(t)]
    firsts = ids or [n for n, t in tensors.items() if t.dim() == 3 and not _is_whole(t)]
    for group, belongs in _GROUPS.items():
        of_group = [name for name in firsts if belongs(name)]
        lengths = {tensors[name].shape[1] for name in of_group}
        if len(lengths) == 1:
            rest = {n: t for n, t in tensors.items() if n not in firsts and belongs(n)}
            others = _having(lengths.pop(), rest)
            places[group] = (*((name, 1) for name in of_group), *others)
    return _Sizes(arguments, places)


def _having(length: int, tensors: Mapping[str, Tensor]) -> Iterator[Place]:
    """The axes of other arguments that have a place for each token: boxes, masks of pairs."""
    for name, tensor in tensors.items():
        if _is_whole(tensor) or "mask" in name:
            start = 1 if tensor.dim() > 1 else 0
            yield from ((name, a) for a in range(start, tensor.dim()) if tensor.shape[a] == length)


def _of_decoder(name: str) -> bool:
    return name.startswith(_OF_DECODER)


_GROUPS: dict[str, Callable[[str], bool]] = {
    "length": lambda name: not _of_decoder(name),
    "decoder length": _of_decoder,
}


def _bound(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The arguments by the names of ``forward``; those without one keep what they have."""
    args, kwargs = inputs
    names = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if len(args) > len(names):
        return {}
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _stretched(tensor: Tensor, axis: int, size: int) -> Tensor:
    have = tensor.shape[axis]
    if not have:
        return tensor
    return torch.cat([tensor] * -(-size // have), axis).narrow(axis, 0, size)
