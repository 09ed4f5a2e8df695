"""Packs that workers train, which see nothing but bytes, give the simulation's numbers, whoever trains which. Without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import weft
from command_line import table
from every_method import small
from ray_runs import Stops, check_language, federation, language, saved
from toy_runs import by_engine
from weft.communication.envelope import unwrap
from weft.engines.scattered import Workers, failed
from weft.errors import Interrupted, UserError, WeftError
from weft.experiment import Experiment
from weft.federation.method import Method
from weft.privacy.hiding import Privacy, mechanisms
from weft.runs import prepare, public_rows
from weft.sites import ray_simulation, ray_workers
from weft.sites.flower import environment
from weft.testing.compare import assert_same, state
from weft.testing.workers import Answer, Queue, scattered

# the same numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora", "flora"])
def test_the_number_of_workers_changes_nothing(slug: str) -> None:
    runs = [scattered(small(slug), number, rounds=3)[0].run() for number in (1, 2, 6)]
    assert [r.simulation.turns.capacity.k for r in runs] == [6, 3, 1]
    for other in runs[1:]:
        assert_same(state(runs[0]), state(other), 1e-9)


@pytest.mark.parametrize("slug", ["fedsa-lora", "feddat"])
def test_bytes_losses_and_scores_are_those_of_the_simulation(slug: str) -> None:
    here = tiny.federation(small(slug), pack=2, codec_name="quant8")
    away, _ = scattered(small(slug), uplink="quant8", pack=2)
    for t in range(2):
        mine, theirs = here.simulation.round(t), away.simulation.round(t)
        assert mine is not None
        assert theirs is not None
        assert {n: v for n, v in mine.items() if n != "work"} | {"seconds": 0} == theirs | {"seconds": 0}
        assert here.simulation.evaluate(t) == away.simulation.evaluate(t)
    assert here.simulation.setup.exchange.ledger.as_records() == away.simulation.setup.exchange.ledger.as_records()


def test_what_workers_train_goes_into_sums_of_the_same_numbers_and_bytes() -> None:
    """Packs of one size: a mean of whole numbers is the same, to the last bit, if what goes in is."""
    privacy = Privacy(mechanisms("secagg"))
    here = tiny.federation(small("fedit"), pack=2, privacy=privacy).run()
    away, _ = scattered(small("fedit"), pack=2, privacy=privacy)
    assert_same(state(here), state(away.run()), 0.0)
    ledger = here.simulation.setup.exchange.ledger
    assert ledger.as_records() == away.simulation.setup.exchange.ledger.as_records()
    assert ledger.totals(direction="up").parts["secagg"] > 0


def test_clients_with_different_backbones_are_trained_on_their_own() -> None:
    model, other = tiny.backbone("vit"), tiny.backbone("vit", num_hidden_layers=2)
    here = tiny.federation(small("fedhpl"), model, others=[other], pack=2).run()
    away, _ = scattered(small("fedhpl"), model=model, others=[other], pack=2)
    assert_same(state(here), state(away.run()), 0.0)


def test_a_question_holds_each_value_once() -> None:
    sizes = []
    for pack in (1, 6):
        run, queue = scattered(small("fedit"), pack=pack, rounds=1)
        run.run()
        sizes.append(len(queue.asked[0]))
    values = sum(v.numel() * v.element_size() for v in run.server.shared.values())  # type: ignore[union-attr]
    assert values < sizes[0] < sizes[1] < 2 * values


# how many clients share a pass --------------------------------------------------------------------------------------------


def test_packs_are_a_worker_s_share_of_the_cohort_and_of_the_memory() -> None:
    wide, _ = scattered(small("fedit"), 2, pack="auto")
    assert wide.simulation.turns.capacity.k == 3
    guess = wide.simulation.turns.capacity.guess
    tight, _ = scattered(small("fedit"), 2, memory=int((guess.total(2) + 1) / 0.6), pack="auto")
    assert tight.simulation.turns.capacity.k == 2
    asked, _ = scattered(small("fedit"), 2, pack=5)
    assert asked.simulation.turns.capacity.k == 5


def test_there_is_a_worker_per_core_as_far_as_memory_goes() -> None:
    nodes = [{"CPU": 8.0, "memory": 32e9, "GPU": 2.0}, {"CPU": 4.0, "memory": 32e9}, {"memory": 1e9}]
    assert Workers.fitting(nodes, int(1e9), gpu=False) == Workers(12, int(4e9), 1)
    assert Workers.fitting(nodes, int(9e9), gpu=False) == Workers(3, int(16e9), 3)
    assert Workers.fitting(nodes, int(1e12), gpu=False) == Workers(1, int(32e9), 8)
    assert Workers.fitting(nodes, int(1e9), gpu=True) == Workers(2, int(16e9), 1)
    with pytest.raises(UserError, match="no machine with a GPU"):
        Workers.fitting(nodes[1:], 1, gpu=True)


# what goes wrong ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (UserError("put that right."), UserError, r"^put that right\.$"),
        (torch.OutOfMemoryError("CUDA out of memory"), UserError, "out of memory with 2 clients in a pack"),
        (
            ZeroDivisionError("oh"),
            WeftError,
            r"^training in round 0 \(train\), clients client-0, client-3, batch 0: ZeroDiv.*: oh",
        ),
    ],
)
def test_what_fails_at_a_worker_is_raised_where_the_rounds_are_played(
    error: Exception, kind: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, queue = scattered(small("fedit"), 1, pack=2)

    def fails(pack: Any) -> Any:
        raise error

    def told(answer: Answer) -> Answer:
        def tell(raw: bytes) -> bytes:
            try:
                return answer(raw)
            except Exception as e:
                return failed(e)

        return tell

    queue.answers = tuple(told(a) for a in queue.answers)
    monkeypatch.setattr(type(run.method), "train", lambda self, pack: fails(pack))
    with pytest.raises(kind, match=sentence) as caught:
        run.simulation.round(0)
    assert type(caught.value) is kind
    if kind is WeftError:
        assert "ZeroDivisionError" in "".join(caught.value.__notes__)


def test_without_ray_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == "ray" else object())
    with pytest.raises(UserError, match=r"pip install .* '\.\[ray\]'"):
        federation(tmp_path, "fedit", "ray")
    assert not (tmp_path / "runs").exists()


def test_objects_and_baselines_stay_in_this_process(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --engine ray out"):
        federation(tmp_path, "fedit", "ray", baseline="local")


# whole runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Two workers that are one: what a process caches is shared here."""
    queue = Queue(ray_workers.answer, ray_workers.answer, workers=Workers(2, 1 << 34))

    @contextmanager
    def begun(method: Method, directory: Any, material: Any, observer: Any) -> Iterator[Any]:
        yield ray_simulation._engine(queue, method, directory.experiment.read_text(), material)  # type: ignore[arg-type]

    monkeypatch.setattr(ray_simulation, "federation", begun)
    monkeypatch.setattr(environment, "ready_for_ray", lambda: None)
    for cached in (ray_workers._worker, ray_workers._built):
        cached.cache_clear()
    return queue


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each backbone that a worker builds."""
    count: list[int] = []

    def counted(*about: Any) -> prepare.Material:
        count.append(1)
        return prepare.prepare(*about)

    monkeypatch.setattr(ray_workers, "prepare", counted)
    return count


@pytest.mark.parametrize("slug", ["fedit", "fedsa-lora"])
def test_a_run_gives_the_numbers_of_the_simulation_and_builds_one_backbone(
    slug: str, tmp_path: Path, in_process: Queue, built: list[int]
) -> None:
    away = federation(tmp_path, slug, "ray")
    assert built == [1]  # for the head's probe and the rounds
    assert {unwrap(raw)[0]["stage"] for raw in in_process.asked} == ({"setup", "rounds"} if slug == "fedit" else {"rounds"})
    here = federation(tmp_path, slug, "simulation")
    assert_same(saved(here), saved(away), 1e-9)
    for a, b in zip(here.rounds, away.rounds, strict=True):
        assert a["bytes"] == b["bytes"]
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-9)


@pytest.mark.parametrize("chain", ["dp-sgd:noise=1,clip=0.5", "ldp:noise=1,clip=0.5"])
def test_workers_hide_what_the_simulation_hides(chain: str, tmp_path: Path, in_process: Queue) -> None:
    more = {"privacy": chain, "insecure_noise": True, "pack": 2}
    here, away = (by_engine(tmp_path, "fedbf", engine, 4, {}, **more) for engine in ("simulation", "ray"))
    assert in_process.asked
    assert_same(saved(here), saved(away), 1e-9)
    assert [line["privacy"] for line in here.rounds] == [line["privacy"] for line in away.rounds]


def test_a_language_model_writes_the_texts_of_the_simulation(tmp_path: Path, in_process: Queue) -> None:
    check_language(language(tmp_path, "simulation"), language(tmp_path, "ray"))
    assert in_process.asked


def test_public_rows_are_read_by_whoever_plays_the_rounds_alone(
    tmp_path: Path, in_process: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = public_rows.read

    def counted(x: Experiment, *about: Any) -> Any:
        reads.append(x.engine)
        return read(x, *about)

    monkeypatch.setattr(public_rows, "read", counted)
    more = {"public": str(table(tmp_path / "public.csv", 12, seed=5)), "public_rows": 8}
    away = federation(tmp_path, "fedbiot", "ray", **more)
    assert reads == ["ray"]
    assert in_process.asked
    here = federation(tmp_path, "fedbiot", "simulation", **more)
    assert_same(saved(here), saved(away), 1e-9)
    assert any(v.any() for n, v in saved(here).items() if "emulator/" in n and n.endswith("/B"))
    assert away.summary["data"]["public"]["rows"] == 8


def test_a_stopped_run_goes_on_with_the_numbers_of_one_that_never_was(tmp_path: Path, in_process: Queue) -> None:
    with pytest.raises(Interrupted, match="weft resume"):
        federation(tmp_path, "fedsa-lora", "ray", Stops())
    before = len(in_process.asked)
    went_on = weft.resume(tmp_path / "runs" / "ray")
    assert len(in_process.asked) > before
    assert_same(saved(federation(tmp_path, "fedsa-lora", "simulation")), saved(went_on), 1e-9)


def test_a_worker_with_other_data_is_refused(tmp_path: Path, in_process: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def others(*about: Any) -> prepare.Material:
        found = prepare.prepare(*about)
        return replace(found, data=found.data | {"fingerprint": "another"})

    monkeypatch.setattr(ray_workers, "prepare", others)
    with pytest.raises(UserError, match="has other data than the coordinator"):
        federation(tmp_path, "fedit", "ray")


def test_a_question_is_json_and_tensors(tmp_path: Path, in_process: Queue) -> None:
    federation(tmp_path, "fedsa-lora", "ray")
    head, question = unwrap(in_process.asked[-1])
    about, tensors = unwrap(question)
    length = int.from_bytes(tensors[:8], "little")
    names = json.loads(tensors[8 : 8 + length]).keys() - {"__metadata__"}
    assert {c["id"] for c in about["clients"]} <= {"c0", "c1", "c2", "c3"}
    assert all(n.startswith("held:") or n.split(":")[1] in ("kept", "memo") for n in names)
    assert any(n.split(":")[1] == "kept" for n in names)
    assert head["run"]["identity"]["clients"] == 4
