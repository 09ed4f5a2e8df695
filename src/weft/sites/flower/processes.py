"""Flower's own processes as children of ours: the SuperLink of a coordinator, the SuperNode of a site.

Both run in Flower's isolation mode ``process``: Flower carries messages, and what answers them is the process that started it
(:mod:`weft.sites.flower.tasks`). So no code that arrives over the network is ever run, at neither end, and a backbone stays
loaded between messages. A secret that only this user can read keeps others, on the machine or elsewhere, from all that no site
needs (:mod:`weft.sites.flower.gate`).
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from weft.errors import UserError
from weft.sites.flower import environment
from weft.sites.flower.launch import SECRET
from weft.storage import files

PATIENCE = 900.0  # seconds that one of Flower's processes may take to come up, as long as it lives: minutes where much else runs
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LOOPBACK = "127.0.0.1"
LAST = 1 << 16  # bytes at the end of a log in which the last words are looked for


class Child:
    """One of Flower's processes.

    Args:
        largest: bytes that a site may send to it at once.

    Attributes:
        address: host and port of its interface for tasks. secret: that a taker of tasks must know. log: what it says.
    """

    def __init__(self, which: str, folder: Path, host: str, port: int, arguments: Sequence[str], largest: int = 0):
        files.make_folder(folder)
        os.chmod(folder, 0o700)
        self.host, self.port = host, port
        self.which, self.folder, self.log = which, folder, folder / f"{which}.log"
        secret = folder / f"{which}.secret"
        secret.unlink(missing_ok=True)
        self.secret = secrets.token_hex(32).encode()
        with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(self.secret)
        self.address = f"{near(host)}:{port}"
        self.command = [
            *(sys.executable, "-m", "weft.sites.flower.launch", which, str(os.getpid()), str(largest)),
            *("--host", host, "--port", str(port), "--isolation", "process", SECRET, str(secret)),
            *arguments,
        ]
        self.process: subprocess.Popen[bytes] | None = None
        self._before = 0  # bytes of the log that are of earlier processes

    def start(self) -> None:
        """(Re)start it; its words go to the log.

        Raises:
            UserError: another process has its port.
        """
        try:
            socket.create_server((self.host, self.port)).close()
        except OSError as e:
            taken = f"can't listen on {self.host}:{self.port} ({os.strerror(e.errno or 0).lower()})"
            raise UserError(f"{taken}: stop what does, or take another port.") from None
        with self.log.open("ab") as log:
            self._before = log.tell()
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment.of(self.folder / "flower")
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self) -> None:
        """Until it takes connections.

        Raises:
            UserError: it does not; the sentence ends with the last that it said.
        """
        host, port = self.address.rsplit(":", 1)
        end = time.monotonic() + PATIENCE
        while self.alive and time.monotonic() < end:
            try:
                with socket.create_connection((host, int(port)), timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise UserError(f"Flower's {self.which} did not come up on {self.address}: {self.last_words()} (all of it: {self.log}).")

    def last_words(self) -> str:
        """The last error that it told of since it was started, or else the last line."""
        text = ""
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(max(self._before, self.log.stat().st_size - LAST))
                text = log.read().decode(errors="replace")
        said = [line.strip() for line in COLOURS.sub("", text).splitlines() if line.strip()]
        for i in range(len(said) - 1, -1, -1):
            if "Exit Code" in said[i]:  # what went wrong stands in the lines below
                return " ".join(said[i + 1 : i + 3])
            if "ERROR" in said[i]:
                return re.sub(r"^ERROR\s*:?\s*", "", said[i])
        return (said or ["it said nothing"])[-1]

    def epitaph(self) -> str:
        """Why it has ended, as far as anybody knows."""
        code = None if self.process is None else self.process.poll()
        return f"it was killed by signal {-code}" if code is not None and code < 0 else self.last_words()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def near(host: str) -> str:
    """Where a server that listens on ``host`` is spoken to from the same machine."""
    return LOOPBACK if host in ("0.0.0.0", "::") else host


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
