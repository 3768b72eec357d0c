"""Make the fixtures beside this file: what the library `adapters` computes on tiny models.

Run by hand, since `adapters` pins a `transformers` older than the one that tests use. In an
environment made by

    python -m venv ADAPTERS
    ADAPTERS/bin/pip install torch==2.13.0 adapters==1.3.0

and from the root of the checkout:

    ADAPTERS/bin/python -m tests.peers.adapters.make

There is one file a model. `base.*` are the model's parameters, `input.*` what it is called with,
`output.base` what it gives; for each method `METHOD.weight.*` are the parameters that `adapters`
adds, under their own names with the adapter called `peer`, `METHOD.output` is what the adapted
model gives, and `METHOD.gate.*` are the gates, one row an example, by the path of the gate's
module. The metadata `about` is JSON:
the model's class and config, each method's config, and the versions.

No parameter keeps its initial value. Dropout is off. Attention is `eager`: with `sdpa` the prefixes
of `adapters` go wrong in decoders (README.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
HIDDEN, INNER, HEADS, LAYERS, VOCABULARY, LENGTH = 16, 24, 2, 2, 40, 7
NAME = "peer"

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 16,
    **_TOKENS,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", _ENCODER),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _ENCODER),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_inner": INNER,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": 16,
            **_TOKENS,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_ff": INNER,
            "d_kv": 6,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "relative_attention_num_buckets": 8,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "encoder_ffn_dim": INNER,
            "decoder_ffn_dim": INNER,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "max_position_embeddings": 16,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
            **_TOKENS,
        },
    ),
}


def methods() -> dict[str, Any]:
    """The configs by name: the library's defaults, but for sizes."""
    import adapters as library

    prefix = {"prefix_length": 3, "bottleneck_size": 6}
    return {
        "prefix": library.PrefixTuningConfig(flat=True, prefix_length=3),
        "prefix_mlp": library.PrefixTuningConfig(**prefix),
        "unipelt": library.UniPELTConfig(
            library.PrefixTuningConfig(use_gating=True, **prefix),
            library.SeqBnConfig(use_gating=True, reduction_factor=4),
            library.LoRAConfig(r=2, alpha=6, use_gating=True),
        ),
        "mam": library.MAMConfig(
            library.PrefixTuningConfig(**prefix), library.ParBnConfig(reduction_factor=4)
        ),
        "parallel": library.ParBnConfig(reduction_factor=4),
        "pfeiffer": library.SeqBnConfig(reduction_factor=4),
        "houlsby": library.DoubleSeqBnConfig(reduction_factor=4),
        "compacter": library.CompacterConfig(reduction_factor=4, phm_dim=2),
        "lora": library.LoRAConfig(r=2, alpha=6),
        "ia3": library.IA3Config(),
    }


def inputs(model: str) -> dict[str, Tensor]:
    """Three rows: without padding, padded on the right, padded on the left."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, VOCABULARY, (3, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    mask[2, :3] = 0
    given = {"input_ids": ids * mask, "attention_mask": mask}
    if model in ("t5", "bart"):
        decoded = torch.randint(3, VOCABULARY, (3, 5), generator=generator)
        mask = torch.ones_like(decoded)
        mask[1, -2:] = 0
        given |= {"decoder_input_ids": decoded * mask, "decoder_attention_mask": mask}
    return given


@torch.no_grad()
def randomise(named: dict[str, nn.Parameter], seed: int) -> None:
    """Normal values; those that scale stay around 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in named.values():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
        offset = 1.0 if bool((parameter == 1).all()) else 0.0
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(offset + scale * noise)


def build(model: str) -> nn.Module:
    """A plain model of `transformers`, randomised, in eval mode."""
    import transformers

    name, config, settings = MODELS[model]
    configured = getattr(transformers, config)(**settings, attn_implementation="eager")
    made: nn.Module = getattr(transformers, name)(configured).eval()
    randomise(dict(made.named_parameters()), seed=1)
    return made


def without_position_bias(model: nn.Module) -> None:
    """With prefixes `adapters` shifts T5's relative positions (README.md): leave them out."""
    for name, parameter in model.named_parameters():
        if name.endswith("relative_attention_bias.weight"):
            nn.init.zeros_(parameter)


@torch.no_grad()
def answer(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """Logits, or else the last hidden states."""
    outputs = model(**given)
    logits: Tensor | None = getattr(outputs, "logits", None)
    return outputs.last_hidden_state if logits is None else logits


def listen(model: nn.Module) -> dict[str, Tensor]:
    """A table that the next forward fills: each gate's mean over all tokens, by its path."""
    heard: dict[str, Tensor] = {}

    def keeper(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            heard[path] = output.sigmoid().mean(dim=1)

        return keep

    for path, module in model.named_modules():
        if path.endswith((f".prefix_gates.{NAME}", f".{NAME}.gate")):
            module.register_forward_hook(keeper(path))
    return heard


def adapted(model: str, config: Any) -> dict[str, Tensor]:
    """What one method adds to one model, and what that gives."""
    import adapters as library

    made = build(model)
    base = set(dict(made.named_parameters(remove_duplicate=False)))
    library.init(made)
    made.add_adapter(NAME, config=config)
    made.set_active_adapters(NAME)
    made.eval()
    new = {n: p for n, p in made.named_parameters() if n not in base}
    assert new, "the method adds nothing"
    randomise(new, seed=2)
    if any("prefix_tuning" in name for name in new):
        without_position_bias(made)
    gates = listen(made)
    output = answer(made, inputs(model))
    return {
        **{f"weight.{n}": p.detach() for n, p in new.items()},
        "output": output,
        **{f"gate.{n}": g for n, g in gates.items()},
    }


def main() -> None:
    import adapters as library
    import transformers

    for model, (name, config, settings) in MODELS.items():
        base = build(model)
        tensors: dict[str, Tensor] = {}
        tensors |= {f"base.{n}": p.detach() for n, p in base.named_parameters()}
        tensors |= {f"input.{n}": t for n, t in inputs(model).items()}
        tensors["output.base"] = answer(base, inputs(model))
        for method, chosen in methods().items():
            found = adapted(model, chosen)
            tensors |= {f"{method}.{n}": t for n, t in found.items()}
        about = {
            "class": name,
            "config_class": config,
            "config": settings,
            "methods": {n: c.to_dict() for n, c in methods().items()},
            "versions": {m.__name__: m.__version__ for m in (library, transformers, torch)},
        }
        metadata = {"about": json.dumps(about)}  # several keys would be written in any order
        path = HERE / f"{model}.safetensors"
        save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path, metadata)
        path.chmod(0o644)
        print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
