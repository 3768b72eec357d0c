"""The examples in public docstrings run."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "name",
    ["surgery", "surgery.api", "surgery.difference", "surgery.inspection", "surgery.verification"],
)
def test_docstrings(name: str) -> None:
    module = import_module(name)
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
