"""Weft's command line, and its Flower app, with stopwatches: what takes how long goes to ``seconds.jsonl`` in the current folder.

Timed are the questions of the coordinator, and what a site itself does for one (:mod:`resident` takes the difference).
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any

from weft.engines.site import SiteClient
from weft.sites.roll import StageTransport

FILE = "seconds.jsonl"


def timed(of: type, name: str) -> None:
    """Let a method note when it began and ended, in seconds since 1970: all processes of this machine agree on them."""
    inner = getattr(of, name)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        began = time.time()
        try:
            return inner(*args, **kwargs)
        finally:
            with open(FILE, "a") as file:
                file.write(json.dumps([name, began, time.time()]) + "\n")

    setattr(of, name, outer)


timed(SiteClient, "turn")
timed(SiteClient, "scores")
timed(StageTransport, "ask")

if __name__ == "__main__":
    import sys

    from weft.cli import main

    main(sys.argv[1:])
else:
    from weft.sites import flower_app

    client = flower_app.client  # by assignments: flwr reads this file before it runs it
    server = flower_app.server
