"""Rounds: plan, download, turns, aggregation. Who trains and where is left to :class:`Turns`.

Every message is encoded, billed, validated and decoded as between sites, wherever the clients are. Updates wait as bytes and are
reduced in client-id order when the round closes, so that results depend neither on pack size nor on the order of arrival.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from weft.communication.ledger import Phase
from weft.devices import Budget, Clock, Spent, Tick, sized
from weft.engines.cohort import cohort, drops_out, eligible, secretly
from weft.engines.evaluation import Evaluation
from weft.engines.intake import Intake, told_by
from weft.engines.packing import Capacity
from weft.engines.setup import Job, Setup
from weft.errors import UserError
from weft.federation.client import ClientState
from weft.federation.memory import NONE
from weft.federation.message import beside
from weft.federation.round import Round
from weft.federation.rounds import adapted
from weft.federation.server import ServerState
from weft.federation.summed_clients import Sum
from weft.federation.usual import Usual
from weft.federation.work import Work, total


@dataclass
class Played:
    """What became of a round's turns, beside the updates in the spool.

    Attributes:
        losses: each client's mean loss.
        absent: clients that did not answer.
        refused: why the work of others does not count, by client.
        work: of each client; None where nobody tells.
        summed: what sites have told instead of updates, where nobody is to see these; None = updates are in the spool.
    """

    losses: dict[str, float]
    absent: Collection[str] = ()
    refused: dict[str, str] = field(default_factory=dict)
    work: dict[str, Work] | None = None
    summed: Sum | None = None


@dataclass
class Scores:
    """An evaluation.

    Attributes:
        scored, blank: how many clients that are elsewhere had finite logits, and how many had not.
        samples: texts that were written here.
    """

    evaluations: list[Evaluation]
    scored: int = 0
    blank: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)


class Turns(Protocol):
    """Who trains and scores.

    Attributes:
        here: in this process.
        admits: whoever carries the messages lets clients in, and bills their start values.
        factor: :attr:`Settings.max_factor` where that is ``auto``; None = off.
        capacity: clients of a pass, and its memory.
    """

    here: bool
    admits: bool
    factor: float | None
    capacity: Capacity

    def arrive(self, t: int) -> None:
        """Before a round: clients that have come since the last one."""
        ...

    def play(self, jobs: list[Job], t: int, phase: Phase, again: Callable[[Job], Job]) -> Played:
        """All turns of the round; updates go to the spool as bytes.

        Args:
            again: downloads everything anew for a client that has lost what it held; its job in ``jobs`` is replaced.
        """
        ...

    def evaluate(self, t: int) -> Scores:
        """Scores of every view with the newest server state."""
        ...


class Engine:
    """Plays rounds.

    Attributes:
        last_cohort: ids. scored, blank, samples: see :class:`Scores`, of the last evaluation.
    """

    def __init__(self, setup: Setup, turns: Turns):
        self.setup, self.turns = setup, turns
        facts = sized(setup.method.profile)
        for server, clients in setup.federations:
            for position, client in enumerate(clients):
                client.facts = facts(position, client.facts)
            server.clients = [setup.info(c) for c in clients]
            for info in server.clients:
                setup.register(info)
        factor = turns.factor if setup.settings.max_factor == "auto" else setup.settings.max_factor
        if setup.bench.privacy.central is not None or setup.bench.privacy.summed is not None:
            factor = None  # updates are clipped, and which of them are large is not to be told
        self.intake = Intake(setup, Usual(factor) if isinstance(factor, int | float) else None)
        self.last_cohort: list[str] = []
        self._fresh = False
        self.scored = self.blank = 0
        self.samples: list[dict[str, Any]] = []

    def round(self, t: int, phase: Phase = "train") -> dict[str, Any] | None:
        """One round; None when the method's plan has ended."""
        began = time.perf_counter()
        self.turns.arrive(t)
        setup, settings = self.setup, self.setup.settings
        self._check_spent(t)
        before = setup.exchange.ledger.wires() if setup.clock is not None else {}
        jobs: list[Job] = []
        lost: list[str] = []
        for server, clients in setup.federations:
            for client in clients:
                if setup.bench.arrivals is not None:
                    setup.bench.arrivals.enter(client, server.period_at(t))
            plan = setup.method.plan(server, t)
            if plan is None:
                return None
            server.introduce(clients)
            server.round = replace(plan, period=server.period_at(t))
            chosen = self._begun(server, clients)
            server.cohort = [setup.info(c) for c in chosen]
            for client in chosen:
                job = self._download(server, client, phase)
                if drops_out(server.seed, client.id, t, settings.dropout):
                    lost.append(client.id)
                else:
                    jobs.append(job)
        self.last_cohort = sorted([j.client.id for j in jobs] + lost)
        played = self.turns.play(jobs, t, phase, lambda job: self._download(job.server, job.client, phase))
        if setup.bench.privacy.summed is not None and played.summed is None:
            from weft.engines import sum_bills  # which needs packages that nothing else does

            sum_bills.add(setup, jobs, phase)
        tick = None if setup.clock is None else self._tick(setup.clock, played, before)
        left = [] if tick is None else sorted({*tick.late, *tick.gone})
        for who in left:
            setup.spool.drop(who)
            setup.store.discard(who)
        lost = sorted({*lost, *played.absent, *left}) if played.absent or left else lost
        losses = [loss for c, loss in played.losses.items() if c not in left]
        work = None if played.work is None else list(played.work.values())
        return self._closed(t, jobs, lost, losses, work, tick, began, played.refused, played.summed)

    def _closed(
        self,
        t: int,
        jobs: list[Job],
        lost: list[str],
        losses: Sequence[float],
        work: Sequence[Work] | None,
        tick: Tick | None,
        began: float,
        refused: Mapping[str, str] | None = None,
        summed: Sum | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Take in what is in the spool, and what is to be said of the round."""
        setup = self.setup
        if setup.keeper is not None:
            setup.keeper.begin(t)
        remarks, why = self.intake.close(jobs, self._fresh, summed)
        for server, _ in setup.federations:
            setup.exchange.publish(server)
        setup.exchange.close_round()
        return {
            "round": t,
            "kind": setup.federations[0][0].round.kind,
            **({"period": setup.federations[0][0].round.period} if setup.federations[0][0].periods > 1 else {}),
            "cohort": self.last_cohort,
            "lost": lost,
            "refused": why | dict(refused or {}),
            **({"robust": remarks} if remarks else {}),
            **({"privacy": spent} if (spent := self.spent()) else {}),
            **self.intake.diagnostics,
            **({} if work is None else {"work": total(work).record()}),
            **({} if tick is None else {"clock": asdict(tick)}),
            **more,
            "loss": float(np.mean(losses)) if losses else None,
            "seconds": time.perf_counter() - began,
        }

    def saved(self) -> Any:
        """What a checkpoint needs of turns that go on beyond the round, in JSON, once their files are durable; None = none do."""
        return None

    def restore(self, saved: Any) -> None:
        """Undo :meth:`saved`."""

    def sweep(self) -> None:
        """The checkpoint is on the disk: files of turns that are over may go."""

    # privacy ------------------------------------------------------------------------------------------------------------

    def _check_spent(self, t: int) -> None:
        """The round is paid for before anything of it goes out.

        Raises:
            UserError: there is no budget left for it.
        """
        spending = self.setup.spending
        self._fresh = spending is not None and spending.begin(t)
        if why := self._nobody_left():
            raise UserError(f"round {t + 1} is not played: {why}.")

    def _nobody_left(self) -> str:
        """Why no client may take another turn; ``""`` if one may."""
        budget, clients = self.setup.bench.privacy.epsilon, self.setup.federations[0][1]
        if budget is None or not clients or any(self._may(c) for c in clients):
            return ""
        return f"all clients have spent their budgets of epsilon {budget:g}"

    def _may(self, client: ClientState) -> bool:
        """Whether another turn is within a client's budget, by what it has told."""
        privacy = self.setup.bench.privacy
        said = [server.hiding.get(told_by(client.id)) for server, _ in self.setup.federations]
        return all(s is None or privacy.within(s.get("next", math.inf)) for s in said)

    def spent(self) -> dict[str, Any]:
        """What the rounds so far have cost: ε of whom it is largest for, and what it hides."""
        setup = self.setup
        privacy, found = setup.bench.privacy, dict[str, Any]()
        known = [said for server, _ in setup.federations for name, said in server.hiding.items() if name.startswith(told_by(""))]
        said = [one.get("epsilon", math.inf) for one in known]
        if said:
            found["row" if privacy.rows is not None else "client"] = max(said)
        if setup.spending is not None:
            found["client"] = setup.spending.epsilon
        if not found:
            return {}
        about = {"epsilon": next(iter(found.values())), "delta": privacy.delta, "insecure": privacy.insecure}
        return about | {f"{unit}_epsilon": value for unit, value in found.items()} | self.intake.hidden

    def over(self, plan: Round, budget: Budget) -> str | None:
        """Why a planned round can't be played, in a few words; None if it can."""
        if self.setup.spending is not None and (why := self.setup.spending.over(plan.index)) is not None:
            return why
        if why := self._nobody_left():
            return why
        clock = self.setup.clock
        if clock is None:
            return None
        ((server, clients),) = self.setup.federations
        moment, chosen = self._chosen(server, plan, clients, clock)
        if math.isinf(moment):
            return f"nobody who could take part is available after {clock.told(clock.now)}"
        return budget.over(clock, [c.id for c in chosen], moment)

    def _able(self, clients: list[ClientState]) -> list[ClientState]:
        absent = self.setup.absent
        able = [c for c in clients if c.id not in absent] if absent else clients
        return able if self.setup.bench.privacy.epsilon is None else list(filter(self._may, able))

    def _chosen(
        self, server: ServerState, plan: Round, clients: list[ClientState], clock: Clock | None
    ) -> tuple[float, list[ClientState]]:
        """The cohort of a planned round, and the moment at which it begins; infinity, if it never can."""
        able, last, share = self._able(clients), self.last_cohort, self.setup.settings.participation
        if self.setup.bench.privacy.central is not None:
            return 0.0, secretly(self.setup.bench.privacy, plan, able)
        if clock is None:
            return 0.0, cohort(server.seed, plan, able, share, last)
        moment = clock.first(c.id for c in eligible(plan, able, last))
        if math.isinf(moment):
            return moment, []
        there, order = functools.partial(clock.there, moment=moment), clock.order_at(moment)
        return moment, cohort(server.seed, plan, able, share, last, there, order)

    def _begun(self, server: ServerState, clients: list[ClientState]) -> list[ClientState]:
        """The cohort of the server's round, which begins now, or once anybody can be reached.

        Raises:
            UserError: nobody can be, ever.
        """
        setup, clock = self.setup, self.setup.clock
        moment, chosen = self._chosen(server, server.round, clients, clock)
        if math.isinf(moment):
            raise UserError(
                "no client that could take part is ever available: give longer hours in the file of --devices, or another "
                "--availability."
            )
        if clock is not None:
            if clock.thrift is not None:
                clock.thrift.took([c.id for c in self._able(clients)], {c.id for c in chosen})
            if moment > clock.now:
                setup.observer.say(clock.wait(moment))
        return chosen

    def _tick(self, clock: Clock, played: Played, before: Mapping[str, tuple[int, int]]) -> Tick:
        """The round on the devices of those who took part: by what they have computed, and what they were billed since."""
        now, work, spent = self.setup.exchange.ledger.wires(), played.work or {}, {}
        for client in self.last_cohort:
            (down, up), (sent, received) = before.get(client, (0, 0)), now.get(client, (0, 0))
            done = work.get(client)
            spent[client] = Spent(0 if done is None else done.flops, sent - down, received - up, done is not None)
        return clock.tick(spent, clock.late(spent))

    def evaluate(self, t: int) -> list[Evaluation]:
        """Scores of every view with the newest server state."""
        for server, clients in self.setup.federations:
            server.introduce(clients)
        found = self.turns.evaluate(t)
        self.scored, self.blank, self.samples = found.scored, found.blank, found.samples
        return found.evaluations

    def _download(self, server: ServerState, client: ClientState, phase: Phase) -> Job:
        setup, info = self.setup, self.setup.info(client)
        since = server.synced.get(client.id, 0)
        message = setup.method.send(server, info)
        if client.id not in server.synced and not self.turns.admits:
            setup.exchange.hand_over(server, client.id, message.tensors)  # but for those that the message replaces
        adaptation = adapted(setup.method, setup.bench, info)
        frame, received = setup.exchange.download(server, info, adaptation, message, phase)
        message.tensors = received.tensors
        held = server.held_by(info, adaptation, message)
        server.receipt(message, info)
        now = server.synced.get(client.id, 0)
        free = beside(adaptation, setup.bench.of(client).backbone, received.tensors)
        counted = server.counted.get(client.id, NONE)
        return Job(client, adaptation, held, received.facts, free, counted, server=server, frame=frame.data, since=since, now=now)
