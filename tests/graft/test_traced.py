"""A traced graph is a host like any other: same specs, same parameters, same results."""

import copy

import pytest
import torch
from torch import fx, nn

import surgery
from tests.models import build, randomise

SPECS = {
    "nanogpt": [
        "on o|up|down apply lora(2)",
        "on qkv apply dora(2) on mlp parallel adapter(3) train norm",
        "on mlp gated sequential adapter(3) on attention sequential adapter(2)",
        "on mlp pfeiffer adapter(3) on down apply ia3_input on up apply ia3",
        "on attention gated prefix(3) on attention sequential adapter(2)",
        "on attention apply prefix_mlp(2, m = 3) on attention apply prefix(1) as more",
        "on embedding apply lora(2) on layer[0] sequential adapter(2)",
        "on tokens apply prompt(2) on qkv apply lora(2)",
    ],
    "resnet": [
        "on Conv2d apply lora(1)",
        "on Conv2d apply dora(1) on Linear apply lokr(1)",
        "on Conv2d where outputs > 4 apply ia3 train bias",
    ],
    "mixer": [
        "on mlp parallel adapter(2)",
        "on Linear apply loha(2) train norm",
        "on up apply vera(3) on down apply shift",
    ],
}
CASES = [(name, spec) for name, specs in SPECS.items() for spec in specs]


