"""One spec tried on one model: what all promises need at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgery.graft.apply import apply_spec
from surgery.planning.edit import Edit
from surgery.planning.plan import Plan
from surgery.promises.keeping import checksums
from surgery.promises.running import Output, Runner, same_bits

TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""How far a merged model may be from the adapted one, as a part of its largest output."""

NOISE = 0.05


@dataclass
class BaseRun:
    """What is known of the model before anything is applied."""

    keys: tuple[str, ...]
    sums: Mapping[str, str]
    classes: Mapping[str, type]
    flags: Mapping[str, bool]
    output: Output
    repeats: bool
    """Whether two runs of the base give the same bits."""


def base_of(run: Runner) -> BaseRun:
    """Read and run the base."""
    model = run.model
    output = run()
    untyped: Any = model
    modules: list[tuple[str, nn.Module]] = list(untyped.named_modules())
    return BaseRun(
        tuple(model.state_dict()),
        checksums(model),
        {path: type(module) for path, module in modules},
        {n: p.requires_grad for n, p in model.named_parameters()},
        output,
        same_bits(run(), output),
    )


@dataclass
class Trial:
    """An applied plan; ``parameters`` are those it added, by name, shared ones once.

    ``options`` are what the spec is applied with, again and again: inputs, seed and tokenizer.
    """

    run: Runner
    base: BaseRun
    plan: Plan
    seed: int
    tolerance: float
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def apply(self) -> None:
        """Apply the spec once more."""
        apply_spec(self.model, self.plan.spec, **self.options)

    @property
    def model(self) -> nn.Module:
        return self.run.model

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.parameters_of(self.plan.edits)

    @property
    def moving(self) -> dict[str, nn.Parameter]:
        """Those, and the base's own that the spec trains."""
        own = dict(self.model.named_parameters())
        return {**self.parameters, **{n: own[n] for n in self.plan.trained}}

    def parameters_of(self, edits: Iterable[Edit]) -> dict[str, nn.Parameter]:
        """The parameters that some edits hold."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for edit in edits:
            for tensor in edit.tensors:
                if tensor.state:
                    continue
                parameter = self.model.get_parameter(tensor.name)
                found.setdefault(id(parameter), (tensor.name, parameter))
        return dict(found.values())

    @property
    def statements(self) -> dict[tuple[int, str], list[Edit]]:
        """The edits by the statement and name that they came from."""
        groups: dict[tuple[int, str], list[Edit]] = {}
        for edit in self.plan.edits:
            groups.setdefault((edit.method.statement, edit.method.child), []).append(edit)
        return groups

    @torch.no_grad()
    def disturb(self, parameters: Mapping[str, nn.Parameter], stream: str) -> None:
        """Move every element away from where it starts, by noise that depends on its name."""
        for name, parameter in parameters.items():
            key = hashlib.blake2b(f"{self.seed}:{stream}:{name}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
            spread = float(parameter.double().std()) if parameter.numel() > 1 else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            # Never near zero: an element that stays where it was proves nothing.
            noise = (noise.abs() + 0.5) * noise.sign() * max(NOISE, 0.1 * spread)
            parameter.add_(noise.to(parameter.device, parameter.dtype))

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all parameters that a file would hold."""
        return {n: p.detach().clone() for n, p in self.moving.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Give those parameters values."""
        parameters = self.moving
        for name, value in values.items():
            parameters[name].copy_(value)


def tolerance_of(model: nn.Module) -> float:
    """The tolerance for the coarsest type among the parameters."""
    found = [TOLERANCES[p.dtype] for p in model.parameters() if p.dtype in TOLERANCES]
    return max(found, default=TOLERANCES[torch.float32])
