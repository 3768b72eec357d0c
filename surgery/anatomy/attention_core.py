"""The core of an attention as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Windows:
    """How the queries and the context of a core are found whose queries see windows of keys.

    ``queries`` are cut by the kinds of functions in ``cuts``, the last first, into an operand of
    the product with keys; ``parts`` are those by which the context is put together of a product
    with values. The orders list the axes of queries and context as those of the scores come, with
    their features last.
    """

    cuts: tuple[str, ...]
    queries: tuple[int, ...]
    parts: tuple[str, ...]
    context: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttentionCore:
    """The softmax core of an attention: softmax(q kᵀ) v over ``heads`` heads of keys and values.

    It runs while the module at ``path`` does, as the ``order``-th core in one call of it. It is
    ``fused`` in one function (`scaled_dot_product_attention`, or all of `nn.MultiheadAttention`),
    made of ``products``: a matmul, a softmax and a matmul, or run by an ``interface`` of
    transformers (`huggingface/attention_functions.py`). ``heads`` is how many the model has
    before it repeats them for its ``query_heads``; ``keys`` and ``values`` are the features of
    one head. ``obstacle`` says why new keys cannot join it, if so, and ``fixed`` why nothing else
    can be done to it. Where a place has several cores of one size (differential attention),
    ``others`` are the rest, which change alike. Of scores with more than four axes ``heads_at`` is
    that of the heads, and of those with ``windows``, where ``order`` counts the softmaxes of scores
    that came by other ways than those of products. ``among`` is how many cores ran in one call in all.
    """

    path: str
    order: int
    how: Literal["fused", "products", "interface"]
    query_heads: int
    heads: int
    keys: int
    values: int
    obstacle: str | None = None
    fixed: str | None = None
    heads_at: int = 1
    others: tuple[AttentionCore, ...] = ()
    windows: Windows | None = None
    among: int = 1

    @property
    def features(self) -> dict[str, int]:
        """How many features each operand has over all heads, before any are repeated."""
        return {
            "q": self.query_heads * self.keys,
            "k": self.heads * self.keys,
            "v": self.heads * self.values,
        }

    @property
    def each(self) -> tuple[AttentionCore, ...]:
        """The cores of this place one by one."""
        return (replace(self, others=()), *self.others)

    @property
    def form(self) -> AttentionCore:
        """The core without what depends on how the attention was computed, and how often."""
        return replace(self, order=0, how="fused", obstacle=None, fixed=None, others=(), among=1)
