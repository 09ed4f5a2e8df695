"""What turns that have been played hold until they end on the clock: what the client began from, and what it will send.

One file for each, written before the checkpoint that names it: a resumed run reads the very bytes that it would have read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from weft.devices import Flight, Spent
from weft.federation.work import Work
from weft.storage import files
from weft.storage.store import file_name
from weft.tensors import forms
from weft.tensors.forms import Value

HELD, UPDATE = "held:", "update"


@dataclass(frozen=True)
class Played:
    """A turn that has been played and has not ended yet, or has just ended.

    Attributes:
        flight: when it began and ends. spent: what the clock counts. work: what was counted.
        payload, wire: of the update, by part and as a whole, for its bill; nothing where the client sends none.
        loss: mean over its steps, None if it took none. sha256: of its file.
    """

    flight: Flight
    spent: Spent
    work: Work
    payload: dict[str, int]
    wire: int
    loss: float | None
    sha256: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Played:
        parts = {"flight": Flight(**saved["flight"]), "spent": Spent(**saved["spent"]), "work": Work(**saved["work"])}
        return cls(**{**saved, **parts})


@dataclass
class Cargo:
    """The files of turns under way.

    Args:
        folder: theirs alone.
    """

    folder: Path

    def __post_init__(self) -> None:
        files.make_folder(self.folder, private=True)

    def put(self, client: str, version: int, held: Mapping[str, Value], update: bytes | None) -> str:
        """Keep what a client that was sent this version began from, and what it will send; returns the hash of the file."""
        tensors, rest = forms.flatten({HELD + name: value for name, value in held.items()})
        if update is not None:
            tensors[UPDATE] = torch.frombuffer(bytearray(update), dtype=torch.uint8)
        data = files.tensor_bytes(tensors, {"rest": rest})
        files.write(self._path(client, version), data, settle=False)
        return files.sha256(data)

    def get(self, played: Played) -> tuple[dict[str, Value], bytes | None]:
        """Undo :meth:`put`.

        Raises:
            UserError: its file is damaged or gone.
        """
        path = self._path(played.flight.client, played.flight.version)
        tensors, facts = files.tensors_in(files.read_whole(path, played.sha256), path)
        update = tensors.pop(UPDATE, None)
        held = {n.removeprefix(HELD): v for n, v in forms.restore(tensors, facts["rest"]).items()}
        return held, None if update is None else update.numpy().tobytes()

    def settle(self) -> None:
        """Make the files durable: before the checkpoint that names them."""
        files.sync_folder(self.folder)

    def sweep(self, counted: Iterable[Played]) -> None:
        """Drop the files of all other turns."""
        keep: Collection[str] = {self._path(p.flight.client, p.flight.version).name for p in counted}
        for path in self.folder.iterdir():
            if path.name not in keep:
                files.remove(path)

    def _path(self, client: str, version: int) -> Path:
        return self.folder / f"{file_name(client)}.{version}.safetensors"
