"""Selectors: the algebra they obey, what they never ask for, and that nothing dead stays silent."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, NoReturn

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.select import Selection, select
from surgery.language.diagnostics import SurgeryError
from tests import models

GLOBS = ["`*.c_fc`", "`transformer.h.0.**`", "`ln_?`", "`*.{c_fc,c_proj}`", "`*.c_attn.weight`"]
CLASSES = ["Linear", "LayerNorm", "Module", "Embedding"]
ROLES = ["qkv", "o", "mlp", "attention", "up", "down", "layer", "norm", "bias", "weight", "head"]
ATOMS = [*GLOBS, *CLASSES, *ROLES, "all"]

atoms = st.sampled_from(ATOMS)
bounds = st.none() | st.integers(-4, 4)
steps = st.none() | st.sampled_from([1, 2, 3, -1, -2])


@cache
def anatomy(name: str) -> tuple[nn.Module, Anatomy]:
    model = models.build(name)
    return model, read(model)


def chosen(text: str, name: str = "nanogpt", **options: Any) -> Selection:
    model, seen = anatomy(name)
    return select(model, text, lambda: seen, **options)


def paths(text: str, name: str = "nanogpt", **options: Any) -> tuple[str, ...]:
    """The paths of a selection; none at all is an error elsewhere, and the empty set here."""
    try:
        return chosen(text, name, **options).paths
    except SurgeryError as failure:
        codes = {found.code for found in failure.diagnostics}
    assert codes == {"S301"}
    return ()


def no_anatomy() -> NoReturn:
    raise AssertionError("the model was run")


# Laws


@given(atoms, atoms)
def test_union_commutes(a: str, b: str) -> None:
    assert paths(f"{a} | {b}") == paths(f"{b} | {a}")


@given(atoms, atoms, atoms)
def test_union_associates(a: str, b: str, c: str) -> None:
    assert paths(f"({a} | {b}) | {c}") == paths(f"{a} | ({b} | {c})")


@given(atoms, atoms)
def test_union_is_that_of_sets(a: str, b: str) -> None:
    both = paths(f"{a} | {b}")
    assert set(both) == set(paths(a)) | set(paths(b))
    assert len(both) == len(set(both))


@given(atoms, atoms)
def test_in_and_except_part_a_selection(a: str, b: str) -> None:
    within, rest = set(paths(f"{a} in {b}")), set(paths(f"{a} except {b}"))
    assert within | rest == set(paths(a))
    assert not within & rest


@given(atoms)
def test_everything_lies_in_itself(a: str) -> None:
    assert paths(f"{a} in {a}") == paths(a)
    assert paths(f"{a} except {a}") == ()


@given(atoms, atoms, atoms)
def test_exceptions_add_up(a: str, b: str, c: str) -> None:
    assert paths(f"({a} except {b}) except {c}") == paths(f"{a} except {b} | {c}")


@given(atoms)
def test_selections_are_in_model_order(a: str) -> None:
    order = {name: i for i, (name, _) in enumerate(anatomy("nanogpt")[0].named_modules())}
    found = [site.spans[0] for site in chosen(a).sites]
    owners = [p if p in order else p.rpartition(".")[0] for p in found]
    assert [order[p] for p in owners] == sorted(order[p] for p in owners)


@given(st.sampled_from([*GLOBS, *CLASSES]), bounds, bounds, steps)
def test_slices_are_those_of_sequences(
    a: str, start: int | None, stop: int | None, step: int | None
) -> None:
    text = ":".join("" if bound is None else str(bound) for bound in (start, stop, step))
    wanted = paths(a)[start:stop:step]
    assert set(paths(f"{a}[{text}]")) == set(wanted)


@given(st.sampled_from([*GLOBS, *CLASSES]), st.integers(-6, 6))
def test_an_index_picks_one(a: str, index: int) -> None:
    whole = paths(a)
    inside = -len(whole) <= index < len(whole)
    assert paths(f"{a}[{index}]") == ((whole[index],) if inside else ())


@given(atoms, st.integers(0, 60))
def test_where_parts_a_selection(a: str, bound: int) -> None:
    low = set(paths(f"{a} where parameters < {bound}"))
    assert low | set(paths(f"{a} where not parameters < {bound}")) == set(paths(a))
    assert low | set(paths(f"{a} where parameters >= {bound}")) == set(paths(a))


@given(atoms, atoms)
def test_parameters_of_a_union(a: str, b: str) -> None:
    both = set(paths(f"{a} | {b}", of="parameters"))
    assume(both)
    assert both == set(paths(a, of="parameters")) | set(paths(b, of="parameters"))


# What the parts mean


def test_a_spec_may_leave_biases_out() -> None:
    model = anatomy("gpt2")[0]
    spared = set(paths("all except bias", "gpt2", of="parameters"))
    assert spared == {n for n, _ in model.named_parameters() if not n.endswith("bias")}
    assert len(spared) < len(list(model.parameters()))


@pytest.mark.parametrize("text", ["`*.c_fc`", "Linear", "bias", "weight", "all", "`ln_1`[-1]"])
@pytest.mark.parametrize("of", ["modules", "parameters"])
def test_names_need_no_forward(text: str, of: Any) -> None:
    assert select(models.build("nanogpt"), text, no_anatomy, of=of).sites


def test_a_class_covers_those_derived_from_it() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(2, 2), nn.Linear(2, 2), nn.ReLU())
    assert select(model, "Linear", no_anatomy).paths == ("0", "1")
    assert select(model, "Special", no_anatomy).paths == ("0",)
    assert select(nn.Linear(2, 2), "Linear", no_anatomy).paths == ("",)


def test_biases_go_by_their_own_name() -> None:
    model = nn.Module()
    model.relative_attention_bias = nn.Embedding(2, 2)
    model.attention = nn.MultiheadAttention(4, 2)
    model.memory = nn.GRU(2, 2)
    assert select(model, "bias", no_anatomy).paths == (
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "memory.bias_hh_l0",
        "memory.bias_ih_l0",
    )


def test_a_shared_module_is_one_site_with_all_its_paths() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared}), "d": nn.Linear(2, 2)})
    (site,) = select(model, "`c`", no_anatomy).sites
    assert (site.path, site.paths) == ("a", ("a", "b.c"))
    assert select(model, "Linear | `b.c`", no_anatomy).paths == ("a", "d")
    assert select(model, "Linear in `b`", no_anatomy).paths == ("a",)
    assert select(model, "Linear except `b`", no_anatomy).paths == ("d",)


def test_a_model_that_holds_itself_is_read_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].owner = model
    assert select(model, "Linear", no_anatomy).paths == ("0",)


def test_a_name_of_wildcards_alone_means_modules() -> None:
    kinds = {site.kind for site in chosen("`transformer.h.0.*`").sites}
    assert kinds == {"module"}
    assert {site.kind for site in chosen("`*.c_fc.*t`").sites} == {"parameter"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("layer[-1]", ("encoder.layers.1", "decoder.layers.1")),
        ("mlp[0] in `decoder`", ("decoder.layers.0[fc1..fc2]",)),
        ("attention.cross[-1:]", ("decoder.layers.1.encoder_attn",)),
        ("layer where index == 0", ("encoder.layers.0", "decoder.layers.0")),
    ],
)
def test_each_stack_counts_its_own_layers(text: str, wanted: tuple[str, ...]) -> None:
    found = {path.removeprefix("model.") for path in paths(text, "bart")}
    assert found == set(wanted)


def test_a_region_is_within_what_holds_all_its_members() -> None:
    assert paths("mlp in `layer.0`", "bert") == (
        "encoder.layer.0[intermediate.dense..output.dense]",
    )
    assert paths("mlp in `intermediate`", "bert") == ()
    assert "encoder.layer.0.output.dense" in paths("Linear in mlp", "bert")
    assert "encoder.layer.0.attention.output.dense" not in paths("Linear in mlp", "bert")


@pytest.mark.parametrize(
    ("test", "wanted"),
    [
        ("outputs > inputs", ("c_attn", "c_fc")),
        ("inputs == 32 and outputs == 32", ("c_proj",)),
        ('class == "Linear" and path == "mlp.*"', ("c_fc", "c_proj")),
        ("inputs * 3 == outputs or depth < 0", ("c_attn",)),
        ("index == 0 and - inputs < -40", ("c_proj",)),
    ],
)
def test_where(test: str, wanted: tuple[str, ...]) -> None:
    found = paths(f"Linear in layer[0] where {test}")
    assert tuple(path.rpartition(".")[2] for path in found) == wanted


# What goes wrong


def message(text: str, name: str, **options: Any) -> str:
    with pytest.raises(SurgeryError) as failure:
        chosen(text, name, **options)
    return str(failure.value)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        (
            "bert",
            "`mlp`",
            "error[S301]: nothing matches: this model has no module named `mlp`\n"
            " --> <selector>:1:1\n"
            "  |\n"
            "1 | `mlp`\n"
            "  | ^^^^^\n"
            "  = help: the role is written without backticks: mlp",
        ),
        (
            "gpt2",
            "o | k",
            "error[S301]: nothing matches: k has no layer of its own here\n"
            " --> <selector>:1:5\n"
            "  |\n"
            "1 | o | k\n"
            "  |     ^\n"
            "  = help: it is fused in `transformer.h.0.attn.c_attn` and 1 more, whose role is qkv",
        ),
        (
            "llama",
            "`*.qproj|*.v_proj|*.zz`",
            "error[S301]: nothing matches: no module or parameter is named `qproj`\n"
            " --> <selector>:1:2\n"
            "  |\n"
            "1 | `*.qproj|*.v_proj|*.zz`\n"
            "  |  ^^^^^^^\n"
            "  = help: did you mean `q_proj`?\n"
            "\n"
            "error[S301]: nothing matches: no module or parameter is named `zz`\n"
            " --> <selector>:1:19\n"
            "  |\n"
            "1 | `*.qproj|*.v_proj|*.zz`\n"
            "  |                   ^^^^",
        ),
        (
            "llama",
            "q expect 3",
            "error[S303]: expected 3, but 2 match\n"
            " --> <selector>:1:1\n"
            "  |\n"
            "1 | q expect 3\n"
            "  | ^^^^^^^^^^\n"
            "  = help: they are model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj",
        ),
    ],
)
def test_messages(name: str, text: str, wanted: str) -> None:
    assert message(text, name).replace(" \n", "\n") == wanted


@pytest.mark.parametrize(
    ("name", "text", "reason", "help"),
    [
        ("llama", "atention", "there is no role `atention`", "did you mean attention?"),
        ("llama", "q_proj", "there is no role `q_proj`", "between backticks: `q_proj`"),
        ("llama", "Liner", "no module of class Liner", "did you mean Linear?"),
        ("llama", "SiLU", "no module of class SiLU", "did you mean SiLUActivation?"),
        ("llama", "router", "no router was found", "roles seen here: attention"),
        ("llama", "bias", "no parameter that is a bias", ""),
        ("llama", "`layers.9.mlp`", "is named `9`", "`layers` counts from 0 to 1"),
        ("llama", "`.layers.0`", "no path fits", "is `model.layers.0`"),
        ("phi3", "gate", "gate has no layer of its own", "whose role is gate_up"),
        ("llama", "layer[7]", "only 2 to choose from", ""),
        ("llama", "q in `foo`", "is named `foo`", ""),
        ("llama", "Embedding in layer[0]", "1 found, but none inside `layer[0]`", ""),
        ("llama", "Linear where inputs > 9999", "the test holds nowhere", ""),
        ("llama", "Linear except all", "everything is excepted", ""),
    ],
)
def test_reasons(name: str, text: str, reason: str, help: str) -> None:
    found = message(text, name)
    assert found.startswith("error[S301]: nothing matches")
    assert reason in found
    assert help in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Linear where input > 3", "did you mean `inputs`?"),
        ("Linear where path > 3", "only be compared with"),
        ("Linear where inputs / 0 > 1", "divides by zero"),
    ],
)
def test_tests_that_say_nothing(text: str, reason: str) -> None:
    found = message(text, "llama")
    assert found.startswith("error[S304]")
    assert reason in found


def test_every_dead_part_is_told() -> None:
    with pytest.raises(SurgeryError) as failure:
        chosen("q | `*.x` | Linr | (o | kk)[0]", "llama")
    starts = [found.labels[0].span.start for found in failure.value.diagnostics]
    assert starts == [4, 12, 24]


def test_modules_without_parameters_cannot_be_trained() -> None:
    assert "no parameters" in message("Dropout", "nanogpt", of="parameters")


@pytest.mark.parametrize("part", ["bias", "`nothing`", "router", "k"])
def test_an_exception_that_excepts_nothing_is_a_warning(part: str) -> None:
    found = chosen(f"q except {part}", "llama")
    assert [warning.code for warning in found.warnings] == ["S302"]
    assert found.warnings[0].severity == "warning"
    assert found.paths == paths("q", "llama")


def test_no_warning_without_reason() -> None:
    assert chosen("Linear except head | up", "llama").warnings == ()


def test_many_modules_are_selected_in_no_time() -> None:
    def layer() -> nn.ModuleDict:
        return nn.ModuleDict({f"{kind}_proj": nn.Linear(1, 1) for kind in "qkvougda"})

    model = nn.ModuleDict({"layers": nn.ModuleList([layer() for _ in range(768)])})
    select(model, "`q_proj`", no_anatomy)
    for text, count in [("`*_proj`", 6144), ("Linear except `q_proj`", 5376), ("bias", 6144)]:
        start = time.perf_counter()
        assert len(select(model, text, no_anatomy)) == count
        assert time.perf_counter() - start < 1
