"""How the compiler is to take the channel. Importing this imports the compiler: a second.

Within a graph it follows the channel's functions. Where it gives up around them, it would compile
each by itself, in which they can't see where they run.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch._dynamo.eval_frame import skip_code

from surgery.graft import channel, hooks
from surgery.graft.attention import rerouting

_compiler: Any = torch.compiler
look = _compiler.disable(channel.look)
attending = _compiler.disable(rerouting.attending)

for _function in [*vars(channel).values(), *vars(hooks).values()]:
    if isinstance(_function, FunctionType) and _function.__module__.startswith("surgery.graft."):
        skip_code(_function.__code__)
