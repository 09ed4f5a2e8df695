"""Split learning: clients and server take each step of a turn together, since each holds a part of the network.

A step is three questions to a client, with which bytes travel as between sites:

    forward    its batch, up to the blocks          up: h [b, T, d] and which tokens are the rows' own
    head       what leaves the blocks, u            down: u; up: the gradient of its loss by u
    backward   the gradient by h                    down; the client's ends move

The server runs its blocks forward and backward in between, and moves them. Labels and tokens stay where they are; what h tells of
them is another matter (:mod:`weft.audits.token_recovery`). These messages are exact, whatever codec the updates have, and are
billed to the round as parts ``activations`` and ``gradients``: 4·b·T·d numbers a step and client, and b·T bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from weft.communication import Direction
from weft.communication.codecs import codec
from weft.communication.frame import Expected, Header
from weft.communication.ledger import Phase
from weft.communication.strict import Refused
from weft.communication.wire import decode, encode
from weft.engines.engine import Played, Turns
from weft.engines.here import Here
from weft.engines.round_losses import Losses
from weft.engines.setup import Job, Setup
from weft.federation.batch import Batch
from weft.federation.client import ClientState
from weft.federation.cut_passes import embedded, read, through
from weft.federation.pack import Pack
from weft.federation.rounds import enter
from weft.federation.server import ServerState
from weft.federation.split import SplitMethod, go_on, moments_of
from weft.federation.turn import Turn
from weft.federation.work import Work
from weft.tensors.forms import Value
from weft.tensors.integers import Bounded, Integers, Shape
from weft.tensors.keyed import generator

HIDDEN, OWN, OUTPUT = "activations/hidden", "activations/own", "activations/output"
OUTPUT_SLOPE, HIDDEN_SLOPE = "gradients/output", "gradients/hidden"
FORWARD, HEAD, BACKWARD = "forward", "head", "backward"


def simulated(setup: Setup) -> Turns:
    """Whoever trains a method's clients in this process."""
    return Split(setup) if isinstance(setup.method, SplitMethod) else Here(setup)


class End:
    """A client's side: it has its rows and both ends of the network, and answers questions.

    Args:
        pack: of the client alone. noise: standard deviation of what it adds to h. rounds: over which its schedule is spread.
    """

    def __init__(self, pack: Pack, method: SplitMethod, rounds: int):
        self.pack, self.noise, self.client = pack, method.noise, pack.clients[0]
        turn: dict[str, Any] = {"epochs": method.epochs, "steps": method.steps, "size": method.batch}
        self.steps = int(pack.lengths(**turn)[0])
        self.batches = pack.batches(**turn)
        self.optimizer = pack.optimizer("*", settings=method.optim, part=(pack.round.index, rounds), **turn)
        go_on(self.optimizer, self.client.memo)
        self.step = 0

    def forward(self) -> tuple[Tensor, Tensor]:
        """h of the next batch, and its rows' own tokens."""
        self.batch: Batch = next(self.batches)
        self.hidden, own = embedded(self.pack, self.batch)
        sent = self.hidden.detach()
        if self.noise:
            stream = generator(self.pack.bench.seed, "activations", self.pack.round.index, self.client.id, self.step)
            sent = sent + self.noise * torch.randn(sent.shape, generator=stream).to(sent)
        return sent, own

    def head(self, output: Tensor) -> Tensor:
        """The gradient of the batch's loss by u."""
        output = output.requires_grad_()
        self.loss = self.pack.loss(read(self.pack, self.batch, output), self.batch)
        params = self.optimizer.params
        slope, *own = torch.autograd.grad(self.loss.sum(), [output, *params.values()], allow_unused=True)
        self.slopes = {n: g for n, g in zip(params, own, strict=True) if g is not None}
        assert slope is not None
        return slope

    def backward(self, slope: Tensor) -> None:
        """Move both ends by the gradients of the step: what is tied across the blocks has one from either side."""
        params = self.optimizer.params
        own = torch.autograd.grad(self.hidden, list(params.values()), slope, allow_unused=True)
        for name, g in zip(params, own, strict=True):
            if g is not None:
                self.slopes[name] = self.slopes[name] + g if name in self.slopes else g
        self.optimizer.descend(self.slopes, self.batch.clients, {n: self.pack.rows(n) for n in params})
        self.pack.work[self.client.id].add(sum(len(rows) for _, rows in self.batch.own(1)), True)
        self.pack.report(self.batch, self.loss)
        self.step += 1
        del self.hidden, self.slopes

    def close(self) -> None:
        """The end of a completed turn."""
        self.client.memo |= moments_of(self.optimizer)
        self.pack.write_back()


