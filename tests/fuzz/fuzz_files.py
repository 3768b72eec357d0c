"""Random damage to saved adapters: each is refused with S514 to S516, and the model is untouched.

What a file says is written again with right checksums as often as not, so that all that is behind them
is reached. A file that still says the same may load, and then gives just what the undamaged one gives.
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgery
from tests.graft.damaging import Parts, metadata_of, parts, refusal, state
from tests.graft.saved_models import SAVED, fill

LIMIT = 60.0

Random = random.Random


@cache
def _file(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return surgery.save(SAVED[name].adapted(), folder).read_bytes()


@cache
def _parts_of(name: str) -> Parts:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "good.safetensors")
        path.write_bytes(_file(name))
        return parts(path)


def _carrier(name: str, beside: bool) -> nn.Module:
    """The base, and unless it is for the undamaged file, another adaptation of it."""
    model, x = SAVED[name].base(), SAVED[name].input
    if beside:
        spec = "on Linear apply lora(r = 1) as mine\ntrain bias"
        surgery.apply(model, spec, example_inputs=x, seed=0)
        fill(model, 9, surgery.trainable(model))
    return model


@cache
def _right(name: str, beside: bool) -> tuple[Tensor, list[str]]:
    """What the undamaged file gives: outputs, and what is in the model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "good.safetensors")
        path.write_bytes(_file(name))
        model = _carrier(name, beside)
        surgery.load(model, path, example_inputs=SAVED[name].input)
    return _output(model, name), _content_of(model)


