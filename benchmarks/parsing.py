"""Seconds to parse a thousand lines, of a spec and of rules."""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path

from benchmarks.harness import Settings, Table, interleaved
from surgery.language.parse import parse

LINES = 1000
RULES = Path(__file__).resolve().parents[1] / "rules"
_HEAD = re.compile(r"^(method|block) \w+", re.MULTILINE)
STATEMENTS = """\
on q|v in layer[{0}:] apply lora(r = {1}, alpha = {2}) as first_{0}
on `model.layers.{0}.mlp.*_proj` where inputs > {1} and index % 2 == 0 expect {1} apply dora({2})
on mlp in layer[-{1}:] parallel adapter({2})   # what a comment says
let rank_{0} = 2 * {1} + 4
freeze all except norm | head
train bias in layer[{0}:{1}]
"""


def statements(lines: int) -> str:
    """A spec of ``lines`` lines, none quite like another."""
    text = "".join(STATEMENTS.format(n, n % 7 + 1, 8 * n + 8) for n in range(lines // 6 + 1))
    return "".join(text.splitlines(keepends=True)[:lines])


def definitions(lines: int) -> str:
    """The rules that come with the package, over and over, each time under another name."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(RULES.glob("*.peft"))]
    found: list[str] = []
    for n, text in enumerate(itertools.cycle(texts)):
        found += _HEAD.sub(rf"\g<0>_{n}", text).splitlines(keepends=True)
        if len(found) >= lines:
            break
    return "".join(found)


def run(settings: Settings) -> list[Table]:
    texts = {"statements": statements(LINES), "rules": definitions(LINES)}
    calls = {name: partial(parse, text) for name, text in texts.items()}
    times = interleaved(calls, settings.rounds(20), sample=0.0)
    table = Table(f"Parsing {LINES:,} lines", ("lines", "characters"), "seconds")
    for name, text in texts.items():
        size = (str(text.count("\n")), f"{len(text):,}")
        table.add(name, *size, judged=times[name].median, aim=0.2)
    return [table]
