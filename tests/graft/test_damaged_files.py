"""Damaged and hostile files: each is refused with S514 to S516, and the model stays as it was.

The model carries another adaptation that trains part of its base, so that there is something to lose.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgery
from tests.graft.damaging import Parts, parts, refusal, refused, state, write_text
from tests.graft.saved_models import SAVED, fill, stack

Damage = Callable[[Parts], Any]


def carrier() -> nn.Module:
    model = stack()
    surgery.apply(model, "on `0` apply lora(r = 1) as own\ntrain `0.bias`", seed=0)
    return fill(model, 9, surgery.trainable(model))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return surgery.save(SAVED["stack"].adapted(), tmp_path_factory.mktemp("good"))


def load_refused(path: Path, code: str = "S51[46]") -> str:
    model = carrier()
    x = torch.ones(1, 6)
    before = model(x)
    text = refused(lambda: surgery.load(model, path), model, code)
    assert torch.equal(model(x), before)
    return text


def method(p: Parts) -> dict[str, Any]:
    return p.content["applied"][0]["methods"][0]


def reworded(old: str, new: str) -> Damage:
    def change(p: Parts) -> None:
        spec = p.content["applied"][0]["spec"]
        assert old in spec["text"]
        spec["text"] = spec["text"].replace(old, new)

    return change


def renamed(new: str) -> Damage:
    """A tensor under another name, wherever the file speaks of it."""

    def change(p: Parts) -> None:
        p.tensors[new] = p.tensors.pop("0.lora.A")
        for tensor in method(p)["tensors"]:
            for key in ("name", "stored"):
                tensor[key] = new if tensor[key] == "0.lora.A" else tensor[key]

    return change


def put(name: str, tensor: torch.Tensor) -> Damage:
    return lambda p: p.tensors.update({name: tensor})


TENSORS: dict[str, Damage] = {
    "one missing": lambda p: p.tensors.pop("0.lora.A"),
    "all missing": lambda p: p.tensors.clear(),
    "a trained one of the base missing": lambda p: p.tensors.pop("2.bias"),
    "one more": put("more", torch.ones(1)),
    "one for a parameter that is not trained": put("0.weight", torch.ones(4, 6)),
    "one for what another adaptation has": put("0.own.A", torch.ones(1, 6)),
    "one for what another adaptation trains": put("0.bias", torch.ones(4)),
    "one for a class": put("__class__", torch.ones(1)),
    "one for no name": put("", torch.ones(1)),
    "one with odd dots": put("..0.", torch.ones(1)),
    "one up the folders": put("../../0.lora.A", torch.ones(2, 6)),
    "another shape": lambda p: p.tensors.update({"0.lora.A": torch.ones(6, 2)}),
    "another size": lambda p: p.tensors.update({"0.lora.A": torch.ones(3, 6)}),
    "a trained one of another shape": lambda p: p.tensors.update({"2.bias": torch.ones(1, 3)}),
    "a scalar": lambda p: p.tensors.update({"2.bias": torch.ones(())}),
    "an empty one": lambda p: p.tensors.update({"0.lora.A": torch.ones(0, 6)}),
    "a base parameter instead": renamed("0.weight"),
    "another one's instead": renamed("0.own.A"),
    "another name": renamed("0.lora.C"),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_tensors_that_do_not_fit_are_refused(damage: str, good: Path, tmp_path: Path) -> None:
    found = parts(good)
    TENSORS[damage](found)
    found.write(tmp_path / "bad.safetensors")
    assert "S516" in load_refused(tmp_path / "bad.safetensors", "S516")
    found.write(tmp_path / "bad.safetensors", listed=False)
    load_refused(tmp_path / "bad.safetensors")


HUGE = 10**12
CONTENT: dict[str, Damage] = {
    "a rank": reworded("lora(r = 2)", "lora(r = 3)"),
    "a huge rank": reworded("lora(r = 2)", f"lora(r = {HUGE})"),
    "a huge number of vectors": reworded("lora(r = 2)", f"prefix({HUGE})"),
    "a huge bottleneck": reworded(
        "on Linear apply lora(r = 2)", f"on Linear parallel adapter({HUGE}) as lora"
    ),
    "another site": reworded("on Linear", "on `0`"),
    "more trained": reworded("train `2.bias`", "train bias"),
    "nothing trained": reworded("train `2.bias`", ""),
    "another rule": reworded("lora(r = 2)", "vera(r = 2) as lora"),
    "no rule": lambda p: p.content["applied"][0]["spec"].update(rules={}),
    "a rule of its own": lambda p: p.content["applied"][0]["spec"]["rules"].update(
        {"rules/lora.peft": "method lora(r) { match y = linear(x, W, b?)  y += y }"}
    ),
    "a spec that is none": reworded("on Linear", "no linear"),
    "an empty spec": lambda p: p.content["applied"][0]["spec"].update(text=""),
    "a spec of brackets": reworded("r = 2", "r = " + "(" * 5000 + "2" + ")" * 5000),
    "a spec that never ends": reworded("on Linear", "use `/dev/zero`\non Linear"),
    "a long spec of nothing": lambda p: p.content["applied"][0]["spec"].update(
        text="x" * 1_000_000
    ),
    "no applied spec": lambda p: p.content["applied"].clear(),
    "the same twice": lambda p: p.content["applied"].append(p.content["applied"][0]),
    "a method twice": lambda p: p.content["applied"][0]["methods"].append(method(p)),
    "a method less": lambda p: p.content["applied"][0]["methods"].pop(),
    "a method gone": lambda p: p.content["applied"][0]["gone"].append(
        {"site": "0", "name": "lora"}
    ),
    "a method gone that never was": lambda p: p.content["applied"][0]["gone"].append(
        {"site": "1", "name": "lora"}
    ),
    "folded": lambda p: method(p).update(folded=True),
    "another site listed": lambda p: method(p).update(site="1"),
    "another size listed": lambda p: method(p)["sizes"].update(n=5),
    "a huge size listed": lambda p: method(p)["sizes"].update(n=10**30),
    "another trained": lambda p: p.content["applied"][0].update(trained=["0.weight"]),
    "trained and not there": lambda p: p.content["applied"][0].update(trained=["none"]),
    "not frozen": lambda p: p.content["applied"][0].update(frozen=[]),
    "another version": lambda p: p.content.update(version=1),
    "a version of true": lambda p: p.content.update(version=True),
    "a seed of text": lambda p: p.content["applied"][0].update(seed="0"),
    "a seed of half": lambda p: p.content["applied"][0].update(seed=0.5),
    "a key more": lambda p: p.content.update(__proto__={"polluted": True}),
    "half a character": lambda p: method(p).update(name="\ud800"),
    "not a number": lambda p: p.content["applied"][0].update(seed=float("nan")),
    "infinite": lambda p: p.content["applied"][0].update(seed=float("inf")),
}


@pytest.mark.parametrize("damage", CONTENT)
def test_content_that_does_not_fit_is_refused(damage: str, good: Path, tmp_path: Path) -> None:
    found = parts(good)
    CONTENT[damage](found)
    found.write(tmp_path / "bad.safetensors")
    text = load_refused(tmp_path / "bad.safetensors", "S51[456]")
    assert len(text) < 50_000
    found.write(tmp_path / "bad.safetensors", checksum="0" * 64)
    load_refused(tmp_path / "bad.safetensors", "S514")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '"text"',
        "{}",
        '{"version": 2, "version": 2}',
        "[" * 200_000,
        '{"version": ' + "9" * 5000 + "}",
        '{"version": 2e0}',
        '{"version": -1}',
        '{"version": NaN}',
    ],
    ids=lambda text: text[:24],
)
def test_content_that_is_no_content_is_refused(text: str, tmp_path: Path) -> None:
    write_text(tmp_path / "bad.safetensors", text, {})
    load_refused(tmp_path / "bad.safetensors", "S514")


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [path, *(p for key, value in inner for p in places(value, (*path, key)))]


ODD = st.sampled_from(
    [None, True, 0, -1, 1.5, 10**30, "", "0", "\0", [], {}, [[]], [None], {"": None}]
)


@given(st.data())
def test_no_type_of_any_value_is_trusted(data: st.DataObject) -> None:
    """Each value of the content, replaced by one of another type or removed."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = surgery.save(SAVED["stack"].adapted(), folder)
        found = parts(path)
        keys = data.draw(st.sampled_from(places(found.content)[1:]))
        holder = found.content
        for key in keys[:-1]:
            holder = holder[key]
        old = holder[keys[-1]]
        new = data.draw(ODD.filter(lambda v: type(v) is not type(old) or v != old))
        if data.draw(st.booleans()):
            del holder[keys[-1]]
        else:
            holder[keys[-1]] = new
        found.write(path, listed=keys[0] != "tensors")
        model = carrier()
        before = state(model)
        problem = refusal(lambda: surgery.load(model, path))
        if problem is not None:
            assert [d.code in ("S514", "S515", "S516") for d in problem.diagnostics] == [True]
            assert state(model) == before
        else:
            # On the seed, and what a spec and its files are called, nothing hangs.
            assert keys[-1] in ("seed", "name") or keys[-2:-1] == ("files",), keys


