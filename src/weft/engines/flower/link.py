"""The coordinator's side of Flower: a SuperLink and a run in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.engines.flower import environment
from weft.engines.flower.grid import Grid
from weft.engines.flower.processes import Child
from weft.engines.flower.register import Register
from weft.errors import UserError
from weft.federation import files

if TYPE_CHECKING:
    from weft.engines.flower.keys import Coordinator

CONNECTION = "weft"
NEXT = "--- next command ---"
COMMANDS = f"""\
import json, sys
from flwr.cli.app import app
for command in json.loads(sys.argv[1]):
    print("{NEXT}", flush=True)
    try:
        app([*command, "--format", "json"], prog_name="flwr")
    except SystemExit:
        pass
"""
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
"""


def app(folder: Path, experiment: Path | str = "", deadline: float = 0.0) -> Path:
    """Write the folder of the Flower app that a run names.

    Args:
        experiment, deadline: its configuration, where the app itself is run (:mod:`weft.sites.flower_app`).
    """
    files.make_folder(folder)
    text = _APP.format(experiment=_quoted(experiment), deadline=float(deadline))
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
    """A SuperLink of our own.

    Args:
        keys: of the coordinator; None = no TLS, and anybody may join.
        sites: gives the public keys that are to be known now, by the name of their site. say: is told when they change.
    """

    def __init__(
        self,
        folder: Path,
        host: str,
        port: int,
        keys: Coordinator | None,
        sites: Callable[[], Mapping[str, Path]],
        say: Callable[[str], None] = lambda _: None,
    ):
        self.folder, self.keys = folder, keys
        self.register = Register(self._flwr, CONNECTION, sites, say)
        secure = (
            ["--insecure"]
            if keys is None
            else [
                *("--ssl-certfile", str(keys.certificate), "--ssl-keyfile", str(keys.key)),
                *("--ssl-ca-certfile", str(keys.ca), "--enable-supernode-auth"),
            ]
        )
        self.child = Child("superlink", folder, host, port, [*secure, "--disable-runtime-dependency-installation"])
        self.root = None if keys is None else keys.ca.read_bytes()

    @contextmanager
    def open(self) -> Iterator[Grid]:
        """Start it, begin a run, and hand out its grid; all ends when the block ends.

        Raises:
            UserError: it does not start, or a key is refused.
        """
        import httpx

        from weft.engines.flower import tasks

        self.child.start()
        try:
            self.child.wait()
            connection(self.folder / "flower", self.child.address, self.keys)
            named = app(self.folder / "app")
            run = int(self.register.begin(["run", str(named), CONNECTION])["run-id"])
            runtime = tasks.Runtime(self.child.address, self.child.secret, self.root)
            # whoever can reach the port can ask for a run of their own: theirs are not taken up
            for token, its in runtime.tokens(tasks.COORDINATOR, lambda: self.child.alive):
                if its == run:
                    with tasks.grid(runtime, token) as grid, self.register.following():
                        yield Grid(grid)
                    return
            raise self._ended()
        except httpx.HTTPError as e:
            raise self._ended() from e
        finally:
            self.child.stop()

    def _ended(self) -> UserError:
        words, log = self.child.last_words(), self.child.log
        return UserError(f"Flower's superlink has ended: {words} (all of it: {log}); what was saved before is intact.")

    def _flwr(self, commands: Sequence[list[str]]) -> list[dict[str, Any]]:
        """Flower's own command line, several commands in one process.

        Raises:
            UserError: one is refused.
        """
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            env=environment.of(self.folder / "flower") | {"NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        found: list[dict[str, Any]] = []
        for command, text in zip_longest(commands, done.stdout.split(NEXT)[1:], fillvalue=""):
            try:
                said: dict[str, Any] = json.loads(text[text.find("{") :])
            except ValueError:
                said = {"error-message": f"{text} {done.stderr}"}
            if not said.get("success"):
                reason = " ".join(str(said.get("error-message", said)).split())
                raise UserError(f"Flower refused flwr {' '.join(command[:2])}: {reason[-300:]}")
            found.append(said)
        return found
