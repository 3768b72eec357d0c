"""The file of a saved adaptation: its schema, and reading one with nothing taken on trust.

`docs/file-format.md` describes it. A change of what it means is a new :data:`VERSION`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from surgery.graft.tensor_file import write_tensors
from surgery.language.diagnostics import error
from surgery.language.writing import checked_path
from surgery.planning.facts import canonical
from surgery.planning.fingerprint import content_digests, dtype_name
from surgery.planning.schema import ANY, Each, MalformedError, Maybe, check, read_json
from surgery.planning.spec import TEXTS

# safetensors has no types of its own.
open_safetensors: Any = safe_open

FILE = "adapter.safetensors"
KEY = "surgery"
CHECKSUM = "surgery.sha256"
VERSION = 2

_TENSOR = {"dtype": str, "shape": [int], "digest": Maybe(str)}
_METHOD = {
    "statement": int,
    "site": str,
    "name": str,
    "method": str,
    "operator": str,
    "sizes": Each(int),
    "module": str,
    "from": str,
    "to": str,
    "rows": Maybe({"of": int, "blocks": [int]}),
    "folded": bool,
    "tensors": [{"name": str, "shape": [int], "trained": bool, "stored": str}],
}
_APPLIED = {
    "spec": TEXTS,
    "seed": int,
    "methods": [_METHOD],
    "gone": [{"site": str, "name": str}],
    "trained": [str],
    "frozen": [str],
}
SCHEMA = {
    "version": int,
    "base": {"parameters": Each(_TENSOR), "buffers": Each(_TENSOR)},
    "applied": [_APPLIED],
    "tensors": Each(_TENSOR),
}


@dataclass(frozen=True)
class AdapterFile:
    """What a file holds: ``content`` as of :data:`SCHEMA`, and the tensors that it lists."""

    path: Path
    content: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def adapter_path(path: str | os.PathLike[str], code: str = "S509") -> Path:
    """The file that ``path`` means: itself if it ends in `.safetensors`, else one inside it."""
    target = Path(checked_path(path, code))
    return target if target.suffix == ".safetensors" else target / FILE


def facts_of(tensor: Tensor, digest: str | None) -> dict[str, Any]:
    """A tensor as the schema has it."""
    return {"dtype": dtype_name(tensor), "shape": [*tensor.shape], "digest": digest}


def write_adapter(
    file: BinaryIO, base: Any, applied: list[dict[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    """Write an adaptation with its checksum.

    Raises:
        SurgeryError: S535 if what would be written could not be read again.

    """
    sums = content_digests(tensors)
    content = {
        "version": VERSION,
        "base": base,
        "applied": applied,
        "tensors": {name: facts_of(t, sums[name]) for name, t in tensors.items()},
    }
    try:
        check(content, SCHEMA)
    except MalformedError as problem:
        raise error("S535", f"this could not be loaded again: {problem}") from None
    text = canonical(content)
    metadata = {"format": "pt", KEY: text, CHECKSUM: _checksum(text)}
    write_tensors(file, tensors, metadata)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read a saved adaptation, and hold all of it against its checksums.

    Raises:
        SurgeryError: S514 if it is none, is damaged, or is of another version of the format.

    """
    target = adapter_path(path, "S514")
    try:
        # Opening a pipe would wait for who writes to it.
        if not stat.S_ISREG(target.stat().st_mode):
            raise MalformedError("it is no regular file")
        with open_safetensors(target, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            content = _content(metadata)
            _check_header(file, content["tensors"])
            # What is read is mapped from the file; whoever writes to that must not change it.
            tensors: dict[str, Tensor] = {n: file.get_tensor(n).clone() for n in content["tensors"]}
        _check_tensors(tensors, content["tensors"])
    except (OSError, SafetensorError, MalformedError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise error("S514", f"cannot read `{target}`: {reason or problem}") from None
    return AdapterFile(target, content, tensors)


def _content(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    if KEY not in metadata:
        raise MalformedError("it was not saved by surgery: it carries no spec")
    text = metadata[KEY]
    content = read_json(text, Each(ANY))
    check(content.get("version"), int, ("version",))
    version: int = content["version"]
    if version < VERSION:
        raise MalformedError(
            f"it is of version {version} of the format, and this reads {VERSION}: apply its spec and "
            "train again, or merge it with the release that wrote it"
        )
    if version > VERSION:
        raise MalformedError(
            f"it is of version {version} of the format, and this reads {VERSION}: a newer release "
            "of surgery reads it"
        )
    if metadata.get(CHECKSUM) != _checksum(text):
        raise MalformedError("it is damaged: what describes it has another checksum")
    check(content, SCHEMA)
    return content


def _check_header(file: Any, listed: Mapping[str, Any]) -> None:
    """Before anything is read: the file has just the tensors that it lists, in these shapes."""
    there = set[str](file.keys())
    for name in there ^ listed.keys():
        how = "it does not list" if name in there else "is missing"
        text = f"it holds `{name}`, which {how}" if name in there else f"its `{name}` {how}"
        raise MalformedError(f"it is damaged: {text}")
    for name, facts in listed.items():
        shape = file.get_slice(name).get_shape()
        if list(shape) != facts["shape"]:
            raise MalformedError(
                f"it is damaged: its `{name}` is {list(shape)}, and it says {facts['shape']}"
            )


def _check_tensors(tensors: Mapping[str, Tensor], listed: Mapping[str, Any]) -> None:
    for name, digest in content_digests(tensors).items():
        facts = listed[name]
        if facts["dtype"] != dtype_name(tensors[name]) or facts["digest"] != digest:
            raise MalformedError(f"it is damaged: its `{name}` has another checksum")
