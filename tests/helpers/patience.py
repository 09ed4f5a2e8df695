"""How long tests wait for processes, servers and threads: for what happens, and the longer the slower this machine is."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable

USUAL = 0.25
"""Seconds that a small Python process takes from its start to its end on an idle machine for which deadlines are written."""


@functools.cache
def slowness() -> float:
    """How many times slower than usual a process is here and now, with all that runs beside it; at least 1.

    Measured once a session, when somebody first waits: the slowest of three.
    """

    def once() -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import asyncio, json, ssl; sum(range(1_000_000))"], check=True)
        return time.monotonic() - began

    return max(1.0, max(once() for _ in range(3)) / USUAL)


def patience(seconds: float) -> float:
    """So many seconds of the usual machine, on this one."""
    return seconds * slowness()


def until(what: Callable[[], object], seconds: float = 60, said: Callable[[], object] = lambda: "", pause: float = 0.05) -> None:
    """Wait for something.

    Args:
        seconds: of the usual machine. said: what is shown where it does not come.
    """
    end = time.monotonic() + patience(seconds)
    while not what():
        assert time.monotonic() < end, said()
        time.sleep(pause)
