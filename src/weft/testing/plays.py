"""One method's runs, each played once and read by several laws.

All are on a backbone of two blocks, of the same six clients over three rounds, by the same draw: three of six take part in a
round; one is there, absent, and there again; one fails in the middle of its second turn; one has no rows, one a single row, one a
single class.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.communication.ledger import Ledger
from weft.engines.evaluation import Evaluation
from weft.federation.method import Method
from weft.storage.store import ClientStore
from weft.tasks.kinds import GENERATION, LANGUAGE, MASKED, TOKENS
from weft.testing.compare import logits, state
from weft.testing.data import TAGS
from weft.testing.federation import Federation, federation
from weft.testing.models import PAIRED, PICTURED_REPLIES, at_home, backbone, hooks, root, task_of
from weft.testing.sites import Loopback, kept, remote
from weft.testing.strangers import by_messages
from weft.testing.watch import Seen, Snapshot, watching
from weft.testing.workers import scattered

Frames = dict[str, bytes]
Tensors = dict[str, Tensor]

SIZES = (5, 3, 1, 4, 0, 4)
ROUNDS = 3
PACK = 2
SETTINGS: dict[str, Any] = {"sizes": SIZES, "rounds": ROUNDS, "participation": 0.5, "dropout": 0.1, "seed": 17814}
ABSENT, FAILING = "client-0", "client-5"
"""Who is away in the second round, and who fails in it; both are there before and after."""


def small(method: Method) -> Method:
    """The method with its own settings, but with small batches, so that a turn has several unequal steps."""
    return replace(method, batch=3, steps=None, epochs=1.0)


def steady(method: Method) -> Method:
    """The small method, with an optimizer that does not make a step of a rounding error where there is no gradient."""
    made = small(method)
    changes: dict[str, Any] = {"optim": made.optim.but(eps=max(made.optim.eps, 1e-6))}
    return replace(made, **changes)


def shallow(method: Method, precision: str = "float64", task: str = "auto", kind: str | None = None) -> Backbone:
    """The backbone of a method's home, of two blocks.

    Args:
        kind: of the backbone of ``generation`` and ``preference``, a decoder or an encoder-decoder.
    """
    task = task_of(method) if task == "auto" else task
    kind = kind or at_home(method, task)
    if task == MASKED:
        return backbone(kind, classes=1, precision=precision, task=task, checkpoint="mlm", num_hidden_layers=2)
    if task in LANGUAGE:
        as_they_are = kind in (*PAIRED, *PICTURED_REPLIES)
        layers: dict[str, Any] = (
            {"num_layers": 2, "num_decoder_layers": 2} if kind == "t5" else {} if as_they_are else {"num_hidden_layers": 2}
        )
        checkpoint = "pair" if kind in PAIRED else "lm"
        return backbone(kind, classes=1, precision=precision, task=GENERATION, checkpoint=checkpoint, **layers)
    layers = {} if kind == "clip" else {"num_hidden_layers": 2}
    return backbone(kind, classes=len(TAGS) if task == TOKENS else 3, precision=precision, task=task, **layers)


def exchanges(method: Method) -> int:
    """How many there are until a kind of round comes again: after fewer, nothing may have been trained yet."""
    server = federation(small(method), shallow(method), sizes=(1,), rounds=ROUNDS).server
    kinds: list[str] = []
    for t in range(ROUNDS):
        plan = method.plan(server, t)
        if plan is None or plan.kind in kinds:
            break
        kinds.append(plan.kind)
    return len(kinds)


@dataclass
class PlayedRun:
    """A run and what it left.

    Attributes:
        frames: of each round, what clients sent, as bytes. state: what it left behind.
    """

    run: Federation
    frames: list[Frames]
    state: Tensors

    @functools.cached_property
    def logits(self) -> Tensors:
        """What it predicts in the end."""
        return logits(self.run)

    @property
    def ledger(self) -> Ledger:
        return self.run.simulation.setup.exchange.ledger


@dataclass
class Packed(PlayedRun):
    """The run in this process, in packs, tested between rounds, with all that was noted beside it.

    Attributes:
        before: what there was. moved_streams: it moved a global random stream. touched: what it left on the backbone.
        midway: the server before the last round, the store's manifest and a copy of its folder then, the cohort before.
    """

    before: Tensors
    seen: Seen
    scores: list[Evaluation]
    moved_streams: bool
    touched: list[str]
    midway: tuple[Snapshot, dict[str, Any], Path, list[str]]


@dataclass
class Away(PlayedRun):
    """The run with sites; the state of its clients is what the sites hold."""

    scores: list[Evaluation]
    loop: Loopback


class Plays:
    """The runs of one method on one backbone, each played when it is first asked for.

    Args:
        task: ``tokens``, if words are tagged, or ``generation`` or ``preference``, on a backbone of this ``kind``.
        more: of :func:`weft.testing.federation.federation`, beside SETTINGS.
    """

    def __init__(self, method: Method, task: str = "auto", kind: str | None = None, **more: Any):
        self.method, self.model = steady(method), shallow(method, task=task, kind=kind)
        self.settings = SETTINGS | {"task": task} | more

    @functools.cached_property
    def scratch(self) -> Federation:
        """A federation that nothing was played in, for what is tried out on its server."""
        return federation(self.method, self.model, **self.settings)

    def put(self, run: Federation) -> None:
        """Let the scratch server hold what that of a run does, and its clients remember what those of the run do."""
        Snapshot.of(run.server).onto(self.scratch.server)
        for mine, theirs in zip(self.scratch.clients, run.clients, strict=True):
            store = run.simulation.setup.store
            store.load(theirs)
            mine.kept, mine.memo = theirs.kept, theirs.memo
            store.forget(theirs)
        self.scratch.server.introduce(self.scratch.clients)

    @functools.cached_property
    def packed(self) -> Packed:
        run = federation(self.method, self.model, pack=PACK, **self.settings)
        model = run.bench.backbone.model
        before, print_before = state(run), frozen_fingerprint(run.bench.backbone)
        frames = record(run)
        midway: Any = None
        with watching(self.method) as seen, shaken(1) as moved:
            for t in range(ROUNDS):
                if t == ROUNDS - 1:
                    midway = _midway(run)
                if run.simulation.round(t) is None:
                    break
                if t == 0:
                    run.simulation.evaluate(t)
            scores = run.simulation.evaluate(ROUNDS - 1)
        touched = list(hooks(model))
        touched += ["a weight"] if frozen_fingerprint(run.bench.backbone) != print_before else []
        touched += ["a gradient switched on"] if any(p.requires_grad for p in model.parameters()) else []
        return Packed(run, frames, state(run), before, seen, scores, moved(), touched, midway)

    @functools.cached_property
    def workers(self) -> PlayedRun:
        """Workers train, the last pack first; nobody is tested in between; the global random streams stand elsewhere."""
        run, _ = scattered(self.method, model=self.model, pack=PACK, **self.settings)
        with shaken(2):
            return self._plain(run)

    @functools.cached_property
    def again(self) -> PlayedRun:
        """As the packed run, but not tested in between."""
        return self._plain(federation(self.method, self.model, pack=PACK, **self.settings))

    @functools.cached_property
    def alone(self) -> PlayedRun:
        """Clients are trained one by one."""
        return self._plain(federation(self.method, self.model, pack=1, **self.settings))

    @functools.cached_property
    def messages(self) -> PlayedRun:
        """Clients see nothing but the bytes that are addressed to them."""
        run = federation(self.method, self.model, pack=1, **self.settings)
        by_messages(run)
        return PlayedRun(run, [], state(run))

    @functools.cached_property
    def sites(self) -> Away:
        """Clients are sites."""
        run, loop = remote(self.method, model=self.model, **self.settings)
        frames = record(run)
        with unflushed():
            run.run()
        scores = run.simulation.evaluate(ROUNDS - 1)
        server = {n: v for n, v in state(run).items() if not n.startswith("client-")}
        return Away(run, frames, server | kept(loop), scores, loop)

    @functools.cached_property
    def resumed(self) -> PlayedRun:
        """The last round of the packed run, by a coordinator that has read what the one before has saved."""
        snapshot, manifest, folder, cohort = self.packed.midway
        run = federation(self.method, self.model, pack=PACK, **self.settings)
        run.simulation.setup.store = ClientStore(folder, manifest)
        run.simulation.last_cohort = cohort
        Snapshot(snapshot.tensors, json.loads(json.dumps(snapshot.plain)), snapshot.notes).onto(run.server)
        frames = record(run)
        run.simulation.round(ROUNDS - 1)
        return PlayedRun(run, frames, state(run))

    @staticmethod
    def _plain(run: Federation) -> PlayedRun:
        frames = record(run)
        run.run()
        return PlayedRun(run, frames, state(run))


@functools.lru_cache(maxsize=3)
def plays(method: Method) -> Plays:
    """The runs of a method; those of the last few methods are kept."""
    return Plays(method)


def record(run: Federation) -> list[Frames]:
    """From now on what clients send, as bytes, one entry a round."""
    found: list[Frames] = []
    spool = run.simulation.setup.spool
    clear: Callable[[], None] = spool.clear

    def keep() -> None:
        found.append({p.name: p.read_bytes() for p in sorted(spool.folder.iterdir())})
        clear()

    spool.clear = keep  # type: ignore[method-assign]
    return found


@contextmanager
def unflushed() -> Iterator[None]:
    """Nothing is flushed to the disk for a while: no law cuts the power."""
    with mock.patch.object(os, "fsync", lambda _: None):
        yield


@contextmanager
def shaken(seed: int) -> Iterator[Callable[[], bool]]:
    """The global random streams stand somewhere else for a while; gives whether they have been moved."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    before = _streams()
    after: list[Any] = []
    try:
        yield lambda: (after[0] if after else _streams()) != before
        after.append(_streams())
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])


def _streams() -> tuple[object, ...]:
    _, words, *place = np.random.get_state()  # noqa: NPY002
    return random.getstate(), np.asarray(words).tobytes(), place, torch.get_rng_state().tolist()


def _midway(run: Federation) -> tuple[Snapshot, dict[str, Any], Path, list[str]]:
    store = run.simulation.setup.store
    folder = Path(tempfile.mkdtemp(dir=root())) / "clients"
    shutil.copytree(store.folder, folder)
    return Snapshot.of(run.server), copy.deepcopy(store.manifest()), folder, list(run.simulation.last_cohort)
