"""The pages that show how `surgery` is extended: what they show runs, or is what is in the repository."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgery
from surgery.layers import kind, kind_named, kinds
from tests.laws.kinds import Only, check_kind
from tests.laws.strategies import randomise_added

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending/layer-kind.md").read_text(encoding="utf-8")
# Blocks with a title are files, or stand in one; none is part of one program.
SHOWN = dict(re.findall(r'^```python title="(.*?)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def bilinear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[ModuleType]:
    """The page's file, imported, and forgotten after."""
    (tmp_path / "bilinear.py").write_text(SHOWN["bilinear.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for table in ("_KINDS", "_CLASSES"):
        monkeypatch.setattr(kind, table, dict(getattr(kind, table)))
    yield importlib.import_module("bilinear")
    del sys.modules["bilinear"]
    monkeypatch.undo()
    kind._found.cache_clear()


def test_a_kind_from_outside_does_what_the_page_shows(bilinear: ModuleType) -> None:
    exec(compile(SHOWN["pairs.py"], "pairs.py", "exec"), {"__name__": "page"})


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_kind_of_the_page_keeps_the_laws(bilinear: ModuleType, data: st.DataObject) -> None:
    first, second, out = (data.draw(st.integers(1, 4)) for _ in range(3))
    leading = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    bias = data.draw(st.booleans())
    inputs = torch.randn(*leading, first), torch.randn(*leading, second)
    check_kind(kind_named("bilinear"), lambda: nn.Bilinear(first, second, out, bias=bias), inputs)


class Apart(nn.Bilinear):
    """Adds its bias apart from the product."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return nn.functional.bilinear(input1, input2, self.weight) + self.bias


@pytest.mark.parametrize("make", [nn.Bilinear, Apart])
@pytest.mark.parametrize("method", ["lora(2, dropout = 0.5)", "dora(2)", "ia3", "shift", "loha(2)"])
def test_its_second_input_is_passed_on(bilinear: ModuleType, make: type, method: str) -> None:
    inputs = torch.randn(3, 6), torch.randn(3, 5)
    model = Only(make(6, 5, 4)).eval()
    base = model(*inputs)
    surgery.apply(model, f"on `layer` apply {method}", example_inputs=inputs, seed=0)
    torch.testing.assert_close(model(*inputs), base)
    randomise_added(model)
    adapted = model(*inputs)
    assert not torch.allclose(adapted, base)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(*inputs), adapted)
    surgery.merge(model)
    torch.testing.assert_close(model(*inputs), adapted)


def test_a_model_whose_kind_is_not_registered_says_so(bilinear: ModuleType) -> None:
    inputs = torch.randn(3, 6), torch.randn(3, 5)
    model = Only(nn.Bilinear(6, 5, 4))
    surgery.apply(model, "on `layer` apply lora(2)", example_inputs=inputs)
    saved = pickle.dumps(model)
    del kind._KINDS["bilinear"]
    with pytest.raises(surgery.SurgeryError, match="S451"):
        pickle.loads(saved)


def test_what_the_page_shows_of_the_package_is_there() -> None:
    files = [ROOT / name for name in SHOWN if "/" in name]
    assert len(files) == 2
    for file in files:
        assert SHOWN[str(file.relative_to(ROOT))] in file.read_text(encoding="utf-8")


def test_every_kind_of_the_package_is_one_file() -> None:
    """A kind's class stands in a file that defines no other kind."""
    files = [sys.modules[type(known).__module__].__file__ for known in kinds()]
    assert len(set(files)) == len(files)
