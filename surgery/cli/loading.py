"""What commands read beside a model: inputs for it, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.language.diagnostics import SurgeryError, error


def inputs_of(text: str | None) -> Any:
    """The example inputs that an option names; None without it."""
    from surgery.models import load_inputs

    return None if text is None else load_inputs(text)


def tokenizing(model: str) -> Any:
    """Splits texts as the tokenizer beside ``model`` does, which is read when there is one to split.

    Raises:
        SurgeryError: when called, S418 if there is no tokenizer.

    """

    def split(text: str, **options: Any) -> Any:
        tokenizer = tokenizer_of(model)
        if tokenizer is None:
            raise error(
                "S418", f"a prompt starts as a text, and there is no tokenizer beside `{model}`"
            )
        return tokenizer(text, **options)

    return split


def tokenizer_of(model: str) -> Any:
    """The tokenizer beside a pretrained model; None if there is none, or the model was made."""
    from surgery.models import load_tokenizer

    if (":" in model or model.endswith(".pt2")) and not Path(model).is_dir():
        return None
    try:
        return load_tokenizer(model)
    except SurgeryError:
        return None
