"""Drawings: whatever a report says is in them, and what is written down is valid."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import surgery
from surgery.anatomy.dataflow import FlowNode, dataflow, operators
from surgery.anatomy.read import read
from surgery.difference import Diff
from surgery.language.diagnostics import SurgeryError
from surgery.reports.drawing import Box
from tests.cli.toy import Block, model
from tests.models import build
from tests.reports import drawn

LORA = "on q|v apply lora(r = 2)"
CASES = {
    "toy": ("toy", "on up in layer[0] apply lora(r = 2); on mlp parallel adapter(4); train norm"),
    "tied": ("toy", "on embedding apply lora(r = 2); train head"),
    "training": ("toy", "train bias"),
    "nothing": ("toy", ""),
    "regions": ("bert", "unipelt"),
    "slices": ("gpt2", LORA),
    "packed": ("encoder_layer", f"{LORA}; on mlp parallel adapter(4); train norm"),
    "experts": ("mixtral", "on experts apply lora(r = 2); on tokens apply prompt(2)"),
    "two stacks": ("t5", f"{LORA}; on attention.cross apply prefix(2)"),
    "looped": ("albert", f"{LORA}; on mlp sequential adapter(2); train bias in layer"),
}


def built(name: str) -> nn.Module:
    return model() if name == "toy" else build(name)


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Diff]:
    name, spec = CASES[request.param]
    base = built(name)
    return base, surgery.diff(base, spec)


def check(root: Box) -> None:
    """What holds of every drawing."""
    every = list(root.every)
    assert len({box.id for box in every}) == len(every)
    for box in every:
        row = {inner.id: i for i, layer in enumerate(box.layers) for inner in layer}
        assert all(box.layers)
        pairs = [(arrow.source, arrow.target) for arrow in box.arrows]
        assert len(set(pairs)) == len(pairs)
        for arrow in box.arrows:
            assert {arrow.source, arrow.target} <= set(row)
            assert arrow.kind == "back" or row[arrow.source] < row[arrow.target]
        within = sum(inner.changes for inner in box.inner)
        if box.like is None:
            assert box.changes == box.times * (len(box.marks.notes) + within)
        else:
            assert box.changes * box.like.times == box.like.changes * box.times


def test_every_drawing_joins_what_it_has(case: tuple[nn.Module, Diff]):
    check(case[1].drawing.root)


def test_every_module_is_drawn_once(case: tuple[nn.Module, Diff]):
    base, found = case
    drawn_paths = Counter(
        path for path, box in drawn.places(found.drawing.root) if box.shape == "module"
    )
    named = Counter(path for path, _ in base.named_modules(remove_duplicate=False))
    assert drawn_paths == named


def test_every_change_is_where_it_happens(case: tuple[nn.Module, Diff]):
    _, found = case
    root = found.drawing.root
    notes = Counter(
        (path, note.title) for path, box in drawn.places(root) for note in box.marks.notes
    )
    assert notes == Counter((e.site.path, e.method.text) for e in found.plan.edits)
    assert root.changes == len(found.plan.edits)


def test_what_trains_adds_up(case: tuple[nn.Module, Diff]):
    base, found = case
    trained = Counter(
        drawn.join(path, name)
        for path, box in drawn.places(found.drawing.root)
        if box.shape == "module"
        for name in box.marks.trained
    )
    trains = dict(base.named_parameters())
    flags = {n: p.requires_grad for n, p in trains.items()}
    flags |= dict.fromkeys(found.plan.trained, True) | dict.fromkeys(found.plan.frozen, False)
    assert trained == Counter(name for name, does in flags.items() if does)


def test_the_page_is_whole_and_alone(case: tuple[nn.Module, Diff]):
    _, found = case
    text = found.as_html()
    assert text == found.as_html()
    root = drawn.page(text)
    every = list(root.every())
    ids = [e.attributes["id"] for e in every if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    boxes = {box.id for box in found.drawing.root.every}
    assert boxes <= set(ids)
    for element in every:
        assert "src" not in element.attributes
        assert element.tag not in ("link", "img", "iframe", "object")
        target = element.attributes.get("href")
        assert target is None or (target[0] == "#" and target[1:] in ids)
    said = root.said()
    for tensor in (t for edit in found.plan.edits for t in edit.added):
        assert f"+ {tensor.name}   " in said
    for element in every:
        assert element.tag != "details" or element.children[0].tag == "summary"


def test_the_graph_is_one_that_graphviz_reads(case: tuple[nn.Module, Diff]):
    _, found = case
    text = found.as_dot()
    assert text == found.as_dot()
    graph = drawn.dot(text)
    for box in found.drawing.root.every:
        name = f"cluster_{box.id}"
        label = graph.clusters[name] if box.layers else graph.nodes[box.id]
        assert label.startswith(box.label)
        for note in box.marks.notes:
            assert note.title in label
            assert all(line in label for line in note.lines)
    assert {end for edge in graph.edges for end in edge} <= set(graph.nodes)
    assert set(graph.ends) <= set(graph.clusters)
    assert len(graph.edges) == sum(len(box.arrows) for box in found.drawing.root.every)


def test_forms_look_as_they_should(snapshot: Any):
    found = surgery.diff(model(), CASES["toy"][1])
    assert found.as_dot() == snapshot(name="dot")
    assert drawn.page(found.as_html()).outline() == snapshot(name="html")


def test_the_picture_of_the_docs_is_drawn_by_its_page(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    page = (root / "docs" / "how-to" / "draw.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec("".join(found), names)
    graph = drawn.dot(names["found"].as_dot())
    labels = "\n".join([*graph.nodes.values(), *graph.clusters.values()])
    picture = ElementTree.parse(root / "docs" / "drawing.svg").iter()
    shown = Counter(" ".join(e.text.split()) for e in picture if e.tag.endswith("}text") and e.text)
    wanted = Counter(" ".join(line.split()) for line in labels.splitlines() if line.strip())
    facts = names["found"].drawing.facts
    assert shown == wanted + Counter([names["found"].drawing.title, *facts])


# dataflow


def flow(base: nn.Module, inputs: Any, path: str = "") -> dict[tuple[str, str], bool]:
    """The edges within one module, and which of them lead back."""
    level = dataflow(operators(read(base, inputs).recording), lambda p: p)[path]

    def name(node: FlowNode) -> str:
        return level.nodes[node]["label"] or node.name or node.kind

    return {(name(a), name(b)): known["back"] for a, b, known in level.edges(data=True)}


def test_a_residual_is_a_junction():
    assert set(flow(Block(4), torch.randn(2, 4))) == {
        ("input", "norm"),
        ("norm", "up"),
        ("up", "down"),
        ("down", "+"),
        ("input", "+"),
        ("+", "output"),
    }


def test_an_attention_is_one_junction():
    found = flow(build("llama"), None, "model.layers.0.self_attn")
    path = "model.layers.0.self_attn."
    assert {(f"{path}{name}", "attention") for name in ("q_proj", "k_proj", "v_proj")} <= set(found)
    assert ("attention", f"{path}o_proj") in found


def test_a_module_that_runs_again_leads_back():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.second(self.first(x))
            return x

    found = flow(Loop(), torch.randn(2, 4))
    assert found["second", "first"]
    assert not found["first", "second"]


def test_a_run_of_a_module_is_drawn_by_itself():
    found = surgery.inspect(build("albert")).drawing.root
    # A group of layers runs twice, and each of its runs runs its layer once.
    (group,) = [box for box in found.every if box.label == "albert_layer_groups.0"]
    (layer,) = [box for box in found.every if box.label == "albert_layers.0"]
    assert (group.chained, layer.chained) == (True, False)
    assert [box.label for box in layer.inner if box.shape == "junction"] == ["+"]
    assert all(arrow.kind != "back" for arrow in layer.arrows)


def test_what_the_result_does_not_need_is_not_drawn():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.used(x)

    assert set(flow(Dead(), torch.randn(2, 4))) == {("input", "used"), ("used", "output")}
    root = surgery.inspect(Dead(), example_inputs=torch.randn(2, 4)).drawing.root
    assert {box.label: box.idle for box in root.inner if box.kind} == {
        "used": False,
        "unused": True,
    }


# models of all forms


class Joined(nn.Module):
    """Children that run one after another, or side by side and added, perhaps beside the input."""

    def __init__(self, children: list[nn.Module], side: bool, residual: bool):
        super().__init__()
        self.parts = nn.ModuleList(children)
        self.side, self.residual = side, residual

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.side:
            y = torch.stack([part(x) for part in self.parts]).sum(0)
        else:
            for part in self.parts:
                y = part(y)
        return x + y if self.residual else y


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> nn.Module:
    """Nested modules, of which many are alike, and some are there twice."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        kinds = [lambda: nn.Linear(4, 4), nn.ReLU, lambda: nn.LayerNorm(4), nn.Identity]
        return draw(st.sampled_from(kinds))()
    form = draw(st.integers(0, 99))
    children: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        child = draw(trees(depth - 1))
        again = draw(st.integers(1, 3))
        if draw(st.booleans()):
            children += [child] * again
        else:
            # Those that are alike and not the same fold.
            children += [copy.deepcopy(child) for _ in range(again)]
    if form % 3 == 0:
        return nn.Sequential(*children)
    return Joined(children, form % 2 == 0, form % 5 < 3)


