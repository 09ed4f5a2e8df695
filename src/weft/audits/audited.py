"""A finished run as an attack finds it: the model, what clients have sent, and, to judge the attack by, their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft.errors import UserError
from weft.export.again import rebuilt
from weft.federation.client import ClientState, Splits
from weft.federation.layout import named
from weft.federation.round import Round
from weft.federation.rounds import adapted, enter
from weft.federation.turn import Turn
from weft.privacy.hiding import Privacy, mechanisms
from weft.runs.directory import RunDirectory, read_rounds
from weft.storage.updates import FOLDER, KeptUpdate, kept
from weft.tensors.forms import Value
from weft.tensors.masked import Masked

if TYPE_CHECKING:
    from weft.federation.bench import Bench
    from weft.federation.method import Method
    from weft.federation.pack import Pack
    from weft.federation.server import ServerState


@dataclass(frozen=True)
class Asked:
    """What people ask of attacks; each is of one of them, which says more.

    Attributes:
        noise: standard deviations that clients add to activations, each tried; () = the run's own. rows: of each client at most.
        steps: of an optimizer that looks for pictures. canary: a secret that some training row's answer holds.
        shadows: runs that are played anew on half of the rows.
    """

    noise: Sequence[float] = ()
    rows: int = 32
    steps: int = 300
    canary: str | None = None
    shadows: int = 0


NOTHING = Asked()
AT_ONCE = 8
"""Turns in one pack, but for parts that a pack takes of one client alone."""


@dataclass(frozen=True)
class Audited:
    """What an attack has before it.

    Attributes:
        method, server: as the run has ended. clients: all, with their rows and what they remember.
        strangers: rows of the table that nobody trains on, of which an attacker has some like them.
        updates: those of one round. lines: of ``rounds.jsonl``.
        asked: of attacks. participation: share of the clients that is drawn for a round.
        summed: updates are summed up before the server sees any of them.
    """

    method: Method
    server: ServerState
    clients: Sequence[ClientState]
    strangers: np.ndarray
    updates: Sequence[KeptUpdate] = ()
    lines: Sequence[Mapping[str, Any]] = ()
    asked: Asked = NOTHING
    participation: float = 1.0
    summed: bool = False

    @cached_property
    def by_id(self) -> dict[str, ClientState]:
        return {c.id: c for c in self.clients}

    def bench(self, update: KeptUpdate) -> Bench:
        """With the backbone of whoever has sent it."""
        return self.server.bench.of(self.by_id[update.client])

    def rows(self, update: KeptUpdate) -> np.ndarray:
        """What whoever has sent it was trained on: rows of the table, those of its period where they arrive in some."""
        own, arrivals = self.by_id[update.client].data.train, self.bench(update).arrivals
        if arrivals is None:
            return own
        return own[np.isin(arrivals.of_row[own], (self.lines[update.asked]["period"], -1))]

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Of rows of the table, each of one class."""
        return self.server.bench.table.labels[rows]

    @property
    def classes(self) -> int:
        """Of rows that have one class each; 0 where they have not."""
        task = self.server.bench.task
        return len(task.classes) if task.kind == "classification" else 0

    def pack(self, update: KeptUpdate, rows: Sequence[np.ndarray] | None = None) -> Pack:
        """Clients that begin as the sender of an update did, so far as the server knows what it held.

        Args:
            rows: that each of them trains on; None = one without any.
        """
        owner, bench = self.by_id[update.client], self.bench(update)
        info = owner.info(self.method.info.asks)
        adaptation = adapted(self.method, self.server.bench, info)
        names = {name for name, _, _ in named(adaptation, bench.backbone)}
        held = {n: v for n, v in update.began.items() if n in names}
        beside = {n: v for n, v in update.began.items() if n not in names}
        nothing = np.zeros(0, dtype=np.int64)
        whose = [(owner.id, nothing)] if rows is None else [(f"{owner.id} {i}", some) for i, some in enumerate(rows)]
        turns = [
            Turn(
                ClientState(name, len(some), owner.facts, owner.model, data=Splits(some, nothing, nothing)),
                *(adaptation, held, update.told, beside),
            )
            for name, some in whose
        ]
        return enter(self.method, bench, turns, Round(update.asked, update.kind, extra=dict(update.told)), self.server.start)

    def moved(self, update: KeptUpdate) -> dict[str, Tensor]:
        """By how much an update leads away from what its sender began with, by name, in double precision.

        Entries that were not sent have not moved. What is no tensor of the adaptation (logits, prototypes) is not among them.
        """
        return differences(update.tensors, _values(self.pack(update))[0])

    def shadows(self, update: KeptUpdate, rows: Sequence[np.ndarray]) -> list[dict[str, Tensor]]:
        """What turns would move that begin as that of an update did, each with rows of its own; like :meth:`moved`."""
        alone = any(part.alone for part, _ in self.pack(update).adaptations[0].values())
        size, found = 1 if alone else AT_ONCE, list[dict[str, Tensor]]()
        for i in range(0, len(rows), size):
            pack = self.pack(update, rows[i : i + size])
            began = _values(pack)
            made = self.method.train(pack)
            found += [differences(one.tensors, start) for one, start in zip(made, began, strict=True)]
        return found


def _values(pack: Pack) -> list[dict[str, Tensor]]:
    """The tensors of each client, as they are now."""
    names = [n for n in pack.shapes if n in pack.tensors]
    return [{n: pack.value(k, n) for n in names if pack.shapes[n][k] is not None} for k in range(len(pack.clients))]


def differences(sent: Mapping[str, Value], began: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the tensors that both have, entries that were not sent have not moved; in double precision."""
    found: dict[str, Tensor] = {}
    for name, value in sent.items():
        if name not in began or tuple(value.shape) != tuple(began[name].shape):
            continue
        before = began[name].double()
        if isinstance(value, Masked):
            found[name] = torch.zeros_like(before)
            found[name][value.mask] = value.entries.cpu().double() - before[value.mask]
        elif isinstance(value, Tensor):
            found[name] = value.cpu().double() - before
    return found


@contextmanager
def opened(folder: Path, at: int | None = None, asked: Asked = NOTHING) -> Iterator[Audited]:
    """A finished run, which nobody plays meanwhile.

    Args:
        asked: of attacks. at: the round whose updates are attacked, from 1; None = the first of which some are kept.

    Raises:
        UserError: no finished run, or nothing was kept of that round.
    """
    directory = RunDirectory(folder)
    with rebuilt(folder, everybody=True) as held:
        lines = read_rounds(directory.rounds)
        updates: list[KeptUpdate] = []
        for one in kept(directory.root / FOLDER, len(lines)):
            if updates and one.round != updates[0].round:
                break
            if at is None or one.round == at - 1:
                updates.append(one)
        if at is not None and not updates:
            raise UserError(f"no update of round {at} is kept in {directory.root / FOLDER}: leave --round out.")
        own = [c.data.test for c in held.clients]
        strangers = np.unique(np.concatenate([held.tests.test, *own])).astype(np.int64)
        settings = held.info["settings"]
        share, summed = float(settings["participation"]), Privacy(mechanisms(settings.get("privacy", "none"))).summed is not None
        yield Audited(held.method, held.server, held.clients, strangers, updates, lines, asked, share, summed)
