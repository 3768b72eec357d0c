"""Random texts, sound and broken: each has a meaning or is an error with a frame that can be shown.

A text is written by a grammar, or taken from `rules/` or `grammar/errors`, and then damaged: words
and characters are lost, doubled, swapped or put in, parts of other texts spliced in, something
repeated or nested deep. It is parsed, resolved, laid out and planned on a small module.
"""

from __future__ import annotations

import random as randoms
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

from torch import nn

import surgery
from surgery.cli.checking import check_file
from surgery.language.diagnostics import Diagnostic, SurgeryError, render
from surgery.language.format import format_file, format_text
from surgery.language.parse import parse, parse_selector
from surgery.language.resources import resource
from surgery.language.source import SourceText
from surgery.language.syntax import File
from surgery.language.words import RESERVED, SIGNS
from surgery.planning.spec import Spec, resolve
from surgery.rules.library import memory_reader, prelude
from tests.fuzz.writing import definition, spec

LIMIT = 2.0
_WORD = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`\n]*`|#[^\n]*|\w+|\s+|.', re.DOTALL)
_ODD = [
    "\r",
    "\r\n",
    "\f",
    "\v",
    "\x00",
    "\x1b[31m",
    "\ufeff",
    "\u2028",
    "\ud800",
    "é",
    "漢字",
    "e\u0301",
]
_ODD += [
    "\u202e",
    "🧠",
    "\t",
    "\x7f",
    "\u00a0",
    "−",
    "“",
    "'",
    '"',
    "`",
    "\\",
    "\x85",
    "0" * 30,
    "1e999",
]
_NOISE = [
    *RESERVED.values(),
    *SIGNS.values(),
    *_ODD,
    "+=",
    "<=",
    "==",
    "# note\n",
    "lambda",
    "class",
]
_NOISE += [
    "lora",
    "q",
    "Linear",
    "relu",
    "adapter(4)",
    "gated",
    "dropout",
    "1e11",
    "0.5",
    "-1",
    "`**`",
]
_RANDOM_NAMES = [
    "forward",
    "type",
    "weight",
    "bias",
    "training",
    "__class__",
    "call",
    "n",
    "x",
    "W",
    "b",
]
_OTHER = "method other() {\n  match y[*, n] = linear(x)\n  param c[n] = 0\n  y += c\n}"
Change = Callable[[list[str], randoms.Random], None]


@cache
def _samples() -> tuple[str, ...]:
    paths = [*resource("rules").glob("*.peft"), *resource("grammar", "errors").glob("*.peft")]
    paths = [p for p in paths if p.stat().st_size < 4000]
    return tuple(p.read_text(encoding="utf-8") for p in sorted(paths))


def case(random: randoms.Random) -> str:
    text = _text(random)
    if random.random() < 0.05:
        return _selected(text)
    try:
        file = parse(text, "fuzz.peft")
    except SurgeryError as problem:
        _told(problem)
        return "is no text"
    _laid_out(file)
    used = {"other.peft": _text(random) if random.random() < 0.1 else _OTHER}
    try:
        found = resolve(file, memory_reader(used), prelude())
    except SurgeryError as problem:
        _told(problem)
        return f"means nothing: {problem.diagnostics[0].code}"
    if random.random() < 0.3:
        check_file(SourceText("fuzz.peft", text), resource("rules"))
    return _planned(found, random)


def _selected(text: str) -> str:
    try:
        parse_selector(text)
    except SurgeryError as problem:
        _told(problem)
        return "is no selector"
    return "is a selector"


def _planned(found: Spec, random: randoms.Random) -> str:
    model = _model(random)
    try:
        plan = surgery.plan(model, found)
    except SurgeryError as problem:
        _told(problem)
        return f"fits nowhere: {problem.diagnostics[0].code}"
    for warning in plan.warnings:
        render(warning)
    return "is planned"


def _model(random: randoms.Random) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4, bias=False)),
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Tanh()),
        lambda: nn.Sequential(OrderedDict(embed=nn.Embedding(5, 4), norm=nn.LayerNorm(4))),
    ]
    return random.choice(kinds)()


def _told(problem: SurgeryError) -> None:
    """Each diagnostic has a code and words, points into a text, and can be shown."""
    assert 0 < len(problem.diagnostics) <= 51, len(problem.diagnostics)
    for diagnostic in problem.diagnostics:
        assert re.fullmatch(r"S[1-5]\d\d", diagnostic.code), diagnostic.code
        assert diagnostic.message.strip()
        told = f"{diagnostic.code} has no caret: {diagnostic.message}"
        assert diagnostic.labels or diagnostic.code[1] == "5", told
        _shown(diagnostic)
    assert len(str(problem)) < 300_000


def _shown(diagnostic: Diagnostic) -> None:
    for label in diagnostic.labels:
        assert 0 <= label.span.start <= label.span.end <= len(label.span.source.text)
    frame = render(diagnostic)
    frame.encode()
    assert not set(frame) & {"\x1b", "\x00", "\r", "\x7f", "\f"}, frame
    lines = frame.split("\n")
    for number, line in enumerate(lines):
        if re.match(r"\s*(-->|:::) ", line):
            assert set(lines[number + 3].partition("| ")[2].lstrip()[:1]) <= {"^", "-"}, frame
            assert len(lines[number + 2]) < 200, frame