@settings(max_examples=25, deadline=None)
@given(tree=trees(), data=st.data())
def test_models_of_any_form_are_drawn_whole(tree: nn.Module, data: st.DataObject):
    base = nn.Sequential(nn.Linear(4, 4), tree, nn.Linear(4, 4))
    depths = {p.count(".") + 1 for p, m in base.named_modules() if isinstance(m, nn.Linear)}
    chosen = data.draw(st.lists(st.sampled_from(sorted(depths)), unique=True, min_size=1))
    spec = "; ".join(f"on Linear where depth == {depth} apply lora(r = 1)" for depth in chosen)
    found = surgery.diff(base, f"{spec}; train bias", example_inputs=torch.randn(2, 4))
    root = found.drawing.root
    check(root)
    paths = Counter(path for path, box in drawn.places(root) if box.shape == "module")
    assert paths == Counter(path for path, _ in base.named_modules(remove_duplicate=False))
    notes = Counter(path for path, box in drawn.places(root) for _ in box.marks.notes)
    assert notes == Counter(edit.site.path for edit in found.plan.edits)
    assert root.changes == len(found.plan.edits)
    drawn.page(found.as_html())
    graph = drawn.dot(found.as_dot())
    assert {end for edge in graph.edges for end in edge} <= set(graph.nodes)


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", 'a"b', "back\\slash\\", "&amp;", "ünï", "'] ]", "\\N\\G", "a b"],
)
def test_odd_names_are_text(name: str):
    base = nn.Sequential()
    base.add_module(name, nn.Linear(4, 4))
    base.add_module("rest", nn.Linear(4, 4))
    found = surgery.inspect(base, example_inputs=torch.randn(2, 4))
    page = drawn.page(found.as_html())
    assert name in page.said()
    assert sum(element.tag == "script" for element in page.every()) == 1
    graph = drawn.dot(found.as_dot())
    assert any(label.startswith(f"{name}\n") for label in graph.nodes.values())


