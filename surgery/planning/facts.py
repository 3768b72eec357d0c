"""What a plan does as plain facts: what a saved adapter keeps of it, and a fingerprint is made of.

Nothing here depends on how this package holds a plan, so that files outlast its classes. The facts
are described in `docs/file-format.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgery.anatomy.site import Port, Tokens
from surgery.planning.edit import Edit, Tensor

Facts = Mapping[str, Any]


def canonical(data: Any) -> str:
    """``data`` as JSON in the one way that digests are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def method_facts(edit: Edit) -> dict[str, Any]:
    """One method at one site, as files keep it.

    None of it depends on what else is applied at the site, so that it comes out the same beside
    other adaptations.
    """
    site, method = edit.site, edit.method
    rows = site.rows
    return {
        "statement": method.statement,
        "site": site.name,
        "name": method.child,
        "method": method.text,
        "operator": edit.signature.kind,
        "sizes": dict(edit.sizes),
        "module": edit.owner,
        "from": site.entry.path,
        "to": site.exit.path,
        "rows": None if rows is None else {"of": rows.total, "blocks": list(rows.layout)},
        "folded": method.folded,
        "tensors": [tensor_facts(t) for t in edit.tensors],
    }


def tensor_facts(tensor: Tensor) -> dict[str, Any]:
    """A parameter that a method has, by the name that it has at its own site."""
    return {"name": tensor.name, "shape": list(tensor.shape), "trained": tensor.trained}


def plan_facts(
    base: str, edits: Iterable[Edit], trained: Iterable[str], frozen: Iterable[str]
) -> dict[str, Any]:
    """All that a plan does; how attention is computed is not part of it."""
    methods = [{**method_facts(e), **_running(e)} for e in edits]
    return {"base": base, "methods": methods, "trained": list(trained), "frozen": list(frozen)}


def _running(edit: Edit) -> dict[str, Any]:
    """How a method is computed, beside what its site is."""
    site, core, states = edit.site, edit.core, edit.site.states
    tokens = site.operator if isinstance(site.operator, Tokens) else None
    ports = {
        "from": site.entry,
        "to": site.exit,
        "residual": edit.residual,
        "mask": states.mask,
        "sequences": states.sequences,
        "tokens": tokens and tokens.exit,
    }
    return {
        "formula": edit.derived.formula,
        "starts": [{"as": t.init, "dtype": t.dtype, "shared": t.shared} for t in edit.tensors],
        "identity": edit.derived.identity,
        "ports": {name: port and _port(port) for name, port in ports.items()},
        "norm": edit.norm,
        "attention": None if core is None else {"module": core.path, "heads_at": core.heads_at},
        "reader": tokens and tokens.reader,
        "features": states.features,
        "rank": states.rank,
        "length_first": states.length_first,
    }


def _port(port: Port) -> list[str | int | None]:
    return [port.path, port.side, port.argument, port.index]


def first_difference(saved: Iterable[Facts], now: Iterable[Facts]) -> str | None:
    """In words, the first fact in which the methods of a file and of a plan differ, if any."""
    was, found = ({(f["site"], f["name"]): f for f in facts} for facts in (saved, now))
    for site, name in was:
        if (site, name) not in found:
            return f"the file has `{name}` at `{site}`, and its spec puts none there now"
    for site, name in found:
        if (site, name) not in was:
            return f"its spec puts `{name}` at `{site}` now, and the file has none there"
    for (site, name), facts in was.items():
        other = found[site, name]
        for key, value in facts.items():
            if value != other[key]:
                return f"`{name}` at `{site}` has other {key}: {_change(value, other[key])}"
    return None


def _change(was: Any, now: Any) -> str:
    pair = _first_pair(was, now) if all(isinstance(x, list) for x in (was, now)) else (was, now)
    shown = [canonical(x) for x in pair]
    short = [text if len(text) <= 120 else f"{text[:117]}…" for text in shown]
    return f"{short[0]} in the file, {short[1]} now"


def _first_pair(was: Sequence[Any], now: Sequence[Any]) -> tuple[Any, Any]:
    """The first of two lists that differ, or how many there are."""
    pairs = zip(was, now, strict=False)
    return next(((a, b) for a, b in pairs if a != b), (len(was), len(now)))
