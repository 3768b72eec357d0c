"""`apply`, `merge` and `fold`: commands that write models and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.cli.arguments import (
    Adapter,
    BaseComparison,
    BaseMatch,
    Force,
    Inputs,
    Model,
    Output,
    Spec,
)
from surgery.cli.commands import WRITING, add
from surgery.cli.loading import inputs_of, tokenizer_of, tokenizing
from surgery.cli.outputs import check_adapter_output, check_model_output
from surgery.cli.screen import complain, show, working
from surgery.language.diagnostics import error

if TYPE_CHECKING:
    from torch import nn

    from surgery.graft.merge import MergeReport


def register(application: typer.Typer) -> None:
    """Add the commands with their examples."""
    add(
        application,
        WRITING,
        apply,
        "apply MODEL spec.peft -o out",
        "apply MODEL 'on q|v apply lora(r = 8)' -o out --seed 1",
        "apply MODEL spec.peft -o merged --merged",
    )
    add(application, WRITING, merge, "merge MODEL out -o merged")
    add(application, WRITING, fold, "fold MODEL out -o folded")


def apply(
    model: Model,
    spec: Spec,
    output: Output,
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge the adapter and save the whole model.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of the initial values.")] = 0,
    inputs: Inputs = None,
    force: Force = False,
) -> None:
    """Apply SPEC to MODEL and save the adapter.

    With --merged, the adapter is merged and the whole model is saved. Of an exported program (a .pt2
    file), the adapted program is saved beside the adapter.
    """
    from surgery.planning.spec import read_spec

    ready = read_spec(spec)
    (check_model_output if merged else check_adapter_output)(output, model, force)
    with working("loading the model") as say:
        import surgery
        from surgery.graft.apply import apply_spec
        from surgery.graft.target import model_of
        from surgery.reports.diff_text import closing

        given = surgery.load_model(model)
        base = model_of(given)
        say("applying the spec")
        difference = surgery.diff(base, ready, example_inputs=inputs_of(inputs))
        complain(difference.plan.warnings)
        apply_spec(base, difference.plan, seed=seed, tokenizer=tokenizing(model))
        say("writing")
        if merged:
            done = f"{_merged(base)}\n{_write_whole(given, base, model, output)}"
        else:
            written = surgery.save(base, output)
            done = "\n".join([_saved(written), *_write_adapted(given, base, output)])
    show("\n".join([*closing(difference.summary), done]))


def merge(
    model: Model,
    adapter: Adapter,
    output: Output,
    inputs: Inputs = None,
    base: BaseMatch = BaseComparison.exact,
    force: Force = False,
) -> None:
    """Merge ADAPTER into MODEL and save the whole model."""
    check_model_output(output, model, force)
    with working("loading the model") as say:
        import surgery
        from surgery.graft.target import model_of

        given = surgery.load_model(model)
        loaded = model_of(given)
        say("merging")
        compared = _load(loaded, adapter, base, inputs)
        report = _merged(loaded)
        say("writing")
        written = _write_whole(given, loaded, model, output)
    show("\n".join([*compared, str(report), written]))


def fold(
    model: Model,
    adapter: Adapter,
    output: Output,
    inputs: Inputs = None,
    base: BaseMatch = BaseComparison.exact,
    force: Force = False,
) -> None:
    """Fold the networks of ADAPTER into their output.

    A network that computes a prefix or a prompt is replaced by the vectors that it computes.
    """
    check_adapter_output(output, model, force)
    with working("loading the model") as say:
        import surgery
        from surgery.graft.target import model_of

        given = surgery.load_model(model)
        loaded = model_of(given)
        say("folding")
        compared = _load(loaded, adapter, base, inputs)
        report = surgery.fold(loaded)
        say("writing")
        written = _saved(surgery.save(loaded, output))
        done = [*compared, str(report), written, *_write_adapted(given, loaded, output)]
    show("\n".join(done))


def _load(model: nn.Module, adapter: Path, base: BaseComparison, inputs: str | None) -> list[str]:
    """Load ``adapter``; a line that says what of the base was not compared, if anything."""
    from surgery.graft.load import load_adapter

    uncompared = load_adapter(model, adapter, inputs_of(inputs), base.value)
    return [f"Base: {uncompared}."] if uncompared else []


def _merged(model: nn.Module) -> MergeReport:
    import surgery

    report = surgery.merge(model)
    if report.stayed:
        first = report.stayed[0]
        raise error(
            "S517",
            f"{len(report.stayed)} of {len(report.stayed) + len(report.merged)} edits cannot "
            f"be merged, first `{first.child}` at `{first.site}`: {first.reason}",
            help="save the adapter instead: it loads onto the base",
        )
    return report


def _saved(path: Path) -> str:
    return f"Saved {path} ({_megabytes(path)})."


def _write_adapted(given: object, model: nn.Module, output: Path) -> list[str]:
    """Write the adapted program beside its adapter, if ``given`` was a program; what was done."""
    from surgery.graft.target import is_program, returned
    from surgery.programs import FILE, write_program

    if not is_program(given) or output.suffix == ".safetensors":
        return []
    write_program(returned(given, model), output / FILE)
    return [_saved(output / FILE)]


def _write_whole(given: object, model: nn.Module, text: str, output: Path) -> str:
    from surgery.graft.target import returned
    from surgery.models import save_model

    tokenizer = tokenizer_of(text)
    save_model(returned(given, model) if given is not model else model, output, tokenizer)
    also = "" if tokenizer is None else " and its tokenizer"
    return f"Saved the merged model{also} in {output} ({_megabytes(output)})."


def _megabytes(path: Path) -> str:
    files = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
    size = sum(f.stat().st_size for f in files)
    return f"{size / 1e6:.2f} MB" if size >= 10_000 else f"{size:,} bytes"
