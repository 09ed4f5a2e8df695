"""The command line. Commands import what they need when they run, so that help and listings are there at once.

Nothing but :func:`main` is imported here, so that Ctrl-C leaves without a traceback as soon as there is a Weft to press it in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, 1 (a bug), 2 (to be put right), 130 (Ctrl-C), 141 (nobody reads)."""
    try:
        from weft.cli.commands import app
        from weft.cli.errors import guarded
        from weft.cli.hush import hush

        hush()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? instead of failing
        code = guarded(app, arguments)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        code = 130
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name == "app":
        from weft.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
