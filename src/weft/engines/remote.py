"""Turns of clients that are elsewhere: whoever carries the bytes, the coordinator is the same.

The coordinator plans, sends, waits, validates, combines and saves as the simulation does; what differs is that a turn is a
question to a site and its answer. A site that does not answer in time is left out of the round and gets everything anew when it
is back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from weft.communication.envelope import unwrap
from weft.communication.frame import FACTS
from weft.communication.ledger import Phase
from weft.communication.strict import Refused, is_number
from weft.communication.wire import payload_in
from weft.engines import packing, transfer
from weft.engines.engine import Played, Scores
from weft.engines.evaluation import Evaluation, per_client, records
from weft.engines.intake import UNTOLD, heard
from weft.engines.question import TEST, TRAIN, Question
from weft.engines.scoring import Scoring
from weft.engines.setup import Job, Setup
from weft.errors import UserError
from weft.federation.client import ClientState
from weft.federation.exchange import payload_of
from weft.federation.info import common
from weft.federation.memory import NONE
from weft.federation.rounds import adapted
from weft.tasks.counts import LARGEST
from weft.tasks.task import Task, Told

if TYPE_CHECKING:
    from weft.engines.remote_sums import RemoteSums

DIVERGED = "Its training has given values that are not finite."


class Transport(Protocol):
    """Carries bytes to sites and back.

    Attributes:
        label: names the run and its stage, the same at all sites.
    """

    @property
    def label(self) -> str: ...

    def ask(self, questions: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Answers by client id; whoever did not answer in time is missing."""
        ...

    def arrivals(self, clients: list[ClientState]) -> list[ClientState]:
        """Clients that have come since the last round and were never there before."""
        ...


def check_told(task: Task, by_class: bool) -> None:
    """Sites tell enough for the headline.

    Raises:
        UserError: it takes counts that this experiment does not ask for.
    """
    first = task.metrics[0]
    if not task.told(first, by_class):
        raise UserError(
            f"sites don't tell enough for the metric {first}: set class_counts = true, by which they tell a histogram of their "
            'labels, or metrics = ["accuracy"].'
        )


