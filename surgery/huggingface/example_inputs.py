"""Example inputs from what a transformers config says: text, vision, audio, and several at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn


def from_config(
    model: nn.Module, device: torch.device, batch: int, length: int
) -> Iterator[dict[str, Any]]:
    """Keyword arguments for ``model.forward``: made-up ones, then the model's own dummies.

    Made-up ones are ``batch`` examples, of at most ``length`` tokens if they are text. None without
    a configuration.
    """
    if getattr(model, "config", None) is None:
        return
    accepted = set(inspect.signature(model.forward).parameters)
    groups = (
        _text(model, accepted, batch, length),
        _vision(model, accepted, batch),
        _audio(model, accepted, batch),
    )
    made = {name: value for group in groups for name, value in group.items()}
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main in made or main not in accepted:
        yield _ready(model, made, accepted, device)
    dummies = _dummies(model)
    if dummies:
        kept = {name: value for name, value in dummies.items() if name in accepted}
        if kept:
            yield _ready(model, kept, accepted, device)
    for alone in groups:
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


def _ids(batch: int, length: int, vocabulary: int, config: Any) -> torch.Tensor:
    """Different tokens, none of them the padding, ending in the end of text (CLIP looks for it)."""
    low = 1 if vocabulary > 2 else 0
    ids = torch.arange(batch * length).reshape(batch, length) % max(1, vocabulary - low - 1) + low
    padding = _setting(config, "pad_token_id")
    if isinstance(padding, int) and vocabulary > 4:
        ids[ids == padding] = 3 if padding != 3 else 2
    end = _setting(config, "eos_token_id")
    if isinstance(end, int) and 0 <= end < vocabulary:
        ids[:, -1] = end
    return ids.clamp(max=vocabulary - 1)


def _text(model: nn.Module, accepted: set[str], batch: int, length: int) -> dict[str, Any]:
    config = cast(Any, model.config)
    if not accepted & {"input_ids", "decoder_input_ids"}:
        return {}
    positions = _setting(config, "max_position_embeddings", "n_positions", "max_target_positions")
    if isinstance(positions, int) and positions > 0:
        # RoBERTa and its kin count positions from behind the padding index.
        length = max(1, min(length, positions - 2 if positions > 4 else positions))
    vocabulary = _setting(config, "vocab_size")
    vocabulary = vocabulary if isinstance(vocabulary, int) else 16
    ids = _ids(batch, length, vocabulary, config)
    made: dict[str, Any] = {}
    if "input_ids" in accepted:
        made["input_ids"] = ids
        if "attention_mask" in accepted:
            made["attention_mask"] = torch.ones_like(ids)
    decodes = getattr(config, "is_encoder_decoder", False) or "input_ids" not in accepted
    if "decoder_input_ids" in accepted and decodes:
        made["decoder_input_ids"] = ids.clone()
    # LayoutLM: where each token is on its page.
    if "bbox" in accepted:
        made["bbox"] = torch.zeros(*ids.shape, 4, dtype=torch.long)
    return made


def _vision(model: nn.Module, accepted: set[str], batch: int) -> dict[str, Any]:
    config = cast(Any, model.config)
    name = next((n for n in ("pixel_values", "pixel_values_videos") if n in accepted), None)
    if name is None:
        return {}
    vision = getattr(config, "vision_config", None) or config
    size = _setting(vision, "image_size", "input_size", "crop_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (64, 64))[:2]
    channels = _setting(vision, "num_channels", "in_channels", "in_chans") or 3
    # TimeSformer, ViViT and VideoMAE take clips of frames.
    frames = _setting(vision, "num_frames") if "video" in type(model).__module__ else None
    shape = (batch, *((frames,) if isinstance(frames, int) else ()), channels, height, width)
    return {name: torch.ones(shape)}


def _audio(model: nn.Module, accepted: set[str], batch: int) -> dict[str, Any]:
    config = cast(Any, model.config)
    if "input_features" in accepted:
        bins = _setting(config, "num_mel_bins", "feature_size", "input_feat_per_channel") or 80
        positions = _setting(config, "max_source_positions")
        # Whisper's convolutions halve the time axis and want all of it.
        fixed = hasattr(config, "num_mel_bins") and isinstance(positions, int)
        # Speech2Text has the time first.
        if getattr(config, "input_feat_per_channel", None) is not None:
            return {"input_features": torch.ones(batch, 32, bins)}
        length = 2 * cast(int, positions) if fixed else 32
        return {"input_features": torch.ones(batch, bins, length)}
    if "input_values" in accepted:
        bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
        # The audio spectrogram transformer takes spectrograms, wav2vec 2.0 and its kin waves.
        if isinstance(bins, int) and isinstance(frames, int) and hasattr(config, "patch_size"):
            return {"input_values": torch.ones(batch, frames, bins)}
        return {"input_values": torch.linspace(-1, 1, batch * 4000).reshape(batch, 4000)}
    return {}
