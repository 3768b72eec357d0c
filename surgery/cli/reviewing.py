"""`diff`, `inspect` and `explain`: commands that look at a model and leave it as it is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from surgery.cli.arguments import Inputs, Json, JsonFormat, Model, Spec
from surgery.cli.commands import LOOKING, add
from surgery.cli.exit_codes import CHANGED, FINE
from surgery.cli.loading import inputs_of
from surgery.cli.screen import show, show_file, show_json, working


def _chosen(form: Format | View | None, as_json: bool) -> str:
    """The format that the options ask for; `--json` is short for `--format json`."""
    if as_json and form not in (None, "json"):
        raise typer.BadParameter(f"`--json` contradicts `--format {form}`: give one of them")
    return "json" if as_json else "text" if form is None else form.value


class Format(StrEnum):
    """The output format of `diff`."""

    text = "text"
    markdown = "markdown"
    json = "json"
    dot = "dot"
    html = "html"


class View(StrEnum):
    """The output format of `inspect`."""

    text = "text"
    json = "json"
    dot = "dot"
    html = "html"


def register(application: typer.Typer) -> None:
    """Add the commands with their examples."""
    add(
        application,
        LOOKING,
        inspect,
        "inspect MODEL",
        "inspect MODEL 'q|v in layer[-4:]'",
        "inspect MODEL --format html > model.html",
    )
    add(
        application,
        LOOKING,
        diff,
        "diff MODEL spec.peft",
        "diff MODEL 'on q|v apply lora(r = 8)'",
        "diff MODEL old.peft new.peft --format markdown",
        notes="Exit codes: 0, or 2 if --exit-code is given and there are changes; 1 on an error.",
    )
    add(
        application,
        LOOKING,
        explain,
        "explain MODEL model.layers.0.mlp spec.peft",
        "explain MODEL 'encoder.layers.0[linear1..linear2]' spec.peft",
    )


def diff(
    model: Model,
    spec: Spec,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="SPEC2",
            help="A second spec: show what changes from SPEC to SPEC2.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Output format; text if not given.", show_default=False),
    ] = None,
    inputs: Inputs = None,
    as_json: JsonFormat = False,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit with 2 if there are changes, else with 0."),
    ] = False,
) -> int:
    """Show what SPEC would change in MODEL.

    With SPEC2, show what changes from SPEC to SPEC2.
    """
    from surgery.planning.spec import read_spec

    chosen = _chosen(form, as_json)
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
    if chosen == "json":
        show_json(found.as_dict())
    elif chosen == "markdown":
        show(found.as_markdown(), end="")
    elif chosen == "dot":
        show_file(found.as_dot())
    elif chosen == "html":
        show_file(found.as_html())
    else:
        show(str(found))
    return CHANGED if exit_code and not found.is_empty else FINE


def inspect(
    model: Model,
    selector: Annotated[
        str | None,
        typer.Argument(metavar="SELECTOR", help="Modules to list, such as `q|v in layer[-4:]`."),
    ] = None,
    form: Annotated[
        View | None,
        typer.Option("--format", help="Output format; text if not given.", show_default=False),
    ] = None,
    inputs: Inputs = None,
    as_json: JsonFormat = False,
) -> None:
    """Show the modules of MODEL with their roles.

    With SELECTOR, show the modules that it matches.
    """
    chosen = _chosen(form, as_json)
    with working("loading the model") as say:
        import surgery

        loaded = surgery.load_model(model)
        say("analyzing the model")
        found = surgery.inspect(loaded, selector, example_inputs=inputs_of(inputs))
    if chosen == "json":
        show_json(found.as_dict())
    elif chosen == "dot":
        show_file(found.as_dot())
    elif chosen == "html":
        show_file(found.as_html())
    else:
        show(str(found))


def explain(
    model: Model,
    site: Annotated[
        str,
        typer.Argument(metavar="SITE", help="The path of a module or region.", show_default=False),
    ],
    spec: Spec,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Explain what SPEC does at SITE of MODEL, and why.

    For each statement: whether it applies there, the reason, and what it adds.
    """
    from surgery.planning.spec import read_spec

    ready = read_spec(spec)
    with working("loading the model") as say:
        import surgery

        loaded = surgery.load_model(model)
        say("planning")
        found = surgery.explain(loaded, site, ready, example_inputs=inputs_of(inputs))
    show_json(found.as_dict()) if as_json else show(str(found))
