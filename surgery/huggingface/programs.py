"""What exported programs of transformers' models need to be read: the classes of what they return."""

from __future__ import annotations

import importlib


def register_outputs() -> None:
    """Make known to torch the mappings that these models return; nothing without transformers."""
    try:
        importlib.import_module("transformers.modeling_outputs")
    except ImportError:
        return
