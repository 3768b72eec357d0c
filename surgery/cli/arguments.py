"""The arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A transformers directory, hub id, GGUF file, or package.module:factory.",
        show_default=False,
    ),
]
Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="A .peft file, its text, or a recipe such as unipelt.",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER", help="What `apply` or surgery.save wrote.", show_default=False
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write.", show_default=False)
]
Inputs = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        metavar="MODULE:FACTORY",
        help="Example inputs for one forward, where none can be made up: a tensor, tuple or dict.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
