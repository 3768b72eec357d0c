"""Each kind of layer that is registered reads, runs, merges and describes itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgery
from surgery.layers import LayerKind, kinds, register
from tests.laws.kinds import check_exported, check_kind
from tests.laws.strategies import KINDS, SAME_PADDING
from tests.models import randomise


def test_each_kind_has_layers_for_the_laws() -> None:
    assert {kind.name for kind in kinds()} == set(KINDS)


@SAME_PADDING
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
@settings(max_examples=settings.default.max_examples // 3)
@given(data=st.data())
def test_what_a_kind_says_holds(kind: LayerKind, data: st.DataObject) -> None:
    make, draw, words = data.draw(KINDS[kind.name])
    data.draw(st.just(words))
    check_kind(kind, make, (draw(),))


@pytest.mark.parametrize("kind", [k for k in kinds() if k.exported], ids=lambda kind: kind.name)
@settings(max_examples=3)
@given(data=st.data())
def test_it_is_a_layer_in_exported_programs(kind: LayerKind, data: st.DataObject) -> None:
    make, draw, words = data.draw(KINDS[kind.name])
    data.draw(st.just(words))
    inputs = draw()
    check_exported(
        lambda: randomise(make(), 1).double().eval(),
        (inputs.double() if inputs.is_floating_point() else inputs,),
    )


def test_two_kinds_of_one_name_or_class_are_refused() -> None:
    class Other(LayerKind):
        name = "linear"
        classes = ()

    class Lookup(LayerKind):
        name = "lookup"
        classes = (nn.Embedding,)

    for kind in (Other(), Lookup()):
        before = kinds()
        with pytest.raises(surgery.SurgeryError, match="S450"):
            register(kind)
        assert kinds() == before