class Body:
    """The server's side: blocks, which move once a step.

    Args:
        steps: of the round, over all rounds of which its schedule is spread. stored: where its optimizer's moments are.
    """

    def __init__(self, server: ServerState, method: SplitMethod, steps: int, stored: Mapping[str, Any]):
        bench = server.bench
        turn = Turn(ClientState(""), method.body(bench.backbone, bench.task), dict(server.shared))
        self.pack = Pack(bench, [turn], server.round, server.start, at_server=True)
        part = (server.round.index, server.rounds)
        self.optimizer = self.pack.optimizer("*", settings=method.optim, total=max(steps, 1), part=part)
        go_on(self.optimizer, stored)
        self.slopes: dict[str, Tensor] = {}

    def forward(self, hidden: Tensor, own: Tensor) -> Tensor:
        """u of one client's h; what the backward pass needs is kept until :meth:`backward`."""
        self.hidden = hidden.requires_grad_()
        self.output = through(self.pack, self.hidden, own)
        return self.output.detach()

    def backward(self, slope: Tensor) -> Tensor:
        """The gradient by h; that by the blocks is added to those of the step's other clients."""
        params = self.optimizer.params
        found, *own = torch.autograd.grad(self.output, [self.hidden, *params.values()], slope, allow_unused=True)
        for name, g in zip(params, own, strict=True):
            if g is not None:
                self.slopes[name] = self.slopes[name] + g if name in self.slopes else g
        del self.hidden, self.output
        assert found is not None
        return found

    def move(self) -> None:
        """The end of a step."""
        if self.slopes:
            self.optimizer.descend(self.slopes, None, {n: self.pack.rows(n) for n in self.optimizer.params})
        self.slopes = {}

    def trained(self) -> dict[str, Tensor]:
        """Its blocks, and its optimizer's moments."""
        return {n: self.pack.value(0, n) for n in self.optimizer.moved} | moments_of(self.optimizer)


class Wire:
    """Carries what a step is made of between one client and the server: encoded, billed, validated."""

    def __init__(self, setup: Setup, server: ServerState, client: str, phase: Phase):
        self.exchange, self.server, self.client, self.phase = setup.exchange, server, client, phase
        self.bench, self.exact = server.bench, codec("identity")

    def carry(self, kind: str, direction: Direction, tensors: Mapping[str, Value], shapes: Mapping[str, Shape]) -> dict[str, Any]:
        """What arrives, on the device of the passes.

        Raises:
            Refused: it is not what is expected, such as numbers that are not finite.
        """
        slug, t, limits = self.exchange.method.info.slug, self.server.round.index, self.exchange.limits
        frame = encode(Header(slug, t, kind, direction, self.client), tensors, {}, self.exact)
        self.exchange.ledger.add(t, self.phase, direction, self.client, frame.payload, frame.size)
        names = frozenset(shapes)
        expected = Expected(
            *(slug, t, kind, direction, shapes, names),
            max_bytes=limits.max_bytes,
            max_weight=limits.max_weight,
            lowrank=frozenset(),
            client=self.client,
        )
        device = self.bench.backbone.device
        arrived = decode(frame.data, expected).tensors.items()
        return {n: (v.values if isinstance(v, Integers) else v).to(device) for n, v in arrived}  # type: ignore[union-attr]

    def step(self, end: End, body: Body) -> None:
        """One step of a client.

        Raises:
            Refused: a message of it is none that is taken.
        """
        hidden, own = end.forward()
        size: Shape = tuple(hidden.shape)
        sent: dict[str, Value] = {HIDDEN: hidden, OWN: Integers(own.long().cpu(), 2)}
        up = self.carry(FORWARD, "up", sent, {HIDDEN: size, OWN: Bounded(tuple(own.shape), 2)})
        output = body.forward(up[HIDDEN], up[OWN])
        slope = end.head(self.carry(HEAD, "down", {OUTPUT: output}, {OUTPUT: size})[OUTPUT])
        found = body.backward(self.carry(HEAD, "up", {OUTPUT_SLOPE: slope}, {OUTPUT_SLOPE: size})[OUTPUT_SLOPE])
        end.backward(self.carry(BACKWARD, "down", {HIDDEN_SLOPE: found}, {HIDDEN_SLOPE: size})[HIDDEN_SLOPE])


