"""A site's side of Flower: a SuperNode, kept alive, whose messages this process answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import UserError
from weft.sites.flower.processes import LOOPBACK, Child, free_port

if TYPE_CHECKING:
    import httpx

FIRST, LONGEST = 1.0, 15.0  # seconds between two looks whether the coordinator is there: more and more
LIVED = 60.0  # seconds after which a SuperNode that ends was no failure to begin with
TAKEN = "code: 2004"  # Flower's, for a node that it believes to be connected already
STARTING = "the coordinator is about to begin"
REASONS = {
    "unknown": "the coordinator does not know this site's key, or not yet",
    "clock": "the clock of this machine and that of the coordinator differ by minutes: set them right",
}


class Node:
    """A SuperNode of our own.

    Args:
        server: host and port of the coordinator. root: certificate that vouches for it, None = no TLS. key: this site's private
            key, None = it need not prove who it is.
    """

    def __init__(self, folder: Path, server: str, root: Path | None, key: Path | None):
        secure = ["--insecure"] if root is None else ["--root-certificates", str(root)]
        prove = [] if key is None else ["--auth-supernode-private-key", str(key)]
        self.folder, self.server, self.root, self.key = folder, server, root, key
        # it gives up soon and is started again by us, which also makes it known to a coordinator that has been restarted
        self.arguments = ["--superlink", server, *secure, *prove, "--max-retries", "3"]

    def serve(self, answer: Callable[[bytes], bytes], say: Callable[[str], None]) -> None:
        """Answer messages for ever; a SuperNode that ends is started again as soon as the coordinator is there."""
        said, pause = "", FIRST
        while True:
            reason, began = self.refused(), time.monotonic()
            if not reason:
                reason, worked = self._live(answer, say)
                if worked or time.monotonic() - began > LIVED:
                    said, pause = "", FIRST
                reason = self.refused() or reason  # why it has ended is better told by whoever can still be asked
            words = f"no connection to {self.server}: {reason}; trying again."
            if words != said and reason != STARTING:
                say(words)
                said = words
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST)

    def refused(self) -> str:
        """Why the coordinator can't be reached or does not let this site in, "" if it does. Starts no process for it."""
        import httpx

        from weft.sites.flower import gate, proof

        root = None if self.root is None else self.root.read_bytes()
        headers = {} if self.key is None else proof.headers(proof.private(self.key))
        url = f"{'http' if root is None else 'https'}://{self.server}{gate.KNOWN}"
        try:
            with httpx.Client(verify=proof.trusting(root), timeout=30.0) as client:
                said = client.post(url, headers=headers)
        except httpx.HTTPError as e:
            return " ".join(str(e).split())[:200] or type(e).__name__
        return _reason(said)

    def _live(self, answer: Callable[[bytes], bytes], say: Callable[[str], None]) -> tuple[str, bool]:
        """A SuperNode from its start to its end; gives its last words, and whether it brought a message."""
        import httpx

        from weft.sites.flower import tasks

        child, worked = Child("supernode", self.folder, LOOPBACK, free_port(), self.arguments), False
        try:
            child.start()
            child.wait()
            runtime = tasks.Runtime(child.address, child.secret)
            for token, _ in runtime.tokens(tasks.SITE, lambda: child.alive):
                worked = True
                if why := tasks.answer_one(runtime, token, answer):
                    say(f"an answer was not sent: {why}.")
            reason = child.last_words()
        except httpx.HTTPError:
            reason = child.last_words()
        except UserError as e:
            reason = str(e)
        finally:
            child.stop()
        if TAKEN in reason:
            reason = "the coordinator has not noticed yet that this site was cut off"
        return reason, worked


def _reason(said: httpx.Response) -> str:
    if said.status_code == 401:
        return REASONS.get(said.text, REASONS["unknown"])
    # a SuperLink that has no gate, which somebody has started by Flower's own means, knows nothing of this question
    return STARTING if said.status_code == 503 else "" if said.status_code in (200, 404) else f"it answers {said.status_code}"
