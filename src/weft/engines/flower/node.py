"""A site's side of Flower: a SuperNode, kept alive, whose messages this process answers."""

from __future__ import annotations

import time
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
        self.folder, self.server = folder, server
        # it gives up soon and is started again by us, which also makes it known to a coordinator that has been restarted
        self.arguments = ["--superlink", server, *secure, *prove, "--max-retries", "3"]

    def serve(self, answer: Callable[[bytes], bytes], say: Callable[[str], None]) -> None:
        """Answer messages for ever; a SuperNode that ends is started again."""
        import httpx

        from weft.engines.flower import tasks

        said = ""
        while True:
            child = Child("supernode", self.folder, LOOPBACK, free_port(), self.arguments)
            try:
                child.start()
                child.wait()
                runtime = tasks.Runtime(child.address, child.secret)
                for token, _ in runtime.tokens(tasks.SITE, lambda c=child: c.alive):  # type: ignore[misc]
                    if why := tasks.answer_one(runtime, token, answer):
                        say(f"an answer was not sent: {why}.")
                    said = ""
                reason = child.last_words()
            except httpx.HTTPError:
                reason = child.last_words()
            except UserError as e:
                reason = str(e)
            finally:
                child.stop()
            if UNKNOWN in reason:
                reason = "the coordinator does not know this site's key, or not yet"
            words = f"no connection to {self.server}: {reason}; trying again."
            if words != said:
                say(words)
            said = words
            time.sleep(PAUSE)
