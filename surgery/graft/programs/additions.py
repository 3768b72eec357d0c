"""Where the parameters that a program has got stand among its inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.export.graph_signature import InputKind

from surgery.graft.programs.source import Source


def additions(model: nn.Module, source: Source) -> dict[str | None, list[tuple[str, nn.Parameter]]]:
    """Added parameters by the placeholder of the last parameter in the module that they are on."""
    own = [s for s in source.inputs if s.kind is InputKind.PARAMETER]
    found: dict[str | None, list[tuple[int, str, nn.Parameter]]] = {}
    for name, parameter in _added(model, source):
        owner = name.rpartition(".")[0]
        while owner and not any(str(s.target).startswith(f"{owner}.") for s in own):
            owner = owner.rpartition(".")[0]
        inside = [s for s in own if not owner or str(s.target).startswith(f"{owner}.")]
        anchor = inside[-1].arg.name if inside else None
        found.setdefault(anchor, []).append((-len(owner), name, parameter))
    return {
        anchor: [(n, p) for _, n, p in sorted(items, key=lambda item: item[0])]
        for anchor, items in found.items()
    }


def _added(model: nn.Module, source: Source) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the model that the base lacks, by name, shared ones once."""
    for name, parameter in model.named_parameters():
        if name not in source.tensors:
            yield name, parameter
