"""Exported programs in `.pt2` files."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from surgery.huggingface.programs import register_outputs
from surgery.language.diagnostics import error

FILE = "model.pt2"
"""What the program is called in a folder that is written."""


def read_program(path: Path) -> ExportedProgram:
    """The program in the file at ``path``.

    Raises:
        SurgeryError: S501 if it holds none.

    """
    try:
        if _mentions(path, b"transformers."):
            register_outputs()
        with _quiet():
            return torch.export.load(path)
    except Exception as cause:
        reason = str(cause).partition("\n")[0]
        raise error(
            "S501",
            f"`{path}` holds no exported program that this torch reads: {reason}",
            help=f"`torch.export.save(program, path)` writes one; this is torch {torch.__version__}",
        ) from cause


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write ``program`` to ``path``."""
    with _quiet():
        torch.export.save(program, path)


def _mentions(path: Path, text: bytes) -> bool:
    """Whether the description of a program has ``text``."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
        return any(text in archive.read(name) for name in names)


@contextmanager
def _quiet() -> Generator[None]:
    """Without the warnings that torch logs beside the exception it raises."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
