"""`diff`, `inspect` and `explain`: commands that look at a model and leave it as it is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from surgery.cli import CHANGED, FINE
from surgery.cli.arguments import Inputs, Json, Model, Spec
from surgery.cli.loading import inputs_of
from surgery.cli.screen import show, show_json, working


class Format(StrEnum):
    """How a difference is printed."""

    text = "text"
    markdown = "markdown"
    json = "json"


def register(application: typer.Typer) -> None:
    """Add the commands."""
    application.command("diff")(diff)
    application.command("inspect")(inspect)
    application.command("explain")(explain)


def diff(
    model: Model,
    spec: Spec,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="SPEC2", help="Another spec, to take the place of SPEC.", show_default=False
        ),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.text,
    inputs: Inputs = None,
    as_json: Json = False,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code", help="Exit with 2 if there are changes, with 0 if there are none."
        ),
    ] = False,
) -> int:
    """Show what SPEC would change in MODEL, or what changes between SPEC and SPEC2."""
    from surgery.planning.spec import read_spec

    specs = [read_spec(text) for text in (spec, other) if text is not None]
    with working("loading the model") as say:
        import surgery

        loaded = surgery.load_model(model)
        say("planning")
        found = surgery.diff(
            loaded,
            specs[0],
            against=specs[1] if len(specs) > 1 else None,
            example_inputs=inputs_of(inputs),
        )
    if as_json or form is Format.json:
        show_json(found.as_dict())
    elif form is Format.markdown:
        show(found.as_markdown(), end="")
    else:
        show(str(found))
    return CHANGED if exit_code and not found.is_empty else FINE


def inspect(
    model: Model,
    selector: Annotated[
        str | None,
        typer.Argument(metavar="SELECTOR", help="What to look for: `q|v in layer[-4:]`."),
    ] = None,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Show MODEL as the language sees it, or what SELECTOR matches in it."""
    with working("loading the model") as say:
        import surgery

        loaded = surgery.load_model(model)
        say("reading its anatomy")
        found = surgery.inspect(loaded, selector, example_inputs=inputs_of(inputs))
    show_json(found.as_dict()) if as_json else show(str(found))


def explain(
    model: Model,
    site: Annotated[
        str, typer.Argument(metavar="SITE", help="The path of a module.", show_default=False)
    ],
    spec: Spec,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Say why each statement of SPEC does or does not apply at SITE of MODEL."""
    from surgery.planning.spec import read_spec

    ready = read_spec(spec)
    with working("loading the model") as say:
        import surgery

        loaded = surgery.load_model(model)
        say("planning")
        found = surgery.explain(loaded, site, ready, example_inputs=inputs_of(inputs))
    show_json(found.as_dict()) if as_json else show(str(found))
