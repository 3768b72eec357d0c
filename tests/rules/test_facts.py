"""What is derived of every method of the prelude, in one table a person reads."""

import pytest
from syrupy.assertion import SnapshotAssertion

from surgery.language import syntax
from surgery.rules.affine import Merge
from surgery.rules.library import prelude
from surgery.rules.standalone import check_block, check_method

RULES = prelude()


@pytest.mark.parametrize("name", sorted(RULES.names()))
def test_derived_facts(name: str, snapshot: SnapshotAssertion) -> None:
    definition = RULES.find(name)
    assert definition is not None
    if isinstance(definition.syntax, syntax.Block):
        lines = [
            f"{d.name} {[str(s) for s in d.shape]} {d.init}" for d in check_block(definition)[0]
        ]
    else:
        program = check_method(definition).program
        found = program.merge
        lines = [f"result   {program.result}", f"identity {program.is_identity}"]
        if isinstance(found, Merge):
            lines += [f"weight   {found.weight}", f"bias     {found.bias}"]
        else:
            lines += [f"no merge {found.reason}: {found.expression}"]
        lines += [f"flops    {program.flops}"]
        lines += [f"{d.name} {[str(s) for s in d.shape]} {d.init}" for d in program.params]
    assert "\n".join(lines) == snapshot


def test_every_method_says_where_it_comes_from() -> None:
    for name in RULES.names():
        definition = RULES.find(name)
        assert definition is not None
        assert definition.syntax.doc
        doc = definition.syntax.doc
        assert "arXiv:" in doc or "OpenReview " in doc or name == "ia3_input"
