"""What a model of transformers looks like on disk; known without importing torch."""

from __future__ import annotations

from pathlib import Path

KINDS = "a transformers directory, a GGUF or .pt2 file, a hub id or `package.module:factory`"
FILES = ("config.json", "model*.safetensors", "pytorch_model*.bin", "*.gguf", "*.pt2")
"""What models consist of on disk."""


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` is a model as transformers writes it."""
    return (folder / "config.json").is_file()