class Split(Here):
    """Turns of a :class:`SplitMethod`, in this process."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        assert isinstance(setup.method, SplitMethod)
        self.method = setup.method

    def play(self, jobs: list[Job], t: int, phase: Phase, again: Callable[[Job], Job]) -> Played:
        observer = self.setup.observer
        observer.begin("clients", len(jobs))
        losses, work = Losses([j.client.id for j in jobs], lambda: observer.advance("steps")), dict[str, Work]()
        refused: dict[str, str] = {}
        for server, _ in self.setup.federations:
            mine = [j for j in jobs if j.server is server]
            server.trained = {}
            if mine:
                self._serve(server, mine, losses, work, refused, phase)
        observer.end("clients")
        return Played(losses.means(), refused=dict(sorted(refused.items())), work=work)

    def _serve(
        self,
        server: ServerState,
        jobs: list[Job],
        losses: Losses,
        work: dict[str, Work],
        refused: dict[str, str],
        phase: Phase,
    ) -> None:
        """The clients of one server, all at once or one after the other."""
        parallel, copies = self.method.order == "parallel", self.method.copies
        ends = {j.client.id: self._end(server, j, losses) for j in jobs}
        steps = [end.steps for end in ends.values()]
        common = None if copies else Body(server, self.method, max(steps) if parallel else sum(steps), server.memo)
        groups = [list(ends)] if parallel and not copies else [[client] for client in ends]
        for group in groups:
            body = common or Body(server, self.method, ends[group[0]].steps, server.notes.get(group[0]))
            left = {client: Wire(self.setup, server, client, phase) for client in group}
            for _ in range(max(ends[client].steps for client in group)):
                for client, wire in list(left.items()):
                    if ends[client].step >= ends[client].steps:
                        continue
                    try:
                        wire.step(ends[client], body)
                    except Refused as e:
                        refused[client] = str(e)
                        self.setup.observer.say(f"a step of {client} refused: {e}")
                        del left[client]
                body.move()
            server.trained["" if common else group[0]] = body.trained()
            for job in (j for j in jobs if j.client.id in group):
                self._close(job, ends[job.client.id], work, job.client.id in refused, phase)

    def _end(self, server: ServerState, job: Job, losses: Losses) -> End:
        self.setup.store.load(job.client)
        pack = enter(self.method, server.bench, [job], server.round, server.start)
        pack.listener = losses
        return End(pack, self.method, server.rounds)

    def _close(self, job: Job, end: End, work: dict[str, Work], lost: bool, phase: Phase) -> None:
        """A client's update on its way, and its memory to its place; of one whose messages were refused nothing is left."""
        if lost:
            self.setup.store.forget(job.client)
            return
        for update in end.pack.updates():
            self.setup.spool.put(update.client.id, self.setup.exchange.pack_update(job.server, update, job, phase).data)
        end.close()
        work |= end.pack.work
        self.setup.store.save(job.client)
        self.setup.observer.advance("clients")
