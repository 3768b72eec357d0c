"""The recipes that come along: their sizes, and their mixes with the rest of the language."""

import pytest
import torch

import surgery
from surgery.planning.recipes import recipes
from tests.laws.strategies import assert_state, randomise_added, state_of
from tests.laws.test_hybrids import close, run
from tests.models import build

HIDDEN, LAYERS = 32, 2


def prefix_by_network(n: int, m: int) -> int:
    """Li & Liang 2021: E and the first layer once, the second layer for each layer's K and V."""
    once = n * HIDDEN + m * HIDDEN + m
    return once + LAYERS * 2 * (HIDDEN * m + HIDDEN)


def adapter(r: int) -> int:
    return 2 * HIDDEN * r + HIDDEN + r


GATE = HIDDEN + 1
LORA = 2 * 8 * HIDDEN
SIZES = {
    "unipelt": prefix_by_network(10, 512)
    + LAYERS * (GATE + 2 * (LORA + GATE) + adapter(HIDDEN // 16) + GATE),
    "mam": prefix_by_network(30, 800) + LAYERS * adapter(512),
}


def test_there_are_these() -> None:
    assert set(recipes()) == {"bitfit", "mam", "unipelt"}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_papers(name: str) -> None:
    assert surgery.plan(build("bert"), name).added == SIZES[name]


def test_bitfit_trains_the_biases() -> None:
    model = build("bert")
    biases = {n for n, _ in model.named_parameters() if n.endswith("bias")}
    surgery.apply(model, "bitfit")
    assert set(surgery.trainable(model)) == biases
    with pytest.raises(surgery.SurgeryError, match="no parameter that is a bias"):
        surgery.plan(build("llama"), "bitfit")


def test_a_name_that_is_none() -> None:
    with pytest.raises(surgery.SurgeryError, match="did you mean `unipelt`"):
        surgery.plan(build("bert"), "uniplet")


@pytest.mark.parametrize("more", ["on o apply lora(2)", "on o apply dora(2)", "train bias | norm"])
@pytest.mark.parametrize("recipe", ["unipelt", "mam"])
def test_a_recipe_beside_others(recipe: str, more: str, tmp_path) -> None:
    model = build("bert")
    base = state_of(model)
    with torch.no_grad():
        before = run(model)
        surgery.apply(surgery.apply(model, recipe, seed=0), more, seed=1)
        randomise_added(model, std=0.1)
        adapted = run(model)
        assert (adapted - before).abs().max() > 1e-3
        surgery.save(model, tmp_path)
        assert torch.equal(run(surgery.load(build("bert"), tmp_path)), adapted)
        surgery.remove(model)
        assert_state(model, base)
        assert torch.equal(run(model), before)


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)", "ia3"])
def test_what_merges_merges_and_the_rest_stays(method: str) -> None:
    model = build("llama")
    surgery.apply(model, f"on attention apply prefix(2)  on o apply {method}", seed=0)
    randomise_added(model)
    with torch.no_grad():
        before = run(model)
        with surgery.merged(model):
            close(run(model), before)
        assert torch.equal(run(model), before)
        report = surgery.merge(model)
        close(run(model), before)
    assert {site.rpartition(".")[2] for site, _ in report.merged} == {"o_proj"}
    assert {s.child for s in report.stayed} == {"prefix"}
    assert all("not a linear layer" in s.reason for s in report.stayed)
    assert "Not merged: model.layers.0.self_attn and 1 more" in str(report)
    assert all(".prefix." in name for name in surgery.trainable(model))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bart"])
def test_unipelt_generates(name: str) -> None:
    model = randomise_added(surgery.apply(build(name), "unipelt", seed=0), std=0.05)
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    words = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    with surgery.disabled(model):
        plain = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(plain, build(name).generate(ids, attention_mask=mask, max_new_tokens=4))
    assert words.shape[0] == 2
    assert torch.equal(
        words, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    )


@pytest.mark.parametrize(
    ("call", "name", "shape"),
    [
        ("unipelt(r = 3)", "lora.A", (3, 32)),
        ("unipelt(tokens = 4, hidden = 5)", "prefix_mlp.D", (5, 32)),
        ("unipelt(4, 5, r = 1 + 1)", "prefix_mlp.E", (4, 32)),
        ("mam(r = 6)", "adapter.D", (6, 32)),
        ("mam()", "adapter.D", (512, 32)),
    ],
)
def test_a_recipe_takes_arguments(call: str, name: str, shape: tuple[int, ...], tmp_path) -> None:
    """Which are in the text that the saved file carries."""
    model = surgery.apply(build("gpt2"), call, seed=0)
    found = {n: p for n, p in surgery.trainable(model).items() if n.endswith(name)}
    assert {tuple(p.shape) for p in found.values()} == {shape}
    surgery.save(model, tmp_path / "adapter")
    again = surgery.load(build("gpt2"), tmp_path / "adapter")
    assert all(torch.equal(surgery.trainable(again)[n], p) for n, p in found.items())


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("unipelt(rr = 4)", "S208"),
        ("unipelt(1, 2, 3, 4, 5)", "S208"),
        ("unipelt(4, tokens = 4)", "S208"),
        ("bitfit(3)", "S208"),
        ("unipelz(r = 1)", "S510"),
        ("unipelt(r = 0)", "S240"),
    ],
)
def test_what_a_recipe_does_not_take_is_told(call: str, code: str) -> None:
    with pytest.raises(surgery.SurgeryError, match=code):
        surgery.read_spec(call)
