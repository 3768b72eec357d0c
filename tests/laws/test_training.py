"""What trains beside a forward: targets of statements, groups, penalties, states, draws and steps."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery

RULES = """
method nested_lora(r = 4) {
  match y[*, n] = linear(x[*, m], W[n, m], b?)
  param A[r, m] ~ kaiming_uniform(a = sqrt(5))
  param B[n, r] ~ normal(std = 0.1)
  draw  keep[r] ~ nested(1)
  y    += linear(keep / sum(keep, over = r) * linear(x, A), B)
}
method noisy(std = 0.1) {
  match y[*, n] = linear(x[*, m], W[n, m], b?)
  param g[n] = 1
  draw  shared e[1] ~ normal(std)
  draw  flip[n] ~ bernoulli(0.5) else 0.5
  y     = g * y + e * flip
}
method pruned(r = 4, budget = 2) {
  match y[*, n] = linear(x[*, m], W[n, m], b?)
  param A[r, m] ~ kaiming_uniform(a = sqrt(5))
  param B[n, r] ~ normal(std = 0.1)
  param E[r] = 1
  state s[r] = 0
  state keep[r] = 1
  y    += linear(E * linear(x, A), B)
  optimize E with lr * 2
  penalty 0.1 * frobenius(A) / sites
  after step where step % 2 == 0 {
    let g = abs(E * grad(E))
    s = 0.85 * s + 0.15 * g
    keep = topk(s, floor(sites * budget), over = sites)
    E = E * keep
  }
}
"""
METHODS = ["nested_lora(3)", "noisy", "pruned(3, budget = ramp(3, 1, 0, 4))", "lora_plus(2)"]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Conv1d(3, 3, 1), nn.Linear(6, 4))


def spec_of(methods: list[str]) -> str:
    return RULES + "\n".join(f"on Linear apply {m} as a{i}" for i, m in enumerate(methods))


def train(adapted: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    adapted.train()
    for step in steps:
        x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(step))
        loss = adapted(x).square().mean() + surgery.penalty(adapted)
        loss.backward()
        optimizer.step()
        surgery.step(adapted)
        optimizer.zero_grad()


def sgd(adapted: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(surgery.param_groups(adapted, lr=0.1))


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(METHODS), min_size=1, max_size=3),
    st.integers(0, 5),
    st.sampled_from(["file", "state dict", "copy", "pickle"]),
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, methods: list[str], split: int, how: str
) -> None:
    spec = spec_of(methods)
    whole = surgery.apply(model(), spec, seed=3)
    train(whole, sgd(whole), range(6))
    first = surgery.apply(model(), spec, seed=3)
    train(first, sgd(first), range(split))
    if how == "file":
        path = surgery.save(first, tmp_path_factory.mktemp("adapter"))
        second = surgery.load(model(), path)
    elif how == "state dict":
        # Another seed: that of the draws is in the state dict, too.
        second = surgery.apply(model(), spec, seed=9)
        second.load_state_dict(first.state_dict())
    else:
        second = copy.deepcopy(first) if how == "copy" else pickle.loads(pickle.dumps(first))
    train(second, sgd(second), range(split, 6))
    assert same(whole, second)


@pytest.mark.parametrize("method", METHODS)
def test_states_merge_and_go(method: str) -> None:
    adapted = surgery.apply(model(), spec_of([method]), seed=1)
    train(adapted, sgd(adapted), range(3))
    adapted.eval()
    x = torch.randn(2, 3, 5)
    before = adapted(x)
    assert torch.equal(adapted(x), before)
    with surgery.merged(adapted):
        torch.testing.assert_close(adapted(x), before)
        assert surgery.penalty(adapted).isfinite()
    surgery.remove(adapted)
    assert same(adapted, model())


def test_a_draw_is_one_for_a_step_and_recomputed_the_same() -> None:
    adapted = surgery.apply(model(), spec_of(["nested_lora(3)", "noisy"]), seed=1).train()
    x = torch.randn(2, 3, 5, requires_grad=True)
    seen = [adapted(x)]
    assert torch.equal(adapted(x), seen[0])
    checkpointed = torch.utils.checkpoint.checkpoint(adapted, x, use_reentrant=False)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (seen[0], checkpointed)]
    assert torch.equal(*gradients)
    for _ in range(8):
        surgery.step(adapted)
        seen.append(adapted(x))
    assert len({tuple(y.flatten().tolist()) for y in seen}) > 4


def test_shared_draws_are_one_number_at_all_sites() -> None:
    adapted = surgery.apply(model(), spec_of(["noisy"]), seed=1)
    for _ in range(3):
        surgery.step(adapted)
        assert torch.equal(adapted[0].a0.e, adapted[3].a0.e)
    assert int(adapted[3].a0.clock[0]) == 3


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from(METHODS), min_size=1, max_size=2, unique=True),
    st.sampled_from(
        ["", "train bias", "freeze a0 train bias", "optimize bias with lr = 0.5 train bias"]
    ),
    st.sampled_from(["", "optimize all of a0 with lr * 3, weight_decay = 0.1"]),
)
def test_groups_are_a_partition_of_what_trains(methods: list[str], more: str, options: str) -> None:
    if "freeze a0" in more and options:
        return
    adapted = surgery.apply(model(), f"{spec_of(methods)}\n{more}\n{options}", seed=1)
    groups = surgery.param_groups(adapted, lr=0.1, weight_decay=0.01)
    found = [p for group in groups for p in group["params"]]
    assert len(found) == len(set(map(id, found)))
    assert set(map(id, found)) == set(map(id, surgery.trainable(adapted).values()))
    by_name = {
        n: g
        for n, p in surgery.trainable(adapted).items()
        for g in groups
        if any(p is q for q in g["params"])
    }
    for name, group in by_name.items():
        if ".a0." in name and options:
            assert group["lr"] == pytest.approx(0.3)
            assert group["weight_decay"] == 0.1
        if name.endswith("bias") and "lr = 0.5" in more:
            assert group["lr"] == 0.5


def test_a_statement_counts_more_than_a_rule() -> None:
    spec = "on Linear apply lora_plus(2) as low  optimize B of low in `0` with lr * 4"
    adapted = surgery.apply(model(), spec, seed=0)
    groups = surgery.param_groups(adapted, lr=1.0)
    rates = {
        n: g["lr"]
        for n, p in surgery.trainable(adapted).items()
        for g in groups
        if any(p is q for q in g["params"])
    }
    assert rates == {"0.low.A": 1, "0.low.B": 4, "3.low.A": 1, "3.low.B": 16}


PENALTIES = [
    "on Linear apply pruned(3) as p",
    "on Linear apply lora(2) penalty 0.3 * sum(sum(A * A, over = m), over = r) of lora",
    "on Linear apply lora(2) penalty r * frobenius(A) / sites of lora in `0`",
]


@pytest.mark.parametrize("spec", PENALTIES)
def test_the_gradient_of_a_penalty_is_that_of_its_value(spec: str) -> None:
    adapted = surgery.apply(model().double(), f"{RULES}\n{spec}", seed=0)
    surgery.penalty(adapted).backward()
    for parameter in surgery.trainable(adapted).values():
        if parameter.grad is None:
            continue
        direction = torch.randn_like(parameter)
        values: list[Tensor] = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
                values.append(surgery.penalty(adapted))
                parameter -= sign * 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-8)


def test_without_penalties_it_is_zero() -> None:
    assert surgery.penalty(surgery.apply(model(), "on Linear apply lora(2)", seed=0)).item() == 0
    assert surgery.penalty(model()).item() == 0


@pytest.mark.parametrize(
    ("lacking", "code"), [("step", "S573"), ("penalty", "S574"), ("groups", "S575")]
)
def test_a_loop_that_lacks_something_is_told_so(lacking: str, code: str) -> None:
    adapted = surgery.apply(model(), spec_of(["pruned(3)"]), seed=0).train()
    trained = surgery.trainable(adapted).values()
    groups = list(trained) if lacking == "groups" else surgery.param_groups(adapted, lr=0.1)
    optimizer = torch.optim.Adam(groups)

    def loop() -> None:
        for _ in range(2):
            loss = adapted(torch.ones(2, 3, 5)).square().mean()
            loss = loss + (0 if lacking == "penalty" else surgery.penalty(adapted))
            loss.backward()
            optimizer.step()
            if lacking != "step":
                surgery.step(adapted)
            optimizer.zero_grad()

    with pytest.raises(surgery.SurgeryError, match=code):
        loop()
    other = torch.optim.SGD(model().parameters(), lr=0.1)
    other.step()


def test_gradients_that_are_gone_are_an_error_and_nothing_is_done() -> None:
    adapted = surgery.apply(model(), spec_of(["pruned(3)"]), seed=0)
    before = copy.deepcopy(adapted.state_dict())
    with pytest.raises(surgery.SurgeryError, match="S571"):
        surgery.step(adapted)
    assert all(torch.equal(before[n], v) for n, v in adapted.state_dict().items())


def names(adapted: nn.Module) -> set[str]:
    return set(surgery.trainable(adapted))


def test_statements_freeze_and_train_params_of_methods(tmp_path: Path) -> None:
    spec = "on Linear apply vera(2)  freeze L of vera  train A of vera in `3`"
    adapted = surgery.apply(model(), spec, seed=0)
    expected = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert {n.rpartition(".")[2] for n in expected} == {"A", "D"}
    loaded = surgery.load(model(), surgery.save(adapted, tmp_path))
    assert names(loaded) == names(adapted)


def test_a_later_spec_freezes_what_stands_and_removing_it_trains_it_again(tmp_path: Path) -> None:
    adapted = surgery.apply(model(), "on Linear apply lora(2)", seed=0)
    trained = names(adapted)
    surgery.apply(adapted, "on `0` apply ia3  freeze lora", seed=0)
    assert names(adapted) == {"0.ia3.l"}
    loaded = surgery.load(model(), surgery.save(adapted, tmp_path))
    assert names(loaded) == {"0.ia3.l"}
    for each in (adapted, loaded):
        surgery.remove(each, "ia3")
        assert names(each) == trained


ERRORS = [
    ("on `0` apply lora(2) freeze A of lorra", "S283", "did you mean `lora`"),
    ("on `0` apply lora(2) freeze C of lora", "S284", "it has A, B"),
    ("on `0` apply lora(2) freeze lora|norm", "S283", "two statements"),
    ("on `0` apply lora(2) freeze A of lora in `3`", "S301", "none of them"),
    ("on `0` apply lora(2) freeze A of lora expect 2", "S303", "1 match"),
    ("on `0` apply lora(2) freeze lora", "S409", "trainable"),
    ("on `0` apply lora(2) optimize A of lora with lrr * 2", "S280", "did you mean `lr`"),
    ("on `0` apply lora(2) optimize A of lora with lr * 2, lr = 1", "S280", "twice"),
    ("on `0` apply lora(2) freeze A of lora optimize A of lora with lr * 2", "S286", "frozen"),
    ("on `0` apply lora(2) penalty A of lora", "S285", "one number"),
    ("on `0` apply lora(2) penalty frobenius(C) of lora", "S207", "C"),
    ("on q of v apply lora", "S281", "applied to modules"),
]


@pytest.mark.parametrize(("spec", "code", "says"), ERRORS)
def test_what_makes_no_sense_is_said_and_nothing_is_done(spec: str, code: str, says: str) -> None:
    plain = model()
    with pytest.raises(surgery.SurgeryError) as caught:
        surgery.apply(plain, spec)
    assert code in str(caught.value)
    assert says in str(caught.value)
    assert same(plain, model())


RULE_ERRORS = [
    ("y += g * y  after step { g = y }", "S287"),
    ("y += g * y  state s[n] = 0", "S288"),
    ("y += g * grad(g)", "S287"),
    ("y += ramp(0, 1, 0, 9) * g * y", "S289"),
    ("y += g * y  optimize h with lr * 2", "S287"),
    ("y += g * y  after epoch { g = 0 * g }", "S282"),
    ("y += g * y  penalty g", "S285"),
    ("y += mean(g, over = sites) * y", "S207"),
    ("draw e ~ poisson(3)  y += e * g", "S218"),
]


@pytest.mark.parametrize(("body", "code"), RULE_ERRORS)
def test_rules_that_make_no_sense_are_refused(body: str, code: str) -> None:
    rule = "method odd() {\n  match y[*, n] = linear(x[*, m], W[n, m], b?)\n  param g[n] = 1\n  "
    with pytest.raises(surgery.SurgeryError, match=code):
        surgery.read_spec(f"{rule}{body}\n}}\non Linear apply odd")
