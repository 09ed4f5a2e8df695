"""``weft run --engine flower``: a whole federation on this machine, of real processes that talk over Flower with TLS and keys.

For trying out what a real federation does: every client is a process with the rows that it was dealt, and a backbone of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from weft import experiment as settings
from weft.engines.observer import Observer
from weft.engines.remote import Remote
from weft.engines.setup import Setup
from weft.errors import UserError
from weft.experiment import Experiment, hidden
from weft.federation.client import ClientState
from weft.privacy.mechanism import CKKS
from weft.runs.directory import RunDirectory
from weft.runs.stage import MakeTurns
from weft.sites import sum_key
from weft.sites.flower import environment
from weft.sites.key_files import SUM_KEY
from weft.sites.roll import Roll, StageTransport
from weft.sites.terms import Terms
from weft.storage import files

if TYPE_CHECKING:
    from weft.federation.method import Method
    from weft.runs.prepare import Material

DEADLINE = 3600.0


@contextmanager
def federation(
    x: Experiment, method: Method, directory: RunDirectory, material: Material, observer: Observer
) -> Iterator[MakeTurns]:
    """Start coordinator and sites, and give the engine that plays rounds with them; all processes end with the block.

    Raises:
        UserError: a process does not start.
    """
    environment.ready()
    from weft.sites import keys
    from weft.sites.flower.link import Link
    from weft.sites.flower.processes import LOOPBACK, free_port

    root = directory.root / "sites"
    files.make_folder(root, private=True)  # logs and memories of the sites
    port, names = free_port(), [c.id for c in material.clients]
    made = keys.find(root / "keys") if (root / "keys").exists() else keys.coordinator(root / "keys", [LOOPBACK])
    if isinstance(hidden.chain_of(x).summed, CKKS) and not (root / "keys" / SUM_KEY).exists():
        sum_key.new(root / "keys")
    public = {}
    for name in names:
        mine = root / "keys" / f"{name}.key"
        public[name] = mine.with_suffix(".pub") if mine.exists() else keys.site(root / "keys", name).public
    file = root / "experiment.toml"
    classes = list(material.data["classes"])
    files.write(file, settings.to_toml(x, {"classes": classes, "engine": "simulation"}).encode())
    common = x.model_copy(update={"classes": classes})
    sites: list[subprocess.Popen[bytes]] = []
    with Link(directory.root / "link", LOOPBACK, port, made, lambda: public, observer.say, x.max_bytes).open() as grid:
        try:
            for client in material.clients:
                sites.append(_site(root, client, file, port, x))
            terms = Terms.of(_run(root), common, material.bench, material.beginning)
            roll = Roll(grid, terms, method, x.models, DEADLINE, observer, root)
            roll.wait_for(len(names), lambda: _all_well(sites, names, root))
            yield _engine(roll, method)
        finally:
            for process in sites:
                process.terminate()
            for process in sites:
                process.wait()


def _run(root: Path) -> str:
    """The run's id; the same when it is resumed, so that the sites find what they remember."""
    file = root / "run"
    if not file.exists():
        files.write(file, uuid4().hex.encode())
    return files.read(file).decode()


def _engine(roll: Roll, method: Method) -> MakeTurns:
    def engine(setup: Setup) -> Remote:
        for _, people in setup.federations:  # their rows are at their sites
            people[:] = [ClientState(c.id, c.n, dict(c.facts), c.model) for c in people]
        stage = "rounds" if setup.method is method else "setup"
        return Remote(setup, StageTransport(roll, stage, setup.federations[0][0], setup.exchange))

    return engine


def _site(root: Path, client: ClientState, file: Path, port: int, x: Experiment) -> subprocess.Popen[bytes]:
    """``weft join``, as a person would type it."""
    from weft.sites.flower.processes import LOOPBACK

    name = client.id
    command = [
        *(sys.executable, "-m", "weft", "join", str(file), "--as", name, "--name", name, "--server", f"{LOOPBACK}:{port}"),
        *("--keys", str(root / "keys"), "--folder", str(root / name), "--device", x.device),
        *(["--model", client.model] if client.model else []),
        *(["--trust-remote-code"] if x.trust_remote_code else []),
    ]
    with (root / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _all_well(sites: list[subprocess.Popen[bytes]], names: list[str], root: Path) -> None:
    for name, process in zip(names, sites, strict=True):
        if process.poll() is not None:
            log = root / f"{name}.log"
            said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise UserError(f"the site {name} has ended: {said[-1]} (all of it: {log}).")
