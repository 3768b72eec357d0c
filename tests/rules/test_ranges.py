"""An argument out of range is an error at the argument, wherever it is used in the end."""

from __future__ import annotations

import pytest
import torch

import surgery
from surgery.language import syntax
from surgery.language.diagnostics import Diagnostic, SurgeryError
from surgery.planning.spec import read_spec
from surgery.rules.library import Definition, prelude

BAD = "-1.5"


def told(text: str, model: torch.nn.Module | None = None) -> Diagnostic:
    with pytest.raises(SurgeryError) as caught:
        read_spec(text) if model is None else surgery.plan(model, text)
    return caught.value.diagnostics[0]


def statement(definition: Definition, argument: str) -> str:
    """A spec that applies ``definition`` with ``argument``, and others where it needs them."""
    node, name = definition.syntax, definition.name
    own = argument.partition(" ")[0]
    needed = [f"{p.name} = 2" for p in node.parameters if p.kind == "value" and not p.default]
    given = ", ".join([*(n for n in needed if n.partition(" ")[0] != own), argument])
    kinds = {p.kind for p in node.parameters}
    if "method" in kinds:
        return f"on all {name}({given}) lora(2)"
    inner = " prompt_mlp(4)" if name.startswith("p_tuning") else " adapter(2)"
    block = inner if "block" in kinds else ""
    verb = "parallel " if isinstance(node, syntax.Block) else ""
    return f"on all {verb}{name}({given}){block}"


def values_of(definition: Definition) -> list[str]:
    return [p.name for p in definition.syntax.parameters if p.kind == "value"]


KNOWN = [d for d in map(prelude().find, sorted(prelude().names())) if d is not None]
FREE = {"alpha", "strength", "scale", "act", "average", "d", "text"} | {
    "budget",
    "until",
    "every",
    "beta",
    "gamma",
}
"""What may be any number, or is none."""
SITE = {"rows", "columns", "reduction", "width", "size", "blocks"}
"""What sizes of the site decide about."""
PAIRS = [(d, n) for d in KNOWN for n in values_of(d) if n not in FREE | SITE]


@pytest.mark.parametrize(("definition", "name"), PAIRS, ids=lambda x: getattr(x, "name", x))
def test_every_rule_says_where_an_argument_is_out_of_range(definition, name: str) -> None:
    found = told(statement(definition, f"{name} = {BAD}"))
    assert (found.code, found.labels[0].span.text) == ("S240", BAD), found
    assert found.labels[-1].span.source.name.startswith("rules/")


@pytest.mark.parametrize(
    ("call", "given"),
    [
        ("parallel adapter(4, gelu)", "gelu"),
        ("parallel adapter(r = 4, reduction = 2)", "reduction = 2"),
        ("parallel adapter(reduction = -1, r = 4)", "reduction = -1"),
        ("gated sequential adapter(4, 0)", "0"),
    ],
)
def test_an_argument_that_only_makes_a_default_is_none_beside_it(call: str, given: str) -> None:
    found = told(f"on Linear {call}")
    assert (found.code, found.labels[0].span.text) == ("S245", given)
    assert "`r`" in found.message


def test_an_argument_without_a_use_is_told() -> None:
    method = "method m(r = 2, s = 1) { match y = module(x)  y *= r }"
    assert told(f"{method} on Linear apply m(2, 3)").code == "S245"
    assert told(f"{method} on Linear apply m(s = 3)").code == "S245"
    read_spec(f"{method} on Linear apply m(2)")


