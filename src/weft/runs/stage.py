"""One federation played to its end, saved after each round. A run has one, and two if its head is trained first."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from weft.communication.codecs import codec
from weft.communication.ledger import Ledger, Phase, Totals
from weft.devices import Budget
from weft.energy import UNMETERED, Metering
from weft.engines import transfer
from weft.engines.asynchronous import Asynchronous
from weft.engines.engine import Engine, Turns
from weft.engines.noise_budget import Spending
from weft.engines.observer import Observer
from weft.engines.setup import Settings, Setup
from weft.engines.stepwise import simulated
from weft.errors import UserError
from weft.experiment import Experiment
from weft.federation.asynchrony import Asynchrony
from weft.federation.client import ClientState
from weft.federation.exchange import Exchange, Limits, Unsendable
from weft.federation.method import Method
from weft.federation.robust_mean import Robust
from weft.federation.rounds import begin
from weft.federation.server import ServerState
from weft.federation.server_step import ServerStep
from weft.runs import best, continual, devices_of, stopping
from weft.runs.checkpoint import Checkpoint, Saved, restore
from weft.runs.directory import read_rounds
from weft.runs.peak import Peak
from weft.runs.prepare import Material
from weft.runs.recovery import Recovery
from weft.runs.suited import sendable
from weft.storage import files
from weft.storage.notes import Notes
from weft.storage.store import ClientStore, Spool
from weft.storage.updates import FOLDER, UpdateKeeper

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """What is to be played.

    Attributes:
        name: for progress. phase: that its messages are billed to. pack: clients per pass, or ``auto``.
        federations: clients by server. starts: of each server, values handed out beforehand.
        rounds: planned. eval_every: 0 = after the last only. travels: whether messages cross a wire at all (not if nobody is
            apart from anybody). aside: not what was asked for first: no progress within a round, no word after it.
        step: the server's, towards a mean.
        best: it ends with the servers of the round that has the best validation score.
        patience: it stops where the validation score does not get better. budget: before a round that would exceed it, it ends.
        asynchrony: its server goes on while clients are at work; None = it waits for them.
    """

    name: str
    phase: Phase
    pack: int | str
    method: Method
    federations: list[list[ClientState]]
    starts: list[dict[str, Tensor]]
    rounds: int
    eval_every: int
    travels: bool = True
    aside: bool = False
    step: ServerStep = ServerStep()
    best: bool = False
    patience: stopping.Patience | None = None
    asynchrony: Asynchrony | None = None
    budget: Budget = Budget()
    periods: int = 1


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage: its lines of ``rounds.jsonl``, servers and ledger, how many clients shared a pass, whether messages
    crossed a wire, the round that the servers are of, if it need not be the last, and after which round and why it was stopped.
    """

    method: Method
    lines: list[dict[str, Any]]
    servers: list[ServerState]
    ledger: Ledger
    pack: int
    travels: bool
    best: int | None = None
    stopped: dict[str, Any] | None = None


ASKED = "a callback asked for it"

MakeTurns = Callable[[Setup], Turns]
"""Makes whoever trains."""


