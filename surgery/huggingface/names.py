"""What transformers' models, and many beside them, call the arguments of their forwards."""

from __future__ import annotations

from typing import Final

ARGUMENTS: Final = {
    "embeds": ("inputs_embeds", "input_embeds", "decoder_inputs_embeds"),
    "mask": ("attention_mask", "mask", "decoder_attention_mask", "input_mask"),
    "positions": ("position_ids", "positions", "decoder_position_ids", "input_pos", "pos"),
    "types": ("token_type_ids", "token_types", "segment_ids"),
    "cache": (
        "past_key_values",
        "past_key_value",
        "kv_cache",
        "cache",
        "past",
        # Mamba and its kin: states of a recurrence.
        "cache_params",
        # Reformer: keys by their hashes.
        "past_buckets_states",
        # RWKV.
        "state",
        # Transformer-XL and XLNet: hidden states of earlier segments.
        "mems",
    ),
}
"""The arguments beside the ids by what they are for, the commonest name first."""

CACHE = "past_key_values"
POSITIONS = "position_ids"
"""What readers hand on that take them among their `**kwargs`, as decoders with a head do."""

MEMORY_MASKS = ("encoder_attention_mask", "encoder_padding_mask", "memory_key_padding_mask")
"""The mask of an encoder's tokens, as its decoder is given it."""

CAUSAL = "decoder_causal_mask"
"""FSMT: which tokens each sees, [length, length]; its caller makes it, but not while decoding."""

FORBIDDEN = "perm_mask"
"""XLNet: which tokens each place must not see, [batch, length, length]."""

TARGETS = "target_mapping"
"""XLNet: which tokens are predicted, [batch, predicted, length]."""

LENGTHS = "lengths"
"""XLM and FlauBERT: how many tokens each sequence has, [batch]."""


def of_another_sequence(name: str) -> bool:
    """Whether an argument called ``name`` tells of an encoder's tokens, or of images."""
    return name.startswith(("encoder_", "cross_", "memory"))


def marks_padding(name: str) -> bool:
    """Whether a mask called ``name`` has ones, or True, where there is no token.

    FSMT's `decoder_padding_mask` and PyTorch's `key_padding_mask` do.
    """
    return "padding" in name
