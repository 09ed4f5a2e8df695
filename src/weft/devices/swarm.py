"""SWARM parallelism on a simulated clock: peers that come and go serve the stages of one model, and trainers route around them.

M. Ryabinin, T. Dettmers, M. Diskin, A. Borzunov, "SWARM Parallelism: Training Large Models Can Be Surprisingly Communication-
Efficient", ICML 2023, arXiv 2301.11913. Routing is that of the released code, rebalancing, which that lacks, is as the paper is
understood. A simulation of who computes what and when: what is computed does not depend on it, for steps are synchronous.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from weft.errors import UserError

DECAY = 0.1
"""Of the running mean of the seconds that a peer takes for a sample."""
FORWARD = 1 / 3
"""Of a stage's time for a sample: backward, which computes the stage once more from what has entered it, is the rest."""


@dataclass(frozen=True)
class Peer:
    """One server of one stage.

    Attributes:
        stage: at which it begins. rate: samples a second, forward and back. bandwidth: bytes a second, each way.
        away: spans of seconds in which it does not answer, in order; what it was at work on is lost.
    """

    name: str
    stage: int
    rate: float
    bandwidth: float = math.inf
    away: tuple[tuple[float, float], ...] = ()

    def there(self, at: float) -> bool:
        return not any(begin <= at < end for begin, end in self.away)

    def lost(self, begin: float, end: float) -> float | None:
        """When it goes away in the middle of this; None if it does not."""
        return next((a for a, _ in self.away if begin <= a < end), None)

    def back(self, at: float) -> float:
        """When it is there again, ``at`` if it is there then."""
        return next((end for begin, end in self.away if begin <= at < end), at)


