"""A client at its own place: it has its rows, its memory and what it has received, and sees nothing else but bytes.

The in-process engine holds many clients in one table; a site is one of them alone, as it runs at a data owner's. Its memory lies
in a folder of its own and survives a restart. What it answers depends on nothing but that folder, its rows and the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft.communication.codecs import Codec
from weft.communication.frame import Received
from weft.communication.strict import Refused, quoted
from weft.engines import transfer
from weft.engines.round_losses import Losses
from weft.errors import UserError, WeftError
from weft.federation import generating
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.common_facts import nobody
from weft.federation.exchange import Limits, read_download, write_update
from weft.federation.hidden_rows import MEMO
from weft.federation.hidden_turn import trained
from weft.federation.info import common
from weft.federation.layout import Adaptation, named
from weft.federation.memory import NONE
from weft.federation.message import APPENDED, Update, beside
from weft.federation.method import Method
from weft.federation.round import Round
from weft.federation.rounds import adapted, enter
from weft.federation.scope import Scope
from weft.federation.turn import Turn
from weft.privacy.sums.packets import Kind
from weft.storage import files
from weft.storage.store import ClientStore
from weft.tensors import forms
from weft.tensors.forms import Value, finite
from weft.tensors.growing import grow
from weft.tensors.init import leading
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.engines.site_sums import SiteSums


class Behind(WeftError):
    """A message builds on one that this site has not got, or has lost: it needs everything anew."""


class Diverged(WeftError):
    """A turn has ended in values that are not finite, and has not happened: what this site remembers stays as it was."""


class SiteClient:
    """One client.

    Args:
        bench: its own rows in the form of its backbone. client: its id, facts, and where its rows are in the table.
        folder: of its memory. start: start values handed out in set-up to everybody, of which it takes its own, in its size.
        by_class: its scores tell counts of each class. label: names the run and its stage, for hidden sums.
    """

    def __init__(
        self,
        method: Method,
        bench: Bench,
        client: ClientState,
        folder: Path,
        uplink: Codec,
        start: Mapping[str, Tensor] | None = None,
        limits: Limits | None = None,
        by_class: bool = False,
        label: str = "",
    ):
        self.method, self.bench, self.client, self.folder, self.uplink = method, bench, client, folder, uplink
        self.limits, self.by_class = limits or Limits(), by_class
        files.make_folder(folder, private=True)
        self.handed = dict(start or {})
        self._know({})
        self.state = folder / "site.json"
        self._recall()
        self.sums: SiteSums | None = None
        if bench.privacy.summed is not None:
            from weft.engines.site_sums import SiteSums  # which needs packages that nothing else does

            self.sums = SiteSums(method, bench.privacy, client.id, folder, label, self.limits)

    def _know(self, said: Mapping[str, Any]) -> None:
        """Be of the size that the coordinator says."""
        self.client.renew(said)
        info = self.client.info(self.method.info.asks)
        adaptation = adapted(self.method, self.bench, info)
        self.start = self._cut(adaptation)
        self.info, self.adaptation, self.said = info, adaptation, dict(said)

    def _heed(self, said: Mapping[str, Any]) -> None:
        """Facts that came with a question."""
        if odd := sorted(said.keys() - set(self.method.info.renews)):
            raise Refused(f"The coordinator renews {quoted(odd[0])}, which the method does not.")
        if said == self.said:
            return
        try:
            self._know(said)
        except UserError as e:
            self.client.renew(self.said)
            raise Refused(f"What the coordinator says of {self.client.id} is nothing that the method can have: {e}") from None

    # what its folder holds ----------------------------------------------------------------------------------------------

    def _cut(self, adaptation: Adaptation) -> dict[str, Tensor]:
        """What is handed to everybody, in this client's size.

        Raises:
            Refused: it is too small for that.
        """
        shapes = {init.called(n): init.shape for n, init, _ in named(adaptation, self.bench.backbone)}
        try:
            return {n: leading(value, shapes[n]) for n, value in self.handed.items() if n in shapes}
        except ValueError as e:
            raise Refused(f"The start values are smaller than this client's own ({e}).") from e

    @property
    def whole(self) -> bool:
        """Whether it holds all that the server's model has, in its size."""
        mine, all_of = (
            {n: init.shape for n, init, scope in named(parts, self.bench.backbone) if Scope.DOWN in scope}
            for parts in (self.adaptation, adapted(self.method, self.bench, nobody([self.info])))
        )
        return mine == all_of

    def _recall(self) -> None:
        """Be what the folder says, as after a restart.

        Raises:
            UserError: what it says can't be trusted, or has gone.
        """
        saved = files.read_sealed(self.state) if self.state.exists() else {}
        self.rounds: dict[str, Any] = saved.get("last", {})
        self.hashes: dict[str, str] = saved.get("files", {})
        self.clock = int(saved.get("clock", 0))
        self.store = ClientStore(self.folder / "clients", saved.get("clients"))
        try:
            self.copy = self._received(self.folder / saved["copy"]) if saved else self._drawn()
        except UserError:  # what others know too is no loss: at clock 0 it is all asked for again
            self.copy, self.clock = self._drawn(), 0

    def _whole(self, path: Path) -> bytes:
        """A file that ``site.json`` vouches for."""
        return files.read_whole(path, self.hashes.get(path.name))

    # what it has received -----------------------------------------------------------------------------------------------

    def _drawn(self) -> dict[str, Value]:
        """Start values, drawn from the common seed."""
        found: dict[str, Value] = {}
        for name, init, scope in named(self.adaptation, self.bench.backbone):
            if Scope.DOWN not in scope:
                continue
            if init.kind == "lowrank":
                found[name] = LowRank.zeros(*init.shape, dtype=self.bench.dtype)
            else:
                found[name] = self.bench.begin(init, name, self.start)
        return found

    def _received(self, path: Path) -> dict[str, Value]:
        return forms.restore(*files.tensors_in(self._whole(path), path))

    def _apply(self, tensors: Mapping[str, Value], since: int) -> dict[str, Value]:
        """The copy after a message; the one before is not touched, and one that builds on nothing (0) starts from none."""
        new = dict(self.copy) if since else self._drawn()
        free = beside(self.adaptation, self.bench.backbone, tensors)
        for name, value in tensors.items():
            if name in free:  # nobody keeps it
                continue
            old = new.get(name.removesuffix(APPENDED))
            if name.endswith(APPENDED):
                assert isinstance(old, LowRank) and isinstance(value, LowRank)
                new[name.removesuffix(APPENDED)] = grow(old, value)
            else:
                new[name] = value
        return new

    # what it does ---------------------------------------------------------------------------------------------------------

    def turn(
        self,
        round: Round,
        data: bytes,
        since: int,
        now: int,
        counted: int = NONE,
        said: Mapping[str, Any] | None = None,
        layout: Mapping[str, Any] | None = None,
    ) -> tuple[bytes | None, float | None]:
        """Train on a download: the update as bytes (None without rows, or in a round without uploads), and the mean loss.

        The same message for the same round again, as after a restart of the coordinator, gives the same answer and trains
        nothing twice.

        Args:
            since: the coordinator's clock up to which this site must have all news, 0 = none. now: up to which it then has.
            counted: the round of its last turn that counted. said: facts about it that the coordinator has renewed.
            layout: of the sum that the update goes into, where updates are hidden in sums: it is then a vector of one.

        Raises:
            Behind: this site does not hold what the download builds on. Diverged: it has trained in
                vain. Refused: the message is not one of this round and method.
            UserError: its memory is damaged or can't be saved.
        """
        digest = files.sha256(data)
        if self.sums is not None:
            digest = f"{digest} {self.sums.agreed(layout or {})}"
        elif layout:
            raise Refused("The coordinator asks for a sum, which this run has none of.")
        if self.rounds.get("round") == round.index and self.rounds.get("digest") == digest:
            return (self._whole(self._reply(round.index)) if self.rounds["replied"] else None), self.rounds["loss"]
        self._heed(said or {})
        received = self._read(round, data, since)
        try:
            return self._train(round, received, since, now, counted, digest)
        except Exception:
            self._recall()  # a turn that was not saved has not happened
            raise

    def _train(
        self, round: Round, received: Received, since: int, now: int, counted: int, digest: str
    ) -> tuple[bytes | None, float | None]:
        self.copy, self.clock = self._apply(received.tensors, since), now
        self.store.load(self.client)
        held = self.start | self.copy
        turn = self._turn(received, held, counted)
        pack = enter(self.method, self.bench, [turn], round, self.start, hides=True)
        losses = pack.listener = Losses([self.client.id])
        updates = list(trained(self.method, pack))
        frame = self._written(updates[0], round, turn) if updates else None
        pack.write_back()
        if not all(finite(some.values()) for some in (self.client.kept, self.client.memo, *(u.tensors for u in updates))):
            raise Diverged(f"the turn of {self.client.id} in round {round.index + 1} has ended in values that are not finite")
        self.store.save(self.client)
        loss = None if self.bench.privacy else losses.means().get(self.client.id)
        told = updates[0].facts.get(MEMO) if updates else None
        self._save(round.index, digest, frame, loss, told)
        return frame, loss

    def _written(self, update: Update, round: Round, turn: Turn) -> bytes:
        """An update as bytes: for the coordinator, or for a sum."""
        if self.sums is not None:
            return self.sums.vector(update, round.index, turn.held)
        return write_update(self.method, round, self.bench.seed, update, self.uplink, turn).data

    @property
    def spent(self) -> dict[str, float] | None:
        """What the last turn says of its cost, beside an update that is summed."""
        return self.rounds.get("spent")

    def part_of_sum(self, kind: Kind, round: Round, question: bytes) -> bytes:
        """The answer to one of the questions of a sum over the updates of the last turn.

        Raises:
            Refused: there is no such update, or the question is none that may be answered.
        """
        if self.sums is None or self.rounds.get("round") != round.index or not self.rounds["replied"]:
            raise Refused("The coordinator asks for a sum over what this site has not trained.")
        return self.sums.answer(
            kind, question, round.index, self._whole(self._reply(round.index)), self.rounds["digest"].split()[-1]
        )

    def _turn(self, received: Received, held: Mapping[str, Value], counted: int = NONE) -> Turn:
        free = beside(self.adaptation, self.bench.backbone, received.tensors)
        return Turn(self.client, self.adaptation, held, received.facts, free, counted)

    def _read(self, round: Round, data: bytes, since: int) -> Received:
        if since and since != self.clock:
            raise Behind(f"{self.client.id} holds another state than the message builds on")
        held = self.copy if since else {}
        return read_download(self.method, self.bench, self.info, self.adaptation, round, data, self.limits, held)

    def _save(self, round: int, digest: str, frame: bytes | None, loss: float | None, told: object) -> None:
        tensors, scales = forms.flatten(self.copy)
        name = f"copy-{round:06d}.safetensors"
        held = {self.folder / name: files.tensor_bytes(tensors, scales)}
        if frame is not None:
            held[self._reply(round)] = frame
        for path, data in held.items():
            files.write(path, data, settle=False)
        self.hashes = {p.name: files.sha256(data) for p, data in held.items()}
        self.store.settle()
        files.sync_folder(self.folder)
        self.rounds = {"round": round, "digest": digest, "replied": frame is not None, "loss": loss}
        if self.sums is not None:
            self.rounds["spent"] = told
        saved = {"copy": name, "clock": self.clock, "last": self.rounds, "clients": self.store.manifest(), "files": self.hashes}
        files.write_sealed(self.state, saved)
        self.store.commit()
        for old in (*self.folder.glob("copy-*.safetensors"), *self.folder.glob("reply-*.bin")):
            if old.name not in (name, self._reply(round).name):
                files.remove(old)

    def _reply(self, round: int) -> Path:
        return self.folder / f"reply-{round:06d}.bin"

    @torch.no_grad()
    def scores(
        self, round: Round, data: bytes, since: int, said: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """What the task tells of its own validation and test rows, by view and split, with a download that is not kept.

        A site that holds less than the server's model (some layers, a slice of them) can't score that.
        """
        self._heed(said or {})
        received = self._read(round, data, since)
        self.store.load(self.client)
        held = self.start | self._apply(received.tensors, since)
        pack = enter(self.method, self.bench, [self._turn(received, held)], round, self.start)
        found: dict[str, dict[str, dict[str, Any]]] = {}
        personal = False
        for view in sorted(self.method.views, key=lambda v: not common(v)):  # the common model, before it is fitted
            if common(view) and not self.whole:
                continue
            if not common(view) and not personal:
                with torch.enable_grad():
                    self.method.personalise(pack)
                personal = True
            pack.hold(None)
            splits = {"own test": self.client.data.test, "validation": self.client.data.val}
            splits |= transfer.by_period(self.bench.arrivals, self.client.data.test, round.period)
            for split, rows in splits.items():
                if len(rows):
                    few = generating.few(
                        self.bench.seed, rows, self.bench.task.samples if split == "own test" else 0, self.client.id
                    )
                    chosen = [np.isin(rows, few)] if self.bench.task.samples else None
                    seen = generating.observe(pack, lambda p, b, v=view: self.method.forward(p, b, v), [rows], chosen)[0]  # type: ignore[misc]
                    assert seen is not None
                    found.setdefault(view, {})[split] = self.bench.task.tell(seen, self.by_class)
        self.store.forget(self.client)
        return found
