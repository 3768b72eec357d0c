"""What a selector says when something in it matches nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from surgery.anatomy.read import Anatomy, read
from surgery.anatomy.select import select
from surgery.language.diagnostics import SurgeryError
from tests.anatomy.selecting import chosen, paths
from tests.anatomy.test_odd_models import WIDTH, Attention, FeedForward, Projected, Residual


def message(text: str, name: str, **options: Any) -> str:
    with pytest.raises(SurgeryError) as failure:
        chosen(text, name, **options)
    return str(failure.value)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        (
            "bert",
            "`mlp`",
            "error[S301]: nothing matches: this model has no module named `mlp`\n"
            " --> <selector>:1:1\n"
            "  |\n"
            "1 | `mlp`\n"
            "  | ^^^^^\n"
            "  = help: the role is written without backticks: mlp",
        ),
        (
            "llama",
            "`*.qproj|*.v_proj|*.zz`",
            "error[S301]: nothing matches: no module or parameter is named `qproj`\n"
            " --> <selector>:1:2\n"
            "  |\n"
            "1 | `*.qproj|*.v_proj|*.zz`\n"
            "  |  ^^^^^^^\n"
            "  = help: did you mean `q_proj`?\n"
            "\n"
            "error[S301]: nothing matches: no module or parameter is named `zz`\n"
            " --> <selector>:1:19\n"
            "  |\n"
            "1 | `*.qproj|*.v_proj|*.zz`\n"
            "  |                   ^^^^",
        ),
        (
            "llama",
            "q expect 3",
            "error[S303]: expected 3, but 2 match\n"
            " --> <selector>:1:1\n"
            "  |\n"
            "1 | q expect 3\n"
            "  | ^^^^^^^^^^\n"
            "  = help: they are model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj",
        ),
    ],
)
def test_messages(name: str, text: str, wanted: str) -> None:
    assert message(text, name).replace(" \n", "\n") == wanted


@pytest.mark.parametrize(
    ("name", "text", "reason", "help"),
    [
        ("llama", "atention", "there is no role `atention`", "did you mean attention?"),
        ("llama", "q_proj", "there is no role `q_proj`", "between backticks: `q_proj`"),
        ("llama", "Liner", "no module of class Liner", "did you mean Linear?"),
        ("llama", "SiLU", "no module of class SiLU", "did you mean SiLUActivation?"),
        ("llama", "router", "no module has the role `router`", "available roles: attention"),
        ("llama", "bias", "no parameter that is a bias", ""),
        ("llama", "`layers.9.mlp`", "is named `9`", "`layers` counts from 0 to 1"),
        ("llama", "`.layers.0`", "no path matches", "is `model.layers.0`"),
        ("llama", "layer[7]", "only 2 to choose from", ""),
        ("llama", "q in `foo`", "is named `foo`", ""),
        ("llama", "Embedding in layer[0]", "1 found, but none inside `layer[0]`", ""),
        ("llama", "Linear where inputs > 9999", "no selected module satisfies", ""),
        ("llama", "Linear except all", "`except` removes every selected module", ""),
    ],
)
def test_reasons(name: str, text: str, reason: str, help: str) -> None:
    found = message(text, name)
    assert found.startswith("error[S301]: ")
    assert reason in found
    assert help in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Linear where input > 3", "did you mean `inputs`?"),
        ("Linear where path > 3", "only be compared with"),
        ("Linear where inputs / 0 > 1", "divides by zero"),
    ],
)
def test_tests_that_say_nothing(text: str, reason: str) -> None:
    found = message(text, "llama")
    assert found.startswith("error[S304]")
    assert reason in found


def test_every_dead_part_is_told() -> None:
    with pytest.raises(SurgeryError) as failure:
        chosen("q | `*.x` | Linr | (o | kk)[0]", "llama")
    starts = [found.labels[0].span.start for found in failure.value.diagnostics]
    assert starts == [4, 12, 24]


def test_modules_without_parameters_cannot_be_trained() -> None:
    assert "no parameters" in message("Dropout", "nanogpt", of="parameters")


@pytest.mark.parametrize("part", ["bias", "`nothing`", "router", "k"])
def test_an_exception_that_excepts_nothing_is_a_warning(part: str) -> None:
    found = chosen(f"q except {part}", "llama")
    assert [warning.code for warning in found.warnings] == ["S302"]
    assert found.warnings[0].severity == "warning"
    assert found.paths == paths("q", "llama")


def test_no_warning_without_reason() -> None:
    assert chosen("Linear except head | up", "llama").warnings == ()


def hybrid() -> tuple[nn.Module, Anatomy]:
    """Four layers, of which the last alone attends, as in Qwen3-Next or Jamba."""
    torch.manual_seed(0)
    mixers = [FeedForward(), FeedForward(), FeedForward(), Attention()]
    model = nn.Sequential(*(Residual(mixer, Projected()) for mixer in mixers))
    return model, read(model, torch.randn(2, 5, WIDTH))


@pytest.mark.parametrize("text", ["attention", "q", "attention | mlp"])
def test_a_role_that_layers_lack_is_a_warning(text: str) -> None:
    model, seen = hybrid()
    found = select(model, text, lambda: seen)
    assert [warning.code for warning in found.warnings] == ["S305"]
    assert found.warnings[0].message.endswith("is in 1 of 4 layers: `0` and 2 more have none")


@pytest.mark.parametrize(
    "text",
    ["mlp", "attention expect 1", "attention in layer[3]", "q where inputs > 1", "norm", "linear"],
)
def test_what_is_meant_to_be_in_some_layers_is_no_warning(text: str) -> None:
    model, seen = hybrid()
    assert select(model, text, lambda: seen).warnings == ()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("bert", "position_embeddings` and 1 more"),
        ("gpt2", "wpe`"),
        ("llama", None),
        ("bart", "positions`"),
    ],
)
def test_tables_that_the_role_leaves_out_are_told(name: str, other: str | None) -> None:
    """Unless a clause or another part says that this is meant."""
    found = chosen("embedding", name).warnings
    assert [w.code for w in found] == (["S305"] if other else [])
    assert all(other in w.message for w in found)
    for text in (
        "embedding expect 1",
        "embedding where index == 0 or 1 == 1",
        "embedding | Embedding",
    ):
        if name != "bart":
            assert chosen(text, name).warnings == ()
