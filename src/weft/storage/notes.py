"""What a server notes of each client: one file per client, so that a checkpoint does not rewrite the federation's every round.

A file is named after its client and its contents, and is never changed. A manifest says which one counts for whom; as long as a
checkpoint that may be gone back to names a file, it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weft.storage import files
from weft.storage.store import file_name
from weft.tensors import forms
from weft.tensors.forms import Value

Manifest = dict[str, str]
"""Client -> SHA-256 of the file that counts."""


class Notes:
    """Notes by client: tensors, LowRanks and JSON values by name.

    Attributes:
        manifest: what counts. finite: so is all that was noted since somebody set this.

    Args:
        folder: of their files, made with the first of them; None = they live in memory, and as long as this object.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self.manifest: Manifest = {}
        self.finite = True
        self._here: dict[str, bytes] = {}

    def get(self, client: str) -> dict[str, Any]:
        """What is noted of a client; nothing at first.

        Raises:
            UserError: its file is damaged or gone.
        """
        digest = self.manifest.get(client)
        if digest is None:
            return {}
        path = self._path(client, digest)
        tensors, about = files.tensors_in(files.read_whole(path, digest) if self.folder else self._here[digest], path)
        return {**forms.restore(tensors, about["scales"]), **about["json"]}

    def put(self, client: str, values: Mapping[str, Any]) -> None:
        """Note this of a client. Names that are not given stay as they are."""
        values = self.get(client) | dict(values)
        mine = {n: v for n, v in values.items() if isinstance(v, Value)}
        tensors, scales = forms.flatten(mine)
        json = {n: v for n, v in values.items() if n not in mine}
        data = files.tensor_bytes(tensors, {"scales": scales, "json": json})
        self.finite = self.finite and forms.finite(mine.values())
        digest = files.sha256(data)
        if self.folder is None:
            self._here[digest] = data
        else:
            files.make_folder(self.folder, private=True)
            files.write(self._path(client, digest), data, settle=False)
        self.manifest[client] = digest

    def settle(self) -> None:
        """Make the files durable: before the checkpoint that names them."""
        if self.folder is not None and self.folder.exists():
            files.sync_folder(self.folder)

    def sweep(self, others: Iterable[Manifest] = ()) -> None:
        """Drop every file that counts neither now nor in one of the other manifests."""
        if self.folder is None or not self.folder.exists():
            return
        counted = {self._path(c, digest).name for some in (self.manifest, *others) for c, digest in some.items()}
        for path in self.folder.iterdir():
            if path.name not in counted:
                files.remove(path)

    def _path(self, client: str, digest: str) -> Path:
        return (self.folder or Path()) / f"{file_name(client)}.{digest[:16]}.safetensors"
