"""Blocks at modules and regions of transformers' own architectures, with all that they live with."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.anatomy.inputs import example_inputs
from tests.models import build

MODELS = ("llama", "gpt2", "bert", "opt", "t5", "bart", "vit", "distilbert", "albert", "mixtral")
SPECS = (
    "on mlp sequential adapter(3)",
    "on attention parallel adapter(3, act = gelu)",
    "on mlp pfeiffer adapter(3)",
    "on o apply lora(2) on attention sequential adapter(3) train norm",
)


def first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    return next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())


def runner(model: nn.Module) -> Any:
    args, kwargs = example_inputs(model)
    return lambda m: first_tensor(m(*args, **kwargs))


def randomise_added(model: nn.Module, std: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", MODELS)
def test_placement(name: str, spec: str) -> None:
    model = build(name)
    run = runner(model)
    base, state = run(model).detach(), copy.deepcopy(model.state_dict())
    surgery.apply(model, spec, seed=0)
    assert set(state) <= set(model.state_dict())
    torch.testing.assert_close(run(model), base)
    randomise_added(model)
    adapted = run(model)
    assert not torch.equal(adapted, base)
    weights = torch.randn(adapted.shape, generator=torch.Generator().manual_seed(2))
    (adapted * weights).sum().backward()
    for parameter_name, parameter in surgery.trainable(model).items():
        if "adapter" not in parameter_name or parameter_name.endswith(("U", "u0")):
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any(), parameter_name
    with torch.no_grad():
        torch.testing.assert_close(run(model), adapted)
    assert torch.equal(run(copy.deepcopy(model)), run(model))
    with surgery.disabled(model):
        assert torch.equal(run(model).detach(), base)
    surgery.remove(model)
    assert torch.equal(run(model).detach(), base)
    now = model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[n], state[n]) for n in state)


def test_pfeiffer_in_a_post_norm_model_runs_the_norm_twice() -> None:
    """out = LN(f + U relu(D z + d0) + u0 + x), z = LN(f + x), in BERT's own modules."""
    model = build("bert")
    layer = model.get_submodule("encoder.layer.0")
    x = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    surgery.apply(model, "on mlp pfeiffer adapter(3)", seed=0)
    randomise_added(model)
    output = layer.output
    graft = output.dense.adapter
    hidden = layer.intermediate(x)
    with surgery.disabled(model):
        f = output.dense(hidden)
    z = output.LayerNorm(f + x)
    extra = torch.relu(z @ graft.D.t() + graft.d0) @ graft.U.t() + graft.u0
    torch.testing.assert_close(output(hidden, x), output.LayerNorm(f + extra + x))


def test_a_parallel_adapter_reads_the_normed_input_in_a_pre_norm_region() -> None:
    model = build("opt")
    layer = model.get_submodule("model.decoder.layers.0")
    surgery.apply(model, "on mlp parallel adapter(3)", seed=0)
    randomise_added(model)
    graft = layer.fc2.adapter
    u = torch.randn(4, layer.fc1.in_features, generator=torch.Generator().manual_seed(0))
    given = layer.fc2(torch.relu(layer.fc1(u)))
    with surgery.disabled(model):
        base = layer.fc2(torch.relu(layer.fc1(u)))
    extra = torch.relu(u @ graft.D.t() + graft.d0) @ graft.U.t() + graft.u0
    torch.testing.assert_close(given, base + extra)


def test_gates_give_one_scalar_an_example() -> None:
    model = build("llama")
    surgery.apply(model, "on mlp gated parallel adapter(3)", seed=0)
    randomise_added(model)
    mlp = model.get_submodule("model.layers.0.mlp")
    graft = mlp.adapter
    u = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with surgery.disabled(model):
        base = mlp(u)
    gate = torch.sigmoid(u @ graft.gated.w.t() + graft.gated.c).mean(1, keepdim=True)
    extra = torch.relu(u @ graft.D.t() + graft.d0) @ graft.U.t() + graft.u0
    torch.testing.assert_close(mlp(u), base + gate * extra)


@pytest.mark.parametrize("name", ["llama", "opt", "t5"])
def test_generation_goes_on(name: str) -> None:
    model = build(name)
    args, kwargs = example_inputs(model)
    ids = kwargs.get("input_ids", args[0] if args else None)
    surgery.apply(model, "on mlp parallel adapter(3) on q|v apply lora(2)", seed=0)
    randomise_added(model)
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    cached = model.generate(ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = build("opt")
    run = runner(model)
    surgery.apply(model, "on mlp parallel adapter(3) on q|v apply dora(2)", seed=0)
    randomise_added(model)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.dropout = model.config.attention_dropout = 0.0
    for layer in model.model.decoder.layers:
        layer.dropout = layer.self_attn.dropout = 0.0

    def gradients() -> list[Tensor]:
        model.zero_grad()
        run(model).square().sum().backward()
        return [p.grad.clone() for p in surgery.trainable(model).values() if p.grad is not None]

    plain = gradients()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients()
    assert len(plain) == len(again) > 0
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_compiles_whole(name: str) -> None:
    model = build(name)
    run = runner(model)
    spec = "on q|v apply lora(2) on o apply dora(2) on mlp pfeiffer adapter(3)"
    surgery.apply(model, spec, seed=0)
    randomise_added(model)
    expected = run(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    given = run(compiled)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    given.square().sum().backward()
    assert all(p.grad is not None for p in surgery.trainable(model).values())


def test_the_whole_model_pickles() -> None:
    model = build("bert")
    run = runner(model)
    surgery.apply(model, "on mlp pfeiffer adapter(3) on q apply dora(2)", seed=0)
    randomise_added(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(run(again), run(model))
    surgery.remove(again)


class Shapes(nn.Module):
    """Containers whose children run in order, and a module with several inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        return self.pair(scale=2.0, hidden=x)["hidden"]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, scale: float) -> dict[str, Tensor]:
        return {"scale": torch.tensor(scale), "hidden": self.inner(hidden) * scale}


def test_containers_and_keyword_inputs() -> None:
    model = Shapes()
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    base = model(x)
    surgery.apply(
        model, "on `mlp` parallel adapter(3) on `pair` parallel adapter(2)", example_inputs=x
    )
    assert len(model.mlp) == 3
    torch.testing.assert_close(model(x), base)
    randomise_added(model)
    assert not torch.allclose(model(x), base)
    surgery.remove(model)
    assert torch.equal(model(x), base)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.GroupNorm(2, 6)])
@pytest.mark.parametrize("batch", [4, 6])
@pytest.mark.parametrize("traced", [False, True])
def test_states_of_other_dims_than_were_read_are_right_or_refused(norm, batch, traced) -> None:
    """Features are second there, and what that is, the dims decide: also where sizes happen to fit."""
    model = nn.Sequential(nn.Linear(6, 6), copy.deepcopy(norm)).eval()
    model = torch.fx.symbolic_trace(model) if traced else model
    x = torch.randn(batch, 6)
    surgery.apply(model, "on `1` parallel adapter(3)", example_inputs=torch.ones(2, 6, 6), seed=0)
    with pytest.raises(surgery.SurgeryError, match=r"S428.*3 dims"):
        model(x)
    surgery.remove(model)
    expected = model(x)
    surgery.apply(model, "on `1` parallel adapter(3)", example_inputs=torch.ones(4, 6), seed=0)
    assert torch.equal(model(x), expected)
