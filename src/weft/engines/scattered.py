"""Packs that are trained by workers: a pack is a question and its answer.

Unlike a site a worker belongs to nobody. It has a backbone and everybody's rows, and keeps nothing of a client: what the client
holds and remembers comes with the question, and what it remembers afterwards goes back with the answer, so that any worker can
train any pack.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch as st
import torch
from torch import Tensor

from weft.communication.codecs import Codec
from weft.communication.envelope import unwrap, wrap
from weft.communication.ledger import Phase
from weft.engines import packing
from weft.engines.engine import Played, Scores
from weft.engines.round_losses import Losses
from weft.engines.scoring import Scoring
from weft.engines.setup import Job, Setup
from weft.errors import UserError, WeftError
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.exchange import write_update
from weft.federation.hidden_turn import trained
from weft.federation.method import Method
from weft.federation.round import Round
from weft.federation.rounds import adapted, enter
from weft.federation.turn import Turn
from weft.federation.work import Work
from weft.storage import files
from weft.tensors import forms
from weft.tensors.forms import Value

Ask = Callable[[Iterable[tuple[int, bytes]]], Iterator[tuple[int, bytes]]]
"""Carries numbered questions to workers; gives their numbered answers as they come, and takes a question only when it can go."""

PERSON, MEMORY, BUG = "person", "memory", "bug"
"""Who has to do something about a failure: the person, with fewer clients in a pack, or we."""


@dataclass(frozen=True)
class Workers:
    """Who trains.

    Attributes:
        number: that train at the same time. memory: bytes that each may use, its backbone included. threads: cores of each.
    """

    number: int
    memory: int
    threads: int = 1

    @classmethod
    def fitting(cls, nodes: Iterable[Mapping[str, float]], need: int, gpu: bool) -> Workers:
        """As many workers as there is room for: one per GPU, or one per core; fewer, of several cores, where memory is short.

        Args:
            nodes: resources of each machine, as Ray names them. need: bytes that a worker needs.

        Raises:
            UserError: no machine has a core, or a GPU where one is asked for.
        """
        rooms = [n for n in nodes if n.get("CPU", 0) >= 1 and (not gpu or n.get("GPU", 0) >= 1)]
        if not rooms:
            raise UserError(f"Ray sees no machine with a {'GPU' if gpu else 'core'} to work on: ray status says what it sees.")
        most = 1 if gpu else int(max(n["CPU"] for n in rooms))
        for threads in range(1, most + 1):
            counts = [int(min(n["CPU"] // threads, n["GPU"] if gpu else math.inf)) for n in rooms]
            memory = min(int(n.get("memory", 0)) // c for n, c in zip(rooms, counts, strict=True) if c)
            if memory >= need:
                break
        return cls(sum(counts), memory, threads)


class Scattered:
    """Turns in packs that workers train; evaluation is the coordinator's.

    Args:
        ask: carries the questions. workers: who answers them.
    """

    here = False
    admits = False
    factor: float | None = None

    def __init__(self, setup: Setup, ask: Ask, workers: Workers):
        self.setup, self.ask = setup, ask
        self.capacity = packing.capacity(setup, workers.memory, workers.number)
        self.scoring = Scoring(setup, self.capacity.k)

    def arrive(self, t: int) -> None:
        """Everybody is here from the beginning."""

    def evaluate(self, t: int) -> Scores:
        return Scores(self.scoring.evaluate(t), samples=self.scoring.taken())

    def play(self, jobs: list[Job], t: int, phase: Phase, again: Callable[[Job], Job]) -> Played:
        by_id = {j.client.id: j for j in jobs}
        packs = [
            [by_id[c.id] for c in group] for group in packing.group([j.client for j in jobs], self.capacity.k, self.setup.bench)
        ]
        self.setup.observer.begin("clients", len(jobs))
        losses: dict[str, float] = {}
        bills: dict[str, tuple[dict[str, int], int]] = {}
        work: dict[str, Work] = {}
        for number, raw in self.ask((i, self._question(members)) for i, members in enumerate(packs)):
            about, data = unwrap(raw)
            if "failed" in about:
                raise self._failure(about)
            tensors, frames = st.load(data[: about["tensors"]]), memoryview(data)[about["tensors"] :]
            for i, (job, said) in enumerate(zip(packs[number], about["clients"], strict=True)):
                _remember(job.client, tensors, i, said)
                self.setup.store.save(job.client)
                if "work" in said:
                    work[job.client.id] = Work(**said["work"])
                if f"{i}:loss" in tensors:
                    losses[job.client.id] = float(tensors[f"{i}:loss"])
                if said["size"] is not None:
                    frame, frames = bytes(frames[: said["size"]]), frames[said["size"] :]
                    self.setup.spool.put(job.client.id, frame)
                    bills[job.client.id] = said["payload"], len(frame)
            self.setup.observer.advance("clients", len(packs[number]))
        self.setup.observer.end("clients")
        for client, (payload, size) in sorted(bills.items() if self.setup.bench.privacy.summed is None else ()):
            self.setup.exchange.ledger.add(t, phase, "up", client, payload, size)
        return Played({c: losses[c] for c in by_id if c in losses}, work=work if self.setup.settings.flops else None)

    def _question(self, members: list[Job]) -> bytes:
        """A pack: what its clients hold, each value once, what each has received beside it, and what each remembers."""
        values: dict[str, Value] = {}
        memories: dict[str, Tensor] = {}
        numbers: dict[int, int] = {}
        sets: dict[tuple[tuple[str, int], ...], int] = {}

        def number_of(value: Value) -> int:
            if id(value) not in numbers:  # the jobs keep it alive
                numbers[id(value)] = len(numbers)
                values[f"held:{numbers[id(value)]}"] = value
            return numbers[id(value)]

        clients = []
        for i, job in enumerate(members):
            self.setup.store.load(job.client)
            held, free = (tuple((n, number_of(v)) for n, v in sorted(some.items())) for some in (job.held, job.beside))
            about: dict[str, Any] = {"beside": dict(free), "id": job.client.id, "facts": job.client.facts}
            about |= {"received": dict(job.facts), "counted": job.counted}
            clients.append(about | {"held": sets.setdefault(held, len(sets))} | _memory(job.client, memories, i))
            self.setup.store.forget(job.client)
        plan = members[0].server.round
        round = {"index": plan.index, "kind": plan.kind, "extra": plan.extra, "period": plan.period}
        sent, scales = forms.flatten(values)
        head: dict[str, Any] = {"round": round, "clients": clients, "held": [dict(s) for s in sets], "scales": scales}
        head["flops"] = self.setup.settings.flops
        return wrap(head, files.tensor_bytes(sent | memories))

    def _failure(self, about: Mapping[str, Any]) -> Exception:
        if about["failed"] == PERSON:
            return UserError(about["why"])
        if about["failed"] == MEMORY:
            return packing.out_of_memory(self.capacity)
        error = WeftError(about["why"])
        error.add_note(about["trace"])
        return error


class Worker:
    """Trains packs.

    Args:
        clients: all of the federation, for their rows; nothing else of them is used.
    """

    def __init__(self, method: Method, bench: Bench, clients: Iterable[ClientState], uplink: Codec):
        self.method, self.bench, self.uplink = method, bench, uplink
        self.clients = {c.id: c for c in clients}

    def answer(self, raw: bytes) -> bytes:
        """Train the pack of a question of :class:`Scattered`."""
        about, data = unwrap(raw)
        tensors = st.load(data)
        said = about["round"]
        round = Round(said["index"], said["kind"], extra=said["extra"], period=said["period"])
        values = forms.restore({n: t for n, t in tensors.items() if n.startswith("held:")}, about["scales"])
        sets = [{name: values[f"held:{number}"] for name, number in names.items()} for names in about["held"]]
        clients = [self._client(tensors, i, said) for i, said in enumerate(about["clients"])]
        asks = self.method.info.asks
        turns = [
            Turn(
                c,
                adapted(self.method, self.bench, c.info(asks)),
                sets[said["held"]],
                said["received"],
                {name: values[f"held:{number}"] for name, number in said["beside"].items()},
                said["counted"],
            )
            for c, said in zip(clients, about["clients"], strict=True)
        ]
        by_id = {turn.client.id: turn for turn in turns}
        bench = self.bench.of(clients[0])
        pack = enter(self.method, bench, turns, round, hides=True)
        losses = pack.listener = Losses(c.id for c in clients)
        if about["flops"]:
            pack.count_flops()
        frames = {}
        try:
            for update in trained(self.method, pack):
                turn = by_id[update.client.id]
                frames[update.client.id] = write_update(self.method, round, bench.seed, update, self.uplink, turn)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as e:
            who, step = ", ".join(c.id for c in clients), max(losses.steps(c.id) for c in clients)
            where = f"training in round {round.index} ({round.kind}), clients {who}, batch {step}"
            raise WeftError(f"{where}: {type(e).__name__}: {e}") from e
        pack.write_back()
        found: dict[str, Tensor] = {}
        told, means = [], {} if self.bench.privacy else losses.means()
        for i, client in enumerate(clients):
            frame = frames.get(client.id)
            sent = {"size": frame.size, "payload": frame.payload} if frame else {"size": None}
            worked = {"work": pack.work[client.id].record()} if about["flops"] else {}
            told.append(sent | worked | _memory(client, found, i))
            if client.id in means:
                found[f"{i}:loss"] = torch.tensor(means[client.id], dtype=torch.float64)
        packed = files.tensor_bytes(found)
        uploads = [frames[c.id].data for c in clients if c.id in frames]
        return wrap({"clients": told, "tensors": len(packed)}, b"".join([packed, *uploads]))

    def _client(self, tensors: Mapping[str, Tensor], i: int, said: Mapping[str, Any]) -> ClientState:
        known = self.clients[said["id"]]
        client = ClientState(known.id, known.n, dict(said["facts"]), known.model, data=known.data)
        _remember(client, tensors, i, said)
        return client


def failed(error: Exception) -> bytes:
    """What a worker answers where it can't: whoever asked raises it."""
    kind = PERSON if isinstance(error, UserError) else MEMORY if isinstance(error, torch.OutOfMemoryError) else BUG
    why = str(error) if isinstance(error, WeftError) else f"{type(error).__name__}: {error}"
    return wrap({"failed": kind, "why": why, "trace": "".join(traceback.format_exception(error))})


