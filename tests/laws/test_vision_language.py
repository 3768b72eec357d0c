"""Models that read images beside text, and one that hears: adapted, trained and given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.anatomy.inputs import example_inputs
from tests.laws.strategies import assert_state, randomise_added, state_of
from tests.models import build, randomise

Inputs = dict[str, Any]
TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE, START = 95, 93


def llava() -> tuple[nn.Module, Inputs]:
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    ids = torch.randint(3, 90, (2, 9))
    ids[:, 1:5] = IMAGE
    model = transformers.LlavaForConditionalGeneration(config)
    return model, {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16)}


def qwen2_vl(images: int = 2) -> tuple[nn.Module, Inputs]:
    import transformers

    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=START,
    )
    ids = torch.randint(3, 90, (images, 9))
    ids[:, 1] = START
    ids[:, 2:6] = IMAGE
    given = {
        "input_ids": ids,
        "pixel_values": torch.randn(16 * images, 96),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * images),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }
    return transformers.Qwen2VLForConditionalGeneration(config), given


def whisper() -> tuple[nn.Module, Inputs]:
    model = build("whisper")
    args, kwargs = example_inputs(model)
    assert not args
    return model, kwargs


MODELS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "whisper": whisper,
}
# Images of one row in qwen2_vl have no batch to gate: its gates are those of the text.
SPECS = {
    "lora": "on q|v apply lora(4)",
    "adapter": "on mlp parallel adapter(8)",
    "prefix": "on attention apply prefix(3)",
    "prompt": "on tokens apply prompt(4)",
    "unipelt": "unipelt",
}


def run(model: nn.Module, given: Inputs) -> Tensor:
    return model(**given)[0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", MODELS)
def test_adapted_trained_and_given_back(name: str, spec: str) -> None:
    model, given = MODELS[name]()
    randomise(model).eval()
    before, base = state_of(model), run(model, given).detach()
    seen = None if (name, spec) == ("qwen2_vl", "unipelt") else given
    surgery.apply(model, SPECS[spec], seed=0, example_inputs=seen)
    randomise_added(model)
    output = run(model, given)
    assert (output - base).abs().max() > 1e-3
    output.square().mean().backward()
    for path, parameter in surgery.trainable(model).items():
        assert parameter.grad is not None, path
        assert parameter.grad.any(), path
    surgery.remove(model)
    assert torch.equal(run(model, given), base)
    assert_state(model, before)


@pytest.mark.parametrize("images", [1, 2])
def test_any_number_of_images(images: int) -> None:
    """Attention runs for each by itself, with the prefix, however many there were at first."""
    model, example = qwen2_vl(images)
    randomise(model).eval()
    surgery.apply(model, "on attention in `visual` apply prefix(3)", seed=0, example_inputs=example)
    randomise_added(model)
    pixels, grid = torch.randn(3, 16, 96), torch.tensor([[1, 4, 4]])

    def seen(chosen: list[int]) -> Tensor:
        return model.model.visual(
            pixels[chosen].flatten(0, 1), grid_thw=grid.repeat(len(chosen), 1)
        )[0]

    with torch.no_grad():
        together = seen([0, 1, 2])
        for i, alone in enumerate(together.chunk(3)):
            torch.testing.assert_close(seen([i]), alone)
        with surgery.disabled(model):
            assert (seen([2]) - together.chunk(3)[2]).abs().max() > 1e-3
