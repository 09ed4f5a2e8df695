"""Federations on real workers of Ray, through Flower's simulation engine, give the numbers of the simulation.

These need the extra ``ray``. `make test-all` skips them without it, because Ray is heavy (hundreds of
megabytes, and processes of its own) and nothing else here needs it; ``test_ray.py`` holds the same laws without it.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import weft
from ray_runs import Stops, check_language, federation, language, saved
from weft.engines.observer import Observer
from weft.errors import Interrupted, UserError
from weft.federation.client import ClientState
from weft.runs.checkpoint import Checkpoint
from weft.sites import ray_simulation, ray_workers
from weft.sites.flower import environment
from weft.storage.store import ClientStore
from weft.testing.compare import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.processes]
real = ray_workers.answer


def noted(notes: Path, raw: bytes) -> bytes:
    """An answer, and a line: which process gave it, and how many times it has built a backbone."""
    answer = real(raw)
    with open(notes, "a") as f:
        f.write(f"{os.getpid()} {ray_workers._built.cache_info().misses}\n")
    return answer


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers don't know the tests
    path = tmp_path / "notes"
    path.touch()
    monkeypatch.setattr(ray_simulation.ray_workers, "answer", functools.partial(noted, path))
    return path


@pytest.fixture(autouse=True)
def two_workers() -> Iterator[None]:
    """Whatever the machine has: a cluster of two cores; the run ends it."""
    ray = pytest.importorskip("ray")
    environment.ready_for_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    assert not ray.is_initialized()


def remembered(run: weft.Run) -> dict[str, torch.Tensor]:
    """What the clients remember."""
    checkpoint = Checkpoint(run.folder / "checkpoint").load()
    assert checkpoint is not None
    store = ClientStore(run.folder / "clients", checkpoint.clients)
    found = {}
    for name in ("c0", "c1", "c2", "c3"):
        client = ClientState(name)
        store.load(client)
        found |= {f"{name}:{n}": v for n, v in client.kept.items()}
        found[f"{name}:seen"] = torch.tensor(client.rounds_seen)
    return found


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora", "flora"])
def test_workers_of_ray_give_the_numbers_of_the_simulation(slug: str, tmp_path: Path, notes: Path) -> None:
    away = federation(tmp_path, slug, "ray")
    here = federation(tmp_path, slug, "simulation")
    assert_same(saved(here), saved(away), 1e-9)
    assert_same(remembered(here), remembered(away), 1e-9)
    assert [r["bytes"] for r in here.rounds] == [r["bytes"] for r in away.rounds]
    lines = [line.split() for line in notes.read_text().splitlines()]
    assert len({process for process, _ in lines}) == 2  # both workers had their share of the packs
    assert len(lines) >= 6
    assert {count for _, count in lines} == {"1"}  # and built one backbone each


def test_workers_of_ray_tune_a_language_model(tmp_path: Path) -> None:
    check_language(language(tmp_path, "simulation"), language(tmp_path, "ray"))


def test_a_stopped_run_goes_on(tmp_path: Path, notes: Path) -> None:
    import ray

    with pytest.raises(Interrupted, match="weft resume"):
        federation(tmp_path, "fedsa-lora", "ray", Stops())
    assert not ray.is_initialized()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    away = weft.resume(tmp_path / "runs" / "ray")
    here = federation(tmp_path, "fedsa-lora", "simulation")
    assert_same(saved(here), saved(away), 1e-9)
    assert_same(remembered(here), remembered(away), 1e-9)


class Kills(Observer):
    """Ends a worker after the first round."""

    def __init__(self, notes: Path):
        self.notes = notes

    def round_done(self, record: dict[str, Any]) -> None:
        os.kill(int(self.notes.read_text().split()[0]), signal.SIGKILL)


def test_a_worker_that_ends_ends_the_run_with_a_sentence(tmp_path: Path, notes: Path) -> None:
    with pytest.raises(UserError, match=r"^a worker of Ray has ended \(ActorDiedError: [^.]*\): .* weft resume goes on"):
        federation(tmp_path, "fedit", "ray", Kills(notes))
