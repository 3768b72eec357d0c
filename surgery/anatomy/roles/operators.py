"""What the names of recorded functions mean for the features that pass them."""

from __future__ import annotations

from functools import cache


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@cache
def kind(name: str) -> str:
    """One name for a function, its method, its operator and its in-place form.

    Operators of ATen go by the name of their schema, without that of the overload.
    """
    name = name.partition(".")[0]
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if name == "rpow":
            return name
        if name[:1] in ("i", "r") and name[1:] in _OPERATORS:
            name = name[1:]
    elif name.endswith("_"):
        name = name.rstrip("_")
    return _SYNONYMS.get(name, name)


_OPERATORS = _names("add sub mul truediv matmul pow")
_SYNONYMS = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "grouped_mm_fallback": "grouped_mm",
    "_grouped_mm": "grouped_mm",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "special_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "special_log_softmax": "log_softmax",
    "special_logsumexp": "logsumexp",
    "special_exp2": "exp2",
    "float_power": "pow",
    "_to_copy": "to",
    "_unsafe_view": "view",
    "lift_fresh_copy": "clone",
    "numpy_T": "T",
    "index_put": "setitem",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_group_norm": "group_norm",
    "_fused_rms_norm": "rms_norm",
    "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "swapdims": "transpose",
}

RESHAPES = _names("""
    view reshape transpose permute contiguous flatten unflatten unsqueeze squeeze to type float
    half bfloat16 double clone detach alias movedim moveaxis T mT H t view_as reshape_as type_as
    dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout requires_grad data identity
    """)
"""The same elements, elsewhere: what comes out is what went in."""

SELECTIONS = _names("""
    getitem slice index split chunk unbind tensor_split split_with_sizes narrow select index_select expand
    expand_as repeat repeat_interleave broadcast_to tile roll gather unfold masked_select
    """)
"""A part of the elements, or more of the same."""

PASSIVE = RESHAPES | SELECTIONS

BLANKS = _names("""
    zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full
    new_empty
    """)
"""Of a tensor they are given they take the shape alone."""

ACTIVATIONS = _names("""
    relu relu6 gelu silu sigmoid tanh erf leaky_relu elu selu celu softplus mish hardswish
    hardsigmoid prelu rrelu glu logsigmoid softsign hardtanh hardshrink softshrink tanhshrink
    threshold special_erf erfc sin swish
    """)

BENDS = ACTIVATIONS | frozenset(("exp", "expm1", "log1p"))
"""What makes a nonlinearity: an activation, or what one is written out with."""

ARITHMETIC = _names("""
    add sub rsub mul div pow neg maximum minimum where masked_fill clamp clamp_min clamp_max exp
    square sqrt rsqrt abs reciprocal lerp addcmul addcdiv log log1p expm1 sign max min nan_to_num
    exp2 rpow rdiv
    """)

POINTWISE = ACTIVATIONS | ARITHMETIC

NORMS = _names("""
    layer_norm rms_norm batch_norm group_norm instance_norm native_layer_norm sync_batch_norm
    """)

STATISTICS = _names("mean var var_mean std norm vector_norm linalg_vector_norm linalg_norm sum")

CONVOLUTIONS = _names("""
    conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
    """)

CHANNELS_FIRST = CONVOLUTIONS | _names("""
    batch_norm group_norm instance_norm max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d interpolate pixel_shuffle pixel_unshuffle upsample
    local_response_norm lp_pool2d boolean_dispatch _max_pool2d sync_batch_norm grid_sample
    """)

PRODUCTS = _names("matmul mm bmm baddbmm addbmm addmm einsum tensordot mv")
"""Products that may be between activations; `linear` and convolutions always have a weight."""

WEIGHTED = PRODUCTS | CONVOLUTIONS | frozenset(("linear", "grouped_mm"))

ATTENTIONS = _names("scaled_dot_product_attention flex_attention attention_interface")
WHOLE_ATTENTIONS = frozenset(("multi_head_attention_forward",))
"""Functions that project, attend and project again, all in one."""
