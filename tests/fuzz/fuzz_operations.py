"""Random operations on models, copies, files and threads: each is right or refused, and undone to the bit."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.laws.lives import KINDS
from tests.laws.world import OPERATIONS, World

LIMIT = 60.0


def case(random: random.Random) -> str:
    kind = random.choice(list(KINDS))
    with tempfile.TemporaryDirectory() as folder:
        world = World(kind, random.randrange(1000), Path(folder))
        done: list[str] = []
        try:
            for _ in range(random.randint(5, 30)):
                done.append(getattr(world, random.choice(OPERATIONS))(random))
                world.check()
            world.end()
        except Exception as problem:
            problem.add_note(f"{kind}: {', '.join(done)}")
            raise
    return kind
