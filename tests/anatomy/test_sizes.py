"""What is read of a model does not depend on the sizes of the inputs it is read on."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import surgery
from benchmarks.architectures import building
from benchmarks.architectures.catalogue import architectures
from surgery.anatomy import varied
from surgery.anatomy.dims import Data, Fixed, Sized, Unknown, foretold, identified
from surgery.anatomy.graph import shape_of
from surgery.anatomy.inputs import example_inputs
from surgery.anatomy.paths import Paths
from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.roles.axes import layout
from surgery.anatomy.run import record
from surgery.anatomy.site import Site
from tests import models

FEW = (
    (2, 16),
    (3, 13),  # nothing divides this length
    (2, 64),  # as many tokens as an architecture of the catalogue has features
    (1, 16),
    (4, 4),  # as many texts as tokens, and heads
)
SIZES = (*FEW, (2, 32), (16, 16), (7, 7))
BRANCHING = (
    "causal/reformer",  # pads its last chunk
    "classification/longformer",  # pads its last window
    "seq2seq/led",  # pads what it has looked up
    "causal/xlnet",  # has the length first
    "seq2seq/fsmt",
    "causal/xlstm",  # runs in chunks of 64 tokens, if there are as many
    "seq2seq/switch_transformers",  # does not reach each expert
    "causal/doge",  # chooses keys, where there are many
)
OTHERS = (
    "classification/squeezebert",
    "seq2seq/t5",
    "causal/llama",
    "classification/bert",
    "causal/mixtral",
    "causal/big_bird",
    "classification/perceiver",
    "seq2seq/nllb-moe",
    "causal/mamba",
    "causal/deepseek_v3",
    "seq2seq/prophetnet",
    "classification/canine",
    "causal/recurrent_gemma",
    "causal/rwkv",
    "classification/funnel",
    "seq2seq/longt5",
    "causal/modernbert-decoder",
    "classification/deberta-v2",
    "classification/nystromformer",
    "classification/yoso",
    "classification/layoutlm",
    "causal/jamba",
    "causal/bamba",
    "causal/falcon",
)


def built(key: str) -> nn.Module:
    if key in models.names():
        return models.build(key)
    return building.build(next(a for a in architectures() if a.key == key))


def at(model: nn.Module, batch: int, length: int) -> Any:
    """The inputs that are made up for ``model``, with random ids, of these sizes."""
    args, kwargs = example_inputs(model)
    generator = torch.Generator().manual_seed(batch * 100 + length)
    made = {n: sized(n, v, batch, length, generator) for n, v in kwargs.items()}
    return made or tuple(sized("", v, batch, length, generator) for v in args)


def sized(name: str, given: Any, batch: int, length: int, generator: torch.Generator) -> Any:
    if not isinstance(given, Tensor):
        return given
    rest = given.shape[1:]
    if given.dim() == 2 or name == "bbox" or (given.dim() == 3 and not name):
        rest = (length, *given.shape[2:])
    if given.is_floating_point():
        return torch.randn(batch, *rest, generator=generator)
    if name == "attention_mask":
        return given.new_ones(batch, *rest)
    if name == "bbox":
        return given.new_zeros(batch, *rest)
    # The last id ends the text: classifiers look for it, once in each.
    found = torch.randint(10, 60, (batch, *rest), generator=generator)
    found[:, -1] = given[0, -1]
    return found


def places_at(model: nn.Module, sizes: tuple[int, int]) -> dict[str, tuple[Site, ...]] | None:
    """None if the model refuses inputs of these sizes."""
    try:
        return read(model, at(model, *sizes)).places
    except surgery.SurgeryError:
        return None


def check(key: str, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    model = built(key)
    found = {size: places for size in sizes if (places := places_at(model, size))}
    assert len(found) > 3
    first, *others = found.values()
    for size, places in zip(list(found)[1:], others, strict=True):
        assert list(places) == list(first), size
        for role, sites in places.items():
            assert sites == first[role], (size, role)


@pytest.mark.parametrize("key", BRANCHING)
def test_places_are_the_same_at_all_sizes(key: str) -> None:
    check(key, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("key", [*models.names(), *OTHERS])
def test_places_are_the_same_at_all_sizes_in_others(key: str) -> None:
    check(key)


@pytest.mark.parametrize("key", ["llama", "bert", "t5", "gpt2", "encoder_layer", "seq2seq/fsmt"])
def test_dims_foretell_another_size(key: str) -> None:
    model = built(key)
    paths = Paths(model)
    inputs = at(model, 5, 24)
    base = record(model, inputs, paths)
    sizes = varied.Varied(model, inputs, paths, base)
    found = identified(base, sizes.recordings())
    other = record(model, at(model, 6, 40), paths)
    known = {name: 6 if name == "batch" else 40 for name in sizes.known}
    unknown = 0
    for value, like in zip(base.values, other.values, strict=True):
        for dim, size in zip(found[value], shape_of(like), strict=True):
            unknown += isinstance(dim, Unknown | Data)
            assert isinstance(dim, Unknown | Data) or foretold(dim, known) == size
    total = sum(len(shape_of(value)) for value in base.values)
    assert unknown <= total // 50


def test_each_dim_has_its_name() -> None:
    model = models.build("llama")
    anatomy = read(model, at(model, 16, 16))
    (states,) = (v for _, v in anatomy.recording.calls_of["model.layers.0"][0].outputs)
    dims = anatomy.reading.flow.dims.of(states)
    batch, length = (Sized((name,), Fraction(1), Fraction(0)) for name in ("batch", "length"))
    assert dims == (batch, length, Fixed(models.HIDDEN))


def test_one_recording_is_enough_where_sizes_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    count = recordings_counted(monkeypatch)
    model = models.build("llama")
    assert read(model).places["tokens"]
    assert read(model, at(model, 5, 24)).places["tokens"]
    assert not count
    assert read(model, at(model, 7, 7)).places["tokens"]
    assert count


def recordings_counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    count: list[Any] = []
    plain = varied.recorded

    def counted(*args: Any, **kwargs: Any) -> Any:
        count.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(varied, "recorded", counted)
    return count


def test_features_ahead_of_the_length() -> None:
    anatomy = read(built("classification/squeezebert"))
    values = [v for _, v in calls(anatomy, "transformer.encoder.layers.0.attention")]
    assert layout(anatomy.reading.flow, values[0]) == "first"


def calls(anatomy: Anatomy, path: str) -> list[Any]:
    return anatomy.recording.calls_of[path][0].outputs


class Refusing(nn.Module):
    """Runs at one size alone, and counts how often it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.out = nn.Linear(4, 4)
        self.register_buffer("runs", torch.zeros((), dtype=torch.long))

    def forward(self, ids: Tensor) -> Tensor:
        cast(Tensor, self.runs).add_(1)
        if ids.shape != (4, 4):
            raise ValueError("another size")
        return self.out(self.table(ids))


def test_a_model_that_refuses_other_sizes_is_read_by_these_and_left_as_it_was() -> None:
    model = Refusing()
    state = torch.get_rng_state()
    anatomy = read(model, torch.arange(16).reshape(4, 4))
    assert [site.path for site in anatomy.places["embedding"]] == ["table"]
    dims = anatomy.reading.flow.dims
    assert dims.of(anatomy.recording.calls[0].outputs[0][1]) == (Unknown(),) * 3
    assert int(cast(Tensor, model.runs)) == 0
    assert torch.equal(torch.get_rng_state(), state)
