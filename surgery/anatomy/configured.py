"""Example inputs from what a transformers config says: text, vision, audio, and several at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from surgery.anatomy.inputs import BATCH, LENGTH


def from_config(model: nn.Module, device: torch.device) -> Iterator[dict[str, Any]]:
    """Keyword arguments for ``model.forward``: the model's own dummies, then made-up ones."""
    accepted = set(inspect.signature(model.forward).parameters)
    made = {**_text(model, accepted), **_vision(model, accepted), **_audio(model, accepted)}
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main in made or main not in accepted:
        yield _ready(model, made, accepted, device)
    dummies = _dummies(model)
    if dummies:
        kept = {name: value for name, value in dummies.items() if name in accepted}
        if kept:
            yield _ready(model, kept, accepted, device)
    for group in (_text, _vision, _audio):
        alone = group(model, accepted)
        if alone and alone.keys() != made.keys():
            yield _ready(model, alone, accepted, device)


def _ready(
    model: nn.Module, made: dict[str, Any], accepted: set[str], device: torch.device
) -> dict[str, Any]:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(floats, torch.float32)
    result: dict[str, Any] = {}
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            value = value.to(device, dtype if value.is_floating_point() else None)
        result[name] = value
    if "use_cache" in accepted:
        result["use_cache"] = False
    return result


def _dummies(model: nn.Module) -> dict[str, Any]:
    try:
        found = getattr(model, "dummy_inputs", None)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return {}
    return dict(cast("dict[str, Any]", found)) if isinstance(found, dict) else {}


def _setting(config: Any, *names: str) -> Any:
    """The first of ``names`` that the config, or one of its parts, has."""
    parts = [config]
    for part in ("text_config", "vision_config", "audio_config", "encoder", "backbone_config"):
        if getattr(config, part, None) is not None:
            parts.append(getattr(config, part))
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return None


def _ids(length: int, vocabulary: int, config: Any) -> torch.Tensor:
    """Different tokens, none of them the padding, ending in the end of text (CLIP looks for it)."""
    low = 1 if vocabulary > 2 else 0
    ids = torch.arange(BATCH * length).reshape(BATCH, length) % max(1, vocabulary - low - 1) + low
    padding = _setting(config, "pad_token_id")
    if isinstance(padding, int) and vocabulary > 4:
        ids[ids == padding] = 3 if padding != 3 else 2
    end = _setting(config, "eos_token_id")
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids[:, -1] = end
    return ids.clamp(max=vocabulary - 1)


def _text(model: nn.Module, accepted: set[str]) -> dict[str, Any]:
    config = cast(Any, model.config)
    if not accepted & {"input_ids", "decoder_input_ids"}:
        return {}
    positions = _setting(config, "max_position_embeddings", "n_positions", "max_target_positions")
    length = LENGTH
    if isinstance(positions, int) and positions > 0:
        # Some count positions from behind the padding index.
        length = max(1, min(LENGTH, positions - 2 if positions > 4 else positions))
    vocabulary = _setting(config, "vocab_size")
    vocabulary = vocabulary if isinstance(vocabulary, int) else 16
    ids = _ids(length, vocabulary, config)
    made: dict[str, Any] = {}
    if "input_ids" in accepted:
        made["input_ids"] = ids
        if "attention_mask" in accepted:
            made["attention_mask"] = torch.ones_like(ids)
    decodes = getattr(config, "is_encoder_decoder", False) or "input_ids" not in accepted
    if "decoder_input_ids" in accepted and decodes:
        made["decoder_input_ids"] = ids.clone()
    if "bbox" in accepted:
        made["bbox"] = torch.zeros(*ids.shape, 4, dtype=torch.long)
    return made


def _vision(model: nn.Module, accepted: set[str]) -> dict[str, Any]:
    config = cast(Any, model.config)
    name = next((n for n in ("pixel_values", "pixel_values_videos") if n in accepted), None)
    if name is None:
        return {}
    vision = getattr(config, "vision_config", None) or config
    size = _setting(vision, "image_size", "input_size", "crop_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (64, 64))[:2]
    channels = _setting(vision, "num_channels", "in_channels", "in_chans") or 3
    frames = _setting(vision, "num_frames") if "video" in type(model).__module__ else None
    shape = (BATCH, *((frames,) if isinstance(frames, int) else ()), channels, height, width)
    return {name: torch.ones(shape)}


def _audio(model: nn.Module, accepted: set[str]) -> dict[str, Any]:
    config = cast(Any, model.config)
    if "input_features" in accepted:
        bins = _setting(config, "num_mel_bins", "feature_size", "input_feat_per_channel") or 80
        positions = _setting(config, "max_source_positions")
        # Whisper's convolutions halve the time axis and want all of it.
        fixed = hasattr(config, "num_mel_bins") and isinstance(positions, int)
        if getattr(config, "input_feat_per_channel", None) is not None:
            return {"input_features": torch.ones(BATCH, 32, bins)}
        length = 2 * cast(int, positions) if fixed else 32
        return {"input_features": torch.ones(BATCH, bins, length)}
    if "input_values" in accepted:
        bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
        if isinstance(bins, int) and isinstance(frames, int) and hasattr(config, "patch_size"):
            return {"input_values": torch.ones(BATCH, frames, bins)}
        return {"input_values": torch.linspace(-1, 1, BATCH * 4000).reshape(BATCH, 4000)}
    return {}
