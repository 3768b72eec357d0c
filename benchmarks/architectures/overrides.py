"""What cannot be told from names: the few configurations that need a word of their own."""

from __future__ import annotations

from typing import Any

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"head_dim": 24},
    "dots3_note_text": {"head_dim": 24},
    "esm": {"vocab_size": 128},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_hidden_layers": 16, "num_layers_per_stack": 2},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lilt": {"hidden_size": 96, "num_attention_heads": 4},
    "mamba2": {"n_groups": 1},
    "nemo_speechlm": {"text_config.n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    "qwen4_exp": _INDEXER,
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
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
