"""What primitives compute where torch has no function for it, at module level so that graphs pickle."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from surgery.graft.graphs.ordinary import is_transformed, runs_unseen
from surgery.language.diagnostics import error


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


def drawn(draw: Tensor, value: float, nested: bool, training: bool) -> Tensor:
    """What was drawn for this step of training, and in evaluation ``value`` everywhere.

    Of a ``nested`` draw, ``value`` is how many places have 1, from the first.
    """
    if training:
        return draw
    if not nested:
        return draw.new_full(draw.shape, value)
    return (torch.arange(draw.shape[-1], device=draw.device) < value).to(draw.dtype).expand_as(draw)


def eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def inverse(matrices: Tensor) -> Tensor:
    """The inverse of each matrix; half precision is inverted in single."""
    wide = torch.promote_types(matrices.dtype, torch.float32)
    return torch.linalg.inv(matrices.to(wide)).to(matrices.dtype)


def flip(value: Tensor, dim: int) -> Tensor:
    """The last along ``dim`` first."""
    return value.flip(dim)


def unflatten(value: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """One axis as several."""
    return value.unflatten(axis, sizes)


def flatten(value: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """Several axes as one, which is ``axis`` counted from the end of the result."""
    last = value.dim() + axis
    return value.flatten(last - len(sizes) + 1, last)


def counted(like: Tensor, size: int) -> Tensor:
    """0, 1, … in the dtype of ``like``."""
    return torch.arange(size, dtype=like.dtype, device=like.device)


def filled(like: Tensor, sizes: tuple[int, ...], value: float) -> Tensor:
    """A tensor of one value, in the dtype of ``like``, or the default one beside whole numbers."""
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.full(sizes, value, dtype=dtype, device=like.device)


def held_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` of what a module holds; by another name, as no pass is for it."""
    return functional.linear(x, weight, bias)


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
