"""The arguments that several commands take."""

from __future__ import annotations

from enum import StrEnum
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
Force = Annotated[
    bool, typer.Option("--force", help="Replace what is there, if it isn't the base model.")
]


class Base(StrEnum):
    """What of a model is compared with the base that an adapter was saved with."""

    exact = "exact"
    shape = "shape"


BaseMatch = Annotated[
    Base,
    typer.Option(
        "--base",
        help="What of MODEL must equal the base that ADAPTER was saved with: all (exact), "
        "or names and shapes (shape), as in another dtype.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