def _memory(client: ClientState, tensors: dict[str, Tensor], i: int) -> dict[str, Any]:
    """What the pack's i-th client remembers: tensors into ``tensors``, the rest as JSON."""
    tensors |= {f"{i}:kept:{n}": v for n, v in client.kept.items()}
    tensors |= {f"{i}:memo:{n}": v for n, v in client.memo.items() if isinstance(v, Tensor)}
    tensors |= {f"{i}:cached:{n}": rows for n, rows in client.cached_rows().items()}
    facts = {n: v for n, v in client.memo.items() if not isinstance(v, Tensor)}
    files.exact_json(facts)
    return {"seen": client.rounds_seen, "memo": facts}


def _remember(client: ClientState, tensors: Mapping[str, Tensor], i: int, said: Mapping[str, Any]) -> None:
    """Undo :func:`_memory`."""
    kept, memo, cached = f"{i}:kept:", f"{i}:memo:", f"{i}:cached:"
    client.rounds_seen = said["seen"]
    client.kept = {n.removeprefix(kept): v for n, v in tensors.items() if n.startswith(kept)}
    client.cached = {n.removeprefix(cached): set(v.tolist()) for n, v in tensors.items() if n.startswith(cached)}
    client.memo = {n.removeprefix(memo): v for n, v in tensors.items() if n.startswith(memo)} | said["memo"]