def test_every_flipped_byte_is_seen(good: Path, tmp_path: Path) -> None:
    """Some all over the file, and all that says how long its head is."""
    whole, path = good.read_bytes(), tmp_path / "bad.safetensors"
    model = carrier()
    before = state(model)
    for place in [*range(16), *range(16, len(whole), 24)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        with pytest.raises(surgery.SurgeryError, match="S514"):
            surgery.load(model, path)
    assert state(model) == before


def test_a_file_cut_short_is_refused(good: Path, tmp_path: Path) -> None:
    whole, path = good.read_bytes(), tmp_path / "bad.safetensors"
    for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        load_refused(path, "S514")
    path.write_bytes(whole + b"\0")
    load_refused(path, "S514")


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    for path in (
        tmp_path / "none",
        folder,
        tmp_path / "pipe.safetensors",
        tmp_path / "loop.safetensors",
        Path("/dev/null"),
        tmp_path / ("long" * 100),
        tmp_path / "\0",
        tmp_path / "\ud800",
    ):
        load_refused(path, "S514")
    for path in (None, 3, b"bytes"):
        load_refused(path, "S514")  # type: ignore[arg-type]


def test_a_file_that_may_not_be_read_is_refused(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("surgery.graft.adapter_file.open_safetensors", refuse)
    assert "Permission denied" in load_refused(good, "S514")


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"0.lora.A": torch.ones(2, 6)}, tmp_path / "other.safetensors")
    assert "not saved by surgery" in load_refused(tmp_path / "other.safetensors", "S514")


@pytest.mark.parametrize("when", [0, 1])
def test_a_failure_while_it_is_applied_takes_all_of_it_back(
    when: int, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory runs out at the second of two specs."""
    model = stack()
    surgery.apply(model, "on `0` apply lora(r = 2) as one\ntrain `2.bias`", seed=0)
    surgery.apply(model, "on `2` apply lora(r = 2) as two\ntrain `2.bias`", seed=0)
    file = surgery.save(model, tmp_path)
    from surgery.graft import apply

    carried = carrier()
    right, calls = apply.create, []

    def create(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == when + 1:
            raise MemoryError
        return right(*args)

    monkeypatch.setattr(apply, "create", create)
    assert "MemoryError" in refused(lambda: surgery.load(carried, file), carried, "S516")
    assert len(calls) == when + 1
