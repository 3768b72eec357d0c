"""Any verb in any order and nesting is right or refused, and in the end the base is back to the bit."""

import copy
import gc
import pickle
import random
import tempfile
import threading
import weakref
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, fx, nn
from torch.nn.utils import prune

import surgery
from surgery import SurgeryError
from tests.laws.faults import Interrupted, interrupted
from tests.laws.lives import KINDS, same, state_of
from tests.laws.strategies import randomise_added
from tests.laws.world import OPERATIONS, World

chance = st.randoms(use_true_random=False)
CONTEXTS = (surgery.merged, surgery.disabled)
INPUT = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class States(RuleBasedStateMachine):
    """What may be done to models is chosen by Hypothesis; the world checks what must hold."""

    @initialize(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 9))
    def begin(self, kind: str, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(kind, seed, Path(self.folder.name))

    @invariant()
    def promises_hold(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()
            self.folder.cleanup()


def _rule(name: str) -> object:
    @rule(r=chance)
    def operation(self: States, r: random.Random) -> None:
        getattr(self.world, name)(r)

    return operation


for _name in dict.fromkeys(OPERATIONS):
    setattr(States, _name, _rule(_name))

TestStates = States.TestCase
TestStates.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


def model_of() -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def trained(model: nn.Module) -> nn.Module:
    """``model`` with every parameter that trains moved."""
    with torch.no_grad():
        for name, parameter in surgery.trainable(model).items():
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def adapted(spec: str = "on Linear apply lora(2) train bias") -> nn.Module:
    return trained(surgery.apply(model_of(), spec, seed=0))


def refused(code: str, act: object, *args: object) -> None:
    with pytest.raises(SurgeryError, match=code):
        act(*args)  # type: ignore[operator]


def test_a_spec_takes_back_what_it_owns_alone() -> None:
    model, base = model_of(), state_of(model_of())
    surgery.apply(model, "on Linear apply lora(2)")
    trained(surgery.apply(model, "train bias"))
    bias = model[0].bias.detach().clone()
    surgery.remove(model, "lora")
    assert torch.equal(model[0].bias, bias)
    assert model[0].bias.requires_grad
    surgery.remove(model)
    same(state_of(model), base, "removed")


def test_what_two_specs_train_goes_back_with_the_last() -> None:
    for first, second in (("one", "two"), ("two", "one")):
        model, base = model_of(), state_of(model_of())
        for name in ("one", "two"):
            surgery.apply(model, f"on Linear apply ia3 as {name} train bias")
            trained(model)
        surgery.remove(model, first)
        assert not torch.equal(model[0].bias, base[0]["0.bias"])
        surgery.remove(model, second)
        same(state_of(model), base, "removed")


def test_a_recipe_that_only_trains_goes_by_its_name() -> None:
    model, base = model_of(), state_of(model_of())
    surgery.apply(model, "bitfit")
    surgery.apply(trained(model), "on Linear apply lora(2)")
    surgery.remove(model, "bitfit")
    assert torch.equal(model[0].bias, base[0]["0.bias"])
    surgery.remove(model)
    same(state_of(model), base, "removed")


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_file_saved_inside_is_the_one_saved_outside(context, tmp_path: Path) -> None:
    model = adapted()
    outside = surgery.save(model, tmp_path / "outside").read_bytes()
    with context(model):
        inside = state_of(model)
        assert surgery.save(model, tmp_path / "inside").read_bytes() == outside
        same(state_of(model), inside, "saving inside")


@pytest.mark.parametrize("context", CONTEXTS)
def test_inside_a_context_nothing_is_applied_or_taken_back(context, tmp_path: Path) -> None:
    model = adapted()
    surgery.save(model, tmp_path)
    with context(model):
        inside = state_of(model)
        refused("S520", surgery.apply, model, "on Linear apply ia3")
        for verb in (surgery.remove, surgery.merge, surgery.fold):
            refused("S520", verb, model)
        refused("S520", surgery.load, model, tmp_path)
        surgery.plan(model, "on Linear apply ia3")
        surgery.inspect(model)
        same(state_of(model), inside, "what was refused")


def test_contexts_are_left_in_any_order() -> None:
    base, model = model_of()(INPUT), adapted()
    output, before = model(INPUT), state_of(model)
    for first, second in ((0, 1), (1, 0)):
        contexts = [surgery.merged(model), surgery.disabled(model)]
        contexts[first].__enter__()
        contexts[second].__enter__()
        assert torch.equal(model(INPUT), base)
        contexts[first].__exit__(None, None, None)
        if second == 1:
            assert torch.equal(model(INPUT), base)
        else:
            torch.testing.assert_close(model(INPUT), output)
        contexts[second].__exit__(None, None, None)
        same(state_of(model), before, "left")
    again = surgery.merged(model)
    with again, again, ExitStack() as stack:
        stack.enter_context(surgery.disabled(model))
        assert torch.equal(model(INPUT), base)
    same(state_of(model), before, "left")


def test_a_context_that_is_lost_is_left() -> None:
    model = adapted()
    before = state_of(model)

    def forgotten():
        with surgery.disabled(model):
            yield

    generator = forgotten()
    next(generator)
    del generator
    surgery.merged(model).__enter__()
    gc.collect()
    same(state_of(model), before, "lost")


def test_a_copy_from_inside_has_what_shows() -> None:
    model, base = adapted(), state_of(model_of())
    for copied in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        with surgery.disabled(model):
            same(state_of(copied(model)), base, "a copy of the base")
        with surgery.merged(model):
            merged, expected = copied(model), model(INPUT)
        assert torch.equal(merged(INPUT), expected)
        assert {type(m) for m in merged.modules()} == {type(m) for m in model_of().modules()}
        refused("S512", surgery.remove, merged)
        surgery.remove(surgery.apply(merged, "on Linear apply ia3"))
        assert torch.equal(merged(INPUT), expected)


CASTS = {
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "half and back": lambda m: m.half().float(),
    "double": lambda m: m.double(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=list(CASTS))
@pytest.mark.parametrize("spec", ["on Linear apply lora(2) train bias", "train all"])
def test_the_base_is_cast_as_the_model_is(cast, spec: str) -> None:
    base, model = cast(model_of()), cast(adapted(spec))
    x = INPUT.to(base[0].weight.dtype)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with surgery.disabled(one):
            assert torch.equal(one(x), base(x))
        surgery.remove(one)
        same(state_of(one), state_of(base), "removed")


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_hidden_is_cast_too(context) -> None:
    model, expected = adapted(), adapted().to(torch.bfloat16)
    with context(model):
        model.to(torch.bfloat16)
    same(state_of(model), state_of(expected), "left")
    with context(model), surgery.disabled(model):
        model.to(torch.float32)
    same(state_of(model), state_of(expected.to(torch.float32)), "left")


def test_first_values_are_in_memory_of_their_own() -> None:
    model, base = adapted("train all"), state_of(model_of())
    output = model_of()(INPUT)
    with surgery.disabled(model):
        for parameter in model.parameters():
            parameter.data.add_(1)
    with surgery.disabled(model):
        assert torch.equal(model(INPUT), output)
    surgery.remove(model)
    same(state_of(model), base, "removed")


def test_parameters_in_one_memory_stay_in_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = nn.Parameter(model[0].bias.data[:])
    base, output = state_of(model), model(INPUT)
    trained(surgery.apply(model, "train `0.bias`"))
    with surgery.disabled(model):
        assert torch.equal(model(INPUT), output)
    surgery.remove(model)
    same(state_of(model), base, "removed")
    model[0].bias.data.add_(1)
    assert torch.equal(model[0].bias, model[1].bias)


def test_a_gradient_asked_for_outside_is_right_or_an_error() -> None:
    model = adapted()
    expected = torch.autograd.grad(model(INPUT).sum(), [*surgery.trainable(model).values()])
    loss = model(INPUT).sum()
    for context in CONTEXTS:
        with context(model):
            model(INPUT)
    found = torch.autograd.grad(loss, [*surgery.trainable(model).values()])
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    x = INPUT.clone().requires_grad_()
    with surgery.merged(model):
        loss = model(x).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = model(x).sum()
    surgery.merge(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.arange(4), requires_grad=False)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.count


def test_what_cannot_train_is_said_before_anything_changes() -> None:
    model = Odd()
    before = state_of(model)
    refused("S524.*`count` holds int64", surgery.apply, model, "train all")
    same(state_of(model), before, "refused")
    surgery.apply(model, "train all except `count`")
    surgery.remove(surgery.apply(model, "on Linear apply lora(2)"))
    same(state_of(model), before, "removed")
    with torch.inference_mode():
        made = model_of()
    before = state_of(made)
    refused("S524.*inference mode", surgery.apply, made, "train bias")
    surgery.remove(surgery.apply(made, "on Linear apply lora(2)"))
    same(state_of(made), before, "removed")


def test_what_is_applied_in_inference_mode_can_train() -> None:
    model = model_of()
    with torch.inference_mode():
        surgery.apply(model, "on Linear apply lora(2) train bias")
    model(INPUT).sum().backward()
    output = trained(model)(INPUT)
    with torch.inference_mode():
        for context in CONTEXTS:
            with context(model):
                model(INPUT)
    assert torch.equal(model(INPUT), output)


def test_a_shallow_copy_is_refused() -> None:
    model, base = adapted(), state_of(model_of())
    refused("S522", surgery.remove, copy.copy(model))
    refused("S522", surgery.save, copy.copy(model), "nowhere")
    surgery.remove(model)
    same(state_of(model), base, "removed")


def test_a_model_and_a_part_of_it_are_not_adapted_apart() -> None:
    model, base = model_of(), state_of(model_of())
    surgery.apply(model[0], "on Linear apply lora(2)")
    refused("S521", surgery.apply, model, "on Linear apply ia3")
    refused("S521", _enter, surgery.disabled(model))
    refused(r"S512[\s\S]*applied to its `0`", surgery.save, model, "nowhere")
    surgery.remove(model[0])
    surgery.apply(model, "on `2` apply lora(2)")
    refused("S521", surgery.apply, model[0], "on Linear apply ia3")
    refused(r"S512[\s\S]*`0` of an adapted Sequential", surgery.save, model[0], "nowhere")
    surgery.remove(model)
    same(state_of(model), base, "removed")


def _enter(context) -> None:
    context.__enter__()


def test_a_model_that_lost_a_graft_is_refused_and_cleaned() -> None:
    model = adapted()
    model[0] = nn.Linear(4, 4)
    for verb in (surgery.merge, lambda m: surgery.save(m, "nowhere"), _merged_briefly):
        refused(r"S523[\s\S]*`0\.lora\.A` is gone", verb, model)
    with surgery.disabled(model):
        pass
    surgery.remove(model)
    assert {n: frozenset(m.__dict__) for n, m in model.named_modules()} == state_of(model_of())[3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: prune.l1_unstructured(m[0], "weight", 0.5), "made of others since"),
        (lambda m: nn.utils.spectral_norm(m[0]), "made of others since"),
        (lambda m: prune.random_unstructured(m[0], "bias", 0.5), "made of others since"),
        (lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(4, 4).char(), False)), "int8"),
        (lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(4, 5))), "replaced since"),
        (lambda m: setattr(m[2], "weight", m[0].weight), "tied with `2` since"),
        (lambda m: setattr(m, "more", nn.ParameterList([m[0].bias])), "tied with `more` since"),
    ],
)
def test_a_layer_that_became_another_does_not_merge(change, reason: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    surgery.apply(model, "on `0` apply lora(2)  on `0` apply shift", seed=0)
    randomise_added(model)
    change(model)
    before = state_of(model)
    refused(rf"S513[\s\S]*{reason}", surgery.merge, model)
    with surgery.merged(model):
        same(state_of(model), before, "left as it is")
    same(state_of(model), before, "after")


def _merged_briefly(model: nn.Module) -> None:
    with surgery.merged(model):
        pass


def test_threads_share_a_state_or_are_refused() -> None:
    model, found = adapted(), []
    before = state_of(model)

    def work(act) -> None:
        try:
            act()
            found.append("done")
        except SurgeryError as problem:
            found.append(problem.diagnostics[0].code)

    def run(*acts) -> None:
        threads = [threading.Thread(target=work, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with surgery.merged(model):
        run(lambda: _merged_briefly(model))
        run(lambda: _enter(surgery.disabled(model)), lambda: surgery.save(model, "nowhere"))
        run(lambda: surgery.remove(model))
    assert found == ["done", "S520", "S520", "S520"]
    same(state_of(model), before, "threads")
    found.clear()
    run(*[lambda i=i: surgery.apply(model, f"on Linear apply ia3 as n{i}") for i in range(4)])
    assert found == ["done"] * 4
    run(*[lambda: [_merged_briefly(model) for _ in range(5)] for _ in range(4)])
    surgery.remove(model)
    same(state_of(model), state_of(model_of()), "removed")


VERBS = {
    "apply": (None, lambda m: surgery.apply(m, "on Linear apply lora(2) train bias", seed=0)),
    "apply more": (
        "on Linear apply lora(2) train bias",
        lambda m: surgery.apply(m, "on Linear apply dora(2) as d train all", seed=0),
    ),
    "remove": ("on Linear apply lora(2) train bias", surgery.remove),
    "remove one": (
        "on Linear apply lora(2) on `0` apply ia3 train bias",
        lambda m: surgery.remove(m, "ia3"),
    ),
    "merge": ("on Linear apply lora(2) train bias", surgery.merge),
    "merged": ("on Linear apply lora(2) train bias", _merged_briefly),
    "disabled": ("on Linear apply lora(2) train bias", lambda m: _briefly_disabled(m)),
}


def _briefly_disabled(model: nn.Module) -> None:
    with surgery.disabled(model):
        pass


@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupt_anywhere_leaves_the_model_as_it_was(verb: str) -> None:
    """A fault at calls all over each verb: the model is as before, whichever it was."""
    spec, act = VERBS[verb]
    start = model_of() if spec is None else adapted(spec)
    step, number, faults = 1, 0, 0
    while True:
        model = copy.deepcopy(start)
        before = state_of(model)
        try:
            interrupted(lambda model=model: act(model), number)
        except Interrupted:
            same(state_of(model), before, f"after a fault at call {number}")
            faults += 1
        else:
            break
        # The first calls one by one, later ones with growing gaps.
        step = max(1, number // 12)
        number += step
    assert faults > 20


def test_a_load_that_fails_takes_nothing_away(tmp_path: Path) -> None:
    surgery.save(adapted(), tmp_path)
    model = trained(surgery.apply(model_of(), "on `2` apply lora(2) train bias", seed=0))
    before = state_of(model)
    refused("S407", surgery.load, model, tmp_path)
    same(state_of(model), before, "a load that failed")
    start = model_of()
    for number in range(0, 4000, 97):
        model = copy.deepcopy(start)
        try:
            interrupted(lambda model=model: surgery.load(model, tmp_path), number)
        except Interrupted:
            same(state_of(model), state_of(start), f"a load that was stopped at {number}")
        else:
            break


def test_adapted_graphs_are_copied_whole() -> None:
    base = model_of()
    graph = fx.GraphModule(copy.deepcopy(base), fx.symbolic_trace(base).graph)
    output = graph(INPUT)
    trained(surgery.apply(graph, "on Linear apply lora(2) train bias"))
    expected = graph(INPUT)
    refused("S525", pickle.dumps, graph)
    with surgery.merged(graph):
        torch.testing.assert_close(copy.deepcopy(graph)(INPUT), expected)
        with surgery.disabled(graph):
            assert torch.equal(graph(INPUT), output)
    again = copy.deepcopy(copy.deepcopy(graph))
    assert torch.equal(again(INPUT), expected)
    for model in (again, graph):
        surgery.remove(model)
        assert torch.equal(model(INPUT), output)
        assert sorted(model.state_dict()) == sorted(base.state_dict())


def test_a_model_is_freed_as_soon_as_it_is_let_go() -> None:
    gc.collect()
    gc.disable()
    try:
        model = adapted()
        for context in CONTEXTS:
            with context(model):
                pass
        layer = weakref.ref(model[0])
        del model
        assert layer() is None
    finally:
        gc.enable()
