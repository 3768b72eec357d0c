"""The architectures: transformers' own lists of models for three tasks."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


@dataclass(frozen=True)
class Architecture:
    """One entry of one list: the type of the configuration, and the class of the model."""

    task: str
    name: str
    model: str

    @property
    def key(self) -> str:
        return f"{self.task}/{self.name}"


def architectures() -> list[Architecture]:
    """All entries of the three lists, in their order."""
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    return [
        Architecture(task, name, model if isinstance(model, str) else model[0])
        for task, listed in TASKS.items()
        for name, model in getattr(lists, listed).items()
    ]


def config_class(name: str) -> Any:
    """The class of the configuration of an entry."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[name]


def model_class(architecture: Architecture) -> Any:
    """The class of the model of an entry."""
    import transformers

    return getattr(transformers, architecture.model)
