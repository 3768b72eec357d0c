"""Forwards that are recorded at once, in several threads, or beside others that run."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from surgery.anatomy import run
from surgery.anatomy.graph import Recording, name_of
from surgery.anatomy.run import record
from tests import models

DOORS: tuple[tuple[Any, str], ...] = (
    (nn.Module, "__call__"),
    (nn.Module, "__getattr__"),
    (torch.no_grad, "__enter__"),
    (torch.no_grad, "__exit__"),
    (torch.autograd.Function, "apply"),
)
WAIT = 0.3


def doors() -> list[Any]:
    return [vars(cls)[name] for cls, name in DOORS]


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return 2 * grads[0]


class Meeting(nn.Module):
    """Waits in the middle of its forward for another thread, for as long as one may come."""

    def __init__(self, meet: Callable[[], None]):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.meet = meet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.meet()
        with torch.no_grad():
            scale = x.mean()
        return self.second(x) * scale + torch.rand(1)


def told(found: Recording) -> Any:
    accesses = [(a.path, a.name, a.call, a.own) for a in found.accesses]
    blind = None if found.blind is None else len(found.blind)
    return (
        [*map(name_of, found.ops)],
        [c.path for c in found.calls],
        accesses,
        blind,
        found.followed,
    )


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("how", ["real", "fake"])
def test_recordings_at_once_are_whole_and_leave_nothing(
    threads: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_ways", lambda *_: (how,))
    alone = told(record(Meeting(lambda: None), torch.ones(2, 4)))
    before, fast = doors(), torch.backends.mha.get_fastpath_enabled()
    barrier = threading.Barrier(threads)

    def meet() -> None:
        # With only one inside at a time nobody comes.
        try:
            barrier.wait(WAIT)
        except threading.BrokenBarrierError:
            barrier.reset()

    given = [Meeting(meet) for _ in range(threads)]
    states = torch.get_rng_state(), random.getstate()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda model: told(record(model, torch.ones(2, 4))), given))
    assert found == [alone] * threads
    assert doors() == before
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(model.training for model in given)


def test_what_runs_beside_is_no_part_of_a_recording() -> None:
    alone = told(record(Meeting(lambda: None), torch.ones(2, 4)))
    before = doors()
    model: Meeting | None = None
    inside, done = threading.Event(), threading.Event()

    def meet() -> None:
        inside.set()
        assert done.wait(60)

    def beside() -> None:
        """Takes the model's parameters, runs a function of its own, and other models."""
        assert inside.wait(60)
        try:
            assert model is not None
            Double.apply(model.second.weight).sum().backward()
            with torch.no_grad():
                models.NanoGPT()(torch.zeros(1, 2, dtype=torch.long))
        finally:
            done.set()

    model = Meeting(meet)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(beside)
        found = told(record(model, torch.ones(2, 4)))
        other.result()
    assert found == alone
    assert doors() == before


def test_a_recording_within_a_forward_is_one_of_its_own() -> None:
    inner = nn.Sequential(nn.Linear(2, 2))
    nested: list[Any] = []
    model = Meeting(lambda: nested.append(told(record(inner, torch.ones(1, 2)))))
    before = doors()
    record(model, torch.ones(2, 4))
    assert nested[0] == told(record(inner, torch.ones(1, 2)))
    assert doors() == before
