"""Undo is exact, merged equals adapted, and what is saved comes back."""

import copy
import io
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import surgery
from tests.laws.strategies import (
    EVERY,
    MERGING,
    SAME_PADDING,
    Case,
    Holder,
    added,
    assert_near,
    assert_state,
    cases,
    convolutions,
    randomise_added,
    same_bits,
    snapshot,
    state_of,
)

pytestmark = SAME_PADDING


@settings(max_examples=100)
@given(cases(MERGING))
def test_merged_is_adapted(case: Case) -> None:
    x, model = case.input(), case.adapted()
    with torch.no_grad():
        adapted = model(x)
        before = state_of(model)
        with surgery.merged(model):
            assert_near(model(x), adapted, case.dtype)
        assert_state(model, before)
        assert torch.equal(model(x), adapted)
        report = surgery.merge(model)
        assert not report.stayed
        assert_near(model(x), adapted, case.dtype)
    assert type(model.layer) is type(case.base().layer)


@given(cases(MERGING, kinds=convolutions(), dtypes=(torch.float64,)))
def test_convolutions_merge_whatever_their_geometry(case: Case) -> None:
    x, model = case.input(), case.adapted()
    adapted = model(x)
    surgery.merge(model)
    assert_near(model(x), adapted, case.dtype)


@settings(max_examples=60)
@given(cases(EVERY))
def test_removal_is_exact(case: Case) -> None:
    x, base = case.input(), case.base()
    before = state_of(base)
    with torch.no_grad():
        output = base(x)
        surgery.apply(base, case.spec + "\ntrain all", example_inputs=x, seed=0)
        for parameter in base.parameters():
            parameter.add_(1)
        with surgery.disabled(base):
            assert torch.equal(base(x), output)
        surgery.remove(base)
        assert torch.equal(base(x), output)
    assert_state(base, before)


@given(cases(("lora", "ia3", "shift", "vera", "rslora"), most=3))
def test_removing_one_leaves_the_others(case: Case) -> None:
    x, model = case.input(), case.adapted()
    surgery.remove(model, case.names[-1])
    others = case.spec_of(range(len(case.methods) - 1))
    expected = case.adapted(spec=others) if others else case.base()
    assert torch.equal(model(x), expected(x))
    assert same_bits(snapshot(model), snapshot(expected))


@given(cases(EVERY, most=2))
def test_saved_is_loaded(case: Case) -> None:
    x, model = case.input(), case.adapted()
    with tempfile.TemporaryDirectory() as folder:
        file = surgery.save(model, folder)
        assert file == Path(folder) / "adapter.safetensors"
        again = surgery.load(case.base(), folder, example_inputs=x)
        assert torch.equal(again(x), model(x))
        assert same_bits(snapshot(again), snapshot(model))
        other = case.base()
        with torch.no_grad():
            next(other.parameters()).add_(1)
        before = state_of(other)
        with pytest.raises(surgery.SurgeryError, match="S515"):
            surgery.load(other, folder, example_inputs=x)
        assert_state(other, before)


@given(cases(EVERY, most=2))
def test_copies_and_pickles_compute_the_same(case: Case) -> None:
    x, model = case.input(), case.adapted()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), expected)
    surgery.remove(again)
    assert torch.equal(again(x), case.base()(x))


@given(cases(EVERY, most=2, dtypes=(torch.float64,)))
def test_every_new_parameter_gets_a_gradient(case: Case) -> None:
    x, model = case.input(), case.adapted()
    output = model(x)
    if not output.numel():
        return
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    (output * weights.to(output.dtype)).sum().backward()
    for name, parameter in added(model).items():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or _is_flat(case), name


def _is_flat(case: Case) -> bool:
    """Whether a nonlinearity may be off for all of the input, or its gate shut."""
    return "relu" in case.spec


GRADIENT_RULES = ("lora(2)", "dora(2)", "lora(2, alpha = 5)", "vera(3)", "loha(2)", "lokr(2)")


@pytest.mark.parametrize("method", GRADIENT_RULES)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_formula(method: str, bias: bool) -> None:
    """Against autograd through the merge: y = x Wᵀ + b with the derived W and b."""
    model = Holder(nn.Linear(6, 4, bias=bias)).double()
    surgery.apply(model, f"on `layer` apply {method}", seed=0)
    randomise_added(model)
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    names = list(surgery.trainable(model))

    def run(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in surgery.trainable(model).values()]
    if "dora" in method:
        # The norm is a constant for the gradient, which finite differences do not know.
        fixed = values[:2]
        assert torch.autograd.gradcheck(
            lambda m: run(fixed[0].detach(), fixed[1].detach(), m), (values[2],)
        )
    else:
        assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradcheck(lambda t: model(t), (x,))