@pytest.mark.parametrize("size", ["min(2, 3)", "divisor(8, 2)", "floor(2.5)"])
def test_a_size_that_is_computed_gives_no_name(size: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    for call, name in ((f"apply lora({size})", "lora"), (f"parallel adapter({size})", "adapter")):
        names = {t.name.split(".")[1] for t in surgery.plan(model, f"on Linear {call}").tensors}
        assert names == {name}


def test_a_size_that_is_planned_and_finds_no_room_is_told(monkeypatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("surgery.graft.create.initial", full)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(SurgeryError, match=r"S406.*no memory here"):
        surgery.apply(model, "on Linear apply vera(1e9)", seed=0)
    assert [*model.state_dict()] == ["0.weight", "0.bias"]
    # What is small fails for another reason.
    with pytest.raises(RuntimeError):
        surgery.apply(model, "on Linear apply vera(2)", seed=0)


@pytest.mark.parametrize("definition", [d for d in KNOWN if "dropout" in values_of(d)])
def test_a_rate_of_dropout_is_below_one(definition) -> None:
    assert told(statement(definition, "dropout = 1")).code == "S240"
    read_spec(statement(definition, "dropout = 0.999"))


OWN = {
    "mine": "method mine(p = 0) { match y = linear(x)  y = dropout(y, p / 2) }",
    "usual": "method usual(p = 1.5) { match y = linear(x)  y = dropout(y, p) }",
    "around": "method around(p = 0) { match y = linear(x)  apply lora(2, dropout = p) }",
    "drawn": "method drawn(k = 0) { match y[*, n] = linear(x)  let s = 2 * k\n"
    "  param A[n] ~ normal(std = s)  y += A }",
    "small": "method small(r = 1) { match y = linear(x)  require r <= 4  apply lora(r) }",
    "dropping": "block dropping(p) of h[*, d] { return dropout(h, p) }",
}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("on q apply lora(dropout = 1.5)", "1.5"),
        ("on q apply lora(8, 8, 3 / 2)", "3 / 2"),
        ("let p = 1.5\non q apply lora(dropout = p)", "p"),
        ("on mlp gated lora(r = 0.5)", "0.5"),
        ("on mlp parallel adapter(std = -1)", "-1"),
        ("on mlp gated sequential adapter(0)", "0"),
        ("on q apply lora(r = -8)", "-8"),
        ("on q apply mine(2)", "2"),
        ("on q apply usual", "1.5"),
        ("on q apply around(2)", "2"),
        ("on q apply drawn(-1)", "-1"),
        ("on q apply small(9)", "9"),
        ("on mlp scaled(1) parallel dropping(7)", "7"),
        ("on mlp dropped(1) parallel adapter(7)", "1"),
        ("on tokens apply shifted(0.5)", "0.5"),
        ("on tokens apply shifted(-1)", "-1"),
        ("on tokens p_tuning_at(3, -1) prompt_mlp(4)", "-1"),
        ("on tokens p_tuning_at(3, 7) prompt_mlp(0.5)", "0.5"),
    ],
)
def test_the_caret_stands_at_the_argument(text: str, where: str) -> None:
    own = "\n".join(rule for name, rule in OWN.items() if f" {name}" in text)
    found = told(f"{text}\n{own}")
    assert found.code in ("S240", "S404"), found
    assert found.labels[0].span.text == where, found


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("on Linear sequential adapter(reduction = -2)", "S406", "-2"),
        ("on Linear sequential adapter(reduction = 100)", "S406", "100"),
        ("on Linear apply lokr(2, rows = 0.5)", "S406", "0.5"),
        ("on Linear apply lora(9)", "S404", "9"),
        ("let r = 9\non Linear apply lora(r)", "S404", "r"),
        ("method m(p) { match y[*, n] = linear(x)  y = dropout(y, n / p) }\n"
         "on Linear apply m(2)", "S240", "2"),
        ("method m(p) { match y[*, n] = linear(x)  y = y / (n - p) }\n"
         "on Linear apply m(4)", "S243", "m(4)"),
        ("method m(p) { match y[*, n] = linear(x)  y = y * sqrt(p - n) }\n"
         "on Linear apply m(3)", "S243", "m(3)"),
        ("method m(k) { match y[*, n] = linear(x)  param A[k, n] = 0\n"
         "  y += mean(A, over = k) }\non Linear apply m(1e13)", "S406", "1e13"),
    ],
)  # fmt: skip
def test_what_a_site_decides(text: str, code: str, where: str) -> None:
    found = told(text, torch.nn.Sequential(torch.nn.Linear(6, 4)))
    assert (found.code, found.labels[0].span.text) == (code, where), found


def test_every_recipe_is_within_range() -> None:
    for recipe in ("unipelt", "mam", "bitfit"):
        read_spec(recipe)
