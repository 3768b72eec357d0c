"""Dims are polynomials: what is worked out with names agrees with arithmetic."""

from hypothesis import given
from hypothesis import strategies as st

from surgery.rules.dims import Dim

SIZES = {"n": 24, "m": 36, "r": 4}
leaves = st.sampled_from([Dim.named(name) for name in SIZES]) | st.integers(1, 9).map(Dim.of)


def combine(children: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    pairs = st.tuples(children, children)
    return (
        pairs.map(lambda p: p[0] + p[1])
        | pairs.map(lambda p: p[0] * p[1])
        | pairs.map(lambda p: p[0] - p[1])
        | pairs.map(lambda p: Dim.named("min", *p))
    )


dims = st.recursive(leaves, combine, max_leaves=6)


@given(dims, dims)
def test_sums_and_products_evaluate_as_numbers(a: Dim, b: Dim) -> None:
    x, y = a.value(SIZES), b.value(SIZES)
    assert (a + b).value(SIZES) == x + y
    assert (a * b).value(SIZES) == x * y
    assert (a - b).value(SIZES) == x - y


@given(dims, dims)
def test_equal_forms_are_equal_values(a: Dim, b: Dim) -> None:
    assert a + b == b + a
    assert a * b == b * a
    assert a - a == Dim.of(0)
    assert hash(a * b) == hash(b * a)


@given(dims)
def test_a_quotient_times_its_divisor_is_the_whole(a: Dim) -> None:
    p = Dim.named("divisor", Dim.named("n"), a)
    n = Dim.named("n")
    assert (n / p) * p == n


@given(dims)
def test_substitution_is_evaluation(a: Dim) -> None:
    known = {name: Dim.of(size) for name, size in SIZES.items()}
    assert a.substitute(known).number == a.value(SIZES)


@given(st.integers(1, 500), st.integers(1, 500))
def test_divisor_divides_and_stays_below(number: int, limit: int) -> None:
    found = Dim.named("divisor", Dim.of(number), Dim.of(limit)).number
    assert isinstance(found, int)
    assert number % found == 0
    assert found <= max(1, limit)
    assert not any(number % k == 0 for k in range(found + 1, limit + 1))
