"""Exported programs in `.pt2` files."""

from __future__ import annotations

import logging
import re
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

_PROGRAM = re.compile(r"(?:^|/)models/([^/]+)\.json$")
_ONLY = "model"
"""The name that `torch.export.save` gives to the one program in a file."""


def read_program(path: Path) -> ExportedProgram:
    """The program in the file at ``path``.

    Raises:
        SurgeryError: S501 if it holds none.

    """
    told: list[str] = []
    try:
        if _mentions(path, b"transformers."):
            register_outputs()
        with _heard(told):
            return torch.export.load(path)
    except Exception as cause:
        raise error(
            "S501",
            f"`{path}` holds no exported program that this torch reads: {_why(path, told, cause)}",
            help=f"`torch.export.save(program, path)` writes one; this is torch {torch.__version__}",
        ) from cause


def _why(path: Path, told: list[str], cause: Exception) -> str:
    """Why the file at ``path`` was not read, given what torch ``told`` of it in its log."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: _PROGRAM.search(name) for name in archive.namelist()}
            programs = {match[1]: name for name, match in found.items() if match}
            text = archive.read(programs[_ONLY]) if _ONLY in programs else b"{}"
    except (zipfile.BadZipFile, OSError) as broken:
        return f"{broken}; it is damaged, or no file of torch's"
    if not programs:
        return "there is none in it"
    if _ONLY not in programs:
        return f"it holds {', '.join(programs)}, and none called `{_ONLY}`, as `torch.export.save` does"
    lines = [line for line in (told[-1] if told else str(cause)).splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else type(cause).__name__
    by = re.search(rb'"torch_version": *"([^"]+)"', text)
    other = by is not None and by[1].decode() != torch.__version__
    return f"{reason} (it was written by torch {by[1].decode()})" if by and other else reason


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write ``program`` to ``path``."""
    with _heard([]):
        torch.export.save(program, path)


def _mentions(path: Path, text: bytes) -> bool:
    """Whether the description of a program has ``text``."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
        return any(text in archive.read(name) for name in names)


@contextmanager
def _heard(told: list[str]) -> Generator[None]:
    """What torch logs of the error beside the exception it raises goes to ``told``."""

    def hear(record: logging.LogRecord) -> bool:
        told.append(str(record.exc_info[1]) if record.exc_info else record.getMessage())
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(hear)
    try:
        yield
    finally:
        logger.removeFilter(hear)
