"""A drawing as one HTML file that needs no other: boxes that fold, and arrows between them.

Without its script the page shows all of the text: each box says whose values it gets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from importlib.resources import files

from surgery.reports.dot import AGAIN, IDLE
from surgery.reports.drawing import Box, Drawing
from surgery.reports.figures import millions
from surgery.reports.marks import Note

OPEN = 2
"""How deep boxes in which nothing is marked are open at first."""

SHAPES = {
    "module": "module",
    "part": "part",
    "junction": "junction",
    "input": "end",
    "output": "end",
}

LEGEND = """\
<section class="legend" aria-label="Legend">
<h2>Legend</h2>
<ul>
<li><span class="box module sample">name</span> a module; one with ▸ unfolds when you select it</li>
<li><span class="times">× 30</span> modules that are alike, drawn once</li>
<li><span class="box part sample">name</span> a region, a slice or a parameter</li>
<li><span class="box module changed sample">name</span> a thick border: changed, or matched</li>
<li><span class="trained">● trained</span> <span class="frozen">○ frozen</span> parameters of the module itself</li>
<li><span class="junction sample">+</span> where a module's own code joins values</li>
<li><span class="sign">- -</span> a dashed arrow leads back; a dotted line ties a region to its modules</li>
</ul>
</section>"""


def page_of(drawing: Drawing) -> str:
    """The whole file."""
    title = escape(drawing.title)
    facts = "\n".join(f"<p>{escape(fact)}</p>" for fact in drawing.facts)
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in drawing.remarks)
    below = f'<section aria-label="Notes"><h2>Notes</h2><ul>{remarks}</ul></section>'
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{_resource("page.css")}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{facts}
<p class="tools" hidden><button type="button" id="unfold">Unfold all</button> <button type="button" id="fold">Fold all</button></p>
</header>
<main>
{"".join(_box(drawing.root, 0, ()))}
</main>
{below if remarks else ""}
{LEGEND}
<script>
{_resource("page.js")}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return files("surgery.reports").joinpath(name).read_text(encoding="utf-8")


def _box(box: Box, depth: int, sources: tuple[str, ...]) -> Iterator[str]:
    changed = " changed" if box.marks.notes else ""
    start = f'id="{box.id}" class="box {SHAPES[box.shape]}{changed}"'
    if box.shape in ("junction", "input", "output"):
        yield f'<div id="{box.id}" class="{SHAPES[box.shape]}">{escape(box.label)}{_from(sources)}</div>\n'
    elif not box.layers:
        yield f'<div {start}><div class="head">{_head(box)}</div>{_body(box)}{_from(sources)}</div>\n'
    else:
        shown = " open" if box.changes or depth < OPEN else ""
        yield f"<details {start}{shown}><summary>{_head(box)}</summary>{_body(box)}{_from(sources)}\n"
        yield from _level(box, depth)
        yield "</details>\n"


def _level(box: Box, depth: int) -> Iterator[str]:
    labels = {inner.id: inner.label for inner in box.inner}
    feeding: dict[str, list[str]] = {}
    for arrow in (a for a in box.arrows if a.kind != "spans"):
        feeding.setdefault(arrow.target, []).append(labels[arrow.source])
    arrows = json.dumps([[a.source, a.target, a.kind] for a in box.arrows], separators=(",", ":"))
    yield f"<div class=\"level\" data-arrows='{arrows}'>\n"
    for layer in box.layers:
        many = " many" if len(layer) > 1 else ""
        yield f'<div class="layer{many}">\n'
        for inner in layer:
            yield from _box(inner, depth + 1, tuple(feeding.get(inner.id, ())))
        yield "</div>\n"
    yield "</div>\n"


def _from(sources: tuple[str, ...]) -> str:
    return f'<p class="from">from {escape(", ".join(sources))}</p>' if sources else ""


def _head(box: Box) -> str:
    parts = [f'<b class="name">{escape(box.label)}</b>']
    if box.times > 1:
        how = "one after another" if box.chained else "side by side"
        parts.append(f'<span class="times" title="{how}">× {box.times}</span>')
    if box.kind:
        parts.append(f'<span class="kind">{escape(box.kind)}</span>')
    parts += [f'<span class="role">{escape(role)}</span>' for role in box.roles]
    if box.elements:
        parts.append(f'<span class="size">{millions(box.elements)} params</span>')
    within = box.changes - box.times * len(box.marks.notes)
    if within:
        parts.append(f'<span class="within">{within:,} marked within</span>')
    return " ".join(parts)


def _body(box: Box) -> str:
    parts = [_note(note) for note in box.marks.notes]
    if box.like is not None:
        parts.append(f'<p>as <a href="#{box.like.id}">{escape(box.like.label)}</a></p>')
    if box.chained and box.times == 1:
        parts.append(f'<p class="idle">{AGAIN}</p>')
    if box.idle:
        parts.append(f'<p class="idle">{IDLE}</p>')
    if box.marks.trained:
        parts.append(f'<p class="trained">● trained: {escape(", ".join(box.marks.trained))}</p>')
    if box.marks.frozen:
        parts.append(f'<p class="frozen">○ frozen: {escape(", ".join(box.marks.frozen))}</p>')
    parts += [f'<p class="tied">{escape(tied)}</p>' for tied in box.marks.tied]
    return "".join(parts)


def _note(note: Note) -> str:
    lines = "\n".join(escape(line) for line in note.lines)
    where = f' <span class="where">{escape(note.where)}</span>' if note.where else ""
    head = (
        f'<p><span class="sign">{escape(note.sign)}</span> <b>{escape(note.title)}</b>{where}</p>'
    )
    return f'<div class="note">{head}{f"<pre>{lines}</pre>" if lines else ""}</div>'