class Player:
    """Plays a stage in a folder, from wherever its checkpoint is."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        experiment: Experiment,
        material: Material,
        observer: Observer,
        turns: MakeTurns = simulated,
        metering: Metering = UNMETERED,
    ):
        self.stage, self.folder, self.observer = stage, folder, observer
        self.metering = metering
        self.rounds_file = folder / "rounds.jsonl"
        self.checkpoint = Checkpoint(folder / "checkpoint")
        self.identity = material.identity()
        saved = self.checkpoint.load()
        if saved is not None:
            _same(saved.identity, self.identity, folder)
        x = experiment
        method = stage.method
        alone = x.baseline in ("local", "central")  # nobody is a stranger to anybody
        robust = Robust() if alone else Robust(x.robust, x.robust_norm, x.robust_share)
        self.servers = [
            begin(
                *(method, material.bench, [c.info(method.info.asks) for c in people], stage.rounds, start, robust, stage.step),
                notes=notes,
                public=material.public,
                periods=stage.periods,
            )
            for people, start, notes in zip(stage.federations, stage.starts, noted(folder), strict=False)
        ]
        continual.check_plan(method, self.servers[0])
        clock = devices_of.clock(x, material.clients)
        down = x.download_codec if stage.travels else "identity"
        sendable(self.servers[0], down)
        setup = Setup(
            stage.method,
            material.bench,
            list(zip(self.servers, stage.federations, strict=True)),
            Settings(
                rounds=stage.rounds,
                participation=1.0 if alone else x.participation,
                dropout=0.0 if alone else x.dropout,
                pack=stage.pack if saved is None else saved.pack,
                debug=x.debug,
                eval_clients=x.eval_clients,
                max_factor="off" if alone else x.max_factor,
                by_class=x.class_counts,
                diagnostics=x.diagnostics and not alone,
                flops=clock is not None or x.peers is not None,
            ),
            Exchange(
                stage.method,
                codec(x.codec if stage.travels else "identity"),
                Ledger(),
                Limits() if alone else Limits(x.max_bytes, x.max_weight),
                codec(down),
            ),
            ClientStore(folder / "clients", saved.clients if saved else None),
            Spool(folder / "spool"),
            material.tests,
            Sentences(observer) if stage.aside else observer,
            clock,
            spending=None
            if material.bench.privacy.central is None
            else Spending(folder / "privacy.json", material.bench.privacy),
            keeper=UpdateKeeper(folder / FOLDER) if x.keep_updates and stage.travels and not stage.aside else None,
            sums=folder / "sum.bin",
        )
        if clock is not None:
            if saved is not None and saved.clock is not None:
                clock.restore(saved.clock)
            (people,) = stage.federations
            stage.budget.check(clock)
            setup.absent = devices_of.too_small(stage.method, material.bench, people, clock, observer.say)
        if stage.asynchrony is None:
            self.engine = Engine(setup, turns(setup))
        else:
            self.engine = Asynchronous(setup, turns(setup), stage.asynchrony, folder / "flights")
        self.next, self.length, self.finished = 0, 0, False
        self.recovery: Recovery | None = None
        self.stopped = None if saved is None else saved.stopped
        self._last = False
        self.best = None if saved is None else best.read(saved.best, self.checkpoint.last)
        if saved is None:
            for server in self.servers:
                stage.method.start(server)
            self._watch(None)
            return
        for server, state in zip(self.servers, saved.servers, strict=True):
            restore(server, state)
        self._sweep_notes()
        self.engine.setup.exchange.ledger = Ledger.from_records(saved.ledger)
        self.engine.last_cohort = saved.cohort
        if saved.flights is not None:
            self.engine.restore(saved.flights)
        self.next, self.length, self.finished = saved.next, saved.length, saved.finished
        if self.engine.intake.usual is not None and saved.usual is not None:
            self.engine.intake.usual.seen = saved.usual
        self._watch(saved.recovery)

    def _watch(self, saved: dict[str, Any] | None) -> None:
        """Strangers' updates can make a state that nobody can train on; where they are measured, there is a way back."""
        if self.engine.intake.usual is None:
            return
        now = self.checkpoint.last or self.checkpoint.keep(
            "server-start.safetensors", [s.tensors_and_json() for s in self.servers]
        )
        self.recovery = Recovery(self.engine, self.checkpoint, now, self.next, saved)

    def play(self) -> FinishedStage:
        """All rounds that are left."""
        self.lines = lines = read_rounds(self.rounds_file, self.length)
        self.peak = Peak(self.engine.setup.bench.backbone.device)
        self.observer.advance(self.stage.name, len(lines))
        if not self.finished and not self.stage.aside and self.observer.rounds_begin(lines):
            self._asked_to_stop(lines)
        while not self.finished:
            line = self._round(self.next)
            if line is not None:
                lines.append(line)
                self.observer.advance(self.stage.name)
                if not self.stage.aside and self.observer.round_done(line) and not self.finished:
                    self._asked_to_stop(lines)
            if self.recovery is not None and not self.finished:
                self.recovery.check()
        shutil.rmtree(self.folder / "spool", ignore_errors=True)
        if self.best is not None and self.best.kept is not None:
            for server, (tensors, state) in zip(self.servers, self.checkpoint.states(self.best.kept), strict=True):
                server.roll_back(tensors, state)
        return FinishedStage(
            self.stage.method,
            lines,
            self.servers,
            self.engine.setup.exchange.ledger,
            self.engine.turns.capacity.k,
            self.stage.travels,
            None if self.best is None else self.best.round,
            self.stopped,
        )

    def _asked_to_stop(self, lines: list[dict[str, Any]]) -> None:
        """After the last round if it was scored, else after the next, which is."""
        self._last = True
        if lines and "evaluations" in lines[-1]:
            self._stop(lines[-1], ASKED)
            self._save()

    def _enough(self, line: dict[str, Any]) -> str | None:
        """Why a round is the last of those that are played, though more were planned; None if it is not."""
        if self._last:
            return ASKED
        return None if self.stage.patience is None else stopping.stalled([*self.lines, line], self.stage.patience)

    def _stop(self, line: dict[str, Any], why: str) -> None:
        self.finished, self.stopped = True, {"round": line["round"], "why": why}

    def _round(self, t: int) -> dict[str, Any] | None:
        self.metering.begin()
        record, back = self._undone(lambda: self.engine.round(t, self.stage.phase))
        line: dict[str, Any] | None = None
        if record is None:
            self.finished = True
        else:
            self.next = t + 1
            plan = self.stage.method.plan(self.servers[0], t + 1)
            self.finished = plan is None
            if plan is not None and (why := self.engine.over(plan, self.stage.budget)) is not None:
                self._stop(record, why)
            if self.recovery is not None and (further := self.recovery.trained(record)) is not None:
                back = further
            line = {"format": files.FORMAT} | record
            line["seconds"] = {"training": record["seconds"]}
            self.metering.trained(line)
            if self.finished or self._last or self._scored(t):
                began = time.perf_counter()
                scores, further = self._undone(lambda: self.engine.evaluate(t))
                back = back if further is None else further
                if self.recovery is not None and (further := self.recovery.scored()) is not None:
                    back, scores = further, self.engine.evaluate(t)
                if self.stage.periods > 1:
                    scores = [*scores, *transfer.over_periods(self.lines, scores, line["period"])]
                line["evaluations"] = [e.record() for e in scores]
                if self.stage.best:
                    self.best = best.better(line, self.best)
                self._keep_texts(t)
                line["seconds"]["evaluation"] = time.perf_counter() - began
                self.metering.scored(line)
            if back is not None:
                line["back_to"] = back
            if self.recovery is not None:
                self.recovery.count()
            if (most := self.peak.bytes()) is not None:
                line["memory"] = most
            line["bytes"] = sent(self.engine.setup.exchange.ledger, t) if self.stage.travels else {}
            line = _finite(line)
            if not self.finished and (why := self._enough(line)) is not None:
                self._stop(line, why)
            text = json.dumps(line, ensure_ascii=False, allow_nan=False)
            self.length = files.append(self.rounds_file, text.encode() + b"\n", self.length)
        self._save()
        return line

    def _scored(self, t: int) -> bool:
        """Whether round ``t`` is scored: as settings say, and at the end of each period."""
        every, server = self.stage.eval_every, self.servers[0]
        return bool(every) and ((t + 1) % every == 0 or server.period_at(t + 1) != server.period_at(t))

    def _keep_texts(self, t: int) -> None:
        """Texts that language models wrote for rows of the test, for a person to read: those of the last evaluation."""
        if samples := self.engine.samples:
            lines = [json.dumps({"format": files.FORMAT, "round": t} | one, ensure_ascii=False) for one in samples]
            files.write(self.folder / "samples.jsonl", ("\n".join(lines) + "\n").encode())

    def _undone(self, play: Callable[[], T]) -> tuple[T, int | None]:
        """What ``play`` gives, on the newest good state if that at hand gives messages that nobody takes; and which that was."""
        back: int | None = None
        while True:
            try:
                return play(), back
            except Unsendable:
                back = None if self.recovery is None else self.recovery.unsendable()
                if back is None:
                    raise

    def _save(self) -> None:
        engine = self.engine
        engine.setup.store.settle()
        if engine.setup.keeper is not None:
            engine.setup.keeper.settle()
        for server in self.servers:
            server.notes.settle()
        usual, recovery = engine.intake.usual, self.recovery
        kept = self.checkpoint.save(
            Saved(
                next=self.next,
                finished=self.finished,
                pack=engine.turns.capacity.k,
                cohort=list(engine.last_cohort),
                length=self.length,
                clients=engine.setup.store.manifest(),
                ledger=engine.setup.exchange.ledger.as_records(),
                identity=self.identity,
                servers=[s.tensors_and_json() for s in self.servers],
                usual=None if usual is None else usual.seen,
                recovery=None if recovery is None else recovery.as_json(),
                best=None if self.best is None else self.best.as_json(),
                clock=None if engine.setup.clock is None else engine.setup.clock.saved(),
                stopped=self.stopped,
                flights=engine.saved(),
            ),
            [
                *([] if recovery is None else recovery.files()),
                *([] if self.best is None or self.best.kept is None else [self.best.kept.file]),
            ],
        )
        if self.best is not None:
            self.best = self.best.at(kept)
        if recovery is not None:
            recovery.closed(kept, self.next)
        engine.setup.store.commit()
        engine.sweep()
        self._sweep_notes()

    def _sweep_notes(self) -> None:
        """Drop what servers have noted that no state needs which may be gone back to."""
        older = [] if self.recovery is None else [good.kept for good in self.recovery.good]
        if self.best is not None and self.best.kept is not None:
            older.append(self.best.kept)
        for i, server in enumerate(self.servers):
            server.notes.sweep(kept.states[i].get("notes", {}) for kept in older)


