"""Prefixes, gates and their mixes: what holds on every kind of model."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, fx, nn

import surgery
from surgery.anatomy.inputs import example_inputs
from tests.laws.strategies import assert_state, randomise_added, state_of
from tests.models import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MODELS = ("llama", "bert", "gpt2", "t5", "vit", "encoder_layer", "nanogpt")
MIX = """
on attention gated prefix_mlp(3, m = 5)
on q | v gated lora(2)
on mlp pfeiffer weighted adapter(4)
train norm
"""
SPECS = {
    "prefix": "on attention apply prefix(3)",
    "network": "on attention apply prefix_mlp(3, m = 5)",
    "shared": "on attention apply shared_prefix(2)",
    "gated": "on attention gated prefix(3)",
    "two": "on attention apply prefix(2) on attention gated prefix(1) as second",
    "mix": MIX,
}


def run(model: nn.Module) -> Tensor:
    args, kwargs = example_inputs(model)
    result = model(*args, **kwargs)
    return result if isinstance(result, Tensor) else result[0]


def adapted(name: str, spec: str) -> nn.Module:
    return randomise_added(surgery.apply(build(name), SPECS[spec], seed=0))


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [s for s in SPECS if s != "mix"])
@pytest.mark.parametrize("name", MODELS)
def test_acts_trains_and_goes(name: str, spec: str) -> None:
    base = build(name)
    with torch.no_grad():
        before = run(base)
    untouched = state_of(base)
    model = randomise_added(surgery.apply(base, SPECS[spec], seed=0))
    for mode in (True, False):
        model.train(mode)
        output = run(model)
        assert (output - before).abs().max() > 1e-4
    output.square().sum().backward()
    for parameter_name, parameter in surgery.trainable(model).items():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0, parameter_name
    model.zero_grad()
    with surgery.disabled(model), torch.no_grad():
        assert torch.equal(run(model), before)
    surgery.remove(model)
    assert_state(model, untouched)
    with torch.no_grad():
        assert torch.equal(run(model), before)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_an_open_gate_is_none(name: str) -> None:
    """σ(40) is 1 in float32, so the gated prefix is the plain one."""
    plain = adapted(name, "prefix")
    gated = surgery.apply(build(name), "on attention gated prefix(3)", seed=0)
    values = {n.replace("prefix.", "prefix.", 1): p for n, p in surgery.trainable(plain).items()}
    with torch.no_grad():
        for parameter_name, parameter in surgery.trainable(gated).items():
            if ".gated." in parameter_name:
                parameter.fill_(40.0 if parameter_name.endswith(".c") else 0.0)
            else:
                parameter.copy_(values[parameter_name])
        close(run(gated), run(plain))


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_folds(name: str, tmp_path) -> None:
    model = adapted(name, "mix")
    with torch.no_grad():
        before = run(model)
        report = surgery.fold(model)
        assert report.after < report.before
        assert torch.equal(run(model), before)
        kept = [n for n in surgery.trainable(model) if ".prefix_mlp." in n]
        assert kept
        assert all("folded" in n or ".gated." in n for n in kept)
        surgery.save(model, tmp_path)
        fresh = surgery.load(build(name), tmp_path)
        assert torch.equal(run(fresh), before)
        assert surgery.trainable(fresh).keys() == surgery.trainable(model).keys()
        with pytest.raises(surgery.SurgeryError, match="nothing to fold"):
            surgery.fold(model)
    run(model).sum().backward()


@pytest.mark.parametrize("spec", ["network", "mix"])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_travels(name: str, spec: str, tmp_path) -> None:
    """Saved and loaded, pickled and copied, it computes the same."""
    model = adapted(name, spec)
    with torch.no_grad():
        expected = run(model)
        surgery.save(model, tmp_path)
        assert torch.equal(run(surgery.load(build(name), tmp_path)), expected)
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin), expected)
        assert torch.equal(run(pickle.loads(pickle.dumps(model))), expected)
        surgery.remove(twin)
        assert torch.equal(run(model), expected)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_recomputes_under_checkpointing(name: str) -> None:
    def gradients(model: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(0)
        run(model.train()).square().sum().backward()
        return {n: p.grad for n, p in surgery.trainable(model).items()}

    plain = adapted(name, "mix")
    recomputed = copy.deepcopy(plain)
    expected = gradients(plain)
    for reentrant in (False, True):
        recomputed.zero_grad()
        recomputed.activation_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            recomputed.enable_input_require_grads()
        for parameter_name, gradient in gradients(recomputed).items():
            close(gradient, expected[parameter_name])


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("spec", ["gated", "mix"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_compiles_whole_with_dynamic_shapes(name: str, spec: str) -> None:
    model = adapted(name, spec)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length in ((2, 8), (3, 5)):
        ids = torch.arange(batch * length).reshape(batch, length) % 90 + 3
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        given |= {"use_cache": False} if name == "llama" else {}
        expected, output = model(**given)[0], compiled(**given)[0]
        close(output, expected)
        grads = []
        for result in (expected, output):
            result.square().mean().backward()
            grads.append({n: p.grad.clone() for n, p in surgery.trainable(model).items()})
            model.zero_grad()
        for parameter_name, gradient in grads[0].items():
            close(grads[1][parameter_name], gradient)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generates_with_and_without_a_cache(name: str) -> None:
    model = adapted(name, "prefix")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [3, 3, 11, 12, 13, 14]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    given = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **given)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **given))
    assert not torch.equal(cached, build(name).generate(ids, **given))
    beams = model.generate(ids, num_beams=3, **given)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **given))


IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [20, 21, 22, 23, 0, 0]])
RIGHT = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])


@torch.no_grad()
def padded_and_alone(model: nn.Module) -> tuple[Tensor, Tensor]:
    """What a model makes of the same tokens with padding behind them, and without."""
    padded = model(input_ids=IDS, attention_mask=RIGHT)[0][1, :4]
    return padded, model(input_ids=IDS[1:, :4], attention_mask=RIGHT[1:, :4])[0][0]


@pytest.mark.parametrize("gate", ["gated", "layer_gated", "gated(average = mean)"])
@pytest.mark.parametrize(
    "what", ["on attention {} prefix(3)", "on q|v {} lora(2)", "on mlp {} sequential adapter(2)"]
)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_moves_no_gate(name: str, what: str, gate: str) -> None:
    """Over all places, as the authors' code has it, padding does move it."""
    model = randomise_added(surgery.apply(build(name), what.format(gate), seed=0))
    padded, alone = padded_and_alone(model)
    difference = (padded - alone).abs().max()
    assert difference > 1e-4 if "mean" in gate else difference < 1e-5


