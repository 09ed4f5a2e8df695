"""Runs that seem to go on, and their pages over real HTTP in this process."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from html_tree import Element, parsed
from patience import patience
from weft.report.page.followed import Followed
from weft.report.page.local_server import LocalServer
from weft.storage import files

BEGUN = ("format", "name", "started", "settings", "planned", "method", "data", "backbone", "environment", "seconds")
"""What a summary holds before the run is finished."""


def grow(run: Path, to: Path, rounds: int, finished: bool = False) -> None:
    """Make ``to`` the folder of a finished run as it was after so many rounds."""
    (to / "checkpoint").mkdir(parents=True, exist_ok=True)
    summary = json.loads((run / "summary.json").read_text())
    if not finished:
        summary = {n: summary[n] for n in BEGUN} | {"finished": False}
    files.write(to / "summary.json", json.dumps(summary).encode())
    shutil.copy(run / "experiment.toml", to)
    shutil.copy(run / "rounds.jsonl", to)
    length = sum(map(len, (run / "rounds.jsonl").read_bytes().splitlines(keepends=True)[:rounds]))
    state = files.read_sealed(run / "checkpoint" / "state.json")
    if rounds:
        files.write_sealed(to / "checkpoint" / "state.json", state | {"length": length})


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder in a folder, with what is in it."""
    found = sorted(folder.rglob("*"))
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in found}


@dataclass(frozen=True)
class Answered:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def page(self) -> Element:
        return parsed(self.body.decode())

    @property
    def live(self) -> Element:
        """What the page says of itself."""
        return self.page.one(id="live")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def asked(server: LocalServer, path: str = "/", method: str = "GET", hosts: tuple[str, ...] | None = None) -> Answered:
    """Ask over a connection of its own.

    Args:
        hosts: Host headers; None = the one that belongs there.
    """
    address = f"127.0.0.1:{server.server_address[1]}"
    connection = http.client.HTTPConnection(address, timeout=patience(60))
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for host in (address,) if hosts is None else hosts:
            connection.putheader("Host", host)
        connection.endheaders()
        got = connection.getresponse()
        return Answered(got.status, dict(got.getheaders()), got.read())
    finally:
        connection.close()


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[LocalServer]:
    """A server for a folder, until the end of the block."""
    with LocalServer(Followed(folder), port) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()