class Remote:
    """Turns of clients that are elsewhere; their states here have no rows.

    Args:
        transport: carries the questions.
    """

    here = False
    admits = True
    factor: float | None = 1000.0  # generous: sites of very unequal size train for very unequal numbers of steps

    def __init__(self, setup: Setup, transport: Transport):
        check_told(setup.bench.task, setup.settings.by_class)
        self.setup, self.transport = setup, transport
        self.method, self.exchange = setup.method, setup.exchange
        self.capacity = packing.capacity(setup)
        self.scoring = Scoring(setup, self.capacity.k)
        self.absent: set[str] = set()
        self.sums: RemoteSums | None = None
        if setup.bench.privacy.summed is not None:
            from weft.engines.remote_sums import RemoteSums  # which needs packages that nothing else does

            self.sums = RemoteSums(setup, lambda: self.transport)

    def arrive(self, t: int) -> None:
        for server, clients in self.setup.federations:
            for client in self.transport.arrivals(clients):
                clients.append(client)
                server.clients = [*server.clients, self.setup.info(client)]
                self.setup.register(self.setup.info(client))
                self.setup.observer.say(f"{client.id} joins in round {t + 1}.")
                self.method.welcome(server, client)
            clients.sort(key=lambda c: c.id)
            server.clients = [self.setup.info(c) for c in clients]

    def play(self, jobs: list[Job], t: int, phase: Phase, again: Callable[[Job], Job]) -> Played:
        self.setup.observer.begin("clients", len(jobs))
        layout = self.sums.layout(jobs[0].server) if self.sums is not None and jobs else {}
        said = dict(self.transport.ask({j.client.id: self._question(j, layout) for j in jobs}))
        behind = [j for j in jobs if j.client.id in said and _is_behind(said[j.client.id])]
        for job in behind:
            self.setup.observer.say(f"{job.client.id} has lost what it was sent, and gets everything anew.")
            self._forgotten(job)
        anew = {j.client.id: again(j) for j in behind}
        jobs[:] = [anew.get(j.client.id, j) for j in jobs]  # the caller reads answers by what they build on
        said |= self.transport.ask({c: self._question(j, layout) for c, j in anew.items()}) if anew else {}
        losses: dict[str, float] = {}
        refused: dict[str, str] = {}
        ready: list[Job] = []
        self.absent = set()  # who is not asked for scores, and waited for, in the same round
        for job in jobs:
            client, raw = job.client.id, said.get(job.client.id)
            if raw is None:
                self.absent.add(client)
                self.setup.observer.say(f"{client} did not answer in round {t + 1}, which goes on without it.")
                self._forgotten(job)
                continue
            try:
                about, data = unwrap(raw)
                update = about.get("update") is True
                if about.get("diverged") is True:
                    refused[client] = DIVERGED
                    self.setup.observer.say(f"update of {client} refused: {DIVERGED}")
                    self._forgotten(job)
                if update and self.sums is not None:
                    self._hear(job, about, data)
                payload = self._payload(job, data) if update and self.sums is None else {}
                self.exchange.ledger.add(t, phase, "up", client, payload, len(raw))
                if update and self.sums is not None:
                    ready.append(job)
                elif update:
                    self.setup.spool.put(client, data)
            except Refused as e:
                self.setup.observer.say(f"answer of {client} refused: {e}")
                self._forgotten(job)
                continue
            loss: Any = about.get("loss")
            if is_number(loss, int, float) and abs(loss) < LARGEST:
                losses[client] = float(loss)
            self.setup.observer.advance("clients")
        self.setup.observer.end("clients")
        if self.sums is None:
            return Played(losses, self.absent, dict(sorted(refused.items())))
        summed = self.sums.over(jobs, ready, phase)
        lost = self.absent | {j.client.id for j in ready} - set(summed.clients)
        return Played(losses, lost, dict(sorted(refused.items())), summed=summed)

    def _hear(self, job: Job, about: Mapping[str, Any], data: bytes) -> None:
        """
        Raises:
            Refused: what a client says whose update is to be summed is more or less than that.
        """
        if data:
            raise Refused("It holds an update, which nobody is to see.")
        if self.setup.bench.privacy.tells and not heard(job.server, job.client.id, about.get("spent")):
            raise Refused(UNTOLD)

    def _payload(self, job: Job, data: bytes) -> dict[str, int]:
        """What an update is billed for; the ledger takes no names of parts from strangers.

        Raises:
            Refused: it is no message, or longer than is allowed.
        """
        payload = payload_in(data, self.exchange.limits.max_bytes)
        known = {n.split("/")[0] for n in (*job.adaptation, *self.method.uploads(job.server, job.client), FACTS)}
        return payload if payload.keys() <= known else {"refused": sum(payload.values())}

    def _question(self, job: Job, layout: Mapping[str, Any]) -> bytes:
        said = job.server.said.get(job.client.id, {})
        return Question(TRAIN, job.server.round, job.frame, job.since, job.now, job.counted, said, layout).encode()

    def _forgotten(self, job: Job) -> None:
        """Nobody knows what the client holds: it gets everything anew."""
        job.server.synced[job.client.id] = 0

    def evaluate(self, t: int) -> Scores:
        """Every site's own counts, pooled and by client; and the common model on test rows that the coordinator has."""
        questions: dict[str, bytes] = {}
        for server, clients in self.setup.federations:
            for client in clients:
                if client.id in self.absent:
                    continue
                info = self.setup.info(client)
                message = self.method.send_to_test(server, info)
                payload = payload_of(message.tensors)
                self.exchange.ledger.add(server.round.index, "eval", "down", client.id, payload, sum(payload.values()))
                adaptation = adapted(self.method, self.setup.bench, info)
                data = self.exchange.broadcast(server, info, adaptation, message)[0].data
                since = server.synced.get(client.id, 0)
                questions[client.id] = Question(
                    TEST, server.round, data, since, since, NONE, server.said.get(client.id, {})
                ).encode()
        said: dict[tuple[str, str], dict[str, Told]] = {}
        task = self.setup.bench.task
        scored = blank = 0
        for client_id, raw in sorted(self.transport.ask(questions).items()):
            try:
                found = _told(raw, task, self.setup.settings.by_class)
                self.exchange.ledger.add(t, "eval", "up", client_id, {FACTS: len(raw) - 4}, len(raw))
            except Refused as e:
                self.setup.observer.say(f"scores of {client_id} refused: {e}")
                continue
            if any(a.blank for a in found.values()):
                blank += 1
                self.setup.observer.say(f"scores of {client_id} left out: its logits are not finite.")
            else:
                scored += bool(found)
            for where, some in found.items():
                said.setdefault(where, {})[client_id] = some
        scores: list[Evaluation] = []
        for view in self.method.views:
            here = self.scoring.common(view) if common(view) else []
            scores += here
            periods = [transfer.called(p) for p in range(self.setup.federations[0][0].round.period + 1)]
            for people in ("own test", "validation", *periods):
                own = said.get((view, people), {})
                whose = "global test" if common(view) and people == "own test" else people
                if not any(e.people == whose for e in here):
                    counted = [a.n for a in own.values() if not a.blank] or [a.n for a in own.values()]
                    scores += records(task.pool(list(own.values())), sum(counted), view=view, people=whose)
                if people == "own test":
                    each = {c: task.pool([a])[0] for c, a in own.items() if not a.blank}
                    scores += per_client(each, task.metrics[0], view=view, people=people)
        return Scores(scores, scored, blank, self.scoring.taken())


def _is_behind(raw: bytes) -> bool:
    try:
        return unwrap(raw)[0].get("behind") is True
    except Refused:
        return False


def _told(raw: bytes, task: Task, by_class: bool) -> dict[tuple[str, str], Told]:
    """What a site says of its rows, by view and split.

    Raises:
        Refused: these are no scores.
    """
    about, _ = unwrap(raw)
    found = {}
    for view, splits in about.items():
        for split, told in splits.items() if isinstance(splits, dict) else ():
            found[view, split] = task.read(told if isinstance(told, dict) else {}, by_class)
    return found
