"""The laws hold alike for a model, for its traced graph, and for its exported program."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import surgery
from tests.laws.hosts import HOSTS, SUBJECTS, Exported, Host

# PyTorch's own copies of programs warn of what PyTorch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")

SPECS = {
    "nanogpt": [
        "on o|up|down apply lora(2)",
        "on qkv apply dora(2) on mlp parallel adapter(3) train norm",
        "on mlp gated sequential adapter(3) on attention gated prefix(3)",
        "on attention sequential adapter(3) on attention apply prefix(2)",
        "train bias",
        "on tokens apply prompt(3) on q apply lora(2)",
    ],
    "resnet": ["on Conv2d apply dora(1) on Linear apply lokr(1)", "on Conv2d apply ia3 train bias"],
    "mixer": ["on mlp parallel adapter(2)", "on up apply vera(3) on down apply shift"],
    "llama": [
        "on q|v apply lora(2) on k apply ia3 on embedding apply lora(2)",
        "on attention apply prefix(3) on mlp gated sequential adapter(3)",
        "unipelt",
        "on tokens apply prompt(3) on mlp gated parallel adapter(2)",
    ],
    "bert": [
        "on q|v apply dora(2) train bias",
        "on attention|mlp sequential adapter(3, std = 0.1) train norm",
        "on attention gated prefix(2) on mlp parallel adapter(2)",
        "on attention parallel adapter(2) on attention apply prefix(2)",
    ],
    "gpt_neox": ["on q|v apply lora(2) on mlp pfeiffer adapter(3)", "unipelt"],
    "t5": ["on attention.cross apply prefix(2) on q|v apply lora(2)", "on mlp parallel adapter(2)"],
}
QUICK = ("nanogpt", "resnet", "mixer", "llama", "bert")
QUICK_PROGRAMS = ("nanogpt", "bert")
MERGING = ("lora", "dora", "ia3", "vera", "shift", "lokr")


def _cases(merging: bool = False) -> list[object]:
    found: list[object] = []
    for name, specs in SPECS.items():
        for host in HOSTS:
            if host == "graph" and not SUBJECTS[name].traces:
                continue
            for i, spec in enumerate(specs):
                if merging and not any(method in spec for method in MERGING):
                    continue
                quick = QUICK if host != "program" else QUICK_PROGRAMS
                slow = name not in quick or (host == "program" and i > 0)
                marks = (pytest.mark.slow,) if slow else ()
                found.append(pytest.param(host, name, spec, marks=marks, id=f"{host}-{name}-{i}"))
    return found


def host_of(kind: str, name: str) -> Host:
    return HOSTS[kind](SUBJECTS[name])


@pytest.mark.parametrize(("kind", "name", "spec"), _cases())
def test_a_host_adapts_as_the_model_does(kind: str, name: str, spec: str, tmp_path: Path) -> None:
    """Same parameters, same first values; same results and gradients; and all of it can be undone."""
    host, eager = host_of(kind, name), host_of("eager", name)
    base, state = host.run(), host.state()
    torch.testing.assert_close(base, eager.run())
    for one in (host, eager):
        one.apply(spec)
    ours, theirs = surgery.trainable(host.model), surgery.trainable(eager.model)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    for one in (host, eager):
        one.disturb()
    adapted, expected = host.run(), eager.run()
    assert not torch.equal(adapted, base)
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-5)
    for result in (adapted, expected):
        result.square().sum().backward()
    for n in ours:
        assert (ours[n].grad is None) == (theirs[n].grad is None)
        torch.testing.assert_close(ours[n].grad, theirs[n].grad, rtol=1e-3, atol=1e-3)
    surgery.save(host.model, tmp_path / "adapter")
    host.do(surgery.remove)
    assert torch.equal(host.run(), base)
    after = host.state()
    assert list(after) == list(state)
    assert all(torch.equal(after[n], state[n]) for n in state)
    host.do(surgery.load, tmp_path / "adapter", **host.example())
    assert torch.equal(host.run(), adapted)


@pytest.mark.parametrize(("kind", "name", "spec"), _cases(merging=True))
def test_merged_is_adapted(kind: str, name: str, spec: str) -> None:
    host = host_of(kind, name)
    host.apply(spec)
    host.disturb()
    adapted = host.run()
    host.do(surgery.merge)
    torch.testing.assert_close(host.run(), adapted, rtol=1e-3, atol=1e-4)
    assert len(host.state()) >= len(host_of(kind, name).state())


@pytest.mark.parametrize("name", ["nanogpt", "llama"])
def test_plans_and_differences_are_those_of_the_model(name: str) -> None:
    spec = SPECS[name][1]
    told = []
    for kind in ("eager", "program"):
        host = host_of(kind, name)
        difference = surgery.diff(host.model, spec, **host.example())
        told.append((difference.as_markdown(), difference.plan.tensors))
    assert told[0] == told[1]


def saved(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def nodes_of(program: torch.export.ExportedProgram) -> list[str]:
    """The nodes as text; names of graphs within are torch's own, and not kept in files."""
    texts = [str(n.format_node()) for n in program.graph.nodes if n.op != "get_attr"]
    return [re.sub(r"%submod_\d+", "%submod", text) for text in texts]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        pytest.param("llama", "unipelt", marks=pytest.mark.slow, id="llama"),
        pytest.param("bert", SPECS["bert"][0], id="bert"),
    ],
)
def test_a_program_is_a_value_that_torch_saves(name: str, spec: str) -> None:
    host = Exported(SUBJECTS[name])
    given = host.model
    nodes, state = nodes_of(given), host.state()
    base = host.run()
    host.apply(spec)
    host.disturb()
    adapted = host.run()
    assert nodes_of(given) == nodes
    assert all(torch.equal(given.state_dict[n], state[n]) for n in state)
    names = list(surgery.trainable(host.model))
    host.model = saved(host.model)
    assert torch.equal(host.run(), adapted)
    assert list(surgery.trainable(host.model)) == names
    host.do(surgery.remove)
    assert torch.equal(host.run(), base)
    assert nodes_of(host.model) == nodes


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "length"), [(1, 6), (1, 2), (5, 9)])
def test_dynamic_sizes_stay_dynamic(batch: int, length: int) -> None:
    host, eager = Exported(SUBJECTS["llama"]), host_of("eager", "llama")
    for one in (host, eager):
        one.apply("unipelt")
        one.disturb()
    inputs = host.subject.inputs(batch, length, seed=3)
    torch.testing.assert_close(host.run(inputs), eager.run(inputs))
    assert host.model.range_constraints == Exported(SUBJECTS["llama"]).model.range_constraints


