"""The Python API; `import surgery` gives these names."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from surgery.anatomy.site import Site
from surgery.graft.apply import (
    apply_spec,
    disabled_specs,
    make_plan,
    remove_specs,
    trainable_parameters,
)
from surgery.language import syntax
from surgery.plan.plan import Plan, SavedPlan
from surgery.plan.spec import Spec, read_spec

SpecLike = str | os.PathLike[str] | syntax.File | Spec


def apply(
    model: nn.Module,
    spec: SpecLike | SavedPlan,
    *,
    example_inputs: Any = None,
    seed: int | None = None,
) -> nn.Module:
    apply_spec(model, spec if isinstance(spec, SavedPlan) else read_spec(spec), example_inputs, seed)
    return model
