"""Readers of what is drawn: strict ones, so that whatever they read is valid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

from lark import Lark, Token, Tree

from surgery.reports.drawing import Box

_VOID = {"meta"}


@dataclass
class Element:
    """One element of a page; ``text`` is what stands right in it."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list["Element"])
    text: str = ""

    def every(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.every()

    def said(self) -> str:
        """All text within that is shown."""
        if self.tag in ("script", "style"):
            return ""
        return " ".join([self.text, *(child.said() for child in self.children)])

    def outline(self, depth: int = 0) -> str:
        """The tree of elements, a line each, without scripts and styles."""
        if self.tag in ("script", "style"):
            return ""
        name = " ".join(filter(None, (self.tag, self.attributes.get("class"))))
        text = " ".join(self.text.split())
        lines = [f"{'  ' * depth}{name}{f': {text}' if text else ''}"]
        return "\n".join([*lines, *filter(None, (c.outline(depth + 1) for c in self.children))])


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.stack = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        element = Element(tag, dict(attrs))
        self.stack[-1].children.append(element)
        if tag not in _VOID:
            self.stack.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.stack[-1].text += data


def page(text: str) -> Element:
    """The elements of a page, of which each is closed where it should be."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    (root,) = reader.stack
    return root


_DOT = Lark(
    r"""
    graph: "digraph" NAME "{" _statement* "}"
    _statement: (group | settings | edge | attribute | node) ";"?
    group: "subgraph" NAME "{" _statement* "}"
    settings: ("node" | "edge") list
    node: NAME list
    edge: NAME "->" NAME list?
    attribute: NAME "=" _value
    list: "[" pair ("," pair)* "]"
    pair: NAME "=" _value
    _value: NAME | NUMBER | STRING
    NAME: /[A-Za-z_][A-Za-z_0-9]*/
    NUMBER: /-?(\.[0-9]+|[0-9]+(\.[0-9]*)?)/
    STRING: /"(\\.|[^"\\])*"/s
    %ignore /\s+/
    """,
    start="graph",
    parser="lalr",
)


@dataclass
class Graph:
    """What Graphviz would make of a text: labels of nodes and clusters, and edges."""

    nodes: dict[str, str] = field(default_factory=dict[str, str])
    clusters: dict[str, str] = field(default_factory=dict[str, str])
    edges: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    ends: list[str] = field(default_factory=list[str])


def dot(text: str) -> Graph:
    """Read a text in the part of DOT that drawings use."""
    found = Graph()
    _walk(_DOT.parse(text), found, None)
    return found


def _walk(tree: Tree[Token], found: Graph, cluster: str | None) -> None:
    name = str(tree.children[0])
    for child in tree.children[1:]:
        if not isinstance(child, Tree):
            continue
        words = [str(c) for c in child.children if isinstance(c, Token)]
        attributes = dict(_pairs(child))
        if child.data == "group":
            assert words[0] not in found.clusters
            found.clusters[words[0]] = ""
            _walk(child, found, words[0])
        elif child.data == "node":
            assert words[0] not in found.nodes
            found.nodes[words[0]] = unquoted(attributes["label"])
        elif child.data == "edge":
            if attributes.get("style") != "invis":
                found.edges.append((words[0], words[1]))
            found.ends += [v for k, v in attributes.items() if k in ("lhead", "ltail")]
        elif child.data == "attribute" and words[0] == "label" and cluster:
            found.clusters[name] = unquoted(words[1])


def _pairs(tree: Tree[Token]) -> Iterator[tuple[str, str]]:
    for pair in tree.find_data("pair"):
        yield str(pair.children[0]), str(pair.children[1])


def unquoted(text: str) -> str:
    """What a string of DOT shows."""
    breaks = {"l": "\n", "n": "\n", '"': '"', "\\": "\\"}
    shown, letters = "", iter(text[1:-1])
    for letter in letters:
        shown += breaks[next(letters)] if letter == "\\" else letter
    return shown


def places(box: Box, path: str = "") -> Iterator[tuple[str, Box]]:
    """Every module, region, slice and parameter that ``box`` stands for, by its path."""
    yield path, box
    drawn = box.like or box
    for inner in drawn.inner:
        if inner.shape not in ("module", "part"):
            continue
        below = inner.path[len(drawn.path) :].lstrip(".")
        between = below.rpartition(".")[0] if inner.shape == "module" else ""
        if between:
            yield join(path, between), inner
        for name in inner.names if inner.shape == "module" else (below,):
            yield from places(inner, join(path, between, name))


def join(*names: str) -> str:
    """One path; a slice or region stands right behind its module."""
    return ".".join(filter(None, names)).replace(".[", "[")
