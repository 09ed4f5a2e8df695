"""A site's side of Flower: a SuperNode, kept alive, whose messages this process answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from weft.engines.flower.processes import LOOPBACK, Child, free_port
from weft.errors import UserError

UNKNOWN = "code: 2004"  # Flower's, for a node that has not been registered
PAUSE = 2.0  # seconds before a SuperNode that has ended is started again


class Node:
    """A SuperNode of our own.

    Args:
        server: host and port of the coordinator. root: certificate that vouches for it, None = no TLS. key: this site's private
            key, None = it need not prove who it is.
    """

    def __init__(self, folder: Path, server: str, root: Path | None, key: Path | None):
        secure = ["--insecure"] if root is None else ["--root-certificates", str(root)]
        prove = [] if key is None else ["--auth-supernode-private-key", str(key)]
        self.server = server
        port = free_port()
        # it gives up soon and is started again by us, which also makes it known to a coordinator that has been restarted
        rest = ["--superlink", server, *secure, *prove, "--max-retries", "3"]
        self.child = Child("supernode", folder, LOOPBACK, port, rest)

    def serve(self, answer: Callable[[bytes], bytes], say: Callable[[str], None], stop: threading.Event | None = None) -> None:
        """Answer messages until ``stop``; a SuperNode that ends is started again."""
        import httpx

        from weft.engines.flower import tasks

        stop = stop or threading.Event()
        said = ""
        try:
            while not stop.is_set():
                self.child.start()
                try:
                    self.child.wait()
                    runtime = tasks.Runtime(self.child.address, self.child.secret)
                    for token, _ in runtime.tokens(tasks.SITE, lambda: self.child.alive and not stop.is_set()):
                        if why := tasks.answer_one(runtime, token, answer):
                            say(f"an answer was not sent: {why}.")
                        said = ""
                except (httpx.HTTPError, UserError):
                    pass  # it has ended, and its last words say why
                self.child.stop()
                reason = self.child.last_words()
                if UNKNOWN in reason:
                    reason = "the coordinator does not know this site's key, or not yet"
                words = f"no connection to {self.server}: {reason}; trying again."
                if not stop.is_set() and words != said:
                    say(words)
                said = words
                stop.wait(PAUSE)
        finally:
            self.child.stop()
