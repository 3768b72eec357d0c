"""Interrupts at any call within the package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import surgery

PACKAGE = str(Path(surgery.__file__).parent)


class Interrupted(BaseException):
    """What Ctrl-C or the end of memory is to the code it comes upon."""


UNDOING = ("restore", "show", "settle", "swap", "recompile", "__exit__", "__del__")
"""Where no second fault comes: code that runs because there was one."""
GENERATOR = 0x20


def interrupted(act: Callable[[], Any], number: int) -> None:
    """Do something, and raise :class:`Interrupted` at its call ``number`` within the package."""
    left = number

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE):
            return
        # A generator that goes on would be ended here without its own cleaning up.
        if code.co_flags & GENERATOR or code.co_name in UNDOING:
            return
        left -= 1
        if left < 0:
            sys.setprofile(None)
            raise Interrupted

    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(None)
