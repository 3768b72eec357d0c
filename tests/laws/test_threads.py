"""Values that pass between modules are of one running call: threads, calls within calls, nothing left.

Threads take turns at every border of a module, so that their forwards overlap as much as they can.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import surgery
from surgery.graft.channel import Slot, put
from surgery.graft.passing import look, within
from tests.laws.strategies import randomise_added
from tests.models import build

Inputs = dict[str, Any]
THREADS, FORWARDS = 3, 3
PLACE = 9
PLACES = f"on tokens p_tuning_at(2, {PLACE}) prompt_mlp(4)"
DECODING = ("t5", "bart")
CASES = (
    ("llama", "on tokens apply prompt(3)"),
    ("gpt2", "on tokens apply word_prompt(2) on tokens apply shifted(2)"),
    ("llama", PLACES),
    ("llama", "on attention gated prefix(3)"),
    ("bert", "on attention apply shared_prefix(3)"),
    ("opt", "on mlp parallel adapter(4)"),
    ("bert", "on mlp pfeiffer adapter(4)"),
    ("llama", "unipelt"),
    ("opt", "on mlp gated sequential adapter(4) on q|v gated lora(2)"),
    ("t5", "on tokens apply prompt(3)"),
    ("bart", "on tokens[0] apply prompt(2) on q|v gated lora(2)"),
)


class Turns:
    """Lets threads run one at a time, each up to its next step."""

    def __init__(self, count: int):
        self.changed = threading.Condition()
        self.waiting = list(range(count))
        self.own = threading.local()

    def step(self, *_: Any) -> None:
        """Let the next one run, up to the step that gives it back."""
        me = getattr(self.own, "number", None)
        if me is None:
            return
        with self.changed:
            self.waiting.append(self.waiting.pop(0))
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.waiting[0] == me, 60)

    def run(self, number: int, work: Callable[[], None]) -> None:
        self.own.number = number
        try:
            with self.changed:
                assert self.changed.wait_for(lambda: self.waiting[0] == number, 60)
            work()
        finally:
            with self.changed:
                self.waiting.remove(number)
                self.changed.notify_all()


def overlapping(model: nn.Module, works: list[Callable[[], Any]]) -> list[Any]:
    """What each of ``works`` gives, or raises, in a thread of its own, in turns with the others."""
    turns = Turns(len(works))
    found: list[Any] = [None] * len(works)

    def one(number: int) -> None:
        try:
            found[number] = works[number]()
        except Exception as problem:
            found[number] = problem

    handles = [
        handle
        for module in model.modules()
        for handle in (
            module.register_forward_pre_hook(turns.step),
            module.register_forward_hook(turns.step),
        )
    ]
    threads = [
        threading.Thread(target=turns.run, args=(n, lambda n=n: one(n))) for n in range(len(works))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    return found


def adapted(name: str, spec: str) -> nn.Module:
    model = build(name)
    for module in model.modules():
        for attribute in ("p", "dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return randomise_added(surgery.apply(model, spec, seed=0))


def inputs(name: str, spec: str, seed: int) -> Inputs:
    """A batch of two texts whose length and padding are drawn."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    length = draw.randint(5, 9)
    ids = torch.randint(10, 96, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    if spec == PLACES:
        ids[:, [draw.randint(0, 2), draw.randint(3, 4)]] = PLACE
    else:
        mask[1, length - draw.randint(1, 3) :] = 0
    given: Inputs = {"input_ids": ids, "attention_mask": mask}
    if name in DECODING:
        shape = (2, draw.randint(2, 5))
        given["decoder_input_ids"] = torch.randint(10, 96, shape, generator=generator)
    return given


def tensors_left(model: nn.Module) -> list[object]:
    """What slots hold for this thread, outside of any call."""
    slots = {s for m in model.modules() for s in vars(m).values() if isinstance(s, Slot)}
    stacks = [v for m in model.modules() for v in vars(m).values() if hasattr(v, "instead")]
    slots |= {s for stack in stacks for s in vars(stack).values() if isinstance(s, Slot)}
    return [value for slot in slots for value in vars(slot.here).values() if value is not None]


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_forwards_that_overlap(name: str, spec: str) -> None:
    """Each thread gets, bit by bit, what its texts give alone."""
    model = adapted(name, spec)
    texts = [[inputs(name, spec, 31 * t + f) for f in range(FORWARDS)] for t in range(THREADS)]

    def forwards(given: list[Inputs]) -> list[Tensor]:
        with torch.no_grad():
            return [model(**one)[0] for one in given]

    expected = [forwards(given) for given in texts]
    found = overlapping(model, [lambda given=given: forwards(given) for given in texts])
    for given, wanted in zip(found, expected, strict=True):
        assert isinstance(given, list), given
        assert all(torch.equal(*pair) for pair in zip(given, wanted, strict=True))
    assert not tensors_left(model)


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize(("name", "spec"), [("llama", "unipelt"), ("bart", CASES[-1][1])])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_backwards_that_overlap(name: str, spec: str, reentrant: bool | None) -> None:
    """Two forwards, then their backward, in each thread, with and without checkpointing."""
    model = adapted(name, spec).train()
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    texts = [[inputs(name, spec, 17 * t + f) for f in range(2)] for t in range(THREADS)]
    trained = list(surgery.trainable(model).values())

    def gradients(given: list[Inputs]) -> tuple[Tensor | None, ...]:
        one, other = (model(**each, use_cache=False)[0].square().mean() for each in given)
        if reentrant is None:
            return torch.autograd.grad(one - 0.5 * other, trained, allow_unused=True)
        # Reentrant checkpoints accumulate alone: each thread has a copy's parameters.
        (one - 0.5 * other).backward()
        return ()

    if reentrant is None:
        expected: Any = [gradients(given) for given in texts]
        found = overlapping(model, [lambda given=given: gradients(given) for given in texts])
        for given, wanted in zip(found, expected, strict=True):
            assert isinstance(given, tuple), given
            for pair in zip(given, wanted, strict=True):
                assert pair[0] is pair[1] is None or torch.equal(*pair)
        return
    for given in texts:
        gradients(given)
    sums = [None if p.grad is None else p.grad.clone() for p in trained]
    model.zero_grad()
    found = overlapping(model, [lambda given=given: gradients(given) for given in texts])
    assert found == [()] * THREADS
    for parameter, total in zip(trained, sums, strict=True):
        if total is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "spec"),
    [("llama", "on tokens apply prompt(3)"), ("opt", CASES[8][1]), ("t5", CASES[9][1])],
)
def test_texts_that_are_generated_at_once(name: str, spec: str) -> None:
    model = adapted(name, spec)
    texts = [inputs(name, spec, 7 * n) for n in range(THREADS)]
    for given in texts:
        given.pop("decoder_input_ids", None)
        given |= {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    texts[1]["use_cache"] = False
    texts[2]["num_beams"] = 2
    expected = [model.generate(**given) for given in texts]
    found = overlapping(model, [lambda given=given: model.generate(**given) for given in texts])
    for given, wanted in zip(found, expected, strict=True):
        assert isinstance(given, Tensor), given
        assert torch.equal(given, wanted)
    assert not tensors_left(model)


@pytest.mark.parametrize(("name", "spec"), [CASES[i] for i in (0, 2, 3, 5, 6, 9, 10)])
@torch.no_grad()
def test_calls_within_calls(name: str, spec: str) -> None:
    """A model run by its own hook at any place, as within its attentions; also one that fails there."""
    model = adapted(name, spec)
    outer, inner = inputs(name, spec, 1), inputs(name, spec, 2)
    expected, wanted = model(**outer)[0], model(**inner)[0]
    busy = False

    def run_again(module: nn.Module, *_: Any) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            assert torch.equal(model(**inner)[0], wanted)
            with pytest.raises(Exception):  # noqa: B017, PT011 (whatever the model says)
                model(input_ids=torch.zeros(2, 3, 4, 5))
        finally:
            busy = False

    places = [m for m in model.modules() if not isinstance(m, nn.ModuleList | nn.Dropout)]
    attentions = [m for n, m in model.named_modules() if n.endswith(("attn", "self"))]
    inside = [part for attention in attentions for part in attention.children()]
    for module in {*places[:: max(1, len(places) // 12)], *inside[:5]}:
        for register in (module.register_forward_pre_hook, module.register_forward_hook):
            handle = register(run_again)
            assert torch.equal(model(**outer)[0], expected)
            handle.remove()
    assert not tensors_left(model)


@pytest.mark.parametrize(
    "spec", ["on attention apply prefix(3)", "on attention in layer[0] apply prefix(2)"]
)
@pytest.mark.parametrize("name", ["bert", "bart", "gpt2"])
@torch.no_grad()
def test_attentions_within_attentions(name: str, spec: str) -> None:
    """Whatever a hook runs within an adapted attention is none of its own."""
    model = adapted(name, spec)
    given = inputs(name, spec, 1)
    x = torch.randn(2, 5, 32)
    whole = nn.MultiheadAttention(32, 4, batch_first=True)
    others: list[Callable[[], Tensor]] = [
        lambda: model(**given)[0],
        lambda: base(**given)[0],
        lambda: whole(x, x, x)[0],
        lambda: functional.scaled_dot_product_attention(x, x, x),
        lambda: (x @ x.mT).softmax(-1) @ x,
    ]
    with surgery.disabled(copy.deepcopy(model)) as base:
        expected = [other() for other in others]
        found: list[Tensor] = []
        busy = False

        def run_others(*_: Any) -> None:
            nonlocal busy
            if not busy:
                busy = True
                found[:] = [other() for other in others]
                busy = False

        attentions = [m for m in model.modules() if hasattr(type(m), "surgery_attending")]
        assert attentions
        parts = [
            p for a in attentions for p in a.modules() if p is not a and not list(p.children())
        ]
        ran = 0
        for part in parts[:: max(1, len(parts) // 4)]:
            for register in (part.register_forward_pre_hook, part.register_forward_hook):
                found.clear()
                handle = register(run_others)
                assert torch.equal(model(**given)[0], expected[0])
                handle.remove()
                for pair in zip(found, expected, strict=False):
                    torch.testing.assert_close(*pair)
                ran += bool(found)
        assert ran


@pytest.mark.parametrize(("name", "spec"), [CASES[i] for i in (0, 1, 2, 5, 6, 7, 10)])
@torch.no_grad()
def test_parts_that_hooks_run_again(name: str, spec: str) -> None:
    """On other states, beside the forward: its result stays, or what is missing is an error."""
    model = adapted(name, spec)
    given = inputs(name, spec, 1)
    given |= {} if name == "bert" else {"use_cache": False}
    expected = model(**given)[0]
    busy = False

    def doubled(value: Any) -> Any:
        return 2 * value if isinstance(value, Tensor) and value.is_floating_point() else value

    def again(module: nn.Module, args: Any, kwargs: Inputs, *_: Any) -> None:
        nonlocal busy
        if not busy:
            busy = True
            try:
                module(*map(doubled, args), **{k: doubled(v) for k, v in kwargs.items()})
            finally:
                busy = False

    codes: set[str] = set()
    own = [m for m in model.modules() if hasattr(type(m), "surgery_base") and m is not model]
    for module in own:
        for register in (module.register_forward_pre_hook, module.register_forward_hook):
            handle = register(again, with_kwargs=True)
            found = expected
            try:
                found = model(**given)[0]
            except surgery.SurgeryError as problem:
                codes |= {each.code for each in problem.diagnostics}
            assert torch.equal(found, expected)
            handle.remove()
    assert codes <= {"S434"}
    assert torch.equal(model(**given)[0], expected)


@pytest.mark.parametrize(("name", "spec"), [CASES[i] for i in (0, 3, 5)])
def test_coroutines_of_one_thread(name: str, spec: str) -> None:
    """Whole forwards, in turns."""
    model = adapted(name, spec)
    texts = [[inputs(name, spec, 31 * t + f) for f in range(FORWARDS)] for t in range(THREADS)]

    async def forwards(given: list[Inputs]) -> list[Tensor]:
        found: list[Tensor] = []
        for one in given:
            found.append(model(**one)[0])
            await asyncio.sleep(0)
        return found

    async def together() -> list[list[Tensor]]:
        return await asyncio.gather(*map(forwards, texts))

    with torch.no_grad():
        for given, found in zip(texts, asyncio.run(together()), strict=True):
            assert all(torch.equal(model(**a)[0], b) for a, b in zip(given, found, strict=True))


def test_what_was_not_given_in_this_call_is_an_error() -> None:
    slot, module, x = Slot("the mask", again=True), nn.Identity(), torch.ones(2, 3)

    def run(_: nn.Module, states: Tensor) -> Any:
        return look(slot, states)

    with pytest.raises(surgery.SurgeryError, match=r"S438[\s\S]*reads the mask, which did not run"):
        within([slot], run, module, (x,), {})
    assert slot.here.scope is None

    def both(_: nn.Module, states: Tensor) -> Any:
        put(slot, "given")
        with pytest.raises(surgery.SurgeryError, match="S438"):
            within([slot], run, module, (x,), {})
        return look(slot, states)

    assert within([slot], both, module, (x,), {}) == "given"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "spec"), [CASES[i] for i in (0, 3, 5)])
def test_compiled_models_that_threads_share(name: str, spec: str) -> None:
    torch._dynamo.reset()
    model = adapted(name, spec)
    texts = [[inputs(name, spec, 31 * t + f) for f in range(2)] for t in range(THREADS)]
    compiled = torch.compile(model, backend="eager", dynamic=True)

    def forwards(run: Any, given: list[Inputs]) -> list[Tensor]:
        with torch.no_grad():
            return [run(**one, use_cache=False)[0] for one in given]

    expected = [forwards(model, given) for given in texts]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(2):
            for pair in zip(pool.map(partial(forwards, compiled), texts), expected, strict=True):
                torch.testing.assert_close(*pair)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_nothing_is_left_behind_a_call(name: str, spec: str) -> None:
    """Neither by one that ends nor by one that fails at any module."""
    model = adapted(name, spec)
    alive: list[weakref.ref[Tensor]] = []

    def watch(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        alive.extend(weakref.ref(t) for t in (*args, *parts) if isinstance(t, Tensor))

    handles = [module.register_forward_hook(watch) for module in model.modules()]

    def run(recording: bool) -> None:
        given = inputs(name, spec, 3)
        alive.extend(weakref.ref(t) for t in given.values())
        with torch.set_grad_enabled(recording):
            model(**given)

    def fails(*_: Any) -> None:
        raise ArithmeticError

    for recording in (False, True):
        run(recording)
    modules = [m for m in model.modules() if not isinstance(m, nn.ModuleList)]
    for module in modules[:: max(1, len(modules) // 12)]:
        handle = module.register_forward_hook(fails)
        with contextlib.suppress(ArithmeticError):
            run(False)
        handle.remove()
    for handle in handles:
        handle.remove()
    gc.collect()
    kept = {id(p) for p in model.parameters()} | {id(b) for b in model.buffers()}
    assert not [t for ref in alive if (t := ref()) is not None and id(t) not in kept]
    assert not tensors_left(model)


def replica(model: nn.Module) -> nn.Module:
    """A copy as `nn.DataParallel` makes one: attributes shared, parameters copied."""
    copies: dict[nn.Module, nn.Module] = {
        m: m._replicate_for_data_parallel() for m in model.modules()
    }
    for module, made in copies.items():
        for name, child in module._modules.items():
            made._modules[name] = None if child is None else copies[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                made._parameters[name] = None
            else:
                setattr(made, name, parameter.clone())
    return copies[model]


@pytest.mark.parametrize(("name", "spec"), [CASES[i] for i in (0, 3, 5, 10)])
@torch.no_grad()
def test_replicas_that_run_at_once(name: str, spec: str) -> None:
    model = adapted(name, spec)
    replicas = [replica(model) for _ in range(THREADS)]
    texts = [inputs(name, spec, 5 * n) for n in range(THREADS)]
    expected = [model(**given)[0] for given in texts]
    holder = nn.ModuleList(replicas)

    def work(number: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return replicas[number](**texts[number])[0]

        return run

    found = overlapping(holder, [work(n) for n in range(THREADS)])
    for given, wanted in zip(found, expected, strict=True):
        assert isinstance(given, Tensor), given
        assert torch.equal(given, wanted)


def test_states_of_an_encoder_that_ran_before_others() -> None:
    """A decoder's gates on its encoder's states leave out the padding of these very ones."""
    model = adapted("bart", "on q|v in attention.cross gated lora(2)")
    given, other = inputs("bart", "", 1), inputs("bart", "", 2)
    with torch.no_grad():
        whole = model(**given)[0]
        ids = given.pop("input_ids")
        states = model.get_encoder()(ids, attention_mask=given["attention_mask"])
        model.get_encoder()(other["input_ids"], attention_mask=other["attention_mask"])
        assert torch.equal(model(encoder_outputs=states, **given)[0], whole)


@torch.no_grad()
def test_folded_values_are_of_the_parameters_as_they_are() -> None:
    """Where one thread writes parameters while another folds them, no old value stays."""
    model = adapted("llama", "on tokens p_tuning(3) prompt_mlp(4) on q apply dora(2)")
    given = inputs("llama", "", 1)
    model(**given)
    parameters = list(surgery.trainable(model).values())
    stop = threading.Event()

    def write() -> None:
        with torch.no_grad():
            while not stop.is_set():
                for parameter in parameters:
                    parameter.mul_(1.001)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(20):
        model(**given)
    stop.set()
    thread.join()
    assert torch.equal(model(**given)[0], copy.deepcopy(model)(**given)[0])
