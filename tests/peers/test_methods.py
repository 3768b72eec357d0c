"""The rows of `methods.py`: the same weights elsewhere and here give the same numbers.

Outputs, the gradients of the input and of every parameter, and the merged weight and bias are
compared with values that are none of a start; the largest difference is what a row is worth.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.rules.library import prelude
from surgery.rules.standalone import check_method
from surgery.rules.values import Declaration
from tests.models import randomise
from tests.peers.methods import PEERS, PLAIN, WITHOUT, Peer, Plain, Source

pytestmark = pytest.mark.filterwarnings("ignore")
WORST = {torch.float64: 1e-11, torch.float32: 2e-5}


class Holder(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def _conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(8, 12)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(12, 8), lambda: torch.randn(2, 5, 12)),
    "no bias": (lambda: nn.Linear(12, 8, bias=False), lambda: torch.randn(4, 12)),
    "square": (lambda: nn.Linear(8, 8), lambda: torch.randn(2, 5, 8)),
    "tall": (lambda: nn.Linear(8, 12), lambda: torch.randn(3, 8)),
    "conv1d": (_conv1d, lambda: torch.randn(2, 5, 12)),
    "conv2d": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
        lambda: torch.randn(2, 4, 7, 7),
    ),
    "conv3d": (
        lambda: nn.Conv3d(2, 6, (1, 2, 3), padding=1),
        lambda: torch.randn(2, 2, 4, 5, 6),
    ),
    "1d convolution": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, bias=False),
        lambda: torch.randn(2, 4, 9),
    ),
    "embedding": (lambda: nn.Embedding(11, 8), lambda: torch.randint(0, 11, (2, 5))),
}


def base_of(layer: str, dtype: torch.dtype) -> tuple[Holder, Tensor]:
    make, draw = LAYERS[layer]
    torch.manual_seed(0)
    x = draw()
    model = randomise(Holder(make()), 1).to(dtype).eval()
    return model, x.to(dtype).requires_grad_() if x.is_floating_point() else x


def adapted(base: Holder, spec: str) -> tuple[Holder, dict[str, Tensor]]:
    """Our model, and the parameters of its one method by the names in the rule."""
    ours = surgery.apply(copy.deepcopy(base), f"on `layer` apply {spec} as it", seed=0).eval()
    return ours, dict(ours.get_submodule("layer.it").named_parameters())


def difference(left: Tensor, right: Tensor) -> float:
    """The largest, relative to the largest value."""
    assert left.shape == right.shape
    assert left.isfinite().all()
    scale = max(1.0, float(right.detach().abs().max()))
    return float((left.detach().double() - right.detach().double()).abs().max()) / scale


def read(layer: Any, source: Source, gradient: bool = False) -> Tensor:
    if isinstance(source, tuple):
        source = source[gradient]
    if not isinstance(source, str):
        return source(layer)
    for name in source.split("."):
        layer = layer[name] if name == "default" else getattr(layer, name)
    return layer


def gradients(layer: Any) -> Any:
    """A copy of a layer with each parameter replaced by its gradient."""
    twin = copy.deepcopy(layer)
    for new, old in zip(twin.parameters(), layer.parameters(), strict=True):
        new.data = torch.zeros_like(old) if old.grad is None else old.grad.clone()
    return twin


def beside_peft(row: Peer, layer: str) -> Mapping[str, float]:
    """The differences between a row's two sides: outputs, gradients and what is merged."""
    base, x = base_of(layer, row.dtype)
    config = getattr(peft, row.tuner)(target_modules=["layer"], **row.settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(base), config).to(row.dtype).eval()
    peer = theirs.base_model.model.layer
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "base_layer" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    ours, parameters = adapted(base, row.spec)
    assert set(parameters) == {*row.names, *row.kept}
    with torch.no_grad():
        for name, source in row.names.items():
            parameters[name].copy_(read(peer, source).reshape(parameters[name].shape))
    left, right = ours(x), theirs(x)
    weights = torch.randn(left.shape, dtype=row.dtype)
    found = {"outputs": difference(left, right)}
    (left * weights).sum().backward()
    from_ours, x.grad = x.grad, None
    (right * weights).sum().backward()
    if from_ours is not None and x.grad is not None:
        found["gradient of x"] = difference(from_ours, x.grad)
    moved = gradients(peer)
    for name, parameter in parameters.items():
        if parameter.requires_grad and name not in row.ungraded:
            assert parameter.grad is not None
            theirs_ = read(moved, row.names[name], gradient=True).reshape(parameter.shape)
            found[f"gradient of {name}"] = difference(parameter.grad, theirs_)
    merged = theirs.merge_and_unload()
    surgery.merge(ours)
    found["merged"] = difference(ours.layer.weight, merged.layer.weight)
    found["outputs when merged"] = difference(ours(x), right)
    return found


def beside_equation(row: Plain, layer: str) -> Mapping[str, float]:
    base, x = base_of(layer, torch.float64)
    ours, parameters = adapted(base, row.spec)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape) * 0.5)
    twins = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
    left = ours(x)
    right = row.equation(x, base.layer.weight, base.layer.bias, **twins)
    weights = torch.randn(left.shape, dtype=left.dtype)
    found = {"outputs": difference(left, right)}
    trained = [n for n, p in parameters.items() if p.requires_grad]
    sides = [
        torch.autograd.grad((value * weights).sum(), [x, *(of[n] for n in trained)])
        for value, of in ((left, parameters), (right, twins))
    ]
    for name, one, other in zip(["x", *trained], *sides, strict=True):
        found[f"gradient of {name}"] = difference(one, other)
    if row.merges:
        surgery.merge(ours)
        found["outputs when merged"] = difference(ours(x), left)
    return found


def cases(rows: tuple[Any, ...]) -> Any:
    pairs = [(row, layer) for row in rows for layer in row.layers]
    return pytest.mark.parametrize(
        ("row", "layer"), pairs, ids=[f"{row.spec} on {layer}" for row, layer in pairs]
    )


@cases(PEERS)
def test_beside_peft(row: Peer, layer: str) -> None:
    found = beside_peft(row, layer)
    assert max(found.values()) < WORST[row.dtype], found


@cases(PLAIN)
def test_beside_its_equation(row: Plain, layer: str) -> None:
    found = beside_equation(row, layer)
    assert max(found.values()) < WORST[torch.float64], found


def of_linear_layers() -> dict[str, tuple[Declaration, ...]]:
    """The methods of the prelude that match `linear` and are no verbs, with their parameters."""
    library = prelude()
    found: dict[str, tuple[Declaration, ...]] = {}
    for name in library.names():
        definition = library.find(name)
        assert definition is not None
        if hasattr(definition.syntax, "input"):
            continue
        facts = check_method(definition)
        if facts.program.signature.kind == "linear" and not facts.is_verb:
            found[name] = facts.program.params
    return found


def test_every_method_of_linear_layers_has_a_row() -> None:
    rows = [row.spec.partition("(")[0] for row in (*PEERS, *PLAIN)]
    assert set(of_linear_layers()) <= set(rows)


def test_every_tuner_of_peft_has_a_row_or_a_reason() -> None:
    tuners = {row.tuner for row in PEERS}
    known = {config.__name__ for config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    assert known == tuners | set(WITHOUT)
    assert not tuners & set(WITHOUT)
