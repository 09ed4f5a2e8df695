"""``weft run --engine ray``: packs of clients on all cores, GPUs or machines that Ray has, through Flower's simulation engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from weft.communication.envelope import wrap
from weft.communication.ledger import format_bytes
from weft.engines import packing
from weft.engines.observer import Observer
from weft.engines.scattered import Scattered
from weft.engines.setup import Setup
from weft.runs.directory import RunDirectory
from weft.runs.stage import MakeTurns
from weft.sites import ray_workers
from weft.sites.flower import environment

if TYPE_CHECKING:
    from weft.federation.method import Method
    from weft.runs.prepare import Material
    from weft.sites.flower.workers import Pool

PROCESS = 1_000_000_000  # bytes of Python, PyTorch and the tokens of a worker, roughly
CACHE = 1 << 30


@contextmanager
def federation(method: Method, directory: RunDirectory, material: Material, observer: Observer) -> Iterator[MakeTurns]:
    """Start workers, and give the engine that plays rounds with them; all processes end with the block.

    Raises:
        UserError: Ray is not installed or does not start.
    """
    environment.ready_for_ray()
    from weft.sites.flower.workers import pool

    device = material.backbone.device
    models = [b.backbone.model for b in (material.bench, *material.bench.others.values())]
    frozen = sum(p.numel() * p.element_size() for m in models for p in m.parameters())
    gpu = device.type == "cuda"
    observer.begin("workers", 1)
    with pool(ray_workers.answer, PROCESS if gpu else PROCESS + 2 * frozen, gpu) as running:
        observer.end("workers")
        yield _engine(running, method, directory.experiment.read_text(encoding="utf-8"), material)


def _engine(running: Pool, method: Method, text: str, material: Material) -> MakeTurns:
    workers, device = running.workers, material.backbone.device
    cache = min(CACHE, workers.memory // 8)
    if device.type == "cuda":  # the coordinator's own passes share one of the devices
        workers = replace(workers, memory=packing.available_memory(device) // 2)

    def engine(setup: Setup) -> Scattered:
        stage = "rounds" if setup.method is method else "setup"
        head = ray_workers.head(text, material, stage, workers.threads, cache)

        def ask(questions: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
            return running.ask((number, wrap(head, question)) for number, question in questions)

        made = Scattered(setup, ask, workers)
        k, guess = made.capacity.k, made.capacity.guess
        setup.observer.say(
            f"{workers.number} workers of Ray, each with its own backbone and packs of {k} (about "
            f"{format_bytes(guess.total(k))} of {format_bytes(workers.memory)})."
        )
        return made

    return engine
