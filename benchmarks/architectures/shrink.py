"""Tiny configurations: the sizes in a configuration are known by what their names mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

HIDDEN = 64
INNER = 96
HEADS = 4
HEAD = HIDDEN // HEADS
LAYERS = 2
MOST_LAYERS = 4
VOCABULARY = 128
WINDOW = 8
IMAGE = 32

Fields = dict[str, Any]

_HIDDEN = re.compile(
    r"^(hidden_size|hidden_sizes|d_model|n_embd|dim|emb_dim|embed_dim|d_embed|embedding_dim"
    r"|embedding_size|input_embedding_size|output_embedding_size|word_embed_proj_dim|lru_width"
    r"|attention_hidden_size|entity_emb_size|pooler_hidden_size|prediction_head_size|.*_embed_dim"
    r"|true_hidden_size|intra_bottleneck_size|hidden_size_global|.*_hidden_size|ple_embed_dim|out_hidden_size"
    r"|adapter_out_dim|adapter_in_dim|adapter_input_size|output_dim|d_latents"
    r"|d_inner_hidden|input_size|projector_(in|out)put_dim|vision_output_dim)$"
)
_INNER = re.compile(
    r"^(d_inner|d_ff|dff|n_inner|hidden_dim|dim_ff|feed_forward_size|.*ffn_dim|.*ffn_hidden_size"
    r"|.*intermediate_size(_mlp)?|.*feedforward_dim|mlp_dim|prompt_mid_dim|inner_dim)$"
)
_LAYERS = re.compile(
    r"^(num_layers|n_layers?|n_layer|depth|num_blocks|(.*_)?(encoder|decoder|hidden)_layers"
    r"|num_layers_per_stack|num_hidden_groups|num_self_attends_per_block|.*_num_layers)$"
)
_HEADS = re.compile(
    r"^((.*_)?num_(self_|cross_)?attention_heads|num_heads|n_heads?|(.*_)?attention_heads"
    r"|index_n_heads|num_query_groups|linear_num_(value_|key_)?heads|heads_per_ngram"
    r"|num_query_heads)$"
)
_KEYS = re.compile(r"^(.*num_key_value_heads|num_kv_heads|kv_n_heads|.*num_kv_heads)$")
_HEAD = re.compile(
    r"^((.*_)?head_dim|d_kv|d_head|dim_head|kv_channels|attention_head_size"
    r"|linear_(key_|value_)?head_dim|index_head_dim|attention_head_dim)$"
)
_EXPERTS = re.compile(
    r"^(n_routed_experts|(.*_)?num_(local_|routed_)?experts|moe_num_experts|zero_expert_num)$"
)
_CHOSEN = re.compile(
    r"^((moe_)?(num_experts_per_(tok|token)|top_?k|moe_topk|moe_k)|num_selected_.*)$"
)
_GROUPS = re.compile(r"^(n_group|topk_group|num_expert_groups?|topk_groups?)$")
_RANK = re.compile(r"^((.*_)?rank|hc_lowrank|router_hidden_size)$")
_WINDOWS = re.compile(
    r"^((.*_)?(sliding_window|window|window_size|window_len|sliding_window_size|local_attention"
    r"|sliding_windows)|local_radius|attn_chunk_length|attention_chunk_size|.*_attn_chunk_length)$"
)
_PERIOD = re.compile(r"^(.*_(period|interval|frequency|every_n_layers)|.*sliding_window_pattern)$")
_STEP = re.compile(r"^((en|de)coder_sparse_step|layer_group_size|moe_layer_(freq|step))$")
_POSITIONS = re.compile(r"^(.*max_position_embeddings|n_positions|max_seq_len|context_length)$")
_TOKEN = re.compile(r"^(.*_token_(id|index)|.*_pad_id|boi_index|unk_index|mask_index|blank_id)$")
_DROPOUT = re.compile(r".*(dropout|layerdrop|drop_prob|_pdrop|drop_rate|drop_path).*|dropout")
_TABLES = re.compile(r"^(.*vocab_size.*|vocab_sizes|vocabulary_size|codebook_size|.*_vocab)$")
_IMAGES = re.compile(r"^(image_size|crop_size)$")
_PATCHES = re.compile(r"^patch_size$")


def shrunk(fields: Mapping[str, Any]) -> Fields:
    """``fields`` of a configuration with every size made small; nested ones are, too."""
    fields = dict(fields)
    indices = _chosen_layers(fields)
    count = len(indices)
    result: Fields = {}
    for name, value in fields.items():
        result[name] = _shrunk(name, value, fields, indices, count)
    if "n_group" in result and result.get("n_group"):
        result["n_group"] = result["topk_group"] = 1
    for name, id in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
        if name in result:
            result[name] = id
    return result


def _shrunk(name: str, value: Any, fields: Fields, indices: list[int], count: int) -> Any:
    if isinstance(value, dict):
        return _shrunk_part(name, cast("dict[Any, Any]", value), indices)
    if isinstance(value, list | tuple):
        return _shrunk_list(name, list(cast("list[Any]", value)), fields, indices)
    if _DROPOUT.match(name) and isinstance(value, int | float) and not isinstance(value, bool):
        return type(value)(0)
    if value is None:
        return _MISSING.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if _LAYERS.match(name):
        return min(value, count)
    for pattern, rule in _RULES:
        if pattern.match(name):
            return rule(value, fields)
    return value


def _shrunk_part(name: str, part: dict[Any, Any], indices: list[int]) -> dict[Any, Any]:
    """A configuration within another; settings by layer number follow the layers that are kept."""
    if part and name != "id2label" and all(str(key).isdigit() for key in part):
        by_layer = {int(key): value for key, value in part.items()}
        kept = {str(new): by_layer[old] for new, old in enumerate(indices) if old in by_layer}
        return {key: shrunk(v) if isinstance(v, dict) else v for key, v in kept.items()}
    nested = name.endswith(("_config", "_cfg", "encoder", "decoder"))
    return shrunk(part) if nested else part


def _head(value: int, fields: Fields) -> int:
    """The features of one head: what is rotated in latent attention; what fits a state space."""
    if value == fields.get("qk_rope_head_dim"):
        return HEAD // 2
    if "expand" in fields and "state_size" in fields:
        return fields["expand"] * HIDDEN // HEADS
    return min(value, HEAD)


def _keys(value: int, fields: Fields) -> int:
    heads = next(
        (fields[n] for n in fields if _HEADS.match(n) and isinstance(fields[n], int)), value
    )
    return 1 if value == 1 else HEADS if value >= heads else HEADS // 2


_MISSING = {
    "head_dim": HEAD,
    "num_key_value_heads": HEADS // 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
"""What a class leaves open and a model needs."""

_RULES: tuple[tuple[re.Pattern[str], Callable[[int, Fields], int]], ...] = (
    (_TOKEN, lambda value, _: value if value < 3 else 3 + value % (VOCABULARY - 8)),
    (_KEYS, _keys),
    (_HEADS, lambda value, _: min(value, HEADS)),
    (re.compile(r"^qk_rope_head_dim$"), lambda value, _: min(value, HEAD // 2)),
    (re.compile(r"^qk_head_dim$"), lambda _value, _: HEAD + HEAD // 2),
    (re.compile(r"^(n_mamba_heads|mamba_(n|num)_heads)$"), lambda value, _: min(value, HEADS)),
    (re.compile(r"^mamba_(d_head|head_?dim)$"), lambda _value, _: 2 * HIDDEN // HEADS),
    (re.compile(r"^mamba_d_ssm$"), lambda _value, _: 2 * HIDDEN),
    (re.compile(r"^.*_d_state$|^(ssm_)?state_size$"), lambda value, _: min(value, HEAD)),
    (re.compile(r"^rotary_dim$"), lambda value, _: min(value, HEAD // 2)),
    (_HEAD, _head),
    (_RANK, lambda value, _: min(value, 16)),
    (_EXPERTS, lambda value, _: min(value, 4)),
    (_CHOSEN, lambda value, _: min(value, 2)),
    (_GROUPS, lambda _value, _: 1),
    (_INNER, lambda value, _: min(value, INNER)),
    (_HIDDEN, lambda value, _: min(value, HIDDEN)),
    (_WINDOWS, lambda value, _: min(value, WINDOW)),
    (_PERIOD, lambda value, _: min(value, 2)),
    (_STEP, lambda value, _: min(value, 2)),
    (re.compile(r"^.*_layer_offset$"), lambda value, _: min(value, 1)),
    (re.compile(r"^first_k_dense_replace$"), lambda value, _: min(value, 1)),
    (re.compile(r"^num_kv_shared_layers$"), lambda _value, _: 0),
    (_POSITIONS, lambda value, _: min(value, 256)),
    (_TABLES, lambda value, _: min(value, VOCABULARY)),
    (_IMAGES, lambda value, _: min(value, IMAGE)),
    (_PATCHES, lambda value, _: min(value, IMAGE // 4)),
)


def _chosen_layers(fields: Fields) -> list[int]:
    """Layers to keep: the first of each kind, of those that lists with an entry a layer tell."""
    lists = _layer_lists(fields) | _layer_parts(fields)
    periodic = any(_PERIOD.match(name) and isinstance(v, int) for name, v in fields.items())
    least = MOST_LAYERS if periodic and not lists else LAYERS
    if not lists:
        return list(range(least))
    length = min(len(values) for values in lists.values())
    chosen: list[int] = []
    seen: set[str] = set()
    for index in range(length):
        kind = repr([values[index] for values in lists.values()])
        if kind not in seen and len(chosen) < MOST_LAYERS:
            seen.add(kind)
            chosen.append(index)
    chosen += [i for i in range(length) if i not in chosen][: max(0, least - len(chosen))]
    return sorted(chosen)


def _layer_parts(fields: Fields) -> dict[str, list[Any]]:
    """Settings by layer number, as lists."""
    count = next((v for n, v in fields.items() if _LAYERS.match(n) and isinstance(v, int)), 0)
    return {
        name: [{int(k): v for k, v in part.items()}.get(i) for i in range(count)]
        for name, value in fields.items()
        if isinstance(value, dict)
        and (part := cast("dict[Any, Any]", value))
        and all(str(key).isdigit() for key in part)
        and not name.endswith("label")
    }


def _layer_lists(fields: Fields) -> dict[str, list[Any]]:
    counts = {v for n, v in fields.items() if _LAYERS.match(n) and isinstance(v, int)}
    return {
        name: list(cast("list[Any]", value))
        for name, value in fields.items()
        if isinstance(value, list | tuple)
        and len(cast("list[Any]", value)) in counts
        and len(cast("list[Any]", value)) > 1
        and not name.endswith(("_token_id", "_token_ids"))
    }


def _shrunk_list(name: str, values: list[Any], fields: Fields, indices: list[int]) -> Any:
    if name in ("eos_token_id", "pad_token_id"):
        return 2
    if name in _layer_lists(fields):
        values = [values[index] for index in indices]
    elif name.endswith(("_layers", "_layer_ids", "_idxs", "_indices", "_indexes")):
        values = [v for v in values if not isinstance(v, int) or v < len(indices)]
    return [_shrunk(name, value, fields, indices, len(indices)) for value in values]
