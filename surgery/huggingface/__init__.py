"""All that is known here of transformers and of its models, one idea a file.

Nothing outside of this package names a module of transformers, an argument of its models' forwards,
or what they return. transformers itself is imported only to read or write one of its checkpoints; all
else is told by what a model that came by has: its configuration, its arguments, its caches.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "TrainingCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _training_callback()


@cache
def _training_callback() -> type:
    """What adapted models need while they are trained, as a callback of transformers' Trainer."""
    from transformers import TrainerCallback

    # It stands above this package: it calls what trains an adapted model.
    steps = import_module("surgery.trainer").TrainingSteps
    of = {"__module__": __name__, "__doc__": steps.__doc__}
    return type("TrainingCallback", (steps, TrainerCallback), of)