class Wiring:
    """Whom one trainer asks next, of the peers of one stage: the one that it expects to be busy for the shortest time.

    A queue by accumulated expected seconds: the smallest is taken, and pushed back with what the task will add. What a peer takes
    for a sample is a running mean without bias, 1 s at first. Ties are broken at random; new peers enter at the present minimum.
    """

    def __init__(self, draw: random.Random):
        self._draw = draw
        self._queue: list[tuple[float, float, str]] = []
        self._means: dict[str, tuple[float, int]] = {}  # the biased mean of seconds for a sample, and of how many tasks
        self._in: set[str] = set()

    def join(self, peer: str) -> None:
        if peer not in self._in:
            self._in.add(peer)
            heapq.heappush(self._queue, (self._least(), self._draw.random(), peer))

    def ban(self, peer: str) -> None:
        """Ask it no more, until it joins again."""
        self._in.discard(peer)
        self._queue = [entry for entry in self._queue if entry[2] != peer]
        heapq.heapify(self._queue)

    def choose(self, samples: float) -> str | None:
        """Who gets a task of so many samples; None if nobody is there."""
        if not self._queue:
            return None
        busy, _, peer = self._queue[0]
        heapq.heapreplace(self._queue, (busy + samples * self.seconds(peer), self._draw.random(), peer))
        return peer

    def tell(self, peer: str, samples: float, seconds: float) -> None:
        """What a task has taken."""
        mean, count = self._means.get(peer, (0.0, 0))
        self._means[peer] = (1 - DECAY) * mean + DECAY * seconds / samples, count + 1

    def seconds(self, peer: str) -> float:
        """That a peer is expected to take for a sample."""
        mean, count = self._means.get(peer, (0.0, 0))
        return mean / (1 - (1 - DECAY) ** count) if count else 1.0

    def _least(self) -> float:
        return self._queue[0][0] if self._queue else 0.0


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        stages: of the model. steps: of the optimizer. batch: micro-batches of a step. samples: of a micro-batch, in the mean.
        boundary: bytes of a sample at a boundary between stages, each way. weights: bytes of a stage, that a peer downloads which
            moves there. gradients: bytes that the peers of a stage exchange in each step. trainers: that send micro-batches.
        ahead: micro-batches that a trainer has under way. rebalance: seconds between moves of peers; None = none moves.
    """

    stages: int
    steps: int
    batch: int
    samples: float
    boundary: float = 0.0
    weights: float = 0.0
    gradients: float = 0.0
    trainers: int = 1
    ahead: int = 8
    rebalance: float | None = 300.0


@dataclass
class Told:
    """What came of it.

    Attributes:
        seconds: until the last step. done: micro-batches that counted. retries: tasks that were sent once more. sent: bytes at
            boundaries. moves: (seconds, peer, from, to). tasks: of each peer and stage, that were finished.
    """

    seconds: float = 0.0
    done: int = 0
    retries: int = 0
    sent: float = 0.0
    samples: float = 0.0
    moves: list[tuple[float, str, int, int]] = field(default_factory=list)
    tasks: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds if self.seconds else 0.0


@dataclass
class _Batch:
    """A micro-batch: the trainer that sends it, and where it is on its way there (0 … S - 1) and back (S … 2 S - 1)."""

    number: int
    trainer: int
    leg: int = 0


class Swarm:
    """Plays it.

    Args:
        seed: of ties.

    Raises:
        UserError: a stage has no peer.
    """

    def __init__(self, peers: Sequence[Peer], work: Work, seed: int = 0):
        self.work, self.peers = work, {p.name: p for p in peers}
        self.stage = {p.name: p.stage for p in peers}
        self.free = dict.fromkeys(self.peers, 0.0)
        self.told = Told()
        for stage in range(work.stages):
            if stage not in self.stage.values():
                raise UserError(f"stage {stage} has no peer that serves it: give one that begins there, or fewer stages.")
        draws = (random.Random(f"{seed} {trainer}") for trainer in range(work.trainers))
        self.wirings = [[Wiring(draw) for _ in range(work.stages)] for draw in draws]
        self._events: list[tuple[float, int, _Batch]] = []
        self._count = 0
        self._next_move = work.rebalance or math.inf
        self._given: dict[int, float] = defaultdict(float)  # seconds of work, by stage, since peers last moved

    def play(self) -> Told:
        """All steps."""
        now = 0.0
        for _ in range(self.work.steps):
            now = self._step(now) + self._exchanged()
        self.told.seconds = now
        return self.told

    def _step(self, now: float) -> float:
        """The micro-batches of one step, each of which counts once; returns when the last one is back."""
        work, waiting = self.work, list(range(self.work.batch))
        waiting.reverse()
        finished: set[int] = set()
        for trainer in range(work.trainers):
            for _ in range(min(work.ahead, len(waiting))):
                self._put(now, _Batch(waiting.pop(), trainer))
        while len(finished) < work.batch:
            now, _, batch = heapq.heappop(self._events)
            self._rebalance(now)
            if batch.leg < 2 * work.stages:
                self._ask(now, batch)
                continue
            finished.add(batch.number)
            if waiting:
                self._put(now, _Batch(waiting.pop(), batch.trainer))
        self.told.done += len(finished)
        self.told.samples += len(finished) * work.samples
        return now

    def _put(self, at: float, batch: _Batch) -> None:
        heapq.heappush(self._events, (at, self._count, batch))
        self._count += 1

    def _ask(self, now: float, batch: _Batch) -> None:
        """Send a micro-batch to the next stage on its way, to another peer if one does not answer."""
        work = self.work
        back = batch.leg >= work.stages
        stage = 2 * work.stages - 1 - batch.leg if back else batch.leg
        wiring = self.wirings[batch.trainer][stage]
        mine = [p for p in self.peers.values() if self.stage[p.name] == stage]
        for peer in mine:
            if peer.there(now):
                wiring.join(peer.name)
        name = wiring.choose(work.samples)
        if name is None:  # it waits for the first to come back
            again = min((p.back(now) for p in mine), default=math.inf)
            if not math.isfinite(again):
                raise UserError(f"stage {stage} has lost its last peer after {now:.4g} s: give it one that comes back.")
            self._put(again, batch)
            return
        peer = self.peers[name]
        if not peer.there(now) or self.stage[name] != stage:
            wiring.ban(name)
            self.told.retries += 1
            self._ask(now, batch)
            return
        entering = 0 if (stage == 0 and not back) or (stage == work.stages - 1 and back) else work.samples * work.boundary
        self.told.sent += entering
        arrives = now + entering / peer.bandwidth
        begins = max(arrives, self.free[name])
        seconds = work.samples / peer.rate * (1 - FORWARD if back else FORWARD)
        gone = peer.lost(now, begins + seconds)
        if gone is not None:  # what it was at work on is lost, and sent to another one
            self.free[name] = peer.back(gone)
            wiring.ban(name)
            self.told.retries += 1
            self._put(gone, batch)
            return
        self.free[name] = begins + seconds
        wiring.tell(name, work.samples, seconds)
        self.told.tasks[name, stage] += 1
        self._given[stage] += seconds
        self._put(begins + seconds, _Batch(batch.number, batch.trainer, batch.leg + 1))

    def _exchanged(self) -> float:
        """Seconds of a step's all-reduce in the stage that takes longest."""
        if not self.work.gradients:
            return 0.0
        return max(self.work.gradients / self.peers[name].bandwidth for name in self.peers)

    def _rebalance(self, now: float) -> None:
        """Now and then the peer with the shortest queue of the least loaded stage moves to the most loaded one, unless that would
        then be the less loaded of the two. Load is the work that its peers were given since the last time, in the mean.
        """
        while now >= self._next_move:
            at, given = self._next_move, dict(self._given)
            self._next_move += self.work.rebalance or math.inf
            self._given.clear()
            there = {
                s: [p for p in self.peers.values() if self.stage[p.name] == s and p.there(at)] for s in range(self.work.stages)
            }
            load = {s: given.get(s, 0.0) / len(some) if some else math.inf for s, some in there.items()}
            least, most = (pick(load, key=lambda s: (load[s], s)) for pick in (min, max))
            if len(there[least]) < 2 or load[most] <= given.get(least, 0.0) / (len(there[least]) - 1):
                continue
            peer = min(there[least], key=lambda p: (self.free[p.name], p.name))
            for trainer in self.wirings:
                trainer[least].ban(peer.name)
            self.stage[peer.name] = most
            self.free[peer.name] = max(self.free[peer.name], at) + self.work.weights / peer.bandwidth
            self.told.moves.append((at, peer.name, least, most))


def boundary_bytes(rows: int, tokens: int, width: int, block: int | None, item: int = 4) -> float:
    """Of hidden states at a boundary, one way: numbers as they are, or int8 with a float32 for each block."""
    return rows * tokens * width * (item if block is None else 1 + 4 / block)
