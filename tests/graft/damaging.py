"""Taking saved adapters apart and putting them together again, damaged; and all that a model is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import surgery
from surgery.graft.first import first_values
from surgery.graft.state import surgery_of
from surgery.graft.tensor_file import write_tensors


@dataclass
class Parts:
    """A saved adapter as `docs/file-format.md` has it."""

    content: Any
    tensors: dict[str, Tensor]

    def write(self, path: Path, checksum: str | None = None, listed: bool = True) -> None:
        """Write a file with right checksums, but for one that is given.

        ``listed`` says whether the content lists the tensors as they are, or stays as it was.
        """
        if listed and isinstance(self.content, dict):
            self.content["tensors"] = {
                name: {
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": [*tensor.shape],
                    "digest": hashlib.sha256(raw(tensor)).hexdigest()[:32],
                }
                for name, tensor in self.tensors.items()
            }
        write_text(path, json.dumps(self.content), self.tensors, checksum)


def write_text(
    path: Path, text: str, tensors: dict[str, Tensor], checksum: str | None = None
) -> None:
    """Write a file whose content is ``text``, with the checksum of that or the one given."""
    right = hashlib.sha256(text.encode()).hexdigest()
    metadata = {"format": "pt", "surgery": text, "surgery.sha256": checksum or right}
    with path.open("wb") as file:
        write_tensors(file, tensors, metadata)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def parts(path: Path) -> Parts:
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["surgery"])
        return Parts(content, {name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118


def state(model: nn.Module) -> Any:
    """All of a model that loading could change: bits, flags, classes, records; and the generator."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    record = surgery_of(model)
    firsts = [
        (id(m), {n: raw(f.value) for n, f in held.values.items()})
        for m, held in first_values(model)
    ]
    return (
        {n: (id(t), t.dtype, t.requires_grad, raw(t.detach())) for n, t in tensors.items()},
        [(n, id(m), type(m), sorted(m.__dict__)) for n, m in model.named_modules()],
        record and [(id(a.plan), [id(e) for e in a.edits], a.seed) for a in record.applied],
        record and dict(record.flags),
        firsts,
        raw(torch.get_rng_state()),
    )


def refusal(load: Callable[[], object]) -> surgery.SurgeryError | None:
    """The error that ``load`` gives, if any."""
    try:
        load()
    except surgery.SurgeryError as problem:
        return problem
    return None


def refused(load: Callable[[], object], model: nn.Module, code: str = "S51[456]") -> str:
    """Hold that ``load`` is refused with ``code`` and leaves ``model`` as it was; the message."""
    before = state(model)
    problem = refusal(load)
    assert problem is not None, "it was loaded"
    assert all(re.fullmatch(code, d.code) for d in problem.diagnostics), f"{problem}"
    assert state(model) == before, f"a failed load changed the model: {problem}"
    return str(problem)