def _laid_out(file: File) -> None:
    """Laying out keeps the meaning, and once is enough."""
    after = format_file(file)
    again = parse(after, "after.peft")
    assert again == file, after
    assert format_text(after) == after
    assert [c.text for c in again.comments] == [c.text for c in file.comments] or _moved(file)


def _moved(file: File) -> bool:
    """Comments inside statements move above them, so that only their number stays."""
    return len(parse(format_file(file)).comments) == len(file.comments)


# How a text comes to be


def _text(random: randoms.Random) -> str:
    made = random.random()
    if made < 0.25:
        text = spec(random)
    elif made < 0.75:
        own = ("m0", "m1", "m2")[: random.randint(1, 3)]
        text = "\n".join([*(definition(random, name) for name in own), spec(random, own)])
    elif made < 0.8:
        text = random.choice(_samples()) + "\n" + spec(random)
    elif made < 0.9:
        text = random.choice(_samples())
    elif made < 0.95:
        text = _extreme(random)
    else:
        text = f"{spec(random)}\n{_extreme(random)}"
    if random.random() < 0.35:
        words = _WORD.findall(text)
        for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
            random.choice(_CHANGES)(words, random)
        text = "".join(words)
    if random.random() < 0.05:
        text = text.replace("\n", random.choice(["\r", "\r\n", "\n\n", " ", "\f"]))
    return text[:20_000]


def _place(words: list[str], random: randoms.Random) -> int:
    return random.randrange(len(words) + 1)


def _lose(words: list[str], random: randoms.Random) -> None:
    place = _place(words, random)
    del words[place : place + random.choice([1, 1, 2, 10])]


def _double(words: list[str], random: randoms.Random) -> None:
    place = _place(words, random)
    part = words[place : place + random.choice([1, 2, 5])]
    words[place:place] = part * random.choice([1, 1, 3, 100])


def _swap(words: list[str], random: randoms.Random) -> None:
    if len(words) > 1:
        one, other = (random.randrange(len(words)) for _ in range(2))
        words[one], words[other] = words[other], words[one]


def _insert(words: list[str], random: randoms.Random) -> None:
    noise = random.choice([_NOISE, _ODD, _RANDOM_NAMES])
    words.insert(_place(words, random), f"{random.choice(['', ' '])}{random.choice(noise)}")


def _rename(words: list[str], random: randoms.Random) -> None:
    names = sorted({w for w in words if w.isidentifier() and w not in RESERVED.values()})
    if names:
        old, new = random.choice(names), random.choice([*_RANDOM_NAMES, "lambda", *names])
        words[:] = [new if word == old else word for word in words]


def _renumber(words: list[str], random: randoms.Random) -> None:
    places = [i for i, w in enumerate(words) if w.isdigit()]
    if places:
        values = ["0", "1", "2", "0.5", "1e11", "1e308", "-1", "9" * 25, "64", "3 / 7", "1e-300"]
        words[random.choice(places)] = random.choice(values)


def _splice(words: list[str], random: randoms.Random) -> None:
    other = _WORD.findall(random.choice(_samples()))
    first = random.randrange(len(other) + 1)
    words[_place(words, random) : 0] = other[first : first + random.randint(1, 30)]


def _character(words: list[str], random: randoms.Random) -> None:
    text = list("".join(words))
    place = random.randrange(len(text) + 1)
    text[place : place + random.randint(0, 1)] = random.choice(["", *_ODD, *'{}()[]"`#;=,.:*'])
    words[:] = text


_CHANGES: list[Change] = [
    _lose, _double, _swap, _insert, _insert, _rename, _renumber, _renumber, _splice, _character,
]  # fmt: skip


def _extreme(random: randoms.Random) -> str:
    """Something long or deep."""
    many = random.choice([65, 300, 800])
    word = random.choice(
        ["1 + ", "-", "not ", "(", "q | ", "[", "{", "relu(", "n * ", "1 - -", "a."]
    )
    around = random.choice(
        [
            "let x = {}1",
            "on q where {}index apply ia3",
            "on {}q apply lora",
            "on q apply lora({}1)",
            "method m() {{ match y = linear(x)\n y = {}y }}",
            "on q {}lora",
            "freeze `{}a`",
        ]
    )
    line = random.choice(
        ["on q\n", "let a = 1\n", "y += x\n", "}", "# c\r", "on Linear apply ia3\n"]
    )
    body = "method m() { match y[*, n] = linear(x)\n param A[n] = 0\n%s}\non Linear apply m"
    squares = " ".join(f"let a{i + 1} = a{i} {random.choice('*@+')} a{i}" for i in range(60))
    nested = "\n".join(
        f"method m{i}() {{ match y = linear(x) apply m{i + 1}() }}" for i in range(70)
    )
    return random.choice(
        [
            around.format(word * many),
            around.format(word * many) + ")" * many,
            line * many,
            body % ("y += A\n" * many),
            body % f"let a0 = {random.choice(['A', 'n', 'n + 1', '3'])} {squares} y += a60\n",
            f"let a0 = 3 {squares}",
            f"on Linear {'gated ' * many} lora",
            f"{nested}\nmethod m70() {{ match y = linear(x) y += 1 }}\non Linear apply m0",
            f"let a = {random.choice(['divisor', 'min', 'sqrt'])}(7, 1e{random.randint(0, 300)})",
            f"on `{'*a' * many}b|{'{a,b}' * many}` apply ia3",
        ]
    )
