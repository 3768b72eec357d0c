"""Functions that generated forwards call. Kept at module level so that graphs pickle."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from surgery.graft.graphs.ordinary import is_transformed, runs_unseen
from surgery.language.diagnostics import error


def take(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    """The argument ``name`` of a call, by keyword or by position; None if it is not given."""
    if name in kwargs:
        return kwargs[name]
    return args[position] if position < len(args) else None


def put_args(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any
) -> Any:
    """Positional arguments with ``name`` replaced, if it was given by position."""
    return args if name in kwargs else (*args[:position], value, *args[position + 1 :])


def put_kwargs(kwargs: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Keyword arguments with ``name`` replaced, if it was given by keyword."""
    return {**kwargs, name: value} if name in kwargs else kwargs


def call_base(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the forward that ``module`` had before it was adapted."""
    cls: Any = type(module)
    return cls.surgery_base.forward(module, *args, **kwargs)


def first(output: Any, key: int | str) -> Any:
    """The hidden states in a tuple, mapping or dataclass output."""
    return output[key]


def with_first(output: Any, key: int | str, value: Any) -> Any:
    """``output`` with its hidden states replaced; its type stays."""
    if isinstance(key, int) and hasattr(output, "keys"):
        key = str([*output.keys()][key])
    if isinstance(key, str):
        changed = type(output)(**{**dict(output), key: value})
        return changed
    items: list[Any] = [*output[:key], value, *output[key + 1 :]]
    cls: Any = output.__class__
    if hasattr(cls, "_fields"):
        return cls(*items)
    return items if cls is list else tuple(items)


def transposed_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What transformers' `Conv1D` computes: x W + b, with W [m, n]."""
    rows = torch.addmm(bias, x.view(-1, x.size(-1)), weight)
    return rows.view(*x.shape[:-1], weight.shape[1])


def scale_rows(matrix: Tensor, factors: Tensor) -> Tensor:
    """diag(factors) @ matrix."""
    return matrix * factors.unsqueeze(1)


def row_norm(matrix: Tensor) -> Tensor:
    """The Euclidean norm of each row; at a row of zeros its derivatives are taken as zero.

    The square root has none there. So that no order of them is NaN, it is never taken of such a row.
    """
    squared = _squared_rows(matrix)
    if _has_no_zeros(squared):
        return squared.sqrt().to(matrix.dtype)
    zero = squared == 0
    norms = _squared_rows(matrix.masked_fill(zero.unsqueeze(1), 1)).sqrt()
    return norms.masked_fill(zero, 0).to(matrix.dtype)


def over_norm(value: Tensor | float, norm: Tensor) -> Tensor:
    """Value / norm, and 1 where the norm is zero: a row of zeros has no direction, and stays.

    So DoRA starts as its base there too, with the gradient of LoRA until the row has a direction.
    """
    if _has_no_zeros(norm):
        return value / norm
    zero = norm == 0
    return (value / norm.masked_fill(zero, 1)).masked_fill(zero, 1)


def _has_no_zeros(norms: Tensor) -> bool:
    """Whether no norm is zero, if that is quickly told; another device would be waited for."""
    # Of all ways to ask, counting takes the least time.
    return runs_unseen(norms) and norms.is_cpu and norms.count_nonzero().item() == norms.numel()


def _squared_rows(matrix: Tensor) -> Tensor:
    wide = torch.promote_types(matrix.dtype, torch.float32)
    linalg: Any = torch.linalg  # its functions have no types
    squared: Tensor = linalg.vector_norm(matrix, dim=1, dtype=wide).square()
    return squared


def eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def filled(like: Tensor, sizes: tuple[int, ...], value: float) -> Tensor:
    """A tensor of one value, in the dtype of ``like``, or the default one beside whole numbers."""
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.full(sizes, value, dtype=dtype, device=like.device)


def held_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` of what a module holds; by another name, as no pass is for it."""
    return functional.linear(x, weight, bias)


def own_group(value: Tensor, out: int, spatial: int) -> Tensor:
    """What each output has of its own group: [groups, features, …] → [out, …].

    A single feature serves all outputs of its group; of ``out`` features each serves its own.
    """
    groups, features = value.shape[-2 - spatial], value.shape[-1 - spatial]
    if features == 1:
        return value.squeeze(-1 - spatial).repeat_interleave(out // groups, -1 - spatial)
    parts: Tensor = torch.unflatten(value, -1 - spatial, (groups, -1))
    own: Tensor = parts.diagonal(dim1=-3 - spatial, dim2=-2 - spatial)
    return own.movedim(-1, -2 - spatial).flatten(-2 - spatial, -1 - spatial)


def linear_along(value: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """``linear`` over another axis than the last."""
    return functional.linear(value.movedim(axis, -1), weight, bias).movedim(-1, axis)


@torch.no_grad()
def constant_low_rank_norm(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """Row norms of ``weight + scale * up @ down`` as a constant, without forming the sum.

    ‖w + s·uA‖² = ‖w‖² + 2s·(WAᵀ⊙U) + s²·(U(AAᵀ)⊙U), summed over each row.
    """
    if weight.is_complex():
        return row_norm(torch.add(weight, up @ down, alpha=scale)).detach()
    squared = _squared_rows(weight)
    wide_up, wide_down = up.to(squared.dtype), down.to(squared.dtype)
    cross = (weight @ down.t()).to(squared.dtype)
    gram = wide_down @ wide_down.t()
    both = torch.addmm(cross, wide_up, gram, beta=2 * scale, alpha=scale * scale)
    squared = squared + both.mul(wide_up).sum(1)
    # Forward-mode derivatives pass where no gradient is recorded, but not through this.
    return squared.clamp_min(0).sqrt().to(weight.dtype).detach()


def as_kernel(matrix: Tensor, module: nn.Module) -> Tensor:
    """A matrix over patches as a kernel for the convolution ``module``."""
    return matrix.unflatten(1, module.weight.shape[1:])  # type: ignore[union-attr,arg-type]


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of ``table`` [ids, features]: what one-hot ids select of a matrix."""
    return torch.nn.functional.embedding(ids, table)


def drop_rows(rows: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout of one-hot ids: whole rows are dropped, as their only element is."""
    if not training or rate == 0:
        return rows
    return rows * torch.nn.functional.dropout(torch.ones_like(rows[..., :1]), rate, True)


def own_parameter(module: nn.Module, name: str) -> Tensor | None:
    """A parameter itself, where a property of the same name stands before it."""
    return module._parameters[name]


def check_rank(value: Tensor, rank: int, name: str) -> Tensor:
    """``value``, unless it has other dims than a rule names: examples would be taken for tokens.

    Raises:
        SurgeryError: S411 if ``value`` has not ``rank`` dims.

    """
    if value.dim() != rank:
        raise error(
            "S411",
            f"a rule names {rank} dims of the hidden states, and {name} was given {[*value.shape]}",
            help="with fewer, examples would be taken for tokens: give it a dim for each, if of one",
        )
    return value


def check_dims(value: Tensor, rank: int, name: str) -> Tensor:
    """``value``, unless it has other dims than states with their features in front had before.

    Raises:
        SurgeryError: S428 if ``value`` has not ``rank`` dims.

    """
    if value.dim() != rank:
        raise error(
            "S428",
            f"{name} was given {[*value.shape]}, and {rank} dims with the features second when the "
            "model was read",
            help="pass example_inputs of the dims that the model is to run on",
        )
    return value


def pool(value: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """The mean of ``value`` [batch, …] over its tokens along ``dim``, padding left out.

    ``mask`` is [batch, at least length], or None; what it says of the past comes first. Tokens
    that have joined in front of those it tells of are real.
    """
    if mask is None:
        return value.mean(dim, keepdim=True)
    batch, length = value.shape[0], value.shape[dim]
    if mask.dim() != 2 or batch % mask.shape[0]:
        raise error(
            "S431",
            f"a mask of {[*mask.shape]} does not tell which of the tokens {[*value.shape]} are real",
            help="give a mask of [batch, length], or pool over all places: gated(average = mean)",
        )
    real = mask[:, -length:].to(value.dtype)
    if mask.shape[1] < length:
        real = functional.pad(real, (length - mask.shape[1], 0), value=1.0)
    if batch != mask.shape[0]:
        real = real.repeat_interleave(batch // mask.shape[0], 0)
    sizes = [1] * value.dim()
    sizes[0], sizes[dim] = batch, length
    weights = real.view(sizes)
    return (value * weights).sum(dim, keepdim=True) / weights.sum(dim, keepdim=True).clamp_min(1)


def cat(left: Tensor, right: Tensor, dim: int) -> Tensor:
    """Both joined along ``dim``; other dims broadcast, and heads that ``right`` repeats follow it.

    An attention's keys come with the model's own heads or with each repeated for its queries.
    """
    sizes = [*right.shape]
    sizes[dim] = left.shape[dim]
    pairs = zip(left.shape[::-1], sizes[::-1], strict=False)
    if left.dim() <= right.dim() and all(a in (1, b) for a, b in pairs):
        return torch.cat([left.expand(sizes).to(right.dtype), right], dim)
    rank = max(left.dim(), right.dim())
    left, right = (t.reshape(*[1] * (rank - t.dim()), *t.shape) for t in (left, right))
    if rank == 4 and left.shape[1] != right.shape[1] and left.shape[1] > 1:
        left = left.repeat_interleave(right.shape[1] // left.shape[1], 1)
    at = rank + dim
    for i, (a, b) in enumerate(zip(left.shape, right.shape, strict=True)):
        if i != at and a != b and 1 not in (a, b):
            raise error(
                "S431",
                f"{[*left.shape]} cannot stand before {[*right.shape]}: the model runs this place "
                "with other sizes than when it was read",
            )
    # Exported lengths are symbols, so sizes along ``dim`` are not compared.
    pairs = [*zip(left.shape, right.shape, strict=True)]
    parts = [
        t.expand(*(t.shape[i] if i == at else b if a == 1 else a for i, (a, b) in enumerate(pairs)))
        for t in (left, right)
    ]
    return torch.cat([parts[0].to(parts[1].dtype), parts[1]], at)


def in_sequence(rows: Tensor, like: Tensor) -> Tensor:
    """States of other leading dims as [batch, length, features], of which ``like`` tells."""
    return rows.reshape(*like.shape[:2], rows.shape[-1])


def as_given(states: Tensor, like: Tensor) -> Tensor:
    """``states`` with the leading dims of ``like``."""
    return states.reshape(*like.shape[:-1], states.shape[-1])


def align(value: Tensor, like: Tensor) -> Tensor:
    """One number an example, [batch, 1…], with as many dims as ``like``.

    Where an example is cut into several windows, each has the number of its example.
    """
    count, wanted = value.shape[0], like.shape[0]
    value = value.reshape(count, *[1] * (like.dim() - 1))
    return value if count in (1, wanted) else value.repeat_interleave(wanted // count, 0)


def split_heads(value: Tensor, heads: int) -> Tensor:
    """[length, heads · features] → [heads, length, features]."""
    length, features = value.shape
    return value.view(length, heads, features // heads).transpose(0, 1)


def bilstm(x: Tensor, into: Tensor, hidden: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """One layer of an LSTM that reads [length, features] both ways: [length, 2h].

    ``into`` is [2, 4h, features] and ``hidden`` [2, 4h, h], gates in torch's order; two biases
    [2, 4h]. It starts from zeros.
    """
    weights = tuple(tuple(t[i] for t in (into, hidden, first, second)) for i in (0, 1))
    if not torch.compiler.is_compiling() and is_transformed():
        # `torch.lstm` knows neither batches of weights nor forward-mode derivatives.
        ways = (_lstm(x, *weights[0]), _lstm(x.flip(0), *weights[1]).flip(0))
        return torch.cat(ways, -1)
    start = x.new_zeros(2, 1, hidden.shape[2])
    run: Any = torch.lstm
    both = (*weights[0], *weights[1])
    result = run(x.unsqueeze(1), (start, start), both, True, 1, 0.0, False, True, False)[0]
    return result.squeeze(1)


def _lstm(x: Tensor, into: Tensor, hidden: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """What an LSTM makes of [length, features], from the first on, in plain operations."""
    state = memory = x.new_zeros(hidden.shape[1])
    states: list[Tensor] = []
    for gates in functional.linear(x, into, first).unbind():
        gates = gates + functional.linear(state, hidden, second)
        enter, keep, new, leave = gates.chunk(4)
        memory = keep.sigmoid() * memory + enter.sigmoid() * new.tanh()
        state = leave.sigmoid() * memory.tanh()
        states.append(state)
    return torch.stack(states)
