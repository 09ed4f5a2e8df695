"""Federations whose packs are trained by workers, in this process: they share nothing with it but the rows and the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from weft.communication.codecs import codec
from weft.engines.engine import Engine
from weft.engines.scattered import Scattered, Worker, Workers
from weft.federation.client import ClientState
from weft.federation.method import Method
from weft.testing.federation import Federation, federation

Answer = Callable[[bytes], bytes]


class Queue:
    """Workers in this process: questions are taken by turns, and the last one taken is answered first."""

    def __init__(self, *answers: Answer, workers: Workers | None = None):
        self.answers = answers
        self.workers = workers or Workers(len(answers), 1 << 40)
        self.asked: list[bytes] = []

    def ask(self, questions: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        source = iter(questions)
        while taken := list(islice(source, len(self.answers))):
            self.asked += [raw for _, raw in taken]
            for (number, raw), answer in reversed(list(zip(taken, self.answers, strict=False))):
                yield number, answer(raw)


def scattered(
    method: Method, number: int = 3, uplink: str = "identity", memory: int = 1 << 40, **more: Any
) -> tuple[Federation, Queue]:
    """A federation whose packs are trained by so many workers."""
    run = federation(method, codec_name=uplink, **more)

    def worker() -> Answer:
        people = [ClientState(c.id, c.n, {}, c.model, data=c.data) for c in run.clients]
        return Worker(method, run.bench, people, codec(uplink)).answer

    queue = Queue(*(worker() for _ in range(number)), workers=Workers(number, memory))
    setup = run.simulation.setup
    run.simulation = Engine(setup, Scattered(setup, queue.ask, queue.workers))
    return run, queue
