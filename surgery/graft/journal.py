"""What parameters were before they were written in place, so that it can be put back to the bit."""

from __future__ import annotations

from tempfile import SpooledTemporaryFile
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surgery.anatomy.content import bytes_of

IN_MEMORY = 2**24
"""Bytes of them that are kept in memory; what is more goes to a temporary file."""


class _Copy(NamedTuple):
    """Where the numbers of a parameter are in the file; or a tensor of them, if they are not there."""

    parameter: nn.Parameter
    start: int
    tensor: Tensor | None


class Journal:
    """The numbers of parameters, in the order in which they were kept.

    A merge rewrites most of a model, and nearly always succeeds: a copy in memory would take as
    much again for nothing.
    """

    file: SpooledTemporaryFile[bytes] | None = None

    def __init__(self) -> None:
        self.copies: list[_Copy] = []
        self.size = 0

    def keep(self, parameter: nn.Parameter) -> None:
        """Remember the numbers that ``parameter`` has now."""
        tensor = None if self._written(parameter) else parameter.detach().clone()
        self.copies.append(_Copy(parameter, self.size, tensor))
        self.size += 0 if tensor is not None else parameter.nbytes

    def _written(self, parameter: nn.Parameter) -> bool:
        """Whether the numbers could be put at the end of the file."""
        if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided:
            return False
        if parameter.is_meta:
            return False
        if self.file is None:
            self.file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        try:
            self.file.seek(self.size)
            self.file.write(bytes_of(parameter))
        except OSError:  # no room
            return False
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """Write back what was kept, the last first."""
        for parameter, start, tensor in reversed(self.copies):
            parameter.copy_(self._read(parameter, start) if tensor is None else tensor)

    def _read(self, parameter: nn.Parameter, start: int) -> Tensor:
        assert self.file is not None
        if not parameter.nbytes:
            return parameter
        self.file.seek(start)
        content = bytearray(self.file.read(parameter.nbytes))
        return torch.frombuffer(content, dtype=torch.uint8).view(parameter.dtype).view_as(parameter)

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()
