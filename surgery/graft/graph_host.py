"""The traced host: grafts as nodes in the graph of an `fx.GraphModule`.

Methods at a leaf are emitted behind its call; methods at a module that tracing flattened, or at a
region, between the nodes that came from it. The original graph is kept, and comes back whole.
"""

from __future__ import annotations

from torch import fx, nn

from surgery.anatomy.lift import frames
from surgery.graft.completing import HOOKS, ORIGINAL, Completing
from surgery.graft.graph_writer import GraphWriter
from surgery.graft.graphs.passes import optimise
from surgery.graft.sites import sites_of
from surgery.graft.state import Surgery
from surgery.graft.weights.effective_nodes import FUNCTION


def install(model: nn.Module, surgery: Surgery) -> None:
    """Rewrite the graph of ``model`` to what ``surgery`` records; parameters are in place."""
    assert isinstance(model, fx.GraphModule)
    original = model.graph
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(original, mapping)
    graph.output(result)
    # Of a program's module: what it takes and gives are trees, of which the graph has the leaves.
    graph.set_codegen(original._codegen)  # pyright: ignore[reportPrivateUsage]
    flattened = frames(model)
    stack_of = {mapping[node]: path for node, path in flattened.items() if node in mapping}
    writer = GraphWriter(model, graph, stack_of)
    sites = sites_of(surgery).values()
    for site in sorted(sites, key=lambda s: (not s.is_own, -s.first.site.name.count("."))):
        writer.write(site)
    optimise(graph, writer.added)
    model.__dict__[ORIGINAL] = original
    model.__dict__[HOOKS] = [*model.__dict__.get(HOOKS, []), Completing(model)]
    model.graph = graph
    graph.eliminate_dead_code()
    model.recompile()


def uninstall(model: nn.Module) -> None:
    """Give ``model`` its own graph back; parameters that were added stay where they are."""
    assert isinstance(model, fx.GraphModule)
    original = model.__dict__.pop(ORIGINAL, None)
    if original is None:
        return
    for name in [n for n in model._modules if n.startswith(FUNCTION)]:
        del model._modules[name]
    model.graph = original
    hooks = [h for h in model.__dict__.pop(HOOKS, []) if not isinstance(h, Completing)]
    if hooks:
        model.__dict__[HOOKS] = hooks
