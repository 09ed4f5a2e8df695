"""Updates of single clients, kept for audits: what each round's server has read of each client, and what the client began from.

A file for each update, and one for each set of values that clients began from: those of a broadcast are the same for all, and
are kept once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.storage import files
from weft.storage.store import file_name
from weft.tensors import forms
from weft.tensors.forms import Value

FOLDER = "updates"
"""Of a run's folder."""

BEGAN = "began-"
"""How files of what clients began from are called; no file of a client is, for ids end in their hash."""


@dataclass(frozen=True)
class KeptUpdate:
    """An update as the server has read it.

    Attributes:
        round: in which it counted, from 0. asked: in which the client began, another one where nobody waits for rounds.
        kind: of that round. client: its id. weight: examples that it says it used.
        tensors: what it has sent. began: what it held when it began, of the values that the server knows.
        facts: what it tells beside tensors. told: what it was told with the question beside tensors.
    """

    round: int
    asked: int
    kind: str
    client: str
    weight: float
    tensors: Mapping[str, Value]
    began: Mapping[str, Value]
    facts: Mapping[str, Any]
    told: Mapping[str, Any]


class UpdateKeeper:
    """Writes the updates of a run.

    Args:
        folder: theirs alone; nobody else on this machine may enter it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: Path | None = None
        files.make_folder(folder, private=True)

    def begin(self, t: int) -> None:
        """Round ``t`` is taken in, perhaps once more: what was kept of it and of later ones does not count."""
        for folder in self.folder.iterdir():
            if folder.name.isdecimal() and int(folder.name) >= t:
                for path in folder.iterdir():
                    files.remove(path)
        self._open = self.folder / f"{t:06d}"
        files.make_folder(self._open, private=True)

    def put(self, update: KeptUpdate) -> None:
        """Keep an update that counts in the round that was begun. Its file is whole or not there, and durable after
        :meth:`settle`.
        """
        folder = self._open
        assert folder is not None
        began, rest = forms.flatten(update.began)
        data = files.tensor_bytes(began, {"rest": rest})
        digest = files.sha256(data)
        place = _began(folder, digest)
        if not place.exists():
            files.write(place, data, settle=False)
        sent, left = forms.flatten(update.tensors)
        about = {name: getattr(update, name) for name in ("round", "asked", "kind", "client", "weight", "facts", "told")}
        data = files.tensor_bytes(sent, {"rest": left, "about": about, "began": digest})
        files.write(folder / f"{file_name(update.client)}.safetensors", data, settle=False)

    def settle(self) -> None:
        """Make the files durable: before the checkpoint by which their round counts."""
        if self._open is not None:
            files.sync_folder(self._open)
            files.sync_folder(self.folder)


def kept(folder: Path, rounds: int) -> Iterator[KeptUpdate]:
    """The updates that are kept in a folder, by round and client, one in memory at a time.

    Args:
        folder: of :class:`UpdateKeeper`. rounds: that count; later ones were interrupted.

    Raises:
        UserError: a file is damaged, or gone.
    """
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not place.name.isdecimal() or int(place.name) >= rounds:
            continue
        for path in sorted(place.glob("*.safetensors")):
            if not path.name.startswith(BEGAN):
                yield _read(path)


def _read(path: Path) -> KeptUpdate:
    tensors, facts = files.tensors_in(files.read(path), path)
    try:
        place = _began(path.parent, facts["began"])
        began, more = files.tensors_in(files.read_whole(place, facts["began"]), place)
        values = forms.restore(began, more["rest"])
        return KeptUpdate(tensors=forms.restore(tensors, facts["rest"]), began=values, **facts["about"])
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}): remove it, and the others are attacked without it.") from None


def _began(folder: Path, digest: str) -> Path:
    return folder / f"{BEGAN}{digest[:16]}.safetensors"
