"""Where clients' personal state and the round's updates lie: on disk, so that memory does not grow with the federation.

One file per client and version; a checkpoint names the versions that count, older ones are kept until then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from torch import Tensor

from weft.storage import files


class Remembers(Protocol):
    """What the store has to know of a client, such as a :class:`weft.federation.client.ClientState`."""

    id: str
    kept: dict[str, Tensor]
    memo: dict[str, Any]
    rounds_seen: int
    cached: dict[str, set[int]]

    def cached_rows(self) -> dict[str, Tensor]: ...


class ClientStore:
    """Personal state by client: KEEP tensors, memo (tensors and JSON values), number of completed turns, and of which rows it
    keeps hidden states.

    Args:
        folder: holds a safetensors file per client and version.
        manifest: from a checkpoint; files that it does not name are leftovers of an interrupted round, and go.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None = None):
        self.folder = folder
        files.make_folder(folder, private=True)
        self.committed: dict[str, int] = dict(manifest["versions"]) if manifest else {}
        self.hashes: dict[str, str] = dict(manifest["hashes"]) if manifest else {}
        self.seen: dict[str, int] = dict(manifest["seen"]) if manifest else {}
        self.staged: dict[str, int] = {}
        self._seen_staged: dict[str, int] = {}
        self._hashes_staged: dict[str, str] = {}
        self._before: dict[str, tuple[Any, ...]] = {}
        self.held: dict[str, list[Any]] = dict(manifest.get("held", {})) if manifest else {}
        self._sweep()

    def load(self, client: Remembers) -> None:
        """Fill in what the client remembers.

        Raises:
            UserError: its file is damaged or gone.
        """
        client.rounds_seen = self._seen_staged.get(client.id, self.seen.get(client.id, 0))
        self.forget(client)
        version = self.staged.get(client.id, self.committed.get(client.id))
        if version is None:
            return
        path = self.path(client.id, version)
        wanted = self._hashes_staged.get(client.id, self.hashes.get(client.id))
        tensors, facts = files.tensors_in(files.read_whole(path, wanted), path)
        stores: dict[str, dict[str, Any]] = {"kept": client.kept, "memo": client.memo}
        for key, value in tensors.items():
            where, name = key.split(":", 1)
            if where == "cached":
                client.cached[name] = set(value.tolist())
            else:
                stores[where][name] = value
        client.memo |= facts

    def save(self, client: Remembers) -> None:
        """Stage what the client remembers after a completed turn, and drop it from memory."""
        self._before[client.id] = tuple(staged.get(client.id) for staged in self._all_staged())
        self._seen_staged[client.id] = client.rounds_seen
        if client.kept or client.memo or client.cached:
            version = self.staged.get(client.id, self.committed.get(client.id, -1)) + 1
            tensors = {f"kept:{n}": v for n, v in client.kept.items()}
            tensors |= {f"memo:{n}": v for n, v in client.memo.items() if isinstance(v, Tensor)}
            tensors |= {f"cached:{n}": rows for n, rows in client.cached_rows().items()}
            facts = {n: v for n, v in client.memo.items() if not isinstance(v, Tensor)}
            data = files.tensor_bytes(tensors, facts)
            files.write(self.path(client.id, version), data, settle=False)
            self.staged[client.id], self._hashes_staged[client.id] = version, files.sha256(data)
        self.forget(client)

    def discard(self, client: str) -> None:
        """What was staged last of a client counts for nothing."""
        for staged, before in zip(self._all_staged(), self._before.pop(client, (None, None, None)), strict=True):
            if before is None:
                staged.pop(client, None)
            else:
                staged[client] = before

    def hold(self, client: str) -> None:
        """What was staged last of a client does not count yet, but stays: its turn is under way until :meth:`release`."""
        self.held[client] = [staged.get(client) for staged in self._all_staged()]
        self.discard(client)

    def release(self, client: str) -> None:
        """The turn of a client has ended: what was held of it is staged."""
        self._before[client] = tuple(staged.get(client) for staged in self._all_staged())
        for staged, value in zip(self._all_staged(), self.held.pop(client), strict=True):
            if value is not None:
                staged[client] = value

    def _all_staged(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return self.staged, self._seen_staged, self._hashes_staged

    def forget(self, client: Remembers) -> None:
        """Drop from memory without saving."""
        client.kept, client.memo, client.cached = {}, {}, {}

    def settle(self) -> None:
        """Make the staged files durable: before the checkpoint that names them."""
        if self.staged or self.held:
            files.sync_folder(self.folder)

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint has to name for the staged files to count."""
        return {
            "versions": self.committed | self.staged,
            "seen": self.seen | self._seen_staged,
            "hashes": self.hashes | self._hashes_staged,
        } | ({"held": dict(self.held)} if self.held else {})

    def commit(self) -> None:
        """The checkpoint that names the staged files is on disk: older ones may go."""
        old = [(c, self.committed[c]) for c in self.staged if c in self.committed]
        self.committed |= self.staged
        self.seen |= self._seen_staged
        self.hashes |= self._hashes_staged
        self.staged, self._seen_staged, self._hashes_staged, self._before = {}, {}, {}, {}
        for client, version in old:
            files.remove(self.path(client, version))

    def path(self, client: str, version: int) -> Path:
        return client_file(self.folder, client, version)

    def _sweep(self) -> None:
        versions = [*self.committed.items(), *((c, version) for c, (version, *_) in self.held.items() if version is not None)]
        counted = {self.path(c, v).name for c, v in versions}
        for path in self.folder.iterdir():
            if path.name not in counted:
                files.remove(path)


class Spool:
    """The round's updates as bytes, by client; they need not survive the process."""

    def __init__(self, folder: Path):
        self.folder = folder
        files.make_folder(folder, private=True)
        self.clear()

    def put(self, client: str, data: bytes) -> None:
        files.spool(self.folder / file_name(client), data)

    def drop(self, client: str) -> None:
        (self.folder / file_name(client)).unlink(missing_ok=True)

    def holds(self, client: str) -> bool:
        return (self.folder / file_name(client)).exists()

    def get(self, client: str) -> bytes | None:
        path = self.folder / file_name(client)
        return files.read(path) if path.exists() else None

    def clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


def client_file(folder: Path, client: str, version: int) -> Path:
    """Where one version of a client's state lies."""
    return folder / f"{file_name(client)}.{version}.safetensors"


def file_name(client: str) -> str:
    """A file name of its own for any client id: legal, short, and different even where case does not count."""
    digest = hashlib.blake2b(client.encode(), digest_size=6).hexdigest()
    return f"{quote(client, safe='')[:80]}-{digest}"
