"""Models of transformers from and to disk, in transformers' own format."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from torch import nn

from surgery.huggingface.files import KINDS
from surgery.language.diagnostics import SurgeryError, error, nearest


@dataclass(frozen=True)
class Checkpoint:
    """Where transformers finds a model: a directory or hub id, and a GGUF file in it, if any."""

    name: str
    gguf: str | None = None
    hub: bool = False

    @property
    def options(self) -> dict[str, str]:
        return {"gguf_file": self.gguf} if self.gguf else {}

    def __str__(self) -> str:
        return str(Path(self.name, self.gguf)) if self.gguf else self.name


def read_model(checkpoint: Checkpoint) -> nn.Module:
    """The model at ``checkpoint``, as the class that its configuration names."""
    transformers = _transformers(checkpoint)
    with _quiet(transformers, checkpoint), _reading(checkpoint):
        config = transformers.AutoConfig.from_pretrained(checkpoint.name, **checkpoint.options)
        options: dict[str, Any] = dict(checkpoint.options)
        if checkpoint.gguf and hasattr(transformers, "GgufConfig"):
            # Where a GGUF kernel is installed the weights would stay packed, and none could merge.
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model, report = _model_class(transformers, config, checkpoint).from_pretrained(
            checkpoint.name, config=config, output_loading_info=True, **options
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise error(
            "S507",
            f"`{checkpoint}` lacks weights that {type(model).__name__} has: {listed(missing)}",
            help="they would be random; where that is meant, build the model in a factory",
        )
    return model


def read_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer at ``checkpoint``."""
    transformers = _transformers(checkpoint)
    with _quiet(transformers, checkpoint), _reading(checkpoint):
        return transformers.AutoTokenizer.from_pretrained(checkpoint.name, **checkpoint.options)


def is_pretrained(model: nn.Module) -> bool:
    """Whether ``model`` is one that transformers can save and load by itself."""
    # None can be here without transformers having been imported.
    transformers: Any = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def has_configuration(model: nn.Module) -> bool:
    """Whether ``model`` loads its weights into what its configuration says it consists of."""
    return hasattr(type(model), "from_pretrained")


def write_model(model: nn.Module, directory: Path) -> None:
    """Save a transformers model, and check that its architecture would load just that again."""
    transformers: Any = importlib.import_module("transformers")
    with _quiet(transformers), _tying_as_it_is(model):
        written: Any = model
        written.save_pretrained(directory)
        name = transformers.AutoConfig.from_pretrained(directory).architectures[0]
        architecture: Any = getattr(transformers, name, type(model))
        _, report = architecture.from_pretrained(
            directory, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
        )
    found = {
        "does not have": sorted(report["unexpected_keys"]),
        "has, and the model lacks": sorted(report["missing_keys"]),
        "has in another shape": sorted(key for key, *_ in report["mismatched_keys"]),
    }
    wrong = [f"{name} {how}: {listed(keys)}" for how, keys in found.items() if keys]
    if wrong:
        raise error(
            "S508",
            f"the written model would not load again as it is; {'; '.join(wrong)}",
            help="save the adapter instead: it loads onto the base",
        )


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Save a tokenizer beside its model."""
    tokenizer.save_pretrained(directory)


def unknown(text: str, reason: str) -> SurgeryError:
    """No model is at ``text``; the help names the nearest thing that is there."""
    path = Path(text).expanduser()
    while not path.parent.is_dir():
        path = path.parent
    close = nearest(path.name, sorted(os.listdir(path.parent)))
    help = f"did you mean `{path.parent / close}`?" if close else f"a model is {KINDS}"
    if close == f"{text}.py":
        help = f"name the function in `{close}` that returns the model: `{text}:FACTORY`"
    return error("S501", f"no model `{text}`: {reason}", help=help)


def listed(names: list[str], most: int = 3) -> str:
    """The first few names, quoted, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"


def _transformers(checkpoint: Checkpoint) -> Any:
    for package in ("transformers", *(("gguf",) if checkpoint.gguf else ())):
        if importlib.util.find_spec(package) is None:
            raise error(
                "S502",
                f"`{checkpoint}` needs the package `{package}`, which isn't installed",
                help="pip install 'model-surgery[transformers]'",
            )
    return importlib.import_module("transformers")


def _model_class(transformers: Any, config: Any, checkpoint: Checkpoint) -> Any:
    for name in (config.architectures or ())[:1]:
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    if not checkpoint.gguf:
        return transformers.AutoModel
    both = getattr(config, "is_encoder_decoder", False)
    return transformers.AutoModelForSeq2SeqLM if both else transformers.AutoModelForCausalLM


@contextmanager
def _quiet(transformers: Any, checkpoint: Checkpoint | None = None) -> Generator[None]:
    """No warnings and bars from transformers, save those of a download."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if checkpoint is None or not checkpoint.hub:
        logging.disable_progress_bar()
    # Unpacking GGUF tensors shows a bar of its own that heeds no setting.
    still = (
        redirect_stderr(StringIO()) if checkpoint is not None and checkpoint.gguf else nullcontext()
    )
    try:
        with warnings.catch_warnings(), still:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _reading(checkpoint: Checkpoint) -> Generator[None]:
    try:
        yield
    except Exception as cause:
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        if checkpoint.hub and isinstance(cause, OSError):
            raise unknown(checkpoint.name, f"it isn't here, and from the hub: {reason}") from cause
        raise error("S507", f"`{checkpoint}` can't be loaded: {reason}") from cause


@contextmanager
def _tying_as_it_is(model: Any) -> Generator[None]:
    """Write a head that merging untied from its embedding as untied, for loaders that trust it."""
    config = model.config
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(config, "tie_word_embeddings", False)
    untied = tied and head is not None and head.weight is not embedding.weight
    if untied:
        config.tie_word_embeddings = False
    try:
        yield
    finally:
        if untied:
            config.tie_word_embeddings = tied
