"""A federation of real processes: a coordinator and sites, by the commands that people type."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
from command_line import table
from patience import patience
from weft.sites.flower import proof
from weft.sites.flower.control import Control
from weft.sites.flower.processes import free_port
from weft.sites.flower.tasks import Runtime

ROUNDS = 10_000  # it ends when all has been seen
ENDLESS = f'rounds = {ROUNDS}\n[method]\nname = "fedsa-lora"\nrank = 2\nbatch = 4\n'


class Federation:
    """A coordinator and sites, by the commands that people type, each in a folder of its own machine."""

    def __init__(self, root: Path, environment: dict[str, str] | None = None, experiment: str = ENDLESS, number: int = 2):
        self.root, self.port, self.environment = root, free_port(), environment or {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.number = number
        self.server = root / "coordinator"
        self.server.mkdir()
        classes = ", ".join(f'"class {i}"' for i in range(3))
        (self.server / "experiment.toml").write_text(
            f'model = "{tiny.folder("bert")}"\nclasses = [{classes}]\nmax_length = 16\nrecipes = false\n'
            f'precision = "float64"\nname = "run"\n{experiment}'
        )
        self.weft(self.server, "keys", "coordinator", "--host", "localhost")

    def weft(self, where: Path, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "weft", *arguments], cwd=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def site(self, name: str, known: bool = True) -> Path:
        """A site's machine: rows and keys; the coordinator gets its public key, unless it is nobody that it knows yet."""
        folder = self.root / name
        folder.mkdir()
        table(folder / "rows.csv")
        self.weft(folder, "keys", "site", name)
        (folder / "keys" / "ca.pem").write_bytes((self.server / "keys" / "ca.pem").read_bytes())
        if known:
            self.known(name).write_bytes((folder / "keys" / f"{name}.pub").read_bytes())
        return folder

    def known(self, name: str) -> Path:
        """Where the coordinator has a site's public key."""
        return self.server / "keys" / "sites" / f"{name}.pub"

    def serve(self, *more: str) -> None:
        more = more or ("--deadline", "6")
        self._start("coordinator", "serve", "experiment.toml", "--sites", str(self.number), "--port", str(self.port), *more)

    def join(self, name: str) -> None:
        self._start(name, "join", "--server", f"localhost:{self.port}", "--name", name, "--data", "rows.csv", "--device", "cpu")

    @contextmanager
    def control(self) -> Iterator[Control]:
        """The coordinator's SuperLink, for who has its secret."""
        secret = (self.server / "runs" / "run" / "link" / "superlink.secret").read_bytes()
        found = Control(Runtime(f"localhost:{self.port}", secret, (self.server / "keys" / "ca.pem").read_bytes()))
        try:
            yield found
        finally:
            found.close()

    def key(self, name: str) -> bytes:
        return proof.of_file(self.known(name))

    def runs_here(self, process: Path, which: str) -> bool:
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return which.encode() in words and str(self.root).encode() in b" ".join(words) + os.readlink(process / "cwd").encode()

    def _start(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "weft", *arguments],
                cwd=self.root / name,
                stdout=log,
                stderr=log,
                env=os.environ | {"COLUMNS": "500"} | self.environment,
            )

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def said(self, name: str) -> str:
        log = self.root / f"{name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def rounds(self) -> list[dict[str, Any]]:
        file = self.server / "runs" / "run" / "rounds.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def until(self, what: Callable[[], object], idle: float = 300, most: float = 1800) -> None:
        """Wait for something, as long as anything else happens: a busy machine may be slow."""
        last, end = time.monotonic(), time.monotonic() + patience(most)
        before = -1
        while not what():
            if (now := sum(file.stat().st_size for file in self.root.rglob("*.log")) + len(self.rounds())) != before:
                last, before = time.monotonic(), now
            assert time.monotonic() - last < patience(idle), {n: self.said(n)[-1500:] for n in ("coordinator", *self.running)}
            assert time.monotonic() < end, {n: self.said(n)[-1500:] for n in ("coordinator", *self.running)}
            time.sleep(0.1)

    def site_state(self, name: str) -> dict[str, Any]:
        (file,) = (self.root / name).glob("sites/*/*/rounds/site.json")
        state: dict[str, Any] = json.loads(json.loads(file.read_text())["state"])
        return state


@contextmanager
def federation(root: Path, environment: dict[str, str] | None = None, **more: Any) -> Iterator[Federation]:
    found = Federation(root, environment, **more)
    try:
        yield found
    finally:
        for name in list(found.running):
            found.kill(name)
