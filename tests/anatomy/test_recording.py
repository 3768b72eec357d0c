"""A recording is a graph that runs: on the same inputs it gives the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from surgery.anatomy.graph import Recording
from surgery.anatomy.inputs import Inputs, candidates
from surgery.anatomy.paths import Paths
from surgery.anatomy.rerun import Rerun
from surgery.anatomy.run import recorded
from surgery.anatomy.state import untouched
from surgery.anatomy.tensors import tensors_in
from tests import models

ARCHITECTURES = [
    "causal/mamba",
    "causal/deepseek_v3",
    "causal/xlnet",
    "causal/gpt_oss",
    "causal/zamba2",
    "classification/deberta",
    "classification/longformer",
    "classification/squeezebert",
    "classification/yoso",
    "classification/funnel",
    "classification/perceiver",
    "seq2seq/led",
    "seq2seq/switch_transformers",
    "seq2seq/prophetnet",
    "seq2seq/fsmt",
    "seq2seq/pegasus_x",
    "seq2seq/umt5",
    "causal/rwkv",
    "causal/reformer",
]


def first_that_runs(model: nn.Module, given: Any) -> tuple[Recording, Inputs]:
    failures: list[Exception] = []
    for inputs in candidates(model, given):
        try:
            return recorded(model, inputs, Paths(model), "real"), inputs
        except (TypeError, ValueError, RuntimeError, IndexError) as failure:
            failures.append(failure)
    raise failures[0]


def runs_again(model: nn.Module, given: Any = None) -> None:
    """Hold what the recording of ``model`` gives against what ``model`` itself gives."""
    found, (args, kwargs) = first_that_runs(model, given)
    found.graph.lint()
    copies = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    with untouched(model, copy=True):
        again = Rerun(found, model).run(*pytree.tree_leaves(copies))
        wanted = tensors_in(model(*args, **kwargs))
    assert len(again) == len(wanted) > 0
    for one, other in zip(again, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", models.names())
def test_a_recording_runs_to_the_same_bits(name: str) -> None:
    runs_again(models.build(name))


@pytest.mark.slow
@pytest.mark.parametrize("key", ARCHITECTURES)
def test_recordings_of_architectures_run_to_the_same_bits(key: str) -> None:
    from benchmarks.architectures.building import build
    from benchmarks.architectures.catalogue import architectures

    runs_again(build(next(found for found in architectures() if found.key == key)))


class Writing(nn.Module):
    """Writes to views, to what has views, by index, by name, through detached memory, and to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(4))
        self.table = torch.arange(4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        whole = x.clone()
        left, right = whole[:2], whole[2:]
        left.copy_(y)
        whole += 1
        right.detach().mul_(2)
        first = left * 3
        right[0] = 5
        parts = torch.split(whole, 1)
        parts[1].data.add_(7)
        torch.add(x, 1, out=self.seen)
        low, at = torch.min(whole, 0)
        x.sub_(whole)
        return {"all": (first, whole + right.sum(), parts[2] * 2), "seen": self.seen * low}, [
            x + self.table[self.table.flip(0)],
            at,
        ]


def test_writes_reach_all_that_shows_their_memory() -> None:
    runs_again(Writing(), (torch.randn(4), torch.randn(2)))


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x * 2).view(-1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 2


class Custom(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Hidden.apply(x + 1) + 1


def test_functions_of_its_own_do_not_break_a_recording() -> None:
    runs_again(Custom(), torch.randn(2, 3))


def test_a_recording_of_a_graph_knows_its_nodes() -> None:
    model = torch.fx.symbolic_trace(models.build("nanogpt"))
    found, _ = first_that_runs(model, None)
    origins = [op.meta["origin"] for op in found.ops]
    assert all(origin.graph is model.graph for origin in origins)
    runs_again(model)
