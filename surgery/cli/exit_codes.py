"""What the command's exit codes mean."""

from __future__ import annotations

FINE = 0
"""All is well."""
FAILED = 1
"""An error, a guarantee that does not hold, or a file that `fmt --check` would change."""
CHANGED = 2
"""`diff --exit-code` found changes."""
MISUSED = 64
"""Wrong usage."""
STOPPED = 130
"""Stopped by Ctrl-C."""
UNREAD = 141
"""Nobody reads the output any more, as behind `| head`."""
