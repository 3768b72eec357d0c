"""The Python API; `import surgery` gives these names.

A spec is a text, a path ending in `.peft`, the name of a recipe, or a parsed spec. A model may also
be given in what `torch.compile`, `DataParallel` or `DistributedDataParallel` made of it, but for new
parameters, which the last one would not synchronise: apply first, and wrap after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import Tensor, nn

from surgery.anatomy.kept import forget
from surgery.anatomy.read import read
from surgery.anatomy.select import select as select_sites
from surgery.anatomy.site import Site
from surgery.graft import apply as grafting
from surgery.graft.base import Match
from surgery.graft.folding import FoldReport, fold_specs
from surgery.graft.hosts import detached
from surgery.graft.load import load_adapter
from surgery.graft.merge import MergeReport, merge_specs, merged_specs
from surgery.graft.save import save_adapter
from surgery.graft.target import adapted_of, is_program, model_of, returned, unwrapped
from surgery.graft.tokens.ensemble import vote
from surgery.graft.watching import watch
from surgery.language import syntax
from surgery.language.diagnostics import render
from surgery.planning.plan import Plan, SavedPlan
from surgery.planning.spec import Spec, read_spec
from surgery.warning import warn

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Model = TypeVar("Model", bound="nn.Module | ExportedProgram")
SpecLike = str | os.PathLike[str] | syntax.File | Spec


def apply(
    model: Model,
    spec: SpecLike | Plan | SavedPlan,
    *,
    example_inputs: Any = None,
    seed: int | None = None,
    tokenizer: Any = None,
) -> Model:
    """Apply ``spec`` to ``model``, in place.

    The whole spec takes effect, or nothing does. Base parameters keep their names. New parameters
    are in children named after the method, such as `q_proj.lora.A`, and have the dtype and device of
    the layer that they belong to.

    Args:
        model: any module; it may be adapted already.
        spec: a spec, the name of a recipe (`unipelt`), or a plan, which must still fit the model.
        example_inputs: a tensor, a tuple, or a dict of keyword arguments for one forward, where
            inputs cannot be generated from the model.
        seed: random seed of the initial values; if None, torch's default generator decides.
        tokenizer: the tokenizer of the model, where a prompt starts from text.

    Returns:
        The same model.

    Raises:
        SurgeryError: with everything that is wrong with the spec, or with it on this model.

    Warns:
        SurgeryWarning: about an oddity, such as an `except` that removes nothing, before anything
            changes. If warnings are errors, the model is unchanged.

    >>> import torch, surgery
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> model = surgery.apply(model, "on Linear apply lora(r = 2)", seed=0)
    >>> sorted(surgery.trainable(model))
    ['0.lora.A', '0.lora.B', '2.lora.A', '2.lora.B']

    """
    target = unwrapped(model)
    if isinstance(spec, Plan):
        spec = SavedPlan(spec.spec, spec.fingerprint, spec.base)
    ready = spec if isinstance(spec, SavedPlan) else read_spec(spec)
    watch()
    grafting.apply_spec(target, ready, example_inputs, seed, tokenizer, tell=_told)
    return model if model is target else returned(model, target)


def _told(plan: Plan) -> None:
    warn(*map(render, plan.warnings))


def plan(model: nn.Module | ExportedProgram, spec: SpecLike, *, example_inputs: Any = None) -> Plan:
    """Return the plan of ``spec`` for ``model``, which is unchanged.

    Raises:
        SurgeryError: as :func:`apply` would.

    >>> import torch, surgery
    >>> plan = surgery.plan(torch.nn.Linear(8, 4), "on Linear apply ia3")
    >>> [(t.name, t.shape) for t in plan.tensors]
    [('ia3.l', (4,))]

    """
    return grafting.make_plan(model_of(model), read_spec(spec), example_inputs)


def select(
    model: nn.Module | ExportedProgram, selector: str, *, example_inputs: Any = None
) -> list[Site]:
    """Return the sites of ``model`` that ``selector`` matches, in model order.

    Where roles are asked for, one forward of the model is read, and the reading is kept until the
    model changes: see :func:`reread`.

    Raises:
        SurgeryError: S1xx if it cannot be read, S3xx if a part of it matches nothing.

    >>> import torch, surgery
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    >>> [site.path for site in surgery.select(model, "Linear")]
    ['0']

    """
    model = model_of(model)
    with detached(model):
        found = select_sites(model, selector, lambda: read(model, example_inputs))
    warn(*map(render, found.warnings))
    return list(found.sites)


def reread(model: nn.Module) -> None:
    """Have ``model`` read anew when it is used next.

    What a forward shows of a model is kept beside it, and used by all functions here until the
    model changes in anything that the forward depends on: modules and their attributes (objects
    and configs among these), hooks, parameters and buffers, classes, functions, and the globals
    that these name. What cannot be seen is what code of torch, of the standard library or of an
    extension reads by itself, what is looked up by a name that is computed, and files or other
    processes. After such a change, call this.

    Raises:
        SurgeryError: S546 if it is no module.

    >>> import torch, surgery
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
    >>> surgery.reread(model)

    """
    forget(model_of(model))


def trainable(model: nn.Module | ExportedProgram) -> dict[str, nn.Parameter]:
    """Return all trainable parameters by name: added ones and base parameters."""
    if is_program(model):
        # It gives tied ones under each name; the first counts, as in modules.
        first = {id(p): n for n, p in reversed([*model.named_parameters()])}
        return {n: p for n, p in model.named_parameters() if p.requires_grad and first[id(p)] == n}
    return grafting.trainable_parameters(adapted_of(model))


@overload
def merge(model: nn.Module) -> MergeReport: ...
@overload
def merge(model: ExportedProgram) -> ExportedProgram: ...
def merge(model: nn.Module | ExportedProgram) -> MergeReport | ExportedProgram:
    """Merge all adapters that can be merged into the base weights, permanently and in place.

    Merged weights are computed in float32 or wider and rounded once. Adapters that cannot be merged
    stay, and the report says why.

    Raises:
        SurgeryError: S512 if nothing was applied, S513 if nothing can be merged.

    """
    if not is_program(model):
        return merge_specs(adapted_of(model))
    from surgery.graft.programs.verbs import to_merge

    target = to_merge(model)
    report = merge_specs(target)
    if report.stayed:
        warn(str(report))
    return returned(model, target)


def ensemble(
    model: nn.Module,
    adapters: Sequence[str | os.PathLike[str]],
    inputs: Mapping[str, Any],
    answer: Callable[[dict[str, Any]], Tensor],
) -> Tensor:
    """Return the majority vote of several saved prompts, from one batch for all.

    Prompt ensembling, Lester et al. 2021 (arXiv:2104.08691), section 6.

    Args:
        model: one that has a prompt of the same kind as those saved.
        adapters: what :func:`save` wrote, one for each prompt.
        inputs: arguments of the model for a batch.
        answer: gives the answers [rows, ...] to inputs repeated once for each prompt: as
            ``lambda x: model(**x).logits.argmax(-1)`` or ``lambda x: model.generate(**x)``.

    Returns:
        Tensor: an answer for each sequence, [batch, ...]; the first where as many differ.

    Raises:
        SurgeryError: S532 if the model has not just one prompt, or an adapter none like it, or if
            it is a graph, traced or exported, whose prompt is a part of it.

    """
    return vote(adapted_of(model), adapters, inputs, answer)


@overload
def fold(model: nn.Module) -> FoldReport: ...
@overload
def fold(model: ExportedProgram) -> ExportedProgram: ...
def fold(model: nn.Module | ExportedProgram) -> FoldReport | ExportedProgram:
    """Replace the networks that compute prefixes and prompts by their output, permanently and in place.

    The model computes the same. A file saved afterwards holds the prefix or the prompt alone.

    Raises:
        SurgeryError: S512 if nothing was applied, S519 if there is nothing to fold.

    """
    target = adapted_of(model)
    report = fold_specs(target)
    return report if model is target or not is_program(model) else returned(model, target)


def merged(model: nn.Module | ExportedProgram) -> AbstractContextManager[Any]:
    """Return a context in which all adapters that can be merged are merged.

    On exit, every parameter is restored bitwise.

    Contexts nest and are left in any order; inside `disabled` the base shows, merged or not. What
    is applied cannot change inside (:func:`apply`, :func:`remove`, :func:`merge`, :func:`fold`,
    :func:`load`); :func:`save` writes the same file as outside. Merged weights go with the context,
    and so do edits of them; what else is done to the model stays, and if it is cast or moved, what
    comes back is, too. A copy or a pickle made inside has what shows, for good. Where one thread
    is inside, other threads' forwards run merged as well.

    Raises:
        SurgeryError: when entered: S520 if another thread is in `disabled`, S521 if what was
            applied is on record on a part of the model, S523 if the model has lost it.

    """
    if is_program(model):
        return nullcontext(merge(model))
    return merged_specs(adapted_of(model))


def disabled(model: nn.Module | ExportedProgram) -> AbstractContextManager[Any]:
    """Return a context in which the model is bitwise its base model.

    As :func:`merged`: nests, and what is applied cannot change inside. Parameters that specs train
    show their first values, in memory of their own; these go with the context, and so do edits of
    them. A copy or a pickle made inside is a base, with nothing applied.

    Raises:
        SurgeryError: when entered: S520 if another thread is in `merged`, S521 if what was applied
            is on record on a part of the model.

    """
    if is_program(model):
        return nullcontext(remove(model))
    return grafting.disabled_specs(adapted_of(model))


def remove(model: Model, name: str | None = None) -> Model:
    """Remove the adapter called ``name`` (its `as NAME`, or the method), or all adapters.

    When the last method of a spec goes, the spec does. The base's parameters that it trained and
    no other spec trains then get back their values, to the bit; whether they train is for the last
    spec that is left to say, and as before without one. A recipe or a file that only trains goes
    by its own name (`bitfit`), other specs without methods with everything.

    Raises:
        SurgeryError: S512 if there is no such thing; S520 inside :func:`merged` and
            :func:`disabled`; S523 if the model has lost what is to stay.

    """
    target = adapted_of(model)
    grafting.remove_specs(target, name)
    return model if model is target else returned(model, target)


def save(model: nn.Module | ExportedProgram, path: str | os.PathLike[str]) -> Path:
    """Save all that was applied to ``model`` as one safetensors file.

    Inside :func:`merged` and :func:`disabled` it is the same file as outside.

    Args:
        model: an adapted model.
        path: a directory, for `adapter.safetensors` in it, or a name that ends in `.safetensors`.
            Where that is a link, the file that it leads to is written.

    Returns:
        The path of the file.

    Raises:
        SurgeryError: S512 if nothing was applied; S535 if what is there could not be loaded again;
            S509 if the file cannot be written, and then one that was there stays whole.

    """
    return save_adapter(adapted_of(model), path)


def load(
    model: Model,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    base: Match = "exact",
) -> Model:
    """Load a saved adapter onto ``model``, in place; the file holds its spec and rules.

    All of the file is held against the model first: on any error the model stays as it was, and so
    does what was applied to it before.

    Args:
        model: the base that the adapter was saved with; other adaptations may be on it.
        path: what :func:`save` was given.
        example_inputs: as for :func:`apply`.
        base: "exact" asks for a base with the same names, shapes, dtypes and values as when the
            adapter was saved, but for parameters that the file holds. "shape" compares names and
            shapes alone, as for the same checkpoint in another dtype: new parameters take the
            dtypes of their layers, and a :class:`SurgeryWarning` says what was not compared.

    Returns:
        The same model.

    Raises:
        SurgeryError: S514 if the file is no adaptation, or damaged; S515 if ``model`` is not the
            base that it was saved with, with the difference; S516 if its content does not fit;
            S536 for another word for ``base``.

    """
    if is_program(model):
        from surgery.graft.programs.verbs import to_load

        target: nn.Module = to_load(model, path)
    else:
        target = unwrapped(model)
    watch()
    load_adapter(target, path, example_inputs, base, tell=warn)
    given: Any = model
    return given if given is target else returned(given, target)
