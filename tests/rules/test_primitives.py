"""What the rows of the primitives say, held against the functions that they name.

Every law is of the table: a new row is tried without a line here.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import surgery.rules
from surgery.rules.cost import flops
from surgery.rules.dims import Dim
from surgery.rules.expression import number
from surgery.rules.primitive import Primitive, free
from surgery.rules.primitives import PRIMITIVES
from surgery.rules.rows import rows_of
from surgery.rules.simplify import make
from surgery.rules.slices import push
from tests.rules.applied import Applied, applied, tensor

RUN = [row for row in PRIMITIVES.values() if row.torch]


def of(*rows: Primitive) -> Any:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether both are equal but for rounding, the first perhaps before it is broadcast."""
    dtype = torch.promote_types(found.dtype, expected.dtype)
    found, expected = found.to(dtype).expand(expected.shape), expected.to(dtype)
    return torch.allclose(found, expected, equal_nan=True)


@of(*RUN)
@given(st.data())
def test_the_shape_rule_gives_the_shape(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row))
    assert [d.number for d in one.expression.shape] == [*one.run().shape]


@of(*(row for row in RUN if row.linear))
@given(st.data())
def test_it_is_linear_where_it_says_so(row: Primitive, data: st.DataObject) -> None:
    first = data.draw(applied(row))
    for way in row.linear:
        moved = [i for i in way if i < len(first.values)]
        second, both = first, first
        for i in moved:
            u = first.values[i]
            v = tensor((*u.shape,), data.draw(st.integers(0, 99)))
            second, both = second.with_value(i, v), both.with_value(i, 2 * u - 0.5 * v)
        assert same(both.run(), 2 * first.run() - 0.5 * second.run())


@of(*RUN)
@given(st.data())
def test_zeros_make_it_zero_where_it_says_so_and_nowhere_else(
    row: Primitive, data: st.DataObject
) -> None:
    one = data.draw(applied(row, least=2))
    assume(all(i in dict(row.numbers) for i in range(row.arity[0], len(one.values))))
    for i, value in enumerate(one.values):
        if isinstance(value, Tensor) and i not in row.nonzero:
            gone = not one.with_value(i, torch.zeros_like(value)).run().any()
            assert gone or i not in row.zeros
            # For some numbers it may be so, too, as of `clamp(x, 0, 1)`; and a mask may have no ones.
            assert not gone or i in row.zeros or row.numbers or row.mask


@of(*RUN)
@given(st.data())
def test_what_simplifies_has_the_same_value(row: Primitive, data: st.DataObject) -> None:
    """Numbers and equal arguments are written shorter; the functions see them as tensors."""
    one = data.draw(applied(row))
    arguments = [*one.arguments]
    for i, value in enumerate(one.values):
        choices: list[float | None] = [None, *((0, 1, 2, -1.5) if i not in row.nonzero else (1, 2))]
        chosen = data.draw(st.sampled_from(choices))
        if not isinstance(value, Tensor) or i in row.only_shape:
            continue
        if chosen is not None:
            one = one.with_value(i, torch.full_like(value, chosen))
            arguments[i] = number(chosen, shape=one.arguments[i].shape)
        elif i and arguments[i].shape == arguments[0].shape:
            one = one.with_value(i, one.values[0])
            arguments[i] = arguments[0]
    if all(a.number is not None for a in arguments):
        arguments[0] = one.arguments[0]
    made = make(row.name, tuple(arguments), one.expression.shape, one.attributes)
    assert same(one.run(made), one.run())


@of(*(row for row in RUN if row.of_numbers))
@given(st.data())
def test_of_numbers(row: Primitive, data: st.DataObject) -> None:
    numbers = [data.draw(st.sampled_from((-2, -0.5, 0.5, 1, 3))) for _ in row.tensors]
    one = Applied(row, tuple(torch.tensor(n, dtype=torch.float64) for n in numbers), None)
    assert row.of_numbers
    found = row.of_numbers(*map(Dim.of, numbers)).number
    assert same(torch.tensor(found, dtype=torch.float64), one.run())


@of(*(row for row in RUN if row.sums_to is not None))
@given(st.data())
def test_what_it_sums_to(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row))
    assert one.axis is not None
    total = one.run().sum(one.axis)
    assert same(total, torch.full_like(total, row.sums_to or 0))


@of(*RUN)
@given(st.data())
def test_only_what_is_free_moves_values_and_computes_none(
    row: Primitive, data: st.DataObject
) -> None:
    one = data.draw(applied(row))
    cost = flops(one.expression).number
    assert cost is not None
    assert cost == 0 if row.cost is free else cost > 0
    if row.cost is free:
        given_ = torch.cat([v.flatten() for v in one.values if isinstance(v, Tensor)])
        assert torch.isin(one.run(), given_).all()