def test_many_layers_make_a_small_page():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Block(8) for _ in range(128))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    base, inputs = Deep(), torch.randn(2, 8)
    every = surgery.diff(base, "on mlp parallel adapter(2)", example_inputs=inputs)
    assert len(every.as_html()) < 30_000
    spec = "on up where index % 2 == 0 apply lora(r = 1)"
    found = surgery.diff(base, spec, example_inputs=inputs)
    start = time.process_time()
    page = found.as_html()
    assert time.process_time() - start < 2
    # Neighbours differ, so none are folded: each is drawn by its first like.
    assert len(page) < 120_000
    assert found.drawing.root.changes == 64


def test_a_model_that_does_not_run_is_drawn_without_arrows():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("broken")

    found = surgery.inspect(Broken(), example_inputs=torch.randn(2, 4)).drawing
    assert [box.label for box in found.root.inner] == ["inner"]
    assert not found.root.arrows
    assert "the roles are not known" in found.remarks[0]


def test_what_holds_its_own_ancestor_is_drawn():
    base = nn.Sequential(nn.Linear(4, 4))
    inner = nn.Module()
    base.add_module("loop", inner)
    inner.above = base
    assert "loop" in surgery.inspect(base).as_dot()


# reports


def test_a_diff_is_drawn_after_its_spec_is_applied():
    base = model()
    found = surgery.diff(base, CASES["toy"][1])
    before = found.as_html(), found.as_dot()
    surgery.apply(base, CASES["toy"][1], seed=0)
    assert (found.as_html(), found.as_dot()) == before


def test_a_diff_of_a_model_that_is_another_now_is_an_error():
    base = model()
    found = surgery.diff(base, "train bias")
    base.head = nn.Linear(16, 7)
    with pytest.raises(SurgeryError, match="S560"):
        found.as_html()


@pytest.mark.parametrize("selector", ["mlp", "q|v", "`*.bias`", "layer[0]", "norm"])
def test_what_matches_is_marked(selector: str):
    base = build("bert")
    found = surgery.inspect(base, selector)
    root = found.drawing.root
    check(root)
    marked = Counter(path for path, box in drawn.places(root) for _ in box.marks.notes)
    assert marked == Counter(site.path for site in surgery.select(base, selector))
    drawn.page(found.as_html())
    drawn.dot(found.as_dot())


def test_a_comparison_marks_what_differs():
    after = "on q in layer[0] apply lora(r = 3); on k apply lora(r = 2); train norm"
    found = surgery.diff(build("bert"), LORA, against=after)
    root = found.drawing.root
    check(root)
    signs = Counter(
        (path.rpartition(".")[2], note.sign)
        for path, box in drawn.places(root)
        for note in box.marks.notes
    )
    assert signs == {("query", "~"): 1, ("query", "-"): 1, ("value", "-"): 2, ("key", "+"): 2}
    drawn.page(found.as_html())
    drawn.dot(found.as_dot())


def test_every_host_is_drawn_alike():
    base, inputs = model().eval(), torch.randint(0, 40, (2, 5))
    hosts = [base, fx.symbolic_trace(base), torch.export.export(base, (inputs,))]
    drawings = [surgery.diff(h, CASES["toy"][1], example_inputs=inputs).as_dot() for h in hosts]
    # What is no layer has lost its class where it was traced.
    classes = re.compile(r"(Language|ExportedProgram|Block|ModuleList|Module)\b")
    assert len({classes.sub("", text) for text in drawings}) == 1


def test_only_a_drawing_needs_networkx():
    program = "import sys, surgery; print('networkx' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr
    assert isinstance(operators(read(nn.Linear(2, 2)).recording), nx.DiGraph)