@pytest.mark.parametrize("what", ["on q|v gated lora(2)", "on attention gated prefix(3)"])
def test_padding_moves_no_gate_where_features_come_first(what: str) -> None:
    from transformers import SqueezeBertConfig, SqueezeBertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SqueezeBertConfig(vocab_size=64, intermediate_size=48, embedding_size=32, **sizes)
    torch.manual_seed(0)
    model = randomise_added(surgery.apply(SqueezeBertModel(config).eval(), what, seed=0))
    padded, alone = padded_and_alone(model)
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_one_gate_a_layer() -> None:
    model = surgery.apply(build("llama"), "on q|v layer_gated lora(2)", seed=0)
    projections = [(x.self_attn.q_proj, x.self_attn.v_proj) for x in model.model.layers]
    assert all(q.lora.layer_gated.w is v.lora.layer_gated.w for q, v in projections)
    assert len([n for n, _ in model.named_parameters() if "gated.w" in n]) == 2
    low_rank = (2 * 32 + 32 * 2) + (2 * 32 + 16 * 2)
    plan = surgery.plan(build("llama"), "on q|v layer_gated lora(2)")
    assert plan.added == 2 * (low_rank + 32 + 1)


def test_a_prefix_needs_an_attention() -> None:
    with pytest.raises(surgery.SurgeryError, match="softmax core"):
        surgery.plan(build("llama"), "on mlp apply prefix(3)")


@pytest.mark.parametrize("traced", [False, True])
def test_examples_are_never_taken_for_tokens(traced: bool) -> None:
    model: nn.Module = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    if traced:
        model = fx.symbolic_trace(model)
    surgery.apply(model, "on Linear gated lora(2)", example_inputs=torch.randn(2, 3, 8), seed=0)
    assert model(torch.randn(4, 5, 8)).shape == (4, 5, 2)
    with pytest.raises(surgery.SurgeryError, match="names 3 dims") as raised:
        model(torch.randn(5, 8))
    assert raised.value.diagnostics[0].code == "S411"
