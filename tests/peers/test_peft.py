"""What the rows of `methods.py` cannot say beside HF PEFT: layers and models of their own."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from tests.models import build, randomise
from tests.peers.test_methods import LAYERS, Holder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

pytestmark = pytest.mark.filterwarnings("ignore")


def pair(layer: str, spec: str, config: Any) -> tuple[nn.Module, nn.Module, Any, Tensor]:
    """Our model and PEFT's on the same base, PEFT's layer, and an input."""
    torch.manual_seed(0)
    make, draw = LAYERS[layer]
    base = randomise(Holder(make()), 1).eval()
    theirs = peft.get_peft_model(copy.deepcopy(base), config).eval()
    ours = surgery.apply(base, spec, seed=0).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "base_layer" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return ours, theirs, theirs.base_model.model.layer, draw()


def put(ours: nn.Module, child: str, values: dict[str, Tensor]) -> None:
    graft = ours.get_submodule(f"layer.{child}")
    names = dict(graft.named_parameters())
    assert set(values) == set(names)
    with torch.no_grad():
        for name, value in values.items():
            assert names[name].shape == value.shape, name
            names[name].copy_(value)


def agree(
    ours: nn.Module,
    theirs: nn.Module,
    x: Tensor,
    child: str,
    read: Callable[[Any], dict[str, Tensor]],
    layer: Any,
    skip: tuple[str, ...] = (),
) -> None:
    put(ours, child, {n: t.detach() for n, t in read(layer).items()})
    left, right = ours(x), theirs(x)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    weights = torch.randn(left.shape)
    (left * weights).sum().backward()
    (right * weights).sum().backward()
    graft = dict(ours.get_submodule(f"layer.{child}").named_parameters())
    expected = read(_gradients(layer))
    for name, parameter in graft.items():
        if parameter.requires_grad and name not in skip:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4)
    merged = theirs.merge_and_unload()
    surgery.merge(ours)
    torch.testing.assert_close(ours.layer.weight, merged.layer.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x), right, rtol=1e-3, atol=1e-4)


def _gradients(layer: Any) -> Any:
    """A copy of a PEFT layer with each parameter replaced by its gradient."""
    twin = copy.deepcopy(layer)
    for (_, parameter), (_, original) in zip(
        twin.named_parameters(), layer.named_parameters(), strict=True
    ):
        gradient = original.grad
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient.clone()
    return twin


def test_lokr_on_a_convolution() -> None:
    """PEFT's second factor is whole here; of full rank, ours is the same with a unit matrix."""
    config = peft.LoKrConfig(r=2, alpha=2, decompose_factor=2, target_modules=["layer"])
    spec = "on `layer` apply lokr(3, rows = 2, columns = 2)"
    ours, theirs, peer, x = pair("conv2d", spec, config)

    def read(source: Any) -> dict[str, Tensor]:
        second = source.lokr_w2["default"].flatten(1)
        return {"C": source.lokr_w1["default"], "B": torch.eye(3), "A": second}

    agree(ours, theirs, x, "lokr", read, peer, skip=("B",))


def test_ia3_on_the_inputs_of_a_convolution() -> None:
    """PEFT scales channels; ours scales each element of a patch, of which that is a special case."""
    config = peft.IA3Config(target_modules=["layer"], feedforward_modules=["layer"])
    ours, theirs, peer, x = pair("conv2d", "on `layer` apply ia3_input", config)
    put(ours, "ia3_input", {"l": peer.ia3_l["default"].detach().flatten().repeat_interleave(9)})
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


REFERENCE_CONVOLUTIONS = {
    "dilated": {"dilation": 2, "padding": 2},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflected": {"padding": 1, "padding_mode": "reflect"},
    "grouped": {"groups": 2, "padding": 1},
    "same": {"padding": "same", "dilation": 2},
}


@pytest.mark.parametrize("method", ["lora(2)", "dora(2)"])
@pytest.mark.parametrize("kind", REFERENCE_CONVOLUTIONS)
def test_convolutions_against_their_own_weight(kind: str, method: str) -> None:
    """The reference is the layer itself with W + ΔW in it. In PEFT a dilated convolution fails, one
    with a padding mode computes something else than its own merge, and a grouped one has hidden
    features of each group alone, and no merge.
    """
    torch.manual_seed(0)
    model = randomise(Holder(nn.Conv2d(4, 6, 3, **REFERENCE_CONVOLUTIONS[kind])), 1)
    plain = copy.deepcopy(model.layer)
    surgery.apply(model, f"on `layer` apply {method}", seed=0)
    for parameter in surgery.trainable(model).values():
        nn.init.normal_(parameter, std=0.5)
    graft = dict(next(m for n, m in model.layer.named_children()).named_parameters())
    update = (graft["B"] @ graft["A"]).reshape(plain.weight.shape)
    weight = plain.weight + update
    if "M" in graft:
        norms = weight.flatten(1).norm(dim=1)
        weight = weight * (graft["M"] / norms).view(-1, 1, 1, 1)
    with torch.no_grad():
        plain.weight.copy_(weight)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    surgery.merge(model)
    torch.testing.assert_close(model.layer.weight, plain.weight, rtol=1e-4, atol=1e-5)


def test_a_language_model_with_lora() -> None:
    base = build("llama")
    theirs = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    ).eval()
    ours = surgery.apply(base, "on q|v apply lora(4, alpha = 8)", seed=0)
    torch.manual_seed(0)
    peers = dict(theirs.named_modules())
    for path, module in ours.named_modules():
        if not path.endswith(("q_proj", "v_proj")):
            continue
        peer = peers[f"base_model.model.{path}"]
        with torch.no_grad():
            module.lora.A.copy_(peer.lora_A["default"].weight.normal_())
            module.lora.B.copy_(peer.lora_B["default"].weight.normal_())
    ids = torch.randint(0, 90, (2, 7))
    left, right = (m(input_ids=ids, labels=ids) for m in (ours, theirs))
    torch.testing.assert_close(left.logits, right.logits, rtol=1e-4, atol=1e-5)
    left.loss.backward()
    right.loss.backward()
    for path, module in ours.named_modules():
        if path.endswith(("q_proj", "v_proj")):
            peer = peers[f"base_model.model.{path}"]
            gradient = peer.lora_A["default"].weight.grad
            torch.testing.assert_close(module.lora.A.grad, gradient, rtol=1e-3, atol=1e-5)
