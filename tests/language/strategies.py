"""Random syntax trees: anything that `parse` can give, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from surgery.language import syntax
from surgery.language.source import SourceText, Span
from surgery.language.words import RESERVED

NOWHERE = Span(SourceText("", ""), 0, 0)

SHARING = st.sampled_from([None, "shared", "stack", "layer"])
_known = st.sampled_from(["q", "x", "gate", "norm", "weight", "shared", "frozen", "one", "A", "W"])
names = (_known | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)).filter(
    lambda name: name not in RESERVED.values()
)
_small = names.filter(lambda name: not name[0].isupper())
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=12)

numbers = st.builds(
    syntax.Number,
    st.integers(0, 10**6) | st.floats(0, allow_nan=False, allow_infinity=False),
    span=st.just(NOWHERE),
)
texts = st.builds(syntax.Text, words, span=st.just(NOWHERE))
name_nodes = st.builds(syntax.Name, names, span=st.just(NOWHERE))
stars = st.builds(syntax.Star, span=st.just(NOWHERE))


def arguments(
    values: st.SearchStrategy[syntax.Expression],
) -> st.SearchStrategy[tuple[syntax.Argument, ...]]:
    """Some without a name, then some with names that differ."""
    bare = st.lists(
        st.builds(syntax.Argument, st.none(), values, span=st.just(NOWHERE)), max_size=2
    )
    named = st.lists(
        st.builds(syntax.Argument, names, values, span=st.just(NOWHERE)),
        max_size=2,
        unique_by=lambda argument: argument.name,
    )
    return st.tuples(bare, named).map(lambda both: (*both[0], *both[1]))


def _larger(inner: st.SearchStrategy[syntax.Expression]) -> st.SearchStrategy[syntax.Expression]:
    signs = ["+", "-", "*", "/", "@", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
    return (
        st.builds(syntax.Unary, st.sampled_from(["-", "not"]), inner, span=st.just(NOWHERE))
        | st.builds(syntax.Binary, st.sampled_from(signs), inner, inner, span=st.just(NOWHERE))
        | st.builds(
            syntax.Call,
            names,
            arguments(inner),
            span=st.just(NOWHERE),
            function_span=st.just(NOWHERE),
        )
    )


expressions = st.recursive(numbers | texts | name_nodes, _larger, max_leaves=6)

# Globs and selectors

components = st.text("abq_1", min_size=1, max_size=3) | st.sampled_from(
    ["*", "**", "?", "q_*", "*_proj", "[ab]", "[!a-c]x", "{a,b}", "{q,k}_proj", "a?"]
)
alternatives = st.builds(
    lambda root, parts: root + ".".join(parts),
    st.sampled_from(["", "", "."]),
    st.lists(components, min_size=1, max_size=3),
)
globs = st.lists(alternatives, min_size=1, max_size=3).map("|".join)

_primaries = (
    st.builds(syntax.Path, globs, span=st.just(NOWHERE))
    | st.builds(
        syntax.Role, st.lists(_small, min_size=1, max_size=2).map(".".join), span=st.just(NOWHERE)
    )
    | st.builds(syntax.Class, names.filter(lambda name: name[0].isupper()), span=st.just(NOWHERE))
    | st.builds(syntax.All, span=st.just(NOWHERE))
)
_shares = st.sampled_from((0.5, -0.25, 0.125, -0.75))
_bounds = st.none() | st.integers(-9, 9) | _shares
_subscripts = st.builds(
    syntax.Slice,
    _bounds,
    _bounds,
    (st.none() | st.integers(-9, 9)).filter(lambda step: step != 0),
    span=st.just(NOWHERE),
) | st.builds(syntax.Index, st.integers(-9, 9), span=st.just(NOWHERE))


def _unions(
    primaries: st.SearchStrategy[syntax.Node],
) -> st.SearchStrategy[syntax.Union]:
    sliced = st.builds(syntax.Sliced, primaries, _subscripts, span=st.just(NOWHERE))
    parts = st.lists(primaries | sliced, min_size=1, max_size=3).map(tuple)
    return st.builds(syntax.Union, parts, span=st.just(NOWHERE))


def _unsliced(union: syntax.Union) -> bool:
    return not any(isinstance(part, syntax.Sliced) for part in union.parts)


def _selectors(
    unions: st.SearchStrategy[syntax.Union],
) -> st.SearchStrategy[syntax.Selector]:
    return st.builds(
        syntax.Selector,
        unions,
        st.none() | unions,
        st.none() | expressions,
        st.none() | unions,
        st.none() | st.integers(0, 99),
        span=st.just(NOWHERE),
    )


_groups = st.builds(syntax.Group, _selectors(_unions(_primaries)), span=st.just(NOWHERE))
selectors = _selectors(_unions(_primaries | _primaries | _groups))
_bare = names.map(
    lambda name: (syntax.Class if name[0].isupper() else syntax.Role)(name, span=NOWHERE)
)
targets = selectors | st.builds(
    lambda selector, of: replace(selector, of=of), selectors, _unions(_bare).filter(_unsliced)
)
"""Selectors of what trains: those of the base's parameters, and of the params of methods."""
settings = st.lists(
    st.builds(
        syntax.Setting,
        st.sampled_from(["lr", "weight_decay", "momentum", "eps"]),
        st.sampled_from(["*", "="]),
        expressions,
        span=st.just(NOWHERE),
        option_span=st.just(NOWHERE),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda setting: setting.option,
).map(tuple)

# Statements

applications = st.recursive(
    st.builds(
        syntax.Application,
        names,
        arguments(expressions),
        span=st.just(NOWHERE),
        name_span=st.just(NOWHERE),
    ),
    lambda inner: st.builds(
        syntax.Application,
        names,
        arguments(expressions),
        inner,
        span=st.just(NOWHERE),
        name_span=st.just(NOWHERE),
    ),
    max_leaves=2,
)
statements = (
    st.builds(syntax.On, selectors, applications, st.none() | names, span=st.just(NOWHERE))
    | st.builds(syntax.Freeze, targets, span=st.just(NOWHERE))
    | st.builds(syntax.Train, targets, span=st.just(NOWHERE))
    | st.builds(syntax.Optimize, targets, settings, span=st.just(NOWHERE))
    | st.builds(syntax.Penalty, expressions, selectors, span=st.just(NOWHERE))
    | st.builds(
        syntax.Use,
        words,
        st.none() | st.lists(names, min_size=1, max_size=3).map(tuple),
        span=st.just(NOWHERE),
    )
)

# Definitions


@st.composite
def dims(draw: st.DrawFn) -> tuple[syntax.Expression, ...]:
    lead = draw(st.lists(stars, max_size=1))
    return (*lead, *draw(st.lists(name_nodes | expressions, max_size=2)))


assigned = st.builds(
    syntax.Assign,
    names,
    st.sampled_from(["=", "+=", "-=", "*="]),
    expressions,
    span=st.just(NOWHERE),
    target_span=st.just(NOWHERE),
)


@st.composite
def definitions(draw: st.DrawFn, name: str) -> syntax.Method | syntax.Block:
    """A method or a block in which every name is declared once."""
    pool = draw(st.lists(names, min_size=12, max_size=12, unique=True))

    def parameter() -> syntax.Parameter:
        kind = draw(st.sampled_from(["value", "value", "block", "method"]))
        default = draw(st.none() | expressions)
        return syntax.Parameter(pool.pop(), kind, default, span=NOWHERE)

    def operand(optional: bool) -> syntax.Operand:
        given = draw(st.none() | dims())
        return syntax.Operand(pool.pop(), given, optional, span=NOWHERE)

    def step() -> syntax.Step:
        value = draw(expressions)
        kinds = ["require", "param", "state", "draw", "tune", "charge", "after", "let", "assign"]
        match draw(st.sampled_from([*kinds, "apply"])):
            case "require":
                return syntax.Require(value, span=NOWHERE)
            case "param":
                flags = [draw(st.booleans()), draw(st.booleans()), draw(SHARING)]
                return syntax.Param(
                    pool.pop(), draw(dims()), value, *flags, span=NOWHERE, name_span=NOWHERE
                )
            case "state":
                flags = [draw(st.booleans()), True, draw(SHARING), True]
                return syntax.Param(
                    pool.pop(), draw(dims()), value, *flags, span=NOWHERE, name_span=NOWHERE
                )
            case "draw":
                return syntax.Draw(
                    pool.pop(),
                    draw(st.none() | dims()),
                    value,
                    draw(st.none() | expressions),
                    draw(SHARING),
                    span=NOWHERE,
                    name_span=NOWHERE,
                )
            case "tune":
                params = draw(st.lists(name_nodes, min_size=1, max_size=3).map(tuple))
                return syntax.Tune(params, draw(settings), span=NOWHERE)
            case "charge":
                return syntax.Charge(value, span=NOWHERE)
            case "after":
                body = draw(st.lists(assigned, max_size=3).map(tuple))
                where = draw(st.none() | expressions)
                return syntax.After("step", where, body, span=NOWHERE, event_span=NOWHERE)
            case "let":
                return syntax.Let(pool.pop(), value, span=NOWHERE, name_span=NOWHERE)
            case "apply" if method:
                inner = syntax.Application(
                    draw(names), draw(arguments(expressions)), span=NOWHERE, name_span=NOWHERE
                )
                return syntax.Apply(inner, span=NOWHERE)
            case _:
                return draw(assigned)

    method = draw(st.booleans())
    parameters = tuple(parameter() for _ in range(draw(st.integers(0, 3))))
    doc = draw(st.none() | words)
    if not method:
        given = operand(False)
        steps = [step() for _ in range(draw(st.integers(0, 3)))]
        steps.append(syntax.Return(draw(expressions), span=NOWHERE))
        return syntax.Block(
            name, parameters, given, doc, tuple(steps), span=NOWHERE, name_span=NOWHERE
        )
    match = syntax.Match(
        operand(False),
        draw(names),
        tuple(operand(draw(st.booleans())) for _ in range(draw(st.integers(0, 3)))),
        span=NOWHERE,
        operator_span=NOWHERE,
    )
    steps = [step() for _ in range(draw(st.integers(0, 3)))]
    return syntax.Method(name, parameters, doc, (match, *steps), span=NOWHERE, name_span=NOWHERE)


@st.composite
def files(draw: st.DrawFn) -> syntax.File:
    """Some statements and definitions; no two define the same name."""
    pool = draw(st.lists(names, min_size=4, max_size=4, unique=True))
    items: list[syntax.Item] = []
    for _ in range(draw(st.integers(0, 4))):
        match draw(st.sampled_from(["statement", "statement", "let", "definition"])):
            case "let":
                value = draw(expressions)
                items.append(syntax.Let(pool.pop(), value, span=NOWHERE, name_span=NOWHERE))
            case "definition":
                items.append(draw(definitions(pool.pop())))
            case _:
                items.append(draw(statements))
    return syntax.File(tuple(items), NOWHERE.source)