class Sentences(Observer):
    """Passes sentences on, and keeps the progress within a round to itself."""

    def __init__(self, observer: Observer):
        self.say = observer.say  # type: ignore[method-assign]


def noted(folder: Path) -> Iterator[Notes]:
    """What the servers of a stage in this folder have noted, one after the other."""
    return (Notes(folder / "notes" / str(i)) for i in itertools.count())


def sent(ledger: Ledger, t: int | None = None) -> dict[str, Any]:
    """Bytes by phase and direction, of one round or of all; payload by part, and whole messages with their headers."""
    found: dict[str, Any] = {}
    phases: tuple[Phase, ...] = ("setup", "train", "eval")
    for phase in phases:
        down = ledger.totals(round=t, phase=phase, direction="down")
        up = ledger.totals(round=t, phase=phase, direction="up")
        if down.messages or up.messages:
            found[phase] = {"down": _counted(down), "up": _counted(up)}
    return found


def _counted(some: Totals) -> dict[str, Any]:
    return {"messages": some.messages, "payload": some.payload, "wire": some.wire, "parts": dict(sorted(some.parts.items()))}


def _finite(value: Any) -> Any:
    """JSON knows no NaN: the loss of a model that has diverged is null."""
    if isinstance(value, dict):
        return {n: _finite(v) for n, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _same(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    words = {
        "data": "the data have changed",
        "clients": "the data are dealt out to another number of clients",
        "rows": "the data have another number of rows",
        "public": "the public rows are others",
        "weights": "the backbone's weights are others",
        "precision": "the backbone is computed in another precision",
    }
    changed = [words[n] for n in words if saved.get(n) != now[n]]
    if changed:
        raise UserError(
            f"{folder} can't be continued, since {' and '.join(changed)} since it was saved: put that back, or start a new run."
        )
