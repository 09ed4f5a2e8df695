"""The keys that a SuperLink knows, kept those of the coordinator's folder as long as it runs: sites come and are sent away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weft.errors import UserError

Command = list[str]
LOOK = 5.0  # seconds between two looks into the folder


class Register:
    """What a SuperLink was told of keys.

    Args:
        flwr: does commands of Flower's command line, and gives what each said. connection: names the SuperLink in them.
        keys: the public keys that should be known now, by the name of their site. say: is told of changes, in sentences.
    """

    def __init__(
        self,
        flwr: Callable[[Sequence[Command]], list[dict[str, Any]]],
        connection: str,
        keys: Callable[[], Mapping[str, Path]],
        say: Callable[[str], None],
    ):
        self.flwr, self.connection, self.keys, self.say = flwr, connection, keys, say
        self.known: dict[str, tuple[bytes, str]] = {}  # the key, and the number that Flower has given to it

    def begin(self, then: Command) -> dict[str, Any]:
        """Make all keys known and do one more command, in one process; gives what that one said.

        Raises:
            UserError: a key is refused.
        """
        now = self._now()
        *registered, last = self.flwr([*(self._register(name, path) for name, (path, _) in now.items()), then])
        for (name, (_, key)), said in zip(now.items(), registered, strict=True):
            self.known[name] = (key, str(said["node-id"]))
        return last

    def follow(self) -> None:
        """Make known what has come into the folder, and forget what has gone from it.

        Raises:
            UserError: something in the folder is no key, or Flower refuses one; what was done before that stays done.
        """
        now = self._now()
        for name, (key, number) in list(self.known.items()):
            if name not in now or now[name][1] != key:
                self.flwr([["supernode", "unregister", number, self.connection]])
                del self.known[name]
                self.say(f"{name}'s key has gone from the folder, and is known no longer.")
        for name, (path, key) in now.items():
            if name not in self.known:
                (said,) = self.flwr([self._register(name, path)])
                self.known[name] = (key, str(said["node-id"]))
                self.say(f"{name}'s key is new in the folder, and known from now on.")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the folder, beside whatever else is done, until the block ends."""
        end = threading.Event()
        thread = threading.Thread(target=self._look, args=(end,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _look(self, end: threading.Event) -> None:
        told = ""
        while not end.wait(LOOK):
            try:
                self.follow()
                amiss = ""
            except (UserError, OSError) as e:  # half a file, perhaps: it is looked at again
                amiss = str(e)
            if amiss and amiss != told:
                self.say(amiss)
            told = amiss

    def _now(self) -> dict[str, tuple[Path, bytes]]:
        return {name: (path, path.read_bytes()) for name, path in self.keys().items()}

    def _register(self, name: str, path: Path) -> Command:
        return ["supernode", "register", str(path), self.connection, "--name", name]
