"""One thread, fixed seeds, no network: what every test can count on."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# The console script `pytest` doesn't put the checkout on the path, and tests use `examples`.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "default", max_examples=25, deadline=None, derandomize=True, suppress_health_check=_slow_is_fine
)
settings.register_profile(
    "thorough", max_examples=500, deadline=None, suppress_health_check=_slow_is_fine
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def compiled_once() -> Iterator[None]:
    """Floats of a model are constants to the compiler, which else tries them as inputs first.

    What it compiles in the end is the same, in half the time.
    """
    from torch._dynamo import config

    with config.patch(specialize_float=True):
        yield