@of(*(row for row in RUN if row.rows))
@given(st.data())
def test_rows_of_the_arguments_give_the_rows(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row))
    whole = one.expression
    # Of what is held, rows stand first; `linear` of it has them last.
    axis = 0 if row.name != "linear" else -1
    assume(whole.shape and len(one.run().shape) > 0)
    total = one.run().shape[axis]
    start = data.draw(st.integers(0, total - 1))
    features = range(start, data.draw(st.integers(start + 1, total)))
    rows = rows_of("q", total, features)
    assert rows is not None
    if row.name == "linear":
        weight, *bias = (one.values[i] for i in row.rows if i < len(one.values))
        less = one.with_value(1, weight[features])
        less = less.with_value(2, bias[0][features]) if bias else less
        assert same(less.run(), one.run()[..., features])
        return
    inside = push(whole, rows)
    assert inside.op == row.name
    assert same(one.run(inside), one.run()[list(features)])


@of(*(row for row in RUN if row.elementwise))
@given(st.data())
def test_features_depend_on_the_same_features_alone(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row, least=2))
    before = one.run()
    assume(before.dim())
    feature = data.draw(st.integers(0, before.shape[-1] - 1))
    others = [j for j in range(before.shape[-1]) if j != feature]
    for i, value in enumerate(one.values):
        if isinstance(value, Tensor) and value.dim() and value.shape[-1] > 1:
            changed = value.clone()
            changed[..., feature] = 3
            after = one.with_value(i, changed).run()
            assert torch.equal(after[..., others].nan_to_num(), before[..., others].nan_to_num())


@of(*RUN)
@given(st.data())
def test_of_some_arguments_the_shape_alone_counts(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row))
    for i, value in enumerate(one.values):
        if isinstance(value, Tensor):
            other = one.with_value(i, value.abs() + 0.125).run()
            assert i not in row.only_shape or torch.equal(other, one.run())


@of(*RUN)
@given(st.data())
def test_in_evaluation_and_in_training(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row))
    value = one.run()
    if row.inference:
        assert torch.equal(value, one.values[0])
    if not row.random:
        assert torch.equal(one.run(training=True).nan_to_num(), value.nan_to_num())


@of(*(row for row in RUN if row.random))
def test_in_training_it_is_drawn(row: Primitive) -> None:
    numbers = [0.5 for _ in row.numbers]
    one = Applied(row, (tensor((64,), 0), *numbers), None)
    assert not torch.equal(one.run(training=True), one.run(training=True))


@of(*(row for row in RUN if row.idempotent))
@given(st.data())
def test_twice_is_as_good_as_once(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row))
    assert torch.equal(one.with_value(0, one.run()).run(), one.run())


@of(*RUN)
@given(st.data())
def test_gradients_pass_all_but_what_detaches(row: Primitive, data: st.DataObject) -> None:
    one = data.draw(applied(row))
    first = one.values[0]
    assert isinstance(first, Tensor)
    assert one.with_value(0, first.requires_grad_()).run().requires_grad != row.detaches


@pytest.mark.parametrize("row", PRIMITIVES.values(), ids=lambda row: row.name)
def test_every_row_is_whole(row: Primitive) -> None:
    assert row.says
    assert bool(row.torch) == (row.form != "none")
    assert all(position < len(row.tensors) for position, _ in row.numbers)
    assert not row.reduces or row.axis


# What decides by the name of a primitive outside its row speaks of structure: sums and products,
# which are one algebra together; what attentions and prompts are made of; kernels for patterns.
ALGEBRA = {
    "add",
    "subtract",
    "multiply",
    "divide",
    "negate",
    "linear",
    "matmul",
    "transpose",
    "eye",
}
JOINED = {"cat", "reveal", "place"}
PATTERNS = {"row_norm", "scale_rows", "detach"}


def named(tree: ast.AST) -> set[str]:
    """The primitives whose names an expression's `op` is compared with."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and "op" in {
            getattr(n, "attr", getattr(n, "id", "")) for n in (node.left, *node.comparators)
        }:
            found += [c for part in node.comparators for c in ast.walk(part)]
        elif isinstance(node, ast.MatchValue):
            found.append(node.value)
    return {n.value for n in found if isinstance(n, ast.Constant) and n.value in PRIMITIVES}


def test_no_other_place_knows_a_primitive_by_name() -> None:
    package = Path(surgery.rules.__file__ or "").parents[1]
    for folder in ("rules", "layers", "planning", "graft", "reports"):
        for file in (package / folder).rglob("*.py"):
            allowed = ALGEBRA | JOINED | (PATTERNS if folder == "graft" else set[str]())
            assert named(ast.parse(file.read_text(encoding="utf-8"))) <= allowed, file
