"""All that is known here of transformers and of its models, one idea a file.

Nothing outside of this package names a module of transformers, an argument of its models' forwards,
or what they return. transformers itself is imported only to read or write one of its checkpoints; all
else is told by what a model that came by has: its configuration, its arguments, its caches.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "TrainingCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # It stands above this package: it calls what trains an adapted model.
    return import_module("surgery.trainer").TrainingCallback
