"""What a federation needs to go on after its last finished round, saved so that a kill at any instant loses no more than that.

The tensors go to a file of their own; ``state.json`` names it with its hash, and its renaming is the moment from which a round
counts. What it does not name (tensors of an unfinished save, later lines of ``rounds.jsonl``, staged files of clients) is ignored
and cleared away.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from weft.errors import UserError
from weft.federation.server import ServerState
from weft.storage import files


@dataclass
class Saved:
    """One checkpoint.

    Attributes:
        next: index of the round to play next. finished: there is none.
        pack: clients per pass. cohort: ids of the last round's cohort. length: bytes of ``rounds.jsonl`` that count.
        clients: the client store's manifest. ledger: its records.
        identity: what the state depends on besides (data, backbone …): resuming with another is refused.
        servers: (tensors, JSON state) of each.
        usual: how large updates were, recovery: what may be gone back to; None where nobody is a stranger.
        best: of :class:`weft.runs.best.Best`; None where the last round's model is kept.
        clock: of simulated devices, see :meth:`weft.devices.Clock.saved`; None where nobody keeps time.
        stopped: after which round and why, where that was before all planned ones were played.
        flights: turns under way; None where rounds wait for their clients.
    """

    next: int
    finished: bool
    pack: int
    cohort: list[str]
    length: int
    clients: dict[str, Any]
    ledger: list[dict[str, Any]]
    identity: dict[str, Any]
    servers: list[tuple[dict[str, Tensor], dict[str, Any]]]
    usual: dict[str, list[float]] | None = None
    recovery: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    clock: dict[str, Any] | None = None
    stopped: dict[str, Any] | None = None
    flights: list[dict[str, Any]] | None = None


@dataclass
class Kept:
    """The servers of a save: a file of tensors beside ``state.json``, its hash, and their JSON states."""

    file: str
    sha256: str
    states: list[dict[str, Any]]


class Checkpoint:
    """The checkpoint of one federation, in a folder of its own.

    Attributes:
        last: what was loaded of the servers.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.state = folder / "state.json"
        self.last: Kept | None = None

    def save(self, saved: Saved, older: Collection[str] = ()) -> Kept:
        """Save durably, then drop the tensors of saves before.

        Args:
            older: files of them that stay.
        """
        # never the name that is in force: until state.json is renamed, the former save must stay whole
        kept = self.keep(f"server-{saved.next:06d}{'-end' if saved.finished else ''}.safetensors", saved.servers)
        state = {n: v for n, v in vars(saved).items() if n != "servers" and v is not None}
        state |= {"servers": kept.states, "tensors": {"file": kept.file, "sha256": kept.sha256}}
        files.write_sealed(self.state, state)
        self.sweep({kept.file, *older})
        return kept

    def keep(self, name: str, servers: list[tuple[dict[str, Tensor], dict[str, Any]]]) -> Kept:
        """Write servers into a file; it counts once ``state.json`` names it."""
        files.make_folder(self.folder, private=True)
        tensors: dict[str, Tensor] = {}
        for i, (values, state) in enumerate(servers):
            tensors |= {f"{i}|{name}": value for name, value in values.items()}
            files.exact_json(state["memo"])
        data = files.tensor_bytes(tensors)
        files.write(self.folder / name, data)
        return Kept(name, files.sha256(data), json.loads(json.dumps([state for _, state in servers])))

    def states(self, kept: Kept) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Undo :meth:`keep`.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / kept.file
        tensors, _ = files.tensors_in(files.read_whole(path, kept.sha256), path)
        own: list[dict[str, Tensor]] = [{} for _ in kept.states]
        for key, value in tensors.items():
            i, name = key.split("|", 1)
            own[int(i)][name] = value
        return list(zip(own, kept.states, strict=True))

    @property
    def there(self) -> bool:
        """Whether anything was saved."""
        return self.state.exists()

    def load(self) -> Saved | None:
        """The last save, or None if there is none yet.

        Raises:
            UserError: it is damaged, or of another format.
        """
        if not self.there:
            return None
        state = files.read_sealed(self.state)
        self.last = Kept(**state.pop("tensors"), states=state.pop("servers"))
        return Saved(**state, servers=self.states(self.last))

    def sweep(self, keep: Collection[str]) -> None:
        """Drop all other tensors, of former and of unfinished saves."""
        for path in self.folder.iterdir():
            if path.name not in keep and path.name != self.state.name:
                files.remove(path)


def restore(server: ServerState, saved: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    """Put a server back to where it was saved."""
    tensors, state = saved
    server.restore(tensors, state)


def digest(folder: Path) -> dict[str, str]:
    """Hashes of what a finished federation left, apart from times: equal runs have equal ones.

    Returns:
        ``server``, ``clients`` and each round, by name.
    """
    from weft.runs.directory import read_rounds
    from weft.storage.store import client_file

    saved = Checkpoint(folder / "checkpoint").load()
    if saved is None:
        raise UserError(f"{folder} holds no checkpoint.")
    tensors = {f"{i}|{n}": v for i, (values, _) in enumerate(saved.servers) for n, v in values.items()}
    states = json.dumps([state for _, state in saved.servers], sort_keys=True)
    found = {"server": files.sha256(files.tensor_bytes(tensors)) + files.sha256(states.encode())}
    for client, version in sorted(saved.clients["versions"].items()):
        found[f"client {client}"] = files.sha256(files.read(client_file(folder / "clients", client, version)))
    for line in read_rounds(folder / "rounds.jsonl", saved.length):
        found[f"round {line['round']}"] = files.sha256(json.dumps(without_times(line), sort_keys=True).encode())
    return found


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """A line of ``rounds.jsonl`` without what differs between equal runs: times, and what else is the machine's."""
    return {n: v for n, v in line.items() if n not in ("seconds", "memory", "energy")}
