"""Who attends to an encoder's states, and whether nothing else is made of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from torch.fx import Node

from surgery.anatomy.dims import TURNED
from surgery.anatomy.graph import Key, ModuleCall, index_of, outputs_of, shape_of
from surgery.anatomy.roles.flow import Flow
from surgery.anatomy.site import Memory
from surgery.huggingface.names import MEMORY_MASKS


def memory_of(
    flow: Flow,
    encoder: ModuleCall,
    last: Node,
    returned: tuple[Key, Node],
    mask: Node | None,
    decoders: Iterable[ModuleCall],
) -> Memory | None:
    """The memory that the states are which ``encoder`` has ``returned``, or None.

    It is none where something picks or pools among the states before the decoder, or among what the
    encoder makes of ``last``, which left its layers, on the way to what it returns: more states
    would change that. ``mask`` is what the encoder was given.
    """
    index, states = returned
    for decoder in decoders:
        if decoder.first <= encoder.last:
            continue
        reader = _beside(flow, encoder, decoder)
        given = _given(flow, reader, states)
        if given is None or reader.virtual or encoder.virtual:
            continue
        around = flow.recording.calls[reader.parent]
        apart = not _kept(flow, encoder, last, states)
        if apart and flow.same(last) != flow.same(states):
            continue
        if _only_read(flow, around, encoder, reader, states):
            masked = _mask(flow, reader, mask)
            return Memory(around.path, reader.path, given, masked, index, apart)
    return None


def _beside(flow: Flow, encoder: ModuleCall, decoder: ModuleCall) -> ModuleCall:
    """The outermost call with ``decoder`` in it and ``encoder`` not."""
    around = {call.number for call in flow.recording.stack(encoder.number)}
    return next(call for call in flow.recording.stack(decoder.number) if call.parent in around)


def _given(flow: Flow, reader: ModuleCall, states: Node) -> str | None:
    """The argument of ``reader`` with the states, or with what a projection made of each."""
    for name, values in reader.inputs.items():
        for key, value in values:
            alike = flow.dims.alike(value, states)
            if key is None and alike and flow.is_hidden(value) and flow.depends(value, states):
                return name
    return None


def _mask(flow: Flow, reader: ModuleCall, mask: Node | None) -> str | None:
    for name, values in reader.inputs.items():
        for key, value in values:
            if key is None and mask is not None and flow.same(value) == flow.same(mask):
                return name
    accepted = inspect.signature(flow.paths.modules[reader.path].forward).parameters
    return next((name for name in MEMORY_MASKS if name in accepted), None)


def _kept(flow: Flow, encoder: ModuleCall, last: Node, states: Node) -> bool:
    """Whether what ``encoder`` makes of ``last``, behind its layers, has a place for each token."""

    def outside(op: Node) -> bool:
        return not encoder.first <= index_of(op) <= encoder.last

    ops = flow.forward(last, outside)
    return all(outside(op) or _all_alike(flow, op, states) for op in ops)


def _only_read(
    flow: Flow, around: ModuleCall, encoder: ModuleCall, reader: ModuleCall, states: Node
) -> bool:
    """Whether nothing but ``reader`` does more with ``states`` than map each of them."""

    def inside(op: Node) -> bool:
        return any(call.first <= index_of(op) <= call.last for call in (encoder, reader))

    made = [op for op in flow.forward(states, inside) if not inside(op)]
    values = {value for op in made for value in outputs_of(op)}
    handed = {v for _, v in around.outputs if v in values and flow.same(v) != flow.same(states)}
    return not handed and all(_all_alike(flow, op, states) for op in made)


def _all_alike(flow: Flow, op: Node, states: Node) -> bool:
    return all(_alike(flow, value, states) for value in outputs_of(op))


def _alike(flow: Flow, value: Node, states: Node) -> bool:
    """Whether ``value`` has the batch and the length of ``states``, in one order or the other."""
    dims = flow.dims
    either = dims.alike(value, states) or dims.alike(value, states, TURNED)
    return either and len(shape_of(value)) > 2
