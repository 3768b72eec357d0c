"""What random numbers of training depend on: a seed, which a model carries with it, and the step."""

from __future__ import annotations

import hashlib

from surgery.planning.edit import Edit, Tensor


def seed_of(seed: int) -> int:
    """``seed``, which may be any whole number, as one that a tensor of int64 holds."""
    digest = hashlib.blake2b(str(int(seed)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_key(seed: int, edit: Edit, tensor: Tensor, step: int) -> str:
    """What a draw depends on; that which sites share does not depend on which of them are left."""
    own = tensor.name.removeprefix(edit.prefix)
    name = f"{edit.method.text}:{own}" if tensor.shared else tensor.name
    return f"{seed}:{name}:{step}"