def test_specs_stack_on_a_program_and_go_one_by_one() -> None:
    host, eager = Exported(SUBJECTS["bert"]), host_of("eager", "bert")
    base = host.run()
    for one in (host, eager):
        one.apply("on q apply lora(2) as first")
        one.disturb(2)
        one.apply("on q|v apply ia3 as second  train norm", seed=1)
        one.disturb(3)
    torch.testing.assert_close(host.run(), eager.run())
    for name in ("first", "second"):
        for one in (host, eager):
            one.do(surgery.remove, name)
        torch.testing.assert_close(host.run(), eager.run())
    assert torch.equal(host.run(), base)


def test_contexts_of_a_program_give_another() -> None:
    host = Exported(SUBJECTS["bert"])
    base = host.run()
    host.apply("on q|v apply lora(2)")
    host.disturb()
    with surgery.disabled(host.model) as plain:
        assert torch.equal(plain.module()(**host.subject.inputs())[0], base)
    with surgery.merged(host.model) as merged:
        torch.testing.assert_close(merged.module()(**host.subject.inputs())[0], host.run())


@pytest.mark.parametrize(
    ("spec", "code"), [("on tokens apply prompt(2)", "S445"), ("on tokens apply shifted(2)", "S4")]
)
def test_a_program_of_fixed_sizes_takes_no_tokens(spec: str, code: str) -> None:
    model = host_of("eager", "nanogpt").model
    ids = torch.randint(0, 32, (2, 6))
    program = torch.export.export(model, (ids,), strict=False)
    nodes = nodes_of(program)
    with pytest.raises(surgery.SurgeryError, match=code):
        surgery.apply(program, spec)
    assert nodes_of(program) == nodes


