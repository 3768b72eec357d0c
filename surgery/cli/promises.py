"""`verify`: the guarantees checked on one model."""

from __future__ import annotations

from typing import Annotated

import typer

from surgery.cli.arguments import Inputs, Json, Model, Spec
from surgery.cli.commands import LOOKING, add
from surgery.cli.exit_codes import FAILED, FINE
from surgery.cli.loading import inputs_of, tokenizing
from surgery.cli.screen import complain, show, show_json, working


def register(application: typer.Typer) -> None:
    """Add the command with its examples."""
    add(
        application,
        LOOKING,
        verify,
        "verify MODEL spec.peft",
        "verify MODEL spec.peft --json",
        notes="Exit codes: 0 if every guarantee holds; 1 if one does not, or on an error.",
    )


def verify(
    model: Model,
    spec: Spec,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Maximum merge error, relative to the largest output value.", show_default=False
        ),
    ] = None,
    inputs: Inputs = None,
    as_json: Json = False,
) -> int:
    """Check every guarantee for SPEC on MODEL.

    Initialization, names, gradients, merge, undo, save and load are tried.
    """
    from surgery.planning.spec import read_spec

    ready = read_spec(spec)
    with working("loading the model") as say:
        import surgery

        loaded = surgery.load_model(model)
        found = surgery.verify(
            loaded,
            ready,
            example_inputs=inputs_of(inputs),
            seed=seed,
            tokenizer=tokenizing(model),
            tolerance=tolerance,
            progress=say,
        )
    complain(found.plan.warnings)
    show_json(found.as_dict()) if as_json else show(str(found))
    return FINE if found.ok else FAILED
