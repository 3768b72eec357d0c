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
        help="A transformers directory, hub id, GGUF or .pt2 file, or package.module:factory.",
        show_default=False,
    ),
]
Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="A .peft file, the name of a recipe such as unipelt, or the spec itself.",
        show_default=False,
    ),
]
Adapter = Annotated[
    Path,
    typer.Argument(
        metavar="ADAPTER",
        help="A saved adapter: a directory or a .safetensors file.",
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="The directory to write to.", show_default=False
    ),
]
Inputs = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        metavar="MODULE:FACTORY",
        help="Example inputs for one forward, where none can be generated: a tensor, tuple or dict.",
        show_default=False,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace existing output, unless it is the base model.")
]


class BaseComparison(StrEnum):
    """What of a model is compared with the base that an adapter was saved with."""

    exact = "exact"
    shape = "shape"


BaseMatch = Annotated[
    BaseComparison,
    typer.Option(
        "--base",
        help="How MODEL is compared with the base of ADAPTER: values too (exact), or names "
        "and shapes alone (shape), for a base in another dtype.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]
JsonFormat = Annotated[bool, typer.Option("--json", help="Short for --format json.")]
