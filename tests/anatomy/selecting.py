"""Selecting in the tiny models, each read once."""

from __future__ import annotations

from functools import cache
from typing import Any, NoReturn

from torch import nn

from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.select import Selection, select
from surgery.language.diagnostics import SurgeryError
from tests import models


@cache
def anatomy(name: str) -> tuple[nn.Module, Anatomy]:
    model = models.build(name)
    return model, read(model)


def chosen(text: str, name: str = "nanogpt", **options: Any) -> Selection:
    model, seen = anatomy(name)
    return select(model, text, lambda: seen, **options)


def paths(text: str, name: str = "nanogpt", **options: Any) -> tuple[str, ...]:
    """The paths of a selection; none at all is an error elsewhere, and the empty set here."""
    try:
        return chosen(text, name, **options).paths
    except SurgeryError as failure:
        codes = {found.code for found in failure.diagnostics}
    assert codes == {"S301"}
    return ()


def no_anatomy() -> NoReturn:
    raise AssertionError("the model was run")
