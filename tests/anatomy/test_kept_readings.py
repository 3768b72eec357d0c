"""A model is read once until it changes; whatever a forward depends on, no reading is kept too long."""

import copy
import dataclasses
import gc
import os
import pickle
import random
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache, partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from torch import Tensor, nn

import surgery
from surgery.anatomy import kept
from surgery.anatomy.graph import call_of, dtype_of, name_of, shape_of
from surgery.anatomy.paths import Paths
from surgery.anatomy.read import Forward, forward
from surgery.anatomy.run import record
from surgery.anatomy.uses import ParameterUse
from surgery.graft.hosts import detached

SETTINGS = SimpleNamespace(deep=False)
SCALED = False


def scaled(x: Tensor) -> Tensor:
    return x * 2 if SCALED else x


def plain(x: Tensor, turned: bool = False) -> Tensor:
    return torch.tanh(x) if turned else x


def counted() -> tuple[Callable[[Tensor], Tensor], Callable[[int], None]]:
    times = 0

    def act(x: Tensor) -> Tensor:
        for _ in range(times):
            x = torch.sin(x)
        return x

    def put(number: int) -> None:
        nonlocal times
        times = number

    return act, put


class Helper:
    """No module, though a forward calls it."""

    __slots__ = ("inner", "norm")

    def __init__(self) -> None:
        self.norm = False
        self.inner: dict[str, list[int]] = {"steps": []}

    def run(self, x: Tensor) -> Tensor:
        for _ in self.inner["steps"]:
            x = torch.cos(x)
        return x / (1 + x.abs().amax()) if self.norm else x


