"""Ports, residuals and norms of places, held against what hooks see in a real forward."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from surgery.anatomy.inputs import example_inputs
from surgery.anatomy.paths import Paths
from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.site import BareParameter, Port, Site, WholeModule
from tests.models import build

PARALLEL = ("cohere", "phi", "gpt_neox", "gptj", "falcon")
SANDWICHED = ("gemma2",)
ONE_BY_ONE = [
    "llama",
    "gemma",
    "qwen3",
    "phi3",
    "gpt2",
    "opt",
    "bloom",
    "mpt",
    "mixtral",
    "bert",
    "roberta",
    "albert",
    "deberta",
    "distilbert",
    "t5",
    "bart",
    "whisper",
    "vit",
    "clip",
    "encoder_layer",
    "nanogpt",
]


class Seen:
    """Every value that passes the border of a module, in the order it does."""

    def __init__(self, model: nn.Module):
        self.events: list[tuple[str, str, Any]] = []
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self.entering(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self.leaving(path)))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        args, kwargs = example_inputs(model)
        with torch.no_grad():
            model(*args, **kwargs)
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()

    def entering(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            self.events.append((path, "input", _copied({**bound, **bound.get("kwargs", {})})))

        return hook

    def leaving(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.events.append((path, "output", _copied(output)))

        return hook

    def first(self, port: Port) -> tuple[int, torch.Tensor]:
        """When a port was first passed, and by what."""
        for time, (path, side, value) in enumerate(self.events):
            if (path, side) == (port.path, port.side):
                if side == "input":
                    value = value[port.argument]
                return time, value if port.index is None else value[port.index]
        raise AssertionError(f"nothing passed {port}")

    def tensors(self) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for _, _, value in self.events:
            items = value.values() if isinstance(value, dict) else [value]
            for item in items:
                parts = item if isinstance(item, tuple | list) else [item]
                found += [part for part in parts if isinstance(part, torch.Tensor)]
        return found


def _copied(value: Any) -> Any:
    # Some models add in place.
    return tree_map_only(torch.Tensor, torch.clone, value)


def _blocks(anatomy: Anatomy) -> list[Site]:
    return [*anatomy.places["attention"], *anatomy.places["mlp"]]


def _among(wanted: torch.Tensor, seen: Seen) -> bool:
    return any(
        other.numel() == wanted.numel()
        and other.dtype == wanted.dtype
        and torch.allclose(other.reshape(wanted.shape), wanted, atol=1e-6)
        for other in seen.tensors()
    )


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_output_plus_residual_is_what_goes_on(name: str) -> None:
    model = build(name)
    anatomy, seen = read(model), Seen(model)
    for site in _blocks(anatomy):
        assert site.residual is not None, site.path
        at_exit, output = seen.first(site.exit)
        at_residual, residual = seen.first(site.residual)
        assert at_residual < at_exit, site.path
        assert _among(output + residual, seen), site.path


@pytest.mark.parametrize("name", PARALLEL)
def test_parallel_branches_share_a_residual(name: str) -> None:
    model = build(name)
    anatomy, seen = read(model), Seen(model)
    for one, other in zip(anatomy.places["attention"], anatomy.places["mlp"], strict=True):
        values = [seen.first(site.residual)[1] for site in (one, other) if site.residual]
        assert len(values) == 2
        assert torch.equal(*values)
        total = values[0] + seen.first(one.exit)[1] + seen.first(other.exit)[1]
        assert _among(total, seen)


def test_a_norm_in_between_leaves_the_residual() -> None:
    """A branch that is normed before it joins joins the same stream."""
    blocks = _blocks(read(build("gemma2")))
    assert [(site.residual.path, site.norm) for site in blocks if site.residual] == [
        ("model.layers.0.input_layernorm", None),
        ("model.layers.1.input_layernorm", None),
        ("model.layers.0.pre_feedforward_layernorm", None),
        ("model.layers.1.pre_feedforward_layernorm", None),
    ]


def test_what_is_transposed_before_the_sum_has_no_residual() -> None:
    tokens, channels = read(build("mixer")).places["mlp"][:2]
    assert tokens.residual is None
    assert channels.residual == Port("blocks.0.norm2", "input", "input")


POST_NORM = {
    "bert": ("encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm"),
    "distilbert": ("transformer.layer.0.sa_layer_norm", "transformer.layer.0.output_layer_norm"),
    "bart": (
        "model.encoder.layers.0.self_attn_layer_norm",
        "model.encoder.layers.0.final_layer_norm",
    ),
    "encoder_layer": ("norm1", "norm2"),
    "llama": (None, None),
    "gpt2": (None, None),
    "nanogpt": (None, None),
    "bloom": (None, None),
    "t5": (None, None),
}


@pytest.mark.parametrize("name", POST_NORM)
def test_norm_after_the_sum(name: str) -> None:
    places = read(build(name)).places
    found = (places["attention"][0].norm, places["mlp"][0].norm)
    assert found == POST_NORM[name]
    for role in ("attention", "mlp"):
        # Not even the last layer takes the model's final norm for its own.
        assert (places[role][-1].norm is None) == (POST_NORM[name][0] is None)


@pytest.mark.parametrize("name", [*ONE_BY_ONE, *PARALLEL, *SANDWICHED])
def test_ports_have_the_shapes_hooks_see(name: str) -> None:
    model = build(name)
    anatomy, seen = read(model), Seen(model)
    for role in ("attention", "mlp", "q", "o", "down", "layer", "norm", "embedding"):
        for site in anatomy.places.get(role, ()):
            if isinstance(site.operator, BareParameter):
                continue
            if anatomy.call(site.path) is None and isinstance(site.operator, WholeModule):
                assert site.path.endswith("out_proj")  # nn.MultiheadAttention only reads it
                continue
            for port in (site.entry, site.exit):
                assert anatomy.port_shape(port) == tuple(seen.first(port)[1].shape)


def test_a_region_lists_what_lies_in_it() -> None:
    places = read(build("bert")).places
    attention, mlp = places["attention"][0], places["mlp"][0]
    layer = "encoder.layer.0"
    assert attention.spans == (f"{layer}.attention.self", f"{layer}.attention.output.dense")
    assert mlp.spans == (f"{layer}.intermediate", f"{layer}.output.dense")
    assert mlp.entry == Port(f"{layer}.intermediate.dense", "input", "input")
    assert mlp.exit == Port(f"{layer}.output.dense", "output")
    assert mlp.residual == mlp.entry


def test_ports_of_modules_chosen_by_path() -> None:
    model = build("llama")
    anatomy, paths = read(model), Paths(model)
    attention = anatomy.place_of(paths.module("model.layers.1.self_attn"))
    assert attention.entry == Port("model.layers.1.self_attn", "input", "hidden_states")
    assert attention.exit == Port("model.layers.1.self_attn", "output", None, 0)
    assert attention.residual == Port("model.layers.1.input_layernorm", "input", "hidden_states")
    assert attention.index == 1
    down = anatomy.place_of(paths.module("model.layers.0.mlp.down_proj"))
    assert down.residual == Port(
        "model.layers.0.post_attention_layernorm", "input", "hidden_states"
    )
    up = anatomy.place_of(paths.module("model.layers.0.mlp.up_proj"))
    assert (up.residual, up.norm) == (None, None)


def test_complete_places_stay_as_they_are() -> None:
    anatomy = read(build("bert"))
    for site in _blocks(anatomy):
        assert anatomy.place_of(site) == site


class Switch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, twice: bool = False) -> torch.Tensor:
        return self.used(self.used(x))


def test_what_never_ran() -> None:
    model = Switch()
    anatomy = read(model, torch.ones(2, 4))
    assert anatomy.call("unused") is None
    assert anatomy.port_shape(Port("unused", "input")) == ()
    plain = Paths(model).module("unused")
    assert anatomy.place_of(plain) == plain
    used = anatomy.call("used")
    assert used is not None
    assert (used.times, used.output_shape, used.layout) == (2, (2, 4), "last")


@pytest.mark.parametrize(
    ("name", "path", "layout"),
    [
        ("resnet", "conv1", "first"),
        ("resnet", "bn1", "first"),
        ("resnet", "relu", "first"),
        ("resnet", "layer1.1", "first"),
        ("resnet", "layer2.0", "first"),
        ("resnet", "avgpool", "first"),
        ("resnet", "fc", "last"),
        ("mixer", "stem", "first"),
        ("mixer", "blocks.0", "last"),
        ("whisper", "model.encoder.conv1", "first"),
        ("whisper", "model.encoder.layers.0", "last"),
        ("vit", "vit.layers.0", "last"),
        ("llama", "model.layers.0.mlp", "last"),
    ],
)
def test_where_features_are(name: str, path: str, layout: str) -> None:
    call = read(build(name)).call(path)
    assert call is not None
    assert call.layout == layout


@pytest.mark.parametrize(
    ("name", "path", "stack", "layer"),
    [
        ("llama", "model.layers.1.mlp.act_fn", "model.layers.*", 1),
        ("llama", "lm_head", None, None),
        ("t5", "decoder.block.1.layer.0.SelfAttention.q", "decoder.block.*", 1),
        ("t5", "encoder.block.0.layer.1", "encoder.block.*", 0),
        ("resnet", "layer2.1.conv1", "layer*.*", 3),
        ("bert", "encoder.layer.0.output.dense.weight", "encoder.layer.*", 0),
    ],
)
def test_layers_and_stacks(name: str, path: str, stack: str | None, layer: int | None) -> None:
    anatomy = read(build(name))
    assert (anatomy.stack_of(path), anatomy.layer_of(path)) == (stack, layer)


def test_roles_of_a_module() -> None:
    anatomy = read(build("t5"))
    attention = "decoder.block.0.layer.1.EncDecAttention"
    assert anatomy.roles_of(attention) == ("attention", "attention.cross")
    assert anatomy.roles_of(f"{attention}.q") == ("q",)
    assert anatomy.roles_of("decoder.dropout") == ()
