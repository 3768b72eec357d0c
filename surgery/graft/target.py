"""Which module a call means: the model that was adapted, also where a wrapper is given for it."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from surgery.graft.container import Graft
from surgery.graft.state import surgery_of
from surgery.language.diagnostics import SurgeryError, error

_COMPILED = "_orig_mod"
_WRAPPERS = (DataParallel, DistributedDataParallel)


def model_of(given: object) -> nn.Module:
    """The model that ``given`` is, or that PyTorch wrapped in it: compiled, or run in parallel.

    Raises:
        SurgeryError: S546 if it is no module.

    """
    if not isinstance(given, nn.Module):
        raise _no_module(given)
    if isinstance(given, _WRAPPERS):
        return model_of(given.get_submodule("module"))
    compiled = given._modules.get(_COMPILED)
    return given if compiled is None else model_of(compiled)


def adapted_of(given: object) -> nn.Module:
    """The model that ``given`` is, or wraps, also in a module that holds nothing else.

    Raises:
        SurgeryError: S546 if it is no module; S547 if it is not the model that a spec was applied
            to, but has it inside, or is inside it.

    """
    model = model_of(given)
    while surgery_of(model) is None and len(model._modules) == 1 and not model._parameters:
        (inside,) = model._modules.values()
        if inside is None or not any(surgery_of(m) for m in inside.modules()):
            break
        model = inside
    if surgery_of(model) is not None:
        return model
    named = cast("list[tuple[str, nn.Module]]", list(model.named_modules()))  # pyright: ignore[reportUnknownArgumentType]
    adapted = [path for path, module in named if surgery_of(module) is not None]
    if adapted:
        more = f" and {len(adapted) - 1} more of its modules" if adapted[1:] else ""
        raise error(
            "S547",
            f"not this {type(model).__name__} was adapted, but its `{adapted[0]}`{more}",
            help=f"pass that: `model.get_submodule({adapted[0]!r})`",
        )
    if any(isinstance(module, Graft) for _, module in named):
        raise error(
            "S547",
            f"this {type(model).__name__} is a part of the model that was adapted",
            help="pass the model that the spec was applied to",
        )
    return model


def unwrapped(given: object) -> nn.Module:
    """The model to adapt.

    Raises:
        SurgeryError: S546 if it is no module, S548 if it is wrapped in what would not know of new
            parameters.

    """
    model = model_of(given)
    if isinstance(given, DistributedDataParallel):
        raise error(
            "S548",
            "DistributedDataParallel has taken note of the parameters there were, and would not "
            "synchronise new ones",
            help="apply the spec first, and wrap the model after",
        )
    return model


def _no_module(given: Any) -> SurgeryError:
    kind: type[Any] = type(given)
    help = "a model is a torch.nn.Module"
    if isinstance(given, str):
        help = f"`surgery.load_model({given!r})` reads one"
    elif kind.__name__ == "ExportedProgram":
        help = "apply the spec to the model, and export that"
    return error("S546", f"a model was expected, and this is a {kind.__name__}", help=help)
