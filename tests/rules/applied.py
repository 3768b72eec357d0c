"""A primitive applied to arguments that its row takes, drawn at random: as an expression, and run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

from surgery.graft.computing import Tensors
from surgery.graft.graphs.emit import Emitter
from surgery.rules.dims import Dim
from surgery.rules.expression import Expression, Shape, number, param
from surgery.rules.primitive import Attributes, Primitive
from surgery.rules.shapes import Shapes

NUMBERS = (0, 0.25, 0.5, 1, 2, 3, -0.5, -1)


@dataclass(frozen=True)
class Applied:
    """A row with tensors, or numbers, for its arguments, in order."""

    row: Primitive
    values: tuple[Tensor | float, ...]
    axis: int | None
    made: tuple[Attributes, tuple[int, ...]] | None = None
    """The attributes and the result's sizes, where dims are named."""

    @property
    def arguments(self) -> tuple[Expression, ...]:
        return tuple(
            param(f"a{i}", shape(v)) if isinstance(v, Tensor) else number(v)
            for i, v in enumerate(self.values)
        )

    @property
    def attributes(self) -> Attributes:
        if self.made:
            return self.made[0]
        return () if self.axis is None else (("axis", self.axis),)

    @property
    def expression(self) -> Expression:
        arguments = self.arguments
        if self.made:
            sizes = tuple(map(Dim.of, self.made[1]))
            return Expression(self.row.name, arguments, self.attributes, sizes)
        axis = -1 if self.axis is None else self.axis
        found = self.row.shape(Shapes(), arguments, None, axis)
        return Expression(self.row.name, arguments, self.attributes, found)

    def with_value(self, position: int, value: Tensor | float) -> Applied:
        values = [value if i == position else v for i, v in enumerate(self.values)]
        return replace(self, values=tuple(values))

    def run(self, e: Expression | None = None, training: bool = False) -> Tensor:
        """What the emitted calls give for ``e``, or for the row's own expression."""
        known = {f"a{i}": v for i, v in enumerate(self.values)}
        host = Trained if training else Tensors
        try:
            found = Emitter(host(lambda leaf: known[leaf.name]), None, {}).emit(
                e or self.expression
            )
        except torch.linalg.LinAlgError:
            reject()  # a matrix that has no inverse
        if isinstance(found, torch.Tensor) and found.is_complex():
            return found
        return torch.as_tensor(found, dtype=torch.float64)


class Trained(Tensors):
    """Runs expressions as while a model trains."""

    def training(self) -> bool:
        return True


def shape(value: Tensor) -> Shape:
    return tuple(map(Dim.of, value.shape))


def tensor(sizes: tuple[int, ...], seed: int) -> Tensor:
    """Values away from zero and from each other, of both signs."""
    source = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, sizes, generator=source) * 2 - 1
    return signs * (0.25 + 2 * torch.rand(sizes, generator=source, dtype=torch.float64))


@st.composite
def applied(draw: Callable[..., object], row: Primitive, least: int = 1) -> Applied:
    """``row`` with arguments of the dims that it shows; no dim is smaller than ``least``."""
    size = st.integers(least, 4)
    if row.parts:
        return draw(decomposed(row, size))
    if row.form == "dims":
        return draw(by_name(row, size))
    whole = draw(st.lists(size, min_size=1 if row.axis or row.only_shape else 0, max_size=3))
    axis = -draw(st.integers(1, len(whole))) if row.axis else None
    named: dict[str, int] = {}
    values: list[Tensor | float] = []
    ranges = dict(row.numbers)
    for position, shown in enumerate(row.tensors[: draw(st.integers(*row.arity))]):
        name, _, dims = shown.rstrip("]").replace("?", "").partition("[")
        seed = draw(st.integers(0, 2**16))
        if position in ranges:
            fits = [n for n in NUMBERS if ranges[position].condition(Dim.of(n)).known]
            values.append(named.get(name) or draw(st.sampled_from(fits)))
        elif dims:
            leading = draw(st.lists(size, min_size=1, max_size=2))
            values.append(tensor(tuple(_sizes(dims, leading, named, draw, size)), seed))
        else:
            values.append(tensor(tuple(_broadcast(row, position, whole, axis, draw)), seed))
    return Applied(row, tuple(values), axis)


@st.composite
def decomposed(draw: Callable[..., Any], row: Primitive, size: object) -> Applied:
    """One of the factors of a matrix."""
    of = {"n": draw(size), "m": draw(size)}
    of["r"] = draw(st.integers(1, min(of.values())))
    part = draw(st.integers(0, len(row.parts) - 1))
    matrix = tensor((of["n"], of["m"]), draw(st.integers(0, 2**16)))
    sizes = tuple(of[d] for d in row.parts[part])
    return Applied(row, (matrix, of["r"]), None, ((("_part", part),), sizes))


@st.composite
def by_name(draw: Callable[..., Any], row: Primitive, size: object) -> Applied:
    """A row whose call names dims, here by position, with others beside them."""
    front, back = (draw(st.lists(size, max_size=1)) for _ in range(2))
    g, c, d = (draw(size) for _ in range(3))
    seeds = [draw(st.integers(0, 2**16)) for _ in range(2)]
    sizes: tuple[tuple[str, Dim | int], ...]
    sizes = (("axis", -1 - len(back)), ("_size0", Dim.of(g)), ("_size1", Dim.of(c)))
    apart, joined = [*front, g, c, *back], [*front, g * c, *back]
    match row.name:
        case "split":
            return Applied(row, (tensor((*joined,), seeds[0]),), None, (sizes, (*apart,)))
        case "join":
            return Applied(row, (tensor((*apart,), seeds[0]),), None, (sizes, (*joined,)))
        case "exchange":
            places = (("_first", -1), ("_second", -2))
            given, made = (*front, g, c), (*front, c, g)
            return Applied(row, (tensor(given, seeds[0]),), None, (places, made))
        case _:
            shapes, equation, made = draw(
                st.sampled_from(
                    [
                        (((g, c), (g, c, d)), "...ab,...abc->...ac", (g, d)),
                        (((*front, c), (c, d)), "...a,...ab->...b", (*front, d)),
                        (((c,), (c,)), "...a,...a->...", (1,)),
                        (((g,), (c,)), "...a,...b->...ab", (g, c)),
                    ]
                )
            )
            how = (("_equation", equation), *((("_kept", True),) if made == (1,) else ()))
            values = tuple(tensor(s, seed) for s, seed in zip(shapes, seeds, strict=True))
            return Applied(row, values, None, (how, made))


def _sizes(
    dims: str, leading: list[int], named: dict[str, int], draw: Callable[..., int], size: object
) -> list[int]:
    """The sizes of dims such as `*, 4 * w`; a name has one size in all arguments."""
    found: list[int] = []
    for dim in dims.split(", "):
        if dim == "*":
            found += leading
            continue
        for name in re.findall(r"[a-z]+", dim):
            named.setdefault(name, draw(size))
        found.append(eval(dim, {}, named))
    return found


def _broadcast(
    row: Primitive, position: int, whole: list[int], axis: int | None, draw: Callable[..., bool]
) -> list[int]:
    """Some sizes that broadcast to ``whole``, or what stands beside it."""
    if len(row.tensors) == 1:
        return whole
    if row.only_shape:
        return whole if position in row.only_shape else [whole[0], *(1 for _ in whole[1:])]
    one = [1 if draw(st.booleans()) else size for size in whole]
    if axis is not None:
        one[axis] = draw(st.integers(1, 3))
        return one
    return one[draw(st.integers(0, len(one))) :]
