"""How the code is built: one way of imports, one name for one thing, and small pieces."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx

import surgery

ROOT = Path(surgery.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
"""The files of the package by the names of their modules."""

LONGEST_FUNCTION = 60
LONGEST_FILE = 300
LONG_FILES = {
    "surgery.api": "mostly docstrings: the functions that users call",
    "surgery.language.syntax": "one table: the nodes of the syntax tree",
    "surgery.rules.primitives": "one table: the primitives",
}
"""Files that may have more lines than others, and why."""

CLOSED_INSIDE: dict[frozenset[str], str] = {}
"""Circles of modules that imports inside of functions may close, and why."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text("utf-8"))


def imports(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """The imports in ``node``, and when each is run: on `import`, for `typing`, or `inside`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(child, "inside")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from imports(ast.Module([part], []), "typing")
            for part in child.orelse:
                yield from imports(ast.Module([part], []), when)
        else:
            yield from imports(child, when)


def imported(module: str, found: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules of the package that an import takes or takes from."""
    if isinstance(found, ast.Import):
        names = [alias.name for alias in found.names]
    else:
        package = module.split(".") if FILES[module].stem == "__init__" else module.split(".")[:-1]
        above = package[: len(package) - found.level + 1] if found.level else []
        base = ".".join([*above, *filter(None, [found.module])])
        whole = [f"{base}.{alias.name}" for alias in found.names]
        names = [name if name in FILES else base for name in whole]
    yield from (name for name in names if name in FILES)


def graph_of_imports(*when: str) -> nx.DiGraph[str]:
    found: nx.DiGraph[str] = nx.DiGraph()
    for module in FILES:
        for statement, moment in imports(tree(module), "import"):
            if moment in when:
                found.add_edges_from((module, other) for other in imported(module, statement))
    return found


def circles(graph: nx.DiGraph[str]) -> set[frozenset[str]]:
    """Modules that need each other."""
    alone = nx.nodes_with_selfloops(graph)
    groups = {frozenset(group) for group in nx.strongly_connected_components(graph)}
    return {group for group in groups if len(group) > 1} | {frozenset([name]) for name in alone}


def test_every_import_of_the_package_is_seen():
    """What the laws below are told of is what there is."""
    graph = graph_of_imports("import", "typing", "inside")
    assert graph.has_edge("surgery.api", "surgery.graft.apply")
    assert graph.has_edge("surgery.cli", "surgery.cli.application")
    assert nx.number_of_isolates(graph) == 0
    alone = set(FILES) - set(graph)
    assert not {name for name in alone if "import surgery" in FILES[name].read_text("utf-8")}


def test_imports_of_modules_have_no_circles():
    assert circles(graph_of_imports("import")) == set()


def test_imports_for_annotations_close_no_circles():
    assert circles(graph_of_imports("import", "typing")) == set()


def test_imports_inside_of_functions_close_no_circles():
    assert circles(graph_of_imports("import", "typing", "inside")) == set(CLOSED_INSIDE)


def test_every_class_has_a_name_of_its_own():
    names = Counter(
        node.name
        for module in FILES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in names.items() if times > 1] == []


def test_functions_are_short():
    long = [
        f"{module}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for module in FILES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert long == []


def test_files_are_short():
    """A file that has become short again is none of the exceptions."""
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in FILES.items()}
    long = {name: count for name, count in lines.items() if count > LONGEST_FILE}
    assert long.keys() == LONG_FILES.keys(), long