class Part(nn.Module):
    """One layer whose way depends on whatever a model's code may look at."""

    wide = False

    def __init__(self, config: SimpleNamespace, helper: Helper):
        super().__init__()
        self.config, self.helper = config, helper
        self.qkv = nn.Linear(8, 24)
        self.o = nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.router = nn.Parameter(torch.tensor([0.5, -0.5]), requires_grad=False)
        self.register_buffer("limit", torch.tensor(1.0))
        self.skip = False
        self.act: Callable[[Tensor], Tensor] = partial(plain, turned=False)
        self.counted, self.put = counted()

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        fused = nn.functional.scaled_dot_product_attention
        core = fused(q, k, v) if self.config.fused else torch.softmax(q @ k.mT, -1) @ v
        return self.o(core.transpose(1, 2).flatten(2))

    @property
    def gated(self) -> bool:
        return bool(self.config.parts["gated"])

    def forward(self, x: Tensor) -> Tensor:
        if not self.skip:
            x = x + self.attend(x)
        if self.router.argmax() == 0 and bool(self.limit > 0):
            h = torch.relu(self.up(x))
            x = x + self.down(h * h.sigmoid() if self.gated else h)
        if self.wide or self.up.weight.requires_grad:
            x = x + self.helper.run(x)
        if SETTINGS.deep:
            x = scaled(x) + 1
        return self.counted(self.act(scaled(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(fused=True, parts={"gated": False})
        helper = Helper()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Part(self.config, helper) for _ in range(2))
        self.order = [0, 1]
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for number in self.order:
            x = self.layers[number](x)
        return self.head(x)


def _swapped(model: Stack, part: Part, r: random.Random) -> None:
    part.o = r.choice([nn.Identity, lambda: nn.Linear(8, 8), lambda: nn.Sequential(nn.ReLU())])()


def _instance_forward(model: Stack, part: Part, r: random.Random) -> None:
    part.forward = lambda x: x + part.down(torch.relu(part.up(x)))


def _patched(model: Stack, part: Part, r: random.Random) -> None:
    number = r.randrange(1, 9)
    Part.attend = lambda self, x: self.o(self.qkv(x)[..., :8]) * number


def _patched_linear(model: Stack, part: Part, r: random.Random) -> None:
    nn.Linear.forward = lambda self, x: nn.functional.linear(x, self.weight, self.bias) * 1


def _hooked(model: Stack, part: Part, r: random.Random) -> None:
    part.down.register_forward_hook(lambda module, inputs, output: output * 2)


def _tied(model: Stack, part: Part, r: random.Random) -> None:
    model.head.weight = model.embedding.weight


def _applied(model: Stack, part: Part, r: random.Random) -> None:
    surgery.apply(model, f"on `up` apply lora(2) as n{r.randrange(10**9)}", seed=0)


def _removed(model: Stack, part: Part, r: random.Random) -> None:
    if "_surgery" in vars(model):
        surgery.remove(model)


def _merged(model: Stack, part: Part, r: random.Random) -> None:
    if "_surgery" in vars(model):
        surgery.merge(model)


def _reads_globals(name: str) -> Callable[[Stack, Part, random.Random], None]:
    def change(model: Stack, part: Part, r: random.Random) -> None:
        globals()[name] = not globals()[name]

    return change


def _routed(model: Stack, part: Part, r: random.Random) -> None:
    part.router.data.copy_(part.router.data.flip(0))


def _set(*path: str) -> Callable[[Stack, Part, random.Random], None]:
    def change(model: Stack, part: Part, r: random.Random) -> None:
        holder = part
        for name in path[:-1]:
            holder = getattr(holder, name)
        setattr(holder, path[-1], not getattr(holder, path[-1]))

    return change


CHANGES: dict[str, Callable[[Stack, Part, random.Random], None]] = {
    "a child": _swapped,
    "a flag": _set("skip"),
    "what is on a class": lambda m, p, r: setattr(Part, "wide", not Part.wide),
    "the config": _set("config", "fused"),
    "a table in the config": lambda m, p, r: p.config.parts.update(gated=r.random() < 0.5),
    "a list": lambda m, p, r: r.shuffle(m.order) or m.order.append(r.randrange(2)),
    "another list": lambda m, p, r: setattr(m, "order", [r.randrange(2)]),
    "an object": lambda m, p, r: p.helper.inner["steps"].append(1),
    "a slot": _set("helper", "norm"),
    "what trains": lambda m, p, r: p.up.requires_grad_(r.random() < 0.5),
    "a hook": _hooked,
    "a hook on all": lambda m, p, r: m.register_forward_pre_hook(lambda *_: None),
    "the type of numbers": lambda m, p, r: m.to(r.choice([torch.float32, torch.float64])),
    "a forward of its own": _instance_forward,
    "its own forward again": lambda m, p, r: vars(p).pop("forward", None),
    "a method of a class": _patched,
    "a method of torch": _patched_linear,
    "a global": _reads_globals("SCALED"),
    "a part of a global": lambda m, p, r: setattr(SETTINGS, "deep", not SETTINGS.deep),
    "a function": lambda m, p, r: setattr(p, "act", r.choice([torch.sin, plain, nn.GELU()])),
    "a bound argument": lambda m, p, r: setattr(p, "act", partial(plain, turned=r.random() < 0.5)),
    "a default": lambda m, p, r: setattr(plain, "__defaults__", (r.random() < 0.5,)),
    "a closure": lambda m, p, r: p.put(r.randrange(3)),
    "a route": _routed,
    "a buffer": lambda m, p, r: p.limit.data.neg_(),
    "a tie": _tied,
    "what is applied": _applied,
    "what is removed": _removed,
    "a merge": _merged,
    "a layer": lambda m, p, r: m.layers.append(Part(m.config, p.helper)),
}
"""What may happen to a model; most of it changes its forward."""

SAME: dict[str, Callable[[Stack], object]] = {
    "nothing": lambda m: None,
    "its mode": lambda m: m.train(not m.training),
    "a step of training": lambda m: [p.data.mul_(1.01) for p in m.layers[0].up.parameters()],
    "a state": lambda m: m.load_state_dict({n: t.clone() for n, t in m.state_dict().items()}),
    "gradients": lambda m: m(torch.zeros(1, 3, dtype=torch.long)).sum().backward(),
    "what comes and goes": lambda m: surgery.remove(surgery.apply(m, "on `up` apply lora(2)")),
    "a plan": lambda m: surgery.plan(m, "on mlp parallel adapter(4)"),
    "a copy": lambda m: (copy.deepcopy(m), pickle.dumps(m.layers[0].qkv)),
    "a state that is left": lambda m: surgery.disabled(m).__enter__() and None,
}


def used(uses: tuple[ParameterUse, ...]) -> list[object]:
    """Operators of different recordings compare by their names."""
    return [(use.op.name, dataclasses.replace(use, op=None)) for use in uses]  # type: ignore[arg-type]


def told(found: Forward) -> object:
    """All that a reading says which planning asks it for."""
    uses = found.uses
    names = [*found.paths.parameters]
    return (
        found.anatomy.places,
        [(v.op, v.name) for v in found.recording.graph.nodes],
        [(name_of(op), call_of(op)) for op in found.recording.ops],
        [(shape_of(v), dtype_of(v)) for v in found.recording.values],
        uses.live,
        uses.certain,
        {name: (used(uses.of(name)), used(uses.outside(name)), uses.acts(name)) for name in names},
    )


def hold_against_fresh(model: nn.Module, inputs: object = None) -> None:
    for training in (False, True):
        with detached(model):
            found = forward(model, inputs, training=training)
            paths = Paths(model)
            fresh = Forward(record(model, inputs, Paths(model), training), paths)
            assert told(found) == told(fresh)
            assert all(found.paths.modules[path] is m for path, m in paths.modules.items())


@pytest.fixture(autouse=True)
def _as_it_was():
    """Classes, globals and functions are as before after each test."""
    yield
    _restore()


ATTEND, LINEAR = Part.attend, nn.Linear.forward


def _restore() -> None:
    global SCALED
    SCALED, SETTINGS.deep, Part.wide = False, False, False
    Part.attend, nn.Linear.forward, plain.__defaults__ = ATTEND, LINEAR, (False,)


class Lives(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Stack()
        hold_against_fresh(self.model)

    @rule(name=st.sampled_from(sorted(CHANGES)), r=st.randoms(use_true_random=False))
    def change(self, name: str, r: random.Random) -> None:
        CHANGES[name](self.model, r.choice([*self.model.layers]), r)
        hold_against_fresh(self.model)

    @rule(length=st.integers(2, 4))
    def other_inputs(self, length: int) -> None:
        hold_against_fresh(self.model, torch.arange(2 * length).reshape(2, length) % 11)

    def teardown(self) -> None:
        _restore()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=5, stateful_step_count=6, deadline=None)


@pytest.mark.parametrize("name", CHANGES)
def test_no_reading_outlives_a_change(name: str) -> None:
    torch.manual_seed(0)
    for seed in range(2):
        model = Stack()
        hold_against_fresh(model)
        CHANGES[name](model, model.layers[seed % 2], random.Random(seed))
        hold_against_fresh(model)
        _restore()


@pytest.mark.parametrize("name", SAME)
def test_a_reading_lasts_as_long_as_nothing_changes(name: str) -> None:
    model = Stack().requires_grad_(False)
    model.layers[0].down.requires_grad_(True)
    before = forward(model)
    SAME[name](model)
    gc.collect()
    assert forward(model) is before


def test_inputs_are_told_by_their_content() -> None:
    model = Stack()
    ids = torch.tensor([[1, 2, 3]])
    before = forward(model, ids)
    assert forward(model, (ids.clone(),)) is before
    assert forward(model, {"ids": ids}) is not before
    ids = ids.clone()
    before = forward(model, ids)
    ids[0, 0] = 4
    assert forward(model, ids) is not before


def test_what_cannot_be_followed_is_read_each_time() -> None:
    model = Stack()
    model.source = iter([1, 2, 3])
    assert forward(model) is not forward(model)
    hold_against_fresh(model)


def test_what_is_out_of_sight_is_read_anew_when_asked() -> None:
    model = Stack()
    before = forward(model)
    surgery.reread(model)
    assert forward(model) is not before


def test_a_reading_holds_neither_the_model_nor_its_tensors() -> None:
    def living() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    model = Stack()
    surgery.select(model, "q|up")
    count = living()
    for length in range(2, 5):
        surgery.select(model, "q|up", example_inputs=torch.ones(2, length, dtype=torch.long))
        assert living() == count
    layer, entry = weakref.ref(model.layers[0]), weakref.ref(forward(model))
    gc.disable()
    try:
        del model
        assert layer() is None
        assert entry() is None
    finally:
        gc.enable()


def test_nothing_of_it_is_on_the_model() -> None:
    model = Stack()
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    state = pickle.dumps(model.state_dict())
    surgery.plan(model, "on q|up apply lora(2)")
    assert {path: dict(vars(m)) for path, m in model.named_modules()} == before
    assert pickle.dumps(model.state_dict()) == state
    twin = copy.deepcopy(model)
    assert twin not in kept._KEPT
    hold_against_fresh(twin)


def test_threads_read_one_model_alike() -> None:
    model = Stack()
    expected = [site.path for site in surgery.select(model, "q|up|down")]
    surgery.reread(model)
    found: list[list[str]] = []

    def work() -> None:
        found.append([site.path for site in surgery.select(model, "q|up|down")])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_one_forward_for_all_uses_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forwards = Stack().requires_grad_(False), []

    def counted_record(*args: object) -> object:
        forwards.append(args[3:])
        return record(*args)

    monkeypatch.setattr("surgery.anatomy.read.record", counted_record)
    spec = "on q|up apply lora(2)"
    surgery.select(model, "q|up")
    surgery.inspect(model)
    surgery.plan(model, spec)
    str(surgery.diff(model, spec))
    surgery.explain(model, "layers.0.up", spec)
    surgery.apply(model, spec, seed=0)
    surgery.plan(model, "on down apply lora(2) as more")
    assert forwards == [(False, True)]


class Far:
    normed = True


class Meta(type):
    normed = True


class Metered(metaclass=Meta):
    pass


CONFIG = ModuleType("config")
CHOICE: ContextVar[bool] = ContextVar("choice", default=True)
TABLE: dict[str, bool] = {}
vars(CONFIG).update(normed=True, table={"normed": True})


@lru_cache
def looked_up() -> bool:
    return TABLE.get("normed", True)


def _forgotten(model: nn.Module) -> None:
    TABLE["normed"] = False
    looked_up.cache_clear()


WAYS: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "a tensor that is no buffer": (lambda m: m.mask, lambda m: m.mask.fill_(False)),
    "a class of classes": (
        lambda m: Metered.normed,  # type: ignore[attr-defined]
        lambda m: setattr(Meta, "normed", False),
    ),
    "the environment": (
        lambda m: os.environ.get("NORMED", "1") == "1",
        lambda m: os.environ.update(NORMED="0"),
    ),
    "a context variable": (lambda m: CHOICE.get(), lambda m: CHOICE.set(False)),
    "a weak reference": (lambda m: m.weak().normed, lambda m: setattr(m.far, "normed", False)),
    "a file of settings": (lambda m: m.config.normed, lambda m: setattr(CONFIG, "normed", False)),
    "a table in a global file": (
        lambda m: CONFIG.table["normed"],
        lambda m: CONFIG.table.update(normed=False),
    ),
    "a name in a string": (
        lambda m: getattr(SETTINGS, "normed", True),
        lambda m: setattr(SETTINGS, "normed", False),
    ),
    "what a function remembers": (lambda m: looked_up(), _forgotten),
}
"""How the code of a model may look at a flag, and what turns it off."""


@pytest.mark.parametrize("way", WAYS)
def test_a_flag_counts_however_it_is_looked_at(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meta, "normed", True)
    monkeypatch.setenv("NORMED", "1")
    monkeypatch.setitem(vars(CONFIG), "normed", True)
    monkeypatch.setitem(CONFIG.table, "normed", True)
    monkeypatch.setitem(TABLE, "normed", True)
    monkeypatch.setattr(SETTINGS, "normed", True, raising=False)
    looked_up.cache_clear()
    CHOICE.set(True)
    reads, turns_off = WAYS[way]

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)
            self.mask, self.config, self.far = torch.tensor(True), CONFIG, Far()
            self.weak = weakref.ref(self.far)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(x) if reads(self) else x)

    model, x = Normed(), torch.randn(2, 4)
    spec = "train norm"
    surgery.plan(model, spec, example_inputs=x)
    turns_off(model)
    with pytest.raises(surgery.SurgeryError, match="S30"):
        surgery.plan(model, spec, example_inputs=x)
