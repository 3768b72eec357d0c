"""A declarative language for changing PyTorch models, and its compiler.

>>> import torch, surgery
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
>>> x = torch.ones(1, 4)
>>> before = model(x)
>>> model = surgery.apply(model, "on Linear apply lora(r = 2); train bias")
>>> torch.equal(model(x), before)
True
>>> model = surgery.remove(model)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.api import (
        apply as apply,
    )
    from surgery.api import (
        disabled as disabled,
    )
    from surgery.api import (
        ensemble as ensemble,
    )
    from surgery.api import (
        fold as fold,
    )
    from surgery.api import (
        load as load,
    )
    from surgery.api import (
        merge as merge,
    )
    from surgery.api import (
        merged as merged,
    )
    from surgery.api import (
        plan as plan,
    )
    from surgery.api import (
        remove as remove,
    )
    from surgery.api import (
        reread as reread,
    )
    from surgery.api import (
        save as save,
    )
    from surgery.api import (
        select as select,
    )
    from surgery.api import (
        trainable as trainable,
    )
    from surgery.difference import diff as diff
    from surgery.inspection import explain as explain
    from surgery.inspection import inspect as inspect
    from surgery.language.diagnostics import SurgeryError as SurgeryError
    from surgery.language.diagnostics import SurgeryWarning as SurgeryWarning
    from surgery.models import load_model as load_model
    from surgery.planning.spec import read_spec as read_spec
    from surgery.training import param_groups as param_groups
    from surgery.training import penalty as penalty
    from surgery.training import step as step
    from surgery.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "SurgeryError": "surgery.language.diagnostics",
    "SurgeryWarning": "surgery.language.diagnostics",
    "read_spec": "surgery.planning.spec",
    "diff": "surgery.difference",
    "explain": "surgery.inspection",
    "inspect": "surgery.inspection",
    "load_model": "surgery.models",
    "param_groups": "surgery.training",
    "penalty": "surgery.training",
    "step": "surgery.training",
    "verify": "surgery.verification",
} | dict.fromkeys(
    [
        "apply",
        "disabled",
        "ensemble",
        "fold",
        "load",
        "merge",
        "merged",
        "plan",
        "remove",
        "reread",
        "save",
        "select",
        "trainable",
    ],
    "surgery.api",
)
__all__ = [
    "SurgeryError",
    "SurgeryWarning",
    "apply",
    "diff",
    "disabled",
    "ensemble",
    "explain",
    "fold",
    "inspect",
    "load",
    "load_model",
    "merge",
    "merged",
    "param_groups",
    "penalty",
    "plan",
    "read_spec",
    "remove",
    "reread",
    "save",
    "select",
    "step",
    "trainable",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