@pytest.mark.slow
def test_a_program_that_was_decomposed_is_not_undone() -> None:
    host = Exported(SUBJECTS["bert"])
    host.apply("on q apply lora(2)")
    base = host.model.run_decompositions()
    with pytest.raises(surgery.SurgeryError, match="S443"):
        surgery.remove(base)


@pytest.mark.slow
def test_an_adapted_program_compiles_and_is_exported_again() -> None:
    host = Exported(SUBJECTS["llama"])
    host.apply("unipelt")
    host.disturb()
    inputs, adapted = host.subject.inputs(), host.run()
    compiled = torch.compile(host.model.module(), backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs)[0], adapted)
    again = torch.export.export(host.model.module(), (), inputs, strict=False)
    torch.testing.assert_close(again.module()(**inputs)[0], adapted)


def test_a_batch_of_any_size_goes_through_a_factored_convolution() -> None:
    """Which kernel torch takes for small batches of one thread says nothing of the sizes that hold."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)).eval()
    x, batch = torch.randn(3, 3, 5, 5), torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        adapted = surgery.apply(program, "on Conv2d apply lora(2)", seed=0)
    finally:
        torch.set_num_threads(threads)
    assert adapted.module()(torch.randn(20, 3, 5, 5)).shape[0] == 20


def test_what_trains_of_tied_parameters_is_named_once() -> None:
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)).eval()
    model[1].weight = model[0].weight
    program = torch.export.export(model, (torch.randint(0, 11, (2, 3)),))
    adapted = surgery.apply(program, "train `0`")
    assert list(surgery.trainable(adapted)) == ["0.weight"]
    assert surgery.trainable(adapted)["0.weight"] is adapted.state_dict["1.weight"]


def test_an_adapted_program_that_is_exported_again_is_a_base() -> None:
    x = torch.randn(4, 8)
    program = torch.export.export(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval(), (x,))
    adapted = surgery.apply(program, "on Linear apply lora(2)", seed=0)
    with torch.no_grad():
        for parameter in surgery.trainable(adapted).values():
            parameter.add_(0.1)
    base = torch.export.export(adapted.module(), (x,))
    expected, nodes = adapted.module()(x), nodes_of(base)
    for undoing in (surgery.remove, surgery.merge, surgery.disabled):
        with pytest.raises(surgery.SurgeryError, match="S443"):
            undoing(base).__enter__()  # type: ignore[union-attr]
    again = surgery.apply(base, "on Linear apply lora(2) as more", seed=0)
    assert list(surgery.trainable(again)) == ["0.more.A", "0.more.B", "1.more.A", "1.more.B"]
    assert torch.equal(again.module()(x), expected)
    removed = surgery.remove(saved(again))
    assert torch.equal(removed.module()(x), expected)
    assert nodes_of(removed) == nodes_of(base) == nodes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # AOTInductor's own
def test_an_adapted_program_becomes_a_package_of_its_own(tmp_path: Path) -> None:
    """AOTInductor compiles it for machines without Python."""
    layers = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    x = torch.randn(3, 8)
    program = surgery.apply(torch.export.export(layers, (x,)), "on Linear apply lora(2)", seed=0)
    with torch.no_grad():
        for value in surgery.trainable(program).values():
            value.normal_()
        adapted = program.module()(x)
        assert not torch.allclose(adapted, layers(x))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "adapted.pt2")
        )
        compiled = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(compiled(x), adapted)
