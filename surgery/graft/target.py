"""Which module a call means: the model that was adapted, also where a wrapper is given for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from surgery.graft.state import surgery_of
from surgery.language.diagnostics import SurgeryError, error

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_COMPILED = "_orig_mod"
_WRAPPERS = (DataParallel, DistributedDataParallel)


def model_of(given: object) -> nn.Module:
    """The model that ``given`` is, or that PyTorch wrapped in it: compiled, or run in parallel.

    Of an exported program it is a traced graph that does what the program does.

    Raises:
        SurgeryError: S546 if it is no module.

    """
    if is_program(given):
        from surgery.graft.programs.verbs import as_base

        return as_base(given)
    return list(_layers(given))[-1]


def is_program(given: object) -> TypeGuard[ExportedProgram]:
    """Whether ``given`` is what `torch.export` gives."""
    export = sys.modules.get("torch.export")
    return export is not None and isinstance(given, export.ExportedProgram)


def returned(given: Any, model: nn.Module) -> Any:
    """What a verb that changed ``model``, the model of ``given``, returns.

    It is ``given``, which has changed; programs are values, so for one it is another.
    """
    if not is_program(given):
        return given
    from surgery.graft.programs.verbs import as_program

    return as_program(model)


def _layers(given: object) -> Iterator[nn.Module]:
    """``given``, and what it wraps, from the outside in; the last is the model."""
    if not isinstance(given, nn.Module):
        raise _no_module(given)
    inside: nn.Module | None = given
    while inside is not None:
        yield inside
        name = "module" if isinstance(inside, _WRAPPERS) else _COMPILED
        inside = inside._modules.get(name)


def adapted_of(given: object) -> nn.Module:
    """The model that ``given`` is, or wraps, also in modules of others that hold nothing else.

    Raises:
        SurgeryError: S546 if it is no module.

    """
    if is_program(given):
        from surgery.graft.programs.verbs import as_module

        return as_module(given)
    model = model_of(given)
    while surgery_of(model) is None and len(model._modules) == 1 and not model._parameters:
        (inside,) = model._modules.values()
        if inside is None or all(surgery_of(module) is None for module in inside.modules()):
            break
        model = inside
    return model


def unwrapped(given: object) -> nn.Module:
    """The model to adapt.

    Raises:
        SurgeryError: S546 if it is no module, S547 if it is wrapped in what would not know of new
            parameters.

    """
    if is_program(given):
        return model_of(given)
    model = model_of(given)
    if any(isinstance(module, DistributedDataParallel) for module in _layers(given)):
        raise error(
            "S547",
            "DistributedDataParallel has taken note of the parameters there were, and would not "
            "synchronise new ones",
            help="apply the spec first, and wrap the model after",
        )
    return model


def _no_module(given: Any) -> SurgeryError:
    kind = cast("type[Any]", type(given))
    help = "a model is a torch.nn.Module"
    if isinstance(given, str):
        help = f"`surgery.load_model({given!r})` reads one"
    return error("S546", f"a model was expected, and this is a {kind.__name__}", help=help)
