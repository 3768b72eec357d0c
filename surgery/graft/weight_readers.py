"""What reads a weight in a traced graph: the calls of its layer, and whatever else does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as functional
from torch import fx, nn

from surgery.anatomy.lift import ModuleRef
from surgery.language.diagnostics import SurgeryError, error
from surgery.layers import Layer
from surgery.planning.edit import Edit

_LINEAR = (functional.linear, torch.ops.aten.linear.default)


class WeightReaders:
    """Who reads the parameters of ``model`` in a ``graph`` of it that is being rewritten.

    ``stack_of`` tells which flattened modules each node came from, and ``added`` are the nodes that
    were put there.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        stack_of: Mapping[fx.Node, tuple[ModuleRef, ...]],
        added: set[fx.Node],
    ):
        self.names = dict(model.named_parameters(remove_duplicate=False))
        self.graph = graph
        self.stack_of = stack_of
        self.added = added

    def of_layer(self, edit: Edit, layer: Layer) -> tuple[list[fx.Node], list[fx.Node]]:
        """The nodes that run ``layer``: calls, or functions of its weight; and those that do else."""
        path = edit.site.exit.path
        calls: list[fx.Node] = []
        others: list[fx.Node] = []
        for node in self.graph.nodes:
            if node in self.added:
                continue
            if node.op == "call_module" and node.target == path and layer.weight == "weight":
                calls.append(node)
            elif node.op == "get_attr":
                users = self.users(node, f"{path}.{layer.weight}".lstrip("."))
                calls += filter(multiplies, users)
                others += (user for user in users if not multiplies(user))
        return calls, others

    def of(self, name: str) -> list[tuple[fx.Node, fx.Node]]:
        """Where the graph takes the parameter ``name``, with each node that reads it there."""
        taken = [n for n in self.graph.nodes if n.op == "get_attr" and n not in self.added]
        return [(node, user) for node in taken for user in self.users(node, name)]

    def users(self, attribute: fx.Node, name: str) -> list[fx.Node]:
        """The nodes of the model that read ``attribute`` as the parameter ``name``.

        Of a tied one each module reads what it has a name for itself.
        """
        return [
            user
            for user in attribute.users
            if user not in self.added and self._taken(attribute, user) == name
        ]

    def _taken(self, attribute: fx.Node, user: fx.Node) -> str:
        name = str(attribute.target)
        if name not in self.names:
            return name
        last = name.rpartition(".")[2]
        for frame in reversed(self.stack_of.get(user, ())):
            own = f"{frame.path}.{last}"
            if own in self.names and self.names[own] is self.names[name]:
                return own
        return name


def multiplies(node: fx.Node) -> bool:
    """Whether ``node`` gives x Wᵀ + b, with W its second argument and nothing else done to it."""
    return node.target in _LINEAR and isinstance(node.args[1], fx.Node)


def unreachable(edit: Edit, readers: list[fx.Node]) -> SurgeryError:
    """The error for a weight that none of its ``readers`` lets be changed as wanted."""
    if readers:
        name = getattr(readers[0].target, "__name__", str(readers[0].target))
        return error(
            "S417",
            f"in the graph the weight of `{edit.site.name}` goes into `{name}`, which does more than to "
            "multiply with it, so a method can only put another weight in its place",
            help="use a method that merges into the weight alone, without dropout: lora, dora, ia3; or "
            "apply the spec to the model itself, and torch.export that",
        )
    return error(
        "S417",
        f"in the graph nothing runs `{edit.site.name}`, and nothing reads its weight: a module that the "
        "graph runs whole may do so",
        help="apply the spec to the model itself, and torch.export that",
    )
