"""The coordinator's side of Flower: a SuperLink and a run in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import Elsewhere, UserError
from weft.sites.flower.launch import KEYS
from weft.sites.flower.processes import Child
from weft.storage import files

if TYPE_CHECKING:
    from weft.sites.flower.grid import Grid
    from weft.sites.keys import Coordinator

CONNECTION = "weft"
AROUND = 1 << 20  # bytes that Flower's own form adds to what a site sends
OFTEN, LATELY = 5, 600.0  # how often it may be begun anew within so many seconds
PAUSE = 2.0  # seconds before it is tried once more
_APP = """\
[project]
name = "weft-federation"
version = "1.0.0"
description = "A federation of Weft: both ends run what is installed there, this names them."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "weft"

[tool.flwr.app.components]
serverapp = "weft.sites.flower_app:server"
clientapp = "weft.sites.flower_app:client"

[tool.flwr.app.config]
experiment = {experiment}
deadline = {deadline}
sites = {sites}
"""


def app(folder: Path, experiment: Path | str = "", deadline: float = 0.0, sites: Path | str = "") -> Path:
    """Write the folder of the Flower app that a run names.

    Args:
        experiment, deadline, sites: its configuration, where the app itself is run (:mod:`weft.sites.flower_app`).
    """
    files.make_folder(folder)
    text = _APP.format(experiment=_quoted(experiment), deadline=float(deadline), sites=_quoted(sites))
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def connection(home: Path, address: str, keys: Coordinator | None) -> None:
    """Write down for Flower's command line, whose home this is, where the SuperLink is."""
    trust = "insecure = true" if keys is None else f"root-certificates = {_quoted(keys.ca.resolve())}"
    files.make_folder(home)
    text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{address}"\n{trust}\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


def _quoted(text: Path | str) -> str:
    """As TOML has it."""
    return json.dumps(str(text), ensure_ascii=False)


class Link:
    """A SuperLink of our own, begun anew if it ends or somebody else has had a hand in it.

    Args:
        keys: of the coordinator; None = no TLS. sites: gives the public keys that are to be known now, by the name of their site;
            None = anybody may join. say: is told when they change. largest: bytes that a site may send at once.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        port: int,
        keys: Coordinator | None,
        sites: Callable[[], Mapping[str, Path]] | None,
        say: Callable[[str], None] = lambda _: None,
        largest: int = 1 << 31,
    ):
        from weft.sites.flower.register import Register

        self.folder, self.keys, self.say = folder, keys, say
        self.register = Register(sites, say)
        secure = (
            ["--insecure"]
            if keys is None
            else [
                *("--ssl-certfile", str(keys.certificate), "--ssl-keyfile", str(keys.key)),
                *("--ssl-ca-certfile", str(keys.ca)),
            ]
        )
        known = [] if sites is None else [KEYS]
        self.child = Child(
            "superlink", folder, host, port, [*secure, *known, "--disable-runtime-dependency-installation"], largest + AROUND
        )
        self.root = None if keys is None else keys.ca.read_bytes()
        self.open_ones = ExitStack()
        self.begun: list[float] = []  # when it was begun anew

    @contextmanager
    def open(self) -> Iterator[Grid]:
        """Start it, begin a run, and hand out its grid; all ends when the block ends.

        Raises:
            UserError: it does not start, or a key is refused. Elsewhere: it was begun anew again and again, in vain.
        """
        import httpx

        from weft.sites.flower.grid import Grid

        register = self.register
        try:
            try:
                first = self._begin()
            except httpx.HTTPError as e:
                raise self._ended() from e
            who = None if register.keys is None else register.who
            with register.following():
                yield Grid(first, who, lambda: register.amiss, self._anew)
        finally:
            self._end()

    def _begin(self) -> Any:
        """Start it and be the ServerApp of a run in it; gives Flower's grid."""
        from weft.sites.flower import tasks
        from weft.sites.flower.control import Control

        self.child.start()
        self.child.wait()
        runtime = tasks.Runtime(self.child.address, self.child.secret, self.root)
        control = Control(runtime)
        self.open_ones.callback(control.close)
        run = self.register.begin(control, lambda: control.start(app(self.folder / "app")))
        for token, its in runtime.tokens(tasks.COORDINATOR, lambda: self.child.alive):
            if its == run:
                return self.open_ones.enter_context(tasks.grid(runtime, token))
        raise self._ended()

    def _anew(self, why: str) -> Any:
        """Begin another SuperLink, which knows nothing of what was done to the last one; gives its grid.

        Raises:
            Elsewhere: it was done too often of late.
        """
        import httpx

        while True:
            now = time.monotonic()
            self.begun = [t for t in self.begun if t > now - LATELY] + [now]
            if len(self.begun) > OFTEN:
                raise self._ended()
            why = self._why() or why
            self.say(f"Flower's superlink is begun anew ({why}); the run goes on.")
            self._end()
            try:
                return self._begin()
            except (httpx.HTTPError, UserError) as e:
                why = " ".join(str(e).split())[:300] or type(e).__name__
                time.sleep(PAUSE)

    def _why(self) -> str:
        """What is amiss, "" if there is nothing to be seen."""
        if not self.child.alive:
            return self.child.epitaph()
        with suppress(Exception):  # it is no more what it was, so that any call may fail
            self.register.follow()
        return self.register.amiss

    def _end(self) -> None:
        """Leave what is left of it."""
        self.register.end()
        with suppress(Exception):  # whoever would be told has ended, perhaps
            self.open_ones.close()
        self.child.stop()

    def _ended(self) -> Elsewhere:
        words, log = self.child.epitaph(), self.child.log
        return Elsewhere(
            f"Flower's superlink has ended: {words} (all of it: {log}); what was saved before is intact, and the same command "
            "goes on."
        )