def _output(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return model(SAVED[name].input)


def _content_of(model: nn.Module) -> list[str]:
    return [f"{n} {p.requires_grad} {p.tolist()}" for n, p in model.named_parameters()]


_READY: dict[tuple[str, bool], nn.Module] = {}
"""Models that refused all files so far, and so are as they were."""


def case(random: Random) -> str:
    """One damaged file, loaded onto a model that carries another adaptation as often as not."""
    name = random.choice(list(SAVED))
    beside = random.random() < 0.7
    kind = random.choice([*_RAW, *_SAID, *_SAID])
    model = _READY.pop((name, beside), None) or _carrier(name, beside)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bad.safetensors")
        path.write_bytes(_file(name))
        if kind in _RAW:
            path.write_bytes(_RAW[kind](random, path.read_bytes()))
        else:
            _rewrite(random, path, _SAID[kind])
        before = state(model)
        problem = refusal(lambda: surgery.load(model, path, example_inputs=SAVED[name].input))
        if problem is not None:
            codes = {d.code for d in problem.diagnostics}
            assert codes <= {"S514", "S515", "S516"}, f"{kind}: {problem}"
            assert state(model) == before, f"{kind}: a failed load changed the model: {problem}"
            size = len(str(problem))
            assert size < 50_000, f"{kind}: a message of {size} characters"
            _READY[name, beside] = model
            return f"{kind}: {codes.pop()}"
        return f"{kind}: loaded, {_as_said(kind, path, model, name, beside)}"


def _as_said(kind: str, path: Path, model: nn.Module, name: str, beside: bool) -> str:
    """Hold that what was loaded is what the file says; whether that is what the undamaged one did."""
    expected, content = _right(name, beside), _content_of(model)
    if kind in _SAID:
        found, whole = parts(path), _parts_of(name)
        for n, tensor in found.tensors.items():
            assert _same(model.get_parameter(n), tensor), f"{kind}: `{n}` is another"
        if [a["spec"] for a in found.content["applied"]] != [
            a["spec"] for a in whole.content["applied"]
        ]:
            return "with the other rules or words that it says"
        if any(
            n not in whole.tensors or not _same(t, whole.tensors[n])
            for n, t in found.tensors.items()
        ):
            assert [c.split()[:2] for c in content] == [c.split()[:2] for c in expected[1]], (
                f"{kind}: loaded silently"
            )
            return "with the other values that it says"
    assert torch.equal(_output(model, name), expected[0]), f"{kind}: loaded silently"
    assert content == expected[1], f"{kind}: loaded silently"
    return "and says the same"


def _same(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def _flip(random: Random, whole: bytes) -> bytes:
    found = bytearray(whole)
    for _ in range(random.choice([1, 1, 2, 20])):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _cut(random: Random, whole: bytes) -> bytes:
    start, end = sorted(random.randrange(len(whole) + 1) for _ in range(2))
    return random.choice([whole[:end], whole[:start] + whole[end:], whole + whole[start:end], b""])


def _overwrite(random: Random, whole: bytes) -> bytes:
    start = random.randrange(len(whole))
    size = random.choice([1, 8, 100])
    return whole[:start] + random.randbytes(size) + whole[start + size :]


def _header(random: Random, whole: bytes) -> bytes:
    """The head that safetensors reads, as JSON, with values replaced."""
    (size,) = struct.unpack("<Q", whole[:8])
    data = json.loads(whole[8 : 8 + size])
    _mutate(random, data)
    text = json.dumps(data).encode()
    text += b" " * (-len(text) % 8)
    wrong = random.random() < 0.1
    length = random.choice([0, 1, 2**31, 2**63, 2**64 - 1, len(text) - 8]) if wrong else len(text)
    return struct.pack("<Q", length) + text + whole[8 + size :]


_RAW: dict[str, Callable[[Random, bytes], bytes]] = {
    "flipped": _flip,
    "cut": _cut,
    "overwritten": _overwrite,
    "head": _header,
}


def _rewrite(random: Random, path: Path, damage: Callable[[Random, Parts], object]) -> None:
    """Damage what a file says, and write it with right checksums, or with some of the old ones."""
    found = parts(path)
    checksum = metadata_of(path)["surgery.sha256"] if random.random() < 0.15 else None
    damage(random, found)
    found.write(path, checksum, listed=random.random() < 0.8)


_ODD: list[Any] = [None, True, False, 0, 1, -1, 2, 1.5, 10**12, 2**63, 10**30, 1e308, float("nan")]
_ODD += [float("-inf"), "", "0", "lora", "\0", "\ud800", "__class__", "0.weight", "x" * 3000]
_ODD += ["../../etc", [], {}, [[]], [None], {"": None}, {"__proto__": {}}, [[[[[[[[]]]]]]]]]


def _places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [path, *(p for key, value in inner for p in _places(value, (*path, key)))]


def _mutate(random: Random, data: Any) -> None:
    """Replace, remove, rename, copy or add values of JSON data."""
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        places = _places(data)[1:]
        if not places:
            return
        *keys, last = random.choice(places)
        holder = data
        for key in keys:
            holder = holder[key]
        action = random.choice(["replace", "replace", "number", "text", "remove", "copy", "add"])
        value = holder[last]
        if action == "remove":
            del holder[last]
        elif action == "number" and type(value) is int:
            holder[last] = random.choice([value + 1, value - 1, -value, value * 10**12, value * 2])
        elif action == "text" and isinstance(value, str):
            holder[last] = _reworded(random, value)
        elif action == "copy":
            *others, other = random.choice(places)
            source = data
            try:
                for key in (*others, other):
                    source = source[key]
            except (KeyError, IndexError, TypeError):
                continue
            holder[last] = copy.deepcopy(source)
        elif action == "add" and isinstance(holder, dict):
            holder[random.choice(["more", "", "version", "__proto__", "name"])] = value
        elif action == "add":
            holder.append(copy.deepcopy(value))
        else:
            holder[last] = random.choice(_ODD)


_WORDS = [
    "on",
    "all",
    "freeze",
    "train",
    "lora",
    "2",
    "1e12",
    "(",
    ")",
    "\n",
    "`",
    "-",
    "Linear",
    "q",
]


def _reworded(random: Random, text: str) -> str:
    """A text with a word or a number changed, a piece moved, or all of it many times over."""
    kind = random.randrange(5)
    if kind == 0:
        numbers = list(re.finditer(r"\d+", text))
        if numbers:
            at = random.choice(numbers)
            new = random.choice(["0", "1", "3", "-1", "1e12", "1000000000000", "9" * 400, "0.5"])
            return text[: at.start()] + new + text[at.end() :]
    if kind == 1:
        place = random.randrange(len(text) + 1)
        return text[:place] + random.choice(_WORDS) + text[place:]
    if kind == 2:
        start, end = sorted(random.randrange(len(text) + 1) for _ in range(2))
        return text[:start] + text[end:]
    if kind == 3 and len(text) < 300:
        return text * random.choice([2, 50])
    words = text.split(" ")
    words[random.randrange(len(words))] = random.choice(_WORDS)
    return " ".join(words)


def _content(random: Random, found: Parts) -> None:
    _mutate(random, found.content)


def _spec(random: Random, found: Parts) -> None:
    spec = random.choice(found.content["applied"])["spec"]
    if spec["rules"] and random.random() < 0.3:
        name = random.choice(list(spec["rules"]))
        spec["rules"][name] = _reworded(random, spec["rules"][name])
    else:
        spec["text"] = _reworded(random, spec["text"])


def _tensors(random: Random, found: Parts) -> None:
    """A tensor less, more, under another name, of another shape or dtype, or two exchanged."""
    names = list(found.tensors)
    name, other = random.choice(names), random.choice(names)
    tensor = found.tensors[name]
    everywhere = [*names, *found.content["base"]["parameters"], "", ".", "0", "0.mine.A", "a.b.c"]
    match random.choice(["drop", "add", "rename", "shape", "dtype", "swap", "transposed", "long"]):
        case "drop":
            del found.tensors[name]
        case "add":
            found.tensors[random.choice([*everywhere, "more", "q.mine.A", "\0"])] = tensor.clone()
        case "rename":
            new = random.choice([*everywhere, f"{name}x"])
            found.tensors[new] = found.tensors.pop(name)
            if random.random() < 0.7:
                text = json.dumps(found.content).replace(json.dumps(name), json.dumps(new))
                found.content = json.loads(text)
        case "shape":
            size = [random.choice([0, 1, 2, 3, 4, 7]) for _ in range(random.randrange(4))]
            found.tensors[name] = torch.ones(size)
        case "dtype":
            kind = random.choice([torch.float64, torch.bfloat16, torch.int64, torch.bool])
            found.tensors[name] = tensor.to(kind)
        case "swap":
            found.tensors[name], found.tensors[other] = found.tensors[other], tensor
        case "transposed":
            found.tensors[name] = tensor.t().contiguous() if tensor.dim() == 2 else tensor[None]
        case _:
            found.tensors[name] = torch.cat([tensor, tensor])


def _swapped(random: Random, found: Parts) -> None:
    """Parts of another file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "other.safetensors")
        path.write_bytes(_file(random.choice(list(SAVED))))
        other = parts(path)
    match random.choice(["content", "tensors", "applied", "base", "one"]):
        case "content":
            found.content = other.content
        case "tensors":
            found.tensors = other.tensors
        case "one":
            found.content["applied"] += other.content["applied"]
            found.tensors |= other.tensors
        case key:
            found.content[key] = other.content[key]


_SAID: dict[str, Callable[[Random, Parts], object]] = {
    "content": _content,
    "spec": _spec,
    "tensors": _tensors,
    "other file": _swapped,
}
