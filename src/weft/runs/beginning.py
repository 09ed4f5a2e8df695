"""Start values that a run takes from an adapter, kept in its folder: a resumed run needs no other, wherever that has gone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weft.adaptation.lora import LoRA
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.common_facts import nobody
from weft.federation.layout import named
from weft.federation.message import ClientInfo
from weft.federation.method import Method
from weft.federation.rounds import adapted
from weft.federation.scope import Scope
from weft.runs.directory import RunDirectory
from weft.storage import files


@dataclass(frozen=True)
class Beginning:
    """What a run begins from.

    Attributes:
        tensors: start values by the names of the method's own tensors.
        about: for ``summary.json`` and the card: ``adapter`` (its folder), ``base``, ``sha256`` of its files, ``values`` (sha256
            of the start values), ``modules`` with LoRA, whether its ``head`` is among them, and its ``lifetime``, see
            :func:`weft.runs.lifetime.of`, or None.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the values, as sites can tell it of what they are handed."""
        return str(self.about["values"])

    def write(self, directory: RunDirectory) -> dict[str, Any]:
        """Keep it in the folder of the run; returns what ``summary.json`` has to say of it."""
        data = files.tensor_bytes(self.tensors)
        files.write(directory.start, data)
        return self.about | {"stored": files.sha256(data)}


def again(directory: RunDirectory, about: Mapping[str, Any]) -> Beginning | None:
    """What a run was begun from, None if from nothing.

    Args:
        about: contents of ``summary.json``.

    Raises:
        UserError: its file is damaged, or gone.
    """
    found = about.get("start")
    if found is None:
        return None
    tensors, _ = files.tensors_in(files.read_whole(directory.start, found["stored"]), directory.start)
    return Beginning(tensors, {n: v for n, v in found.items() if n != "stored"})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of named tensors, whatever their order."""
    return files.sha256(files.tensor_bytes({n: tensors[n] for n in sorted(tensors)}))


def check_clients(beginning: Beginning, method: Method, bench: Bench, clients: Iterable[ClientInfo]) -> None:
    """Every client can begin from it: its tensors are as large as the server's, or their leading slices, at the same scale.

    Raises:
        UserError: one of them is of another rank or scale.
    """
    clients = list(clients)
    scales = _scales(method, bench, nobody(clients))
    seen: set[str] = set()
    for client in clients:
        kind = json.dumps(client.facts, sort_keys=True, default=repr)
        if kind in seen:
            continue
        seen.add(kind)
        for name, init, scope in named(adapted(method, bench, client), bench.backbone):
            value = beginning.tensors.get(name)
            sliced = Scope.DOWN in scope and value is not None and init.within == tuple(value.shape)
            if value is not None and tuple(value.shape) != init.shape and not sliced:
                raise UserError(
                    f"{method.info.slug} gives {client.id} {name} of shape {init.shape} and the server {tuple(value.shape)}, so "
                    "that an adapter can't be the start of both: leave --start out, or give all clients the same rank."
                )
        if any(scales[where] != scale for where, scale in _scales(method, bench, client).items() if where in scales):
            raise UserError(
                f"{method.info.slug} gives {client.id} LoRA of another scale than the server's, so that an adapter can't be the "
                "start of both: leave --start out, or give all clients the same rank."
            )


def _scales(method: Method, bench: Bench, client: ClientInfo) -> dict[str, float]:
    """α/r of each LoRA, by part and site."""
    return {
        f"{name}/{site.called}": part.scale_at(site)
        for name, (part, _) in adapted(method, bench, client).items()
        if isinstance(part, LoRA)
        for site in part.sites(bench.backbone)
    }
