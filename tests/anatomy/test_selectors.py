"""Selectors: the algebra they obey, and what they never ask for."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from surgery.anatomy.select import select
from surgery.anatomy.site import BareParameter, WholeModule
from tests import models
from tests.anatomy.selecting import anatomy, chosen, no_anatomy, paths

GLOBS = ["`*.c_fc`", "`transformer.h.0.**`", "`ln_?`", "`*.{c_fc,c_proj}`", "`*.c_attn.weight`"]
CLASSES = ["Linear", "LayerNorm", "Module", "Embedding"]
ROLES = ["qkv", "o", "mlp", "attention", "up", "down", "layer", "norm", "bias", "weight", "head"]
ATOMS = [*GLOBS, *CLASSES, *ROLES, "all"]

atoms = st.sampled_from(ATOMS)
bounds = st.none() | st.integers(-4, 4)
steps = st.none() | st.sampled_from([1, 2, 3, -1, -2])


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
    kinds = {type(site.operator) for site in chosen("`transformer.h.0.*`").sites}
    assert kinds == {WholeModule}
    assert {type(site.operator) for site in chosen("`*.c_fc.*t`").sites} == {BareParameter}


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


@pytest.mark.parametrize("text", ["`*_proj`", "Linear except `q_proj`", "bias"])
def test_the_work_of_selecting_is_linear_in_the_modules(text: str) -> None:
    def calls(layers: int) -> int:
        made = [{f"{kind}_proj": nn.Linear(1, 1) for kind in "qkvougda"} for _ in range(layers)]
        model = nn.ModuleDict({"layers": nn.ModuleList(map(nn.ModuleDict, made))})
        select(model, "`q_proj`", no_anatomy)
        count = 0

        def note(_: object, event: str, __: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            found = select(model, text, no_anatomy)
        finally:
            sys.setprofile(None)
        assert len(found) == layers * (7 if "except" in text else 8)
        return count

    assert calls(256) < 4.4 * calls(64)
