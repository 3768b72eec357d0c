"""What cannot be told from names: the few configurations that need a word of their own."""

from __future__ import annotations

from typing import Any

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"text_config.head_dim": 24},
    "dots3_note_text": {"head_dim": 24},
    "esm": {"vocab_size": 128},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2},
    "mamba2": {"n_groups": 1},
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
}
"""By the type of the configuration; a dotted name is a field of a part."""


def composed(name: str) -> Any:
    """The configuration of a model that is put together from two others, or None."""
    if name != "encoder-decoder":
        return None
    from transformers import BertConfig, EncoderDecoderConfig

    from benchmarks.architectures.shrink import shrunk

    part = shrunk(BertConfig().to_dict())
    encoder, decoder = BertConfig.from_dict(part), BertConfig.from_dict(part)
    made = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    made.decoder_start_token_id, made.pad_token_id = 1, 0
    return made
