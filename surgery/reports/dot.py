"""A drawing in the DOT language of Graphviz: modules are clusters, values are edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from surgery.reports.drawing import Arrow, Box, Drawing
from surgery.reports.figures import millions

HEAD = """\
  compound=true
  newrank=true
  fontname="Helvetica"
  fontsize=11
  labeljust=l
  labelloc=t
  node [fontname="Helvetica", fontsize=11, shape=box, style=rounded]
  edge [fontname="Helvetica", fontsize=9, arrowsize=0.6]"""

CENTRED, LEFT = r"\n", r"\l"
"""What ends a line of a label, and says where it stands."""

IDLE = "no operator of its own in this forward pass"
AGAIN = "runs again on what it returned"
MARKS = {"input": "shape=plaintext", "output": "shape=plaintext", "junction": "shape=circle"}


def dot_of(drawing: Drawing) -> str:
    """All of ``drawing``, whatever is folded in its page."""
    title = "\n".join((drawing.title, *drawing.facts))
    lines = ["digraph surgery {", HEAD, f"  label={quoted(title)}"]
    lines += [f"  {line}" for line in _box(drawing.root)]
    return "\n".join([*lines, "}", ""])


def quoted(text: str) -> str:
    """``text`` as a string of DOT, its lines centred."""
    return f'"{_escaped(text, CENTRED)}"'


def _left(text: str) -> str:
    """``text`` as a string of DOT, its lines flush left."""
    return f'"{_escaped(text, LEFT)}{LEFT}"'


def _escaped(text: str, end: str) -> str:
    # Graphviz reads \N, \G and the like in labels: a backslash is always doubled.
    shown = text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", " ")
    return end.join(shown.splitlines())


def _box(box: Box) -> Iterator[str]:
    if not box.layers:
        yield f"{box.id} [{', '.join(_attributes(box))}]"
        return
    yield f"subgraph cluster_{box.id} {{"
    yield f"  {'; '.join(_cluster(box))}"
    for inner in box.inner:
        yield from (f"  {line}" for line in _box(inner))
    ends = {inner.id: inner for inner in box.inner}
    for arrow in box.arrows:
        yield f"  {_edge(arrow, ends)}"
    for inner in _aside(box):
        yield f"  {_end(box, last=True).id} -> {_end(inner, last=False).id} [style=invis]"
    yield "}"


def _aside(box: Box) -> Iterator[Box]:
    """What no arrow leads to or from, in a box with arrows: its place is below the others."""
    joined = {end for arrow in box.arrows for end in (arrow.source, arrow.target)}
    return (inner for inner in box.inner if joined and inner.id not in joined)


def _edge(arrow: Arrow, ends: dict[str, Box]) -> str:
    source, target = ends[arrow.source], ends[arrow.target]
    how: list[str] = []
    if source.layers:
        how.append(f"ltail=cluster_{source.id}")
    if target.layers:
        how.append(f"lhead=cluster_{target.id}")
    if arrow.kind == "back":
        how += ["constraint=false", "style=dashed", 'label="again"']
    elif arrow.kind == "spans":
        how += ["style=dotted", "arrowhead=none"]
    shown = f" [{', '.join(how)}]" if how else ""
    return f"{_end(source, last=True).id} -> {_end(target, last=False).id}{shown}"


def _end(box: Box, last: bool) -> Box:
    """A node within ``box`` to which an edge can be tied: an edge cannot end at a cluster."""
    while box.layers:
        wanted = "output" if last else "input"
        found = next((inner for inner in box.inner if inner.shape == wanted), None)
        box = found or (box.layers[-1][-1] if last else box.layers[0][0])
    return box


def _attributes(box: Box) -> list[str]:
    if box.shape in MARKS:
        return [f"label={quoted(box.label)}", MARKS[box.shape]]
    found = [f"label={_left(_text(box))}"]
    if box.shape == "part":
        found.append('style="rounded,dashed"')
    if box.marks.notes:
        found.append("penwidth=2.5")
    return found


def _cluster(box: Box) -> list[str]:
    changed = ["penwidth=2.5"] if box.marks.notes else []
    return [f"label={_left(_text(box))}", "style=rounded", *changed]


def _text(box: Box) -> str:
    return "\n".join(lines_of(box))


def lines_of(box: Box) -> list[str]:
    """All that is written in a box, one thing a line."""
    times = f" × {box.times}" if box.times > 1 else ""
    size = f", {millions(box.elements)}" if box.elements else ""
    marks = box.marks
    lines = [f"{box.label}{times}", f"{box.kind}{size}", ", ".join(box.roles)]
    if box.like is not None:
        lines.append(f"as {box.like.label}")
    if box.chained and box.times == 1:
        lines.append(AGAIN)
    if box.idle:
        lines.append(IDLE)
    for note in marks.notes:
        where = f"   {note.where}" if note.where else ""
        lines += [f"{note.sign} {note.title}{where}", *(f"    {line}" for line in note.lines)]
    lines += [_list("trained", marks.trained), _list("frozen", marks.frozen), *marks.tied]
    return [line for line in lines if line.strip()]


def _list(what: str, names: Iterable[str]) -> str:
    shown = ", ".join(names)
    return f"{what}: {shown}" if shown else ""
