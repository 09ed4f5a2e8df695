"""``python -m weft.sites.flower.launch WHICH PARENT LARGEST ARGUMENTS``: one of Flower's processes, which ends with its parent.

Whatever it serves has a :mod:`weft.sites.flower.gate` before it. A SuperNode that has nothing to do asks for messages every
three seconds, which would be most of a short round. Here it asks more often as long as there was something to do lately, and as
rarely as before when there was not.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

SECRET, KEYS = "--superexec-auth-secret-file", "--enable-supernode-auth"
SOON = 0.1  # seconds between two questions of a busy node
LAST = 3.0  # seconds to say goodbye
PART = 0.1  # of the time that nothing has happened


class Patience:
    """How long a SuperNode sleeps."""

    def __init__(self) -> None:
        self.busy = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Flower sleeps for a second or more only where it found nothing to do, and shorter while a message is at work."""
        now = time.monotonic()
        if seconds < 1:
            self.busy, seconds = now, min(seconds, SOON)
        time.sleep(min(seconds, max(SOON, PART * (now - self.busy))))


def _end_with(parent: int) -> None:
    """End when the parent has: as by Ctrl-C, so that the other end is told, and soon after that anyway."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(LAST)
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Become ``superlink`` or ``supernode``; ``LARGEST`` bytes is what a site may send at once."""
    from weft.sites.flower import environment

    environment.ready()
    which, parent, largest, *rest = arguments
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    sys.argv = [f"flower-{which}", *rest]
    from weft.sites.flower import gate

    secret, keys = Path(rest[rest.index(SECRET) + 1]).read_bytes(), KEYS in rest
    if which == "superlink":
        gate.guard(secret, gate.SITE | {gate.KNOWN} | (frozenset() if keys else gate.KEYLESS), keys, int(largest))
        # our own looks, which would fill the log
        logging.getLogger("flwr").addFilter(lambda record: "ControlServicer.List" not in record.getMessage())
        from flwr.superlink.cli import flower_superlink

        flower_superlink()
    else:
        gate.guard(secret)
        from flwr.supernode import start_client_internal as loop
        from flwr.supernode.cli import flower_supernode

        environment.eager()
        vars(loop)["time"] = SimpleNamespace(sleep=Patience().sleep)
        flower_supernode()
        sys.stdout.flush()
        os._exit(1)  # it has given up, and would stay for the sake of a thread that serves nobody


if __name__ == "__main__":
    main(sys.argv[1:])
