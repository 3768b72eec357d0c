"""Prompts in a graph: the graph itself reads the ids, so it is run on a sequence longer by the prompt.

Ids and all that has a value for each of them get room in front, the looked up states are filled with the
prompt there, and behind the last layer its places are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from surgery.anatomy.site import Port, Tokens
from surgery.graft.graphs.emit import Emitter
from surgery.graft.tokens.sequences import unused_id
from surgery.language.diagnostics import SurgeryError, error
from surgery.rules.prompts import TokenChange


def write_tokens(
    model: torch.nn.Module,
    tokens: Tokens,
    change: TokenChange,
    emitting: Callable[[fx.Node], Emitter],
    output: Callable[[Port], fx.Node],
) -> None:
    """Give the graph of ``model`` the prompt of ``change``.

    Args:
        model: the traced module; its graph has been copied, and ``emitting`` writes into the copy.
        tokens: the stack that the graph runs, which is given ids.
        change: what the methods make of its tokens.
        emitting: makes an emitter that writes behind a node.
        output: the node that leaves a module.

    Raises:
        SurgeryError: S445 if the graph cannot take the prompt, with the reason.

    """
    _check(tokens, change)
    assert tokens.exit is not None
    inner = output(Port(tokens.embedding, "output"))
    last = output(tokens.exit)
    inputs = {str(n.target): n for n in inner.graph.find_nodes(op="placeholder")}
    names = [name for name in (tokens.ids, tokens.mask, tokens.types) if name in inputs]
    if tokens.ids not in inputs:
        raise refused(f"`{tokens.ids}` is no input of it")
    n = change.joined
    fresh = unused_id(model, tokens)
    behind = list(inputs.values())[-1]
    for name in names:
        node, users = inputs[name], list(inputs[name].users)
        value = fresh if name == tokens.ids else 1 if name == tokens.mask else 0
        longer = emitting(behind).host.call(with_room, node, n, value)
        for user in users:
            user.replace_input_with(node, longer)
        behind = longer
    at, users = emitting(inner), list(inner.users)
    prompts = tuple(at.emit(prompt) for prompt in change.prompts)
    filled = at.host.call(with_prompt, inner, n, prompts)
    for user in users:
        user.replace_input_with(inner, filled)
    users = list(last.users)
    dropped = emitting(last).host.call(without_room, last, n)
    for user in users:
        user.replace_input_with(last, dropped)


def refused(how: str) -> SurgeryError:
    """The error for a graph that cannot take a prompt."""
    return error(
        "S445",
        f"no tokens can join those of this graph: {how}",
        help="apply the spec to the model itself, and export that",
    )


def _check(tokens: Tokens, change: TokenChange) -> None:
    if tokens.exit is None:
        raise refused("the states of its tokens do not leave it as such")
    if tokens.memory is not None and change.joined > change.unseen:
        raise refused("a decoder in it attends to them, with masks that are built into the graph")
    if change.places or change.shift:
        raise refused("filled places and shifted positions are set where a model is called")
    if tokens.length_first or tokens.causal or tokens.streams or tokens.positions:
        raise refused("its positions, or the axes of its tokens, are not followed in graphs")


def with_room(values: Tensor, count: int, value: int) -> Tensor:
    """Values [batch, length] with ``count`` more in front of each row."""
    return torch.cat([values.new_full((values.shape[0], count), value), values], 1)


def with_prompt(states: Tensor, count: int, prompts: tuple[Tensor, ...]) -> Tensor:
    """States [batch, length, features] whose first ``count`` are ``prompts``, each [n, features]."""
    rows = torch.cat(prompts).to(states.dtype)
    return torch.cat([rows.expand(states.shape[0], -1, -1), states[:, count:]], 1)


def without_room(states: Tensor, count: int) -> Tensor:
    """States without the first ``count`` of each sequence."""
    return states[:, count:]