def inputs_of(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if name == "nanogpt":
        return torch.randint(0, 32, (2, 6), generator=generator)
    model = build(name)
    from surgery.anatomy.inputs import example_inputs

    args, kwargs = example_inputs(model)
    like = next(iter([*args, *kwargs.values()]))
    return torch.randn(like.shape, generator=generator)


def trace(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(copy.deepcopy(model), fx.symbolic_trace(model).graph)


def randomise_added(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in surgery.trainable(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_traced_equals_eager(name: str, spec: str) -> None:
    eager = build(name).eval()
    x = inputs_of(name)
    traced = trace(eager)
    base = traced(x)
    torch.testing.assert_close(base, eager(x))
    for model in (eager, traced):
        surgery.apply(model, spec, example_inputs=x, seed=0)
        randomise_added(model)
    assert list(surgery.trainable(eager)) == list(surgery.trainable(traced))
    ours, theirs = eager(x), traced(x)
    assert not torch.equal(ours, base)
    torch.testing.assert_close(theirs, ours)
    for model, result in ((eager, ours), (traced, theirs)):
        result.square().sum().backward()
        gradients = {n: p.grad for n, p in surgery.trainable(model).items()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
    for a, b in zip(
        surgery.trainable(eager).values(), surgery.trainable(traced).values(), strict=True
    ):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    with surgery.disabled(traced):
        assert torch.equal(traced(x), base)
    assert torch.equal(traced(x), theirs)
    surgery.remove(traced)
    assert torch.equal(traced(x), base)


class Nested(nn.Module):
    """Takes one tensor by name, and gives a tensor in a dict beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, object]:
        hidden = self.up(x).relu()
        return {"out": self.down(hidden) * scale, "more": (hidden, [scale])}


def test_a_programs_module_gives_trees_as_before() -> None:
    model = randomise(Nested()).eval()
    x, scale = torch.randn(2, 4), torch.tensor(3.0)
    graph = torch.export.export(model, (x,), {"scale": scale}).module()
    base = graph(x, scale=scale)
    for module in (model, graph):
        surgery.apply(
            module, "on linear apply lora(2)", example_inputs={"x": x, "scale": scale}, seed=0
        )
        randomise_added(module)
    torch.testing.assert_close(graph(x, scale=scale), model(x, scale=scale))
    surgery.remove(graph)
    torch.testing.assert_close(graph(x, scale=scale), base, rtol=0, atol=0)


@pytest.mark.parametrize("name", SPECS)
def test_merged_traced_graph_gives_the_same(name: str) -> None:
    x = inputs_of(name)
    traced = trace(randomise(build(name), 3).eval())
    surgery.apply(
        traced, "on Linear|Conv2d apply lora(1)" if name == "resnet" else "on Linear apply lora(2)"
    )
    randomise_added(traced)
    adapted = traced(x)
    with surgery.merged(traced):
        torch.testing.assert_close(traced(x), adapted, rtol=1e-3, atol=1e-4)
    assert torch.equal(traced(x), adapted)
    surgery.merge(traced)
    torch.testing.assert_close(traced(x), adapted, rtol=1e-3, atol=1e-4)


def test_an_adapter_moves_from_eager_to_traced(tmp_path: object) -> None:
    x = inputs_of("nanogpt")
    eager = build("nanogpt").eval()
    traced = trace(eager)
    surgery.apply(eager, "on Linear apply lora(2)", seed=0)
    randomise_added(eager)
    surgery.save(eager, f"{tmp_path}/adapter")
    surgery.load(traced, f"{tmp_path}/adapter")
    torch.testing.assert_close(traced(x), eager(x))


class WrittenOut(nn.Module):
    """Attention in products, as models have it that call no function for all of it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Embedding(32, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in "qkvo")
        self.dropout = nn.Dropout(0.0)
        self.register_buffer("seen", torch.ones(6, 6).tril().bool())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.how != "one head":
            q, k, v = (t.view(2, 6, 2, 4).transpose(1, 2) for t in (q, k, v))
        if self.how == "folded":
            q, k, v = (t.reshape(4, 6, 4) for t in (q, k, v))
        scores = torch.matmul(q, k.transpose(-1, -2)) / 8**0.5
        if self.how == "added mask":
            scores = scores + self.seen.float().log()
        else:
            scores = scores.masked_fill(~self.seen, -1e9)
        y = self.dropout(torch.softmax(scores, -1)) @ v
        if self.how != "one head":
            y = y.reshape(2, 2, 6, 4).transpose(1, 2).reshape(2, 6, 8)
        return x + self.o(y)


@pytest.mark.parametrize("spec", ["prefix(2)", "prefix_mlp(2, m = 3)", "gated"])
@pytest.mark.parametrize("how", ["one head", "heads", "added mask", "folded"])
def test_attention_in_products_is_changed_in_every_host(how: str, spec: str) -> None:
    text = f"on attention apply {spec}" if spec != "gated" else "on attention gated prefix(2)"
    model = randomise(WrittenOut(how), 5).eval()
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(0))
    graph, program = fx.symbolic_trace(copy.deepcopy(model)), torch.export.export(model, (ids,))
    base = model(ids)
    surgery.apply(model, text, example_inputs=ids, seed=0)
    surgery.apply(graph, text, example_inputs=ids, seed=0)
    adapted = surgery.apply(program, text, seed=0)
    for one in (model, graph, adapted):
        randomise_added(one)
    expected = model(ids)
    assert not torch.allclose(expected, base)
    torch.testing.assert_close(graph(ids), expected)
    torch.testing.assert_close(adapted.module()(ids), expected)
    surgery.remove(graph)
    torch.testing.assert_close(graph(ids), base)


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return x + self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (Multihead(), "on o apply dora(2)"),
    ],
)
def test_what_a_traced_graph_cannot_take_is_refused_and_exports(model, spec: str) -> None:
    ids = torch.randint(0, 32, (2, 6))
    traced = trace(model.eval())
    before = traced(ids)
    with pytest.raises(surgery.SurgeryError, match=r"(?s)S417.*torch\.export"):
        surgery.apply(traced, spec, example_inputs=ids)
    assert torch.equal(traced(ids), before)
    surgery.apply(model, spec, example_inputs=ids, seed=0)
    randomise_added(model)
    exported = torch.export.export(model, (ids,)).module()
    torch.testing.assert_close(exported(ids), model(ids))
