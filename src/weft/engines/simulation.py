"""The in-process engine: a federation whose clients train in packs on one shared backbone.

Every message is encoded, billed, validated and decoded as between sites. Clients hold nothing in memory between rounds but
their row numbers: personal state lives in a store, updates wait as bytes and are reduced in client-id order when the round
closes, so that results depend neither on pack size nor on the order of arrival.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.communication.ledger import Phase
from weft.communication.strict import Refused
from weft.engines import packing
from weft.engines.evaluation import Evaluation, accuracy, per_client, score
from weft.engines.losses import Losses
from weft.engines.observer import Observer
from weft.errors import UserError, WeftError
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.exchange import Exchange, payload_of
from weft.federation.message import ClientInfo, Message, Update, Value
from weft.federation.method import Adaptation, Method
from weft.federation.pack import Pack
from weft.federation.server import ServerState
from weft.federation.store import ClientStore, Spool
from weft.federation.usual import Usual, moved
from weft.tensors.keyed import numpy_generator


@dataclass(frozen=True)
class Settings:
    """How a federation is run, apart from the method.

    Attributes:
        rounds: planned. participation: fraction of clients in a sampled cohort. dropout: chance that a drawn client fails in
            the middle of its turn: it has downloaded, but nothing of its work is kept.
        pack: clients per pass, or ``auto``. debug: one by one, errors carry stage, client and batch.
        eval_clients: at most so many clients are scored with personal views each time (sampled); None = all.
        max_factor: how many times as large as usual an update may be; ``auto``: as the engine has it; ``off``: anything.
        by_class: clients that are elsewhere tell their right answers by class.
    """

    rounds: int = 6
    participation: float = 1.0
    dropout: float = 0.0
    pack: str | int = "auto"
    debug: bool = False
    eval_clients: int | None = None
    max_factor: float | str = "auto"
    by_class: bool = False


@dataclass
class Job:
    """One client's turn in one round: which server it belongs to and what it received, also as bytes, with the
    clock up to which it was up to date before and is after.
    """

    server: ServerState
    client: ClientState
    adaptation: Adaptation
    held: Mapping[str, Value]
    facts: Mapping[str, Any]
    frame: bytes = b""
    since: int = 0
    now: int = 0


@dataclass
class Tests:
    """Rows that scores are taken on, as positions in the token table."""

    test: np.ndarray
    val: np.ndarray
    unseen: dict[str, np.ndarray] = field(default_factory=dict)


class Simulation:
    """Runs rounds.

    Attributes:
        here: clients train in this process. factor: :attr:`Settings.max_factor` where that is ``auto``; None = off.
        counted: clients whose updates counted in the last round. scored, blank: in the last evaluation, how many clients that are
            elsewhere had finite logits, and how many had not.

    Args:
        federations: (server, its clients) pairs: one for a federation; one per client for the ``local`` baseline.
    """

    here: ClassVar[bool] = True
    factor: ClassVar[float | None] = None

    def __init__(
        self,
        method: Method,
        bench: Bench,
        federations: list[tuple[ServerState, list[ClientState]]],
        settings: Settings,
        exchange: Exchange,
        store: ClientStore,
        spool: Spool,
        tests: Tests,
        observer: Observer | None = None,
    ):
        self.method, self.bench, self.settings = method, bench, settings
        self.federations = federations
        self.exchange, self.store, self.spool, self.tests = exchange, store, spool, tests
        self.observer = observer or Observer()
        for server, clients in federations:
            self._register(server, clients)
        self._choose_pack()
        self.last_cohort: list[str] = []
        self.counted: list[str] = []
        self.scored = self.blank = 0
        factor = self.factor if settings.max_factor == "auto" else settings.max_factor
        self.usual = Usual(factor) if isinstance(factor, int | float) else None

    def _choose_pack(self, memory: int | None = None, workers: int = 1) -> None:
        """How many clients share a pass.

        Args:
            memory: bytes that a pass may take, None = what is free here. workers: that share a cohort.
        """
        settings, method, width = self.settings, self.method, self._width()
        self.guess = packing.estimate(self.bench, method, self._trainable(), width, self._texts())
        if memory is not None:
            self.guess = replace(self.guess, available=memory)
        cohort = sum(max(round(settings.participation * len(c)), 1) for _, c in self.federations)
        share = math.ceil(cohort / workers)
        self.k = 1 if settings.debug else packing.choose(settings.pack, share, method.batch, width, self.guess, self.bench)

    def _register(self, server: ServerState, clients: list[ClientState]) -> None:
        """Each client tells the facts that the method asks for, once; they cost bytes."""
        for position, client in enumerate(clients):
            client.facts = self.method.profile(position) | dict(client.facts)
        server.clients = [c.info(self.method.info.asks) for c in clients]
        for info in server.clients:
            self._told(info)

    def _told(self, info: ClientInfo) -> None:
        if info.facts:
            size = len(json.dumps(info.facts, sort_keys=True))
            self.exchange.ledger.add(0, "setup", "up", info.id, {"facts": size}, size)

    # a round ----------------------------------------------------------------------------------------------------------

    def round(self, t: int, phase: Phase = "train") -> dict[str, Any] | None:
        """One round: plan, download, train in packs, upload, aggregate. None when the method's plan has ended."""
        began = time.perf_counter()
        jobs: list[Job] = []
        lost: list[str] = []
        for server, clients in self.federations:
            plan = self.method.plan(server, t)
            if plan is None:
                return None
            server.round = plan
            cohort = self._cohort(server, clients)
            server.cohort = [c.info(self.method.info.asks) for c in cohort]
            for client in cohort:
                job = self._download(server, client, phase)
                if self._drops_out(client.id, t):
                    lost.append(client.id)
                else:
                    jobs.append(job)
        self.last_cohort = sorted([j.client.id for j in jobs] + lost)
        losses = self._turns(jobs, t, phase)
        refused: dict[str, str] = {}
        remarks: dict[str, Any] = {}
        self.counted = []
        for server, _ in self.federations:
            mine = {j.client.id: j for j in jobs if j.server is server}
            norms, limit = self._norms(server, mine)
            remarks |= server.aggregate(self._updates(server, mine, refused, norms, limit))
            if "skipped" in remarks:
                self.observer.say(f"round {t + 1}: {remarks['skipped']}.")
            elif self.usual is not None:
                self.usual.accepted(server.round.kind, [norms[c] for c in self.counted if c in norms])
        self.spool.clear()
        self.exchange.close_round()
        return {
            "round": t,
            "kind": self.federations[0][0].round.kind,
            "cohort": self.last_cohort,
            "lost": lost,
            "refused": refused,
            **({"robust": remarks} if remarks else {}),
            "loss": float(np.mean(list(losses.values()))) if losses else None,
            "seconds": time.perf_counter() - began,
        }

    def _cohort(self, server: ServerState, clients: list[ClientState]) -> list[ClientState]:
        """Who takes part, by the plan's ``who``; drawn by round alone, so that nothing else changes the draw."""
        who, t = server.round.who, server.round.index
        draw = numpy_generator(self.bench.seed, "cohort", t)
        if who == "all":
            return clients
        if who == "same":
            return [c for c in clients if c.id in set(self.last_cohort)]
        if isinstance(who, list):
            return [c for c in clients if c.id in set(who)]
        if isinstance(who, tuple):
            groups: dict[Any, list[ClientState]] = {}
            for c in clients:
                groups.setdefault(c.facts.get(who[0], c.id), []).append(c)
            return [group[int(draw.integers(len(group)))] for _, group in sorted(groups.items(), key=lambda g: str(g[0]))]
        count = max(round(self.settings.participation * len(clients)), 1)
        if count >= len(clients):
            return clients
        return [clients[i] for i in sorted(draw.choice(len(clients), count, replace=False))]

    def _drops_out(self, client: str, t: int) -> bool:
        return bool(numpy_generator(self.bench.seed, "dropout", t, client).random() < self.settings.dropout)

    def _download(self, server: ServerState, client: ClientState, phase: Phase) -> Job:
        info = client.info(self.method.info.asks)
        since = server.synced.get(client.id, 0)
        message = self.method.send(server, info)
        if client.id not in server.synced:
            self._hand_over(server, client.id, message)
        frame, received = self.exchange.download(server, info, message, phase)
        message.tensors = received.tensors
        held = server.start | server.held_by(info, message)
        server.receipt(message, info)
        bench = self.bench.of(client)
        adaptation = self.method.adapt(bench.backbone, bench.task, info)
        return Job(server, client, adaptation, held, received.facts, frame.data, since, server.synced.get(client.id, 0))

    def _hand_over(self, server: ServerState, client: str, message: Message) -> None:
        """Give set-up's start values to a client that takes part for the first time, but for those that ``message`` replaces."""
        self.exchange.hand_over(server, client, message.tensors)

    # training -----------------------------------------------------------------------------------------------------------

    def _turns(self, jobs: list[Job], t: int, phase: Phase) -> dict[str, float]:
        """All turns of the round in packs; updates go to the spool as bytes. Returns each client's mean loss."""
        by_id = {j.client.id: j for j in jobs}
        self.observer.begin("clients", len(jobs))
        losses = Losses(by_id, lambda: self.observer.advance("steps"))
        for group in packing.group([j.client for j in jobs], self.k):
            members = [by_id[c.id] for c in group]
            try:
                self._turn(members, losses, phase)
            except torch.OutOfMemoryError as e:
                raise packing.out_of_memory(self.k, self.guess) from e
            except UserError:
                raise
            except Exception as e:
                if self.settings.debug:
                    stage = f"training in round {t} ({members[0].server.round.kind})"
                    step = losses.steps(group[0].id)
                    raise WeftError(f"{stage}, client {group[0].id}, batch {step}: {type(e).__name__}: {e}") from e
                raise
            self.observer.advance("clients", len(group))
        self.observer.end("clients")
        return losses.means()

    def _turn(self, members: list[Job], losses: Losses, phase: Phase) -> None:
        for job in members:
            self.store.load(job.client)
        pack = self._pack(members)
        pack.listener = losses
        by_id = {j.client.id: j for j in members}
        for update in self.method.train(pack):
            job = by_id[update.client.id]
            frame = self.exchange.pack_update(job.server, update, job.held, phase)
            self.spool.put(update.client.id, frame.data)
        pack.write_back()
        for job in members:
            self.store.save(job.client)

    def _pack(self, members: list[Job]) -> Pack:
        server = members[0].server
        return Pack(
            self.bench.of(members[0].client),
            [j.client for j in members],
            [j.adaptation for j in members],
            [j.held for j in members],
            [j.facts for j in members],
            server.round,
            server.start,
        )

    def _norms(self, server: ServerState, jobs: Mapping[str, Job]) -> tuple[dict[str, float], float | None]:
        """How far each update leads, and how far it may; both empty where nobody asks. One update is in memory at a time."""
        norms: dict[str, float] = {}
        if self.usual is None:
            return norms, None
        for client, job in jobs.items():
            with suppress(Refused):
                update = self._read(server, job)
                if update is not None and update.weight > 0:
                    norms[client] = moved(update.tensors, job.held)
        return norms, self.usual.limit(server.round.kind, norms.values())

    def _read(self, server: ServerState, job: Job) -> Update | None:
        """
        Raises:
            Refused: what was sent is none that this round can use.
        """
        data = self.spool.get(job.client.id)
        if data is None:
            return None
        return self.exchange.read_update(server, job.client.info(self.method.info.asks), data, job.held)

    def _updates(
        self,
        server: ServerState,
        jobs: Mapping[str, Job],
        refused: dict[str, str],
        norms: Mapping[str, float],
        limit: float | None,
    ) -> Iterator[Update]:
        """The round's valid updates in client order; a bad one is refused, noted, and the round goes on without it."""
        for client in sorted(jobs):
            try:
                update = self._read(server, jobs[client])
                if limit is not None and norms.get(client, 0.0) > limit:
                    raise Refused(
                        f"It leads {norms[client]:.3g} away, and {limit:.3g} is the most that this federation's updates so far "
                        "allow (max_factor)."
                    )
            except Refused as e:
                refused[client] = str(e)
                self.observer.say(f"update of {client} refused: {e}")
                continue
            if update is None:
                continue
            if update.weight > 0:
                self.counted.append(client)
                yield update
            else:  # those who train have rows; a rule that divides by the weights could divide by nothing
                self.observer.say(f"update of {client} counts no examples, and is left out.")

    # evaluation ---------------------------------------------------------------------------------------------------------

    def evaluate(self, t: int) -> list[Evaluation]:
        """Scores of every view with the newest server state."""
        found: list[Evaluation] = []
        for view in self.method.info.views:
            found += self._global(view) if view == "global" else self._personal(view, t)
        return found

    def _global(self, view: str) -> list[Evaluation]:
        """The one model for all.

        With several servers (``local``) each row of a common test set is put to one of their models, drawn at random: the mean
        over rows and models, at the price of one model.
        """
        unseen = np.concatenate([*self.tests.unseen.values()]) if self.tests.unseen else np.zeros(0, np.int64)
        tests = {"global test": self.tests.test, "validation": self.tests.val, "new clients": unseen}
        several = len(self.federations)
        if several > 1:
            tests = {p: numpy_generator(self.bench.seed, "evaluation", p).permutation(r) for p, r in tests.items()}
        logits: dict[str, list[Tensor]] = {people: [] for people in tests}
        asked: dict[str, list[np.ndarray]] = {people: [] for people in tests}
        own: dict[str, float] = {}
        for number, (server, clients) in enumerate(self.federations):
            shares = {people: rows[number::several] for people, rows in tests.items()}
            mine = {c.id: c.data.test for c in clients if len(c.data.test)}
            rows = np.unique(np.concatenate([*shares.values(), *mine.values()]))
            if not len(rows):
                continue
            found = server.bench().predict(lambda p, b: self.method.forward(p, b, view), [rows])[0]
            for people, share in shares.items():
                logits[people].append(found[np.searchsorted(rows, share)])
                asked[people].append(share)
            for client, r in mine.items():
                own[client] = accuracy(found[np.searchsorted(rows, r)], self._labels(r))
        scores: list[Evaluation] = []
        for people in tests:
            if logits[people]:
                scores += score(torch.cat(logits[people]), self._labels(np.concatenate(asked[people])), view=view, people=people)
        if several > 1:
            scores = [replace(e, pooling="pooled over clients' models") for e in scores]
        return scores + per_client(own, view=view, people="own test")

    def _personal(self, view: str, t: int) -> list[Evaluation]:
        """Each client's own model on its own test rows, after the newest download; new clients start from nothing.

        With several servers (``local``) nobody could say which of them a new client would turn to: none are scored.
        """
        owner = {c.id: server for server, clients in self.federations for c in clients}
        chosen = [c for _, clients in self.federations for c in clients if len(c.data.test)]
        limit = self.settings.eval_clients
        if limit is not None and limit < len(chosen):
            draw = numpy_generator(self.bench.seed, "evaluation", t)
            chosen = [chosen[i] for i in sorted(draw.choice(len(chosen), limit, replace=False))]
        # a client that was never trained here is in ``clients`` with its training rows; a new client brings test rows only
        strangers = [
            ClientState(name, 0, {}, data=Splits(np.zeros(0, np.int64), np.zeros(0, np.int64), rows))
            for name, rows in self.tests.unseen.items()
            if len(self.federations) == 1
        ]
        owner |= {c.id: self.federations[0][0] for c in strangers}
        splits = [
            ("own test", chosen, {c.id: c.data.test for c in chosen}),
            ("validation", chosen, {c.id: c.data.val for c in chosen}),
            ("new clients", strangers, {c.id: c.data.test for c in strangers}),
        ]
        if "global" not in self.method.info.views and view == self.method.info.views[0] and chosen:
            # what clients' models know of everybody's data: each row of the global test set is put to one of them
            rows = numpy_generator(self.bench.seed, "evaluation", "common test").permutation(self.tests.test)
            splits.append(("common test", chosen, {c.id: rows[i :: len(chosen)] for i, c in enumerate(chosen)}))
        found: list[Evaluation] = []
        for people, group, rows_of in splits:
            logits = self._personal_logits(view, owner, group, rows_of)
            if not logits:
                continue
            labels = {c: self._labels(rows_of[c]) for c in logits}
            everyone = torch.cat(list(logits.values()))
            scores = score(everyone, np.concatenate(list(labels.values())), view=view, people=people)
            found += [replace(e, pooling="pooled over clients' models") if people == "common test" else e for e in scores]
            if people == "own test":
                own = {c: accuracy(logits[c], labels[c]) for c in logits}
                found += per_client(own, view=view, people=people)
        return found

    def _personal_logits(
        self, view: str, owner: Mapping[str, ServerState], group: list[ClientState], rows: Mapping[str, np.ndarray]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in packing.group([c for c in group if len(rows[c.id])], self.k):
            jobs = []
            for client in part:
                self.store.load(client)
                server = owner[client.id]
                info = client.info(self.method.info.asks)
                message = self.method.send_to_test(server, info)
                payload = payload_of(message.tensors if client.id in server.synced else server.start | message.tensors)
                self.exchange.ledger.add(server.round.index, "eval", "down", client.id, payload, sum(payload.values()))
                held = server.start | server.held_by(info, message)
                bench = self.bench.of(client)
                adaptation = self.method.adapt(bench.backbone, bench.task, info)
                jobs.append(Job(server, client, adaptation, held, message.facts))
            pack = self._pack(jobs)
            self.method.personalise(pack)
            pack.hold(None)
            logits = pack.predict(lambda p, b: self.method.forward(p, b, view), [rows[c.id] for c in part])
            found |= {c.id: v for c, v in zip(part, logits, strict=True)}
            for client in part:
                self.store.forget(client)
        return dict(sorted(found.items()))

    def _labels(self, rows: np.ndarray) -> np.ndarray:
        return self.bench.table.labels[rows]

    # estimates ------------------------------------------------------------------------------------------------------------

    def _trainable(self) -> int:
        from weft.federation.values import named

        adaptation = self.federations[0][0].adaptation
        return sum(init.numel for _, init, _ in named(adaptation, self.bench.backbone) if init.kind != "lowrank")

    def _texts(self) -> bool:
        parts = [part for part, _ in self.federations[0][0].adaptation.values()]
        return any(site.tower for part in parts for site in part.sites(self.bench.backbone))

    def _width(self) -> int:
        lengths = self.bench.table.lengths
        return int(np.quantile(lengths, 0.95)) if len(lengths) else 1
