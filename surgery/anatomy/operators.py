"""What kinds of operator there are, by the names of the functions that PyTorch calls them by."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "linear",
    "conv",
    "core",
    "norm",
    "batch_norm",
    "activation",
    "softmax",
    "embedding",
    "add",
    "mul",
    "div",
    "shape",
    "choice",
    "mixing",
    "product",
    "other",
]

MULTI_HEAD = "multi_head_attention_forward"
SDPA = "scaled_dot_product_attention"

PRODUCTS = frozenset(
    "linear matmul rmatmul mm bmm addmm baddbmm einsum tensordot grouped_mm scaled_mm inner".split()
)
CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())
NORMS = frozenset(
    "layer_norm rms_norm group_norm instance_norm native_layer_norm local_response_norm".split()
)

_KINDS: dict[str, Kind] = {}


def _kind(kind: Kind, names: str) -> None:
    _KINDS.update(dict.fromkeys(names.split(), kind))


_kind("core", f"{SDPA} {MULTI_HEAD}")
_kind("conv", "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d unfold")
_kind("norm", " ".join(NORMS))
_kind("batch_norm", "batch_norm")
_kind("softmax", "softmax log_softmax")
_kind("embedding", "embedding embedding_bag")
_kind("add", "add iadd radd sub isub rsub")
_kind("mul", "mul imul rmul multiply")
_kind("div", "div truediv itruediv rtruediv")
_kind("choice", "topk argmax max")
_kind(
    "activation",
    "relu relu6 gelu silu sigmoid tanh elu selu celu leaky_relu mish softplus hardswish hardtanh "
    "hardsigmoid logsigmoid softsign prelu rrelu erf glu threshold hardshrink square pow",
)
_kind(
    "mixing",
    "cumsum cumprod logcumsumexp flip exp rnn_tanh lstm gru fft_fft fft_fftn fft_rfft fft_rfft2 "
    "conv_transpose1d associative_scan",
)
_kind(
    "shape",
    "view reshape transpose permute contiguous to type type_as float half bfloat16 double clone "
    "detach alias unsqueeze squeeze flatten unflatten t T mT H mH adjoint expand expand_as "
    "getitem chunk split tensor_split unbind narrow select dropout feature_dropout repeat "
    "repeat_interleave movedim swapaxes swapdims moveaxis view_as reshape_as slice dequantize "
    "requires_grad data alpha_dropout dropout1d dropout2d index_select",
)

SAME = frozenset(
    "contiguous to type type_as float half bfloat16 double clone detach alias dropout dropout1d "
    "dropout2d feature_dropout alpha_dropout data requires_grad".split()
)
"""Functions whose result is their input, up to precision and memory layout."""


def plain(name: str) -> str:
    """`__iadd__`, `add_` and `_grouped_mm` without their decoration."""
    return name.strip("_")


def kind_of(name: str) -> Kind:
    """The kind of a function; products and convolutions need a look at their operands, too."""
    name = plain(name)
    return "product" if name in PRODUCTS else _KINDS.get(name, "other")