@pytest.mark.parametrize("method", ["lora(3, dropout = 0.4)", "dora(3, dropout = 0.4)"])
def test_dropout_is_on_in_training_alone_and_unbiased(method: str) -> None:
    torch.manual_seed(0)
    model = Holder(nn.Linear(16, 8))
    surgery.apply(model, f"on `layer` apply {method}", seed=0)
    randomise_added(model)
    x = torch.randn(4, 16)
    model.eval()
    expected = model(x)
    assert torch.equal(model(x), expected)
    model.train()
    assert not torch.equal(model(x), expected)
    with torch.no_grad():
        mean = torch.stack([model(x) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0.15, atol=0.15)
    step = 1e-2 * torch.randn(4, 16)
    torch.manual_seed(1)
    x.requires_grad_()
    given = model(x)
    (gradient,) = torch.autograd.grad(given.sum(), x)
    torch.manual_seed(1)
    moved = model(x + step)
    torch.testing.assert_close((moved - given).sum(), (gradient * step).sum(), rtol=1e-3, atol=1e-3)


def test_a_tied_weight_adapts_and_refuses_to_merge() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(ids))

    model, ids = Tied(), torch.arange(7)
    weight = model.head.weight.detach().clone()
    surgery.apply(model, "on `head` apply lora(2)", seed=0)
    randomise_added(model)
    assert torch.equal(model.embedding(ids), weight)
    before = state_of(model)
    with pytest.raises(surgery.SurgeryError, match=r"S513[\s\S]*tied with `embedding`"):
        surgery.merge(model)
    assert_state(model, before)


def test_one_module_on_two_paths_is_adapted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    model, x = Twice(), torch.randn(2, 4)
    plan = surgery.plan(model, "on `second` apply lora(2)")
    (edit,) = plan.edits
    assert edit.site.paths == ("first", "second")
    surgery.apply(model, "on `second` apply lora(2)", seed=0)
    randomise_added(model)
    adapted = model(x)
    surgery.merge(model)
    torch.testing.assert_close(model(x), adapted)


def test_partial_merging_says_what_stayed() -> None:
    model = Holder(nn.Linear(4, 4))
    x = torch.randn(3, 4)
    spec = "on `layer` parallel adapter(2)  on `layer` apply lora(2)"
    surgery.apply(model, spec, example_inputs=x, seed=0)
    randomise_added(model)
    adapted = model(x)
    report = surgery.merge(model)
    assert report.merged == (("layer", "lora"),)
    assert [s.child for s in report.stayed] == ["adapter"]
    torch.testing.assert_close(model(x), adapted)


BAD = (
    "on `layer` apply lora(99)",
    "on `layer` apply lora(2) on `nothing` apply lora(2)",
    "on `layer` apply lora(2) on `layer` apply lora(2)",
    "on `layer` apply lora(2) on `layer` parallel adapter(2) on `layer` apply dora(2)",
    "on `layer` expect 2 apply ia3",
    "on `layer` apply ia3 as weight",
    "train bias on `layer` apply lokr(rows = 0)",
)


@pytest.mark.parametrize("spec", BAD)
def test_bad_input_leaves_nothing_half_done(spec: str) -> None:
    model = Holder(nn.Linear(4, 4))
    before = state_of(model)
    children = dict(model.named_modules())
    with pytest.raises(surgery.SurgeryError):
        surgery.apply(model, spec, example_inputs=torch.randn(2, 4))
    assert_state(model, before)
    assert dict(model.named_modules()) == children
    assert "_surgery" not in model.__dict__


@pytest.mark.parametrize(
    "spec",
    [
        "on `self_attn.out_proj` apply lora(2)",
        "on `linear2` apply dora(2)",
        "on `linear1` parallel adapter(2)",
    ],
)
def test_pytorch_shortcuts_do_not_pass_a_graft_by(spec: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        base = model(x)
        surgery.apply(model, spec, example_inputs=x, seed=0)
        randomise_added(model)
        quick = model(x)
        assert not torch.allclose(quick, base)
    torch.testing.assert_close(model(x), quick)
    with torch.no_grad(), surgery.merged(model):
        torch.testing.assert_close(model(x), quick, rtol=1e-4, atol=1e-5)
    surgery.remove(model)
    with torch.no_grad():
        assert torch.equal(model(x), base)
