"""Runs whose rows arrive in periods: what is scored and told, and that they go on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import toy_runs
import weft
from toy_runs import Dies, Killed
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.experiment import resolve
from weft.runs import continual, prepare
from weft.runs.baselines import federations
from weft.sites.terms import COMMON


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


SMALL: dict[str, Any] = {"rounds": 6, "periods": 3, "baselines": [], "eval_every": 0, "recipes": False}


def run(root: Path, **more: Any) -> weft.Run:
    return toy_runs.run(root / "runs", **SMALL | more)


def lines(found: weft.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (found.folder / "rounds.jsonl").read_text().splitlines()]


def test_the_end_of_each_period_is_scored_and_what_is_lost_is_told(tmp_path: Path) -> None:
    found = run(tmp_path, eval_every=6)
    told = lines(found)
    assert [line["period"] for line in told] == [0, 0, 1, 1, 2, 2]
    assert [bool(line.get("evaluations")) for line in told] == [False, True] * 3
    for line in told[1::2]:
        people = {e["people"] for e in line["evaluations"]}
        assert {f"period {p + 1}" for p in range(line["period"] + 1)} | {"periods so far"} <= people
        assert ("forgetting" in people) == ("backward transfer" in people) == (line["period"] > 0)
    metrics = found.metrics
    parts = [metrics[f"period_{p}"] for p in (1, 2, 3)]
    assert metrics["periods_so_far"] == pytest.approx(np.mean(parts))
    before = [{e["people"]: e["value"] for e in line["evaluations"] if e["metric"] == "accuracy"} for line in told[1::2]]
    lost = [max(before[0]["period 1"], before[1]["period 1"]) - parts[0], before[1]["period 2"] - parts[1]]
    assert metrics["forgetting"] == pytest.approx(np.mean(lost))
    gained = [parts[0] - before[0]["period 1"], parts[1] - before[1]["period 2"]]
    assert metrics["backward_transfer"] == pytest.approx(np.mean(gained))


def test_without_scores_between_there_are_none_at_the_ends(tmp_path: Path) -> None:
    assert [bool(line.get("evaluations")) for line in lines(run(tmp_path))] == [False] * 5 + [True]


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(tmp_path: Path, after: int) -> None:
    whole = run(tmp_path / "whole", eval_every=1)
    with pytest.raises(Killed):
        run(tmp_path / "cut", eval_every=1, observer=Dies(after))
    (folder,) = (tmp_path / "cut" / "runs").iterdir()
    again = weft.resume(folder, data=toy_runs.source())

    def numbers(found: weft.Run) -> list[Any]:
        return [(line["loss"], line.get("evaluations"), line["period"]) for line in lines(found)]

    assert numbers(again) == numbers(whole)


def test_a_head_that_starts_from_a_probe_knows_the_first_period_alone(tmp_path: Path) -> None:
    found = run(tmp_path, start_head="probe", probe_rounds=9, periods=3)
    head = [json.loads(line) for line in (found.folder / "setup" / "rounds.jsonl").read_text().splitlines()]
    assert len(head) == 9
    assert all("period" not in line for line in head)
    assert all(line["work"]["examples"] < 30 for line in head), [line["work"] for line in head]


def test_told_apart_among_the_classes_of_its_period_a_row_of_one_class_is_always_right(tmp_path: Path) -> None:
    """Three classes in three periods: with the task known there is nothing left to tell."""
    metrics = run(tmp_path, incremental="task", eval_every=2).metrics
    assert [metrics[f"period_{p}"] for p in (1, 2, 3)] == [1.0, 1.0, 1.0]
    assert metrics["forgetting"] == 0
    assert run(tmp_path / "open").metrics["accuracy"] < 1


@pytest.mark.parametrize("by", ["own-classes", "rows"])
def test_other_ways_to_arrive(tmp_path: Path, by: str) -> None:
    metrics = run(tmp_path, periods_by=by, eval_every=2).metrics
    assert ("forgetting" in metrics) == (by == "own-classes")


def test_baselines_have_their_rows_in_the_same_periods(tmp_path: Path) -> None:
    found = run(tmp_path, baselines=["central", "local"])
    for name in ("central", "local"):
        told = [json.loads(line) for line in (found.folder / "baselines" / name / "rounds.jsonl").read_text().splitlines()]
        assert [line["period"] for line in told] == [0, 0, 1, 1, 2, 2]
        mine = [line["work"]["examples"] for line in lines(found)]
        assert [line["work"]["examples"] for line in told] == mine


def test_what_a_run_prepares_is_not_changed_by_its_rounds(tmp_path: Path) -> None:
    typed = {"model": tiny.folder("bert"), "clients": 3, "rounds": 6, "periods": 3, "partition": "iid"}
    x = resolve(typed).experiment
    material = prepare.prepare(x, toy_runs.source(), Observer())
    assert material.bench.arrivals is not None
    people = federations(material.clients, "central")[0]
    before = [c.data.train.copy() for c in material.clients]
    for period in range(3):
        material.bench.arrivals.enter(people[0], period)
    assert all(np.array_equal(a, c.data.train) for a, c in zip(before, material.clients, strict=True))
    assert all(c.data.every is None for c in material.clients)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"periods": 7}, "6 rounds for 7 periods are too few"),
        ({"periods": 4}, "3 classes can't arrive in 4 periods"),
        ({"periods": 1, "incremental": "task"}, "ask for --periods"),
        ({"periods": 1, "periods_by": "rows"}, "ask for --periods"),
        ({"periods_by": "rows", "incremental": "task"}, "leave --incremental out"),
        ({"periods_by": "keys"}, "no natural keys"),
    ],
)
def test_what_can_not_be_is_refused(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        run(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"novel": 0.5}, "leave --periods or --novel"),
        ({"test_on": ["digits"]}, "leave --periods or --novel"),
        ({"stop_after": 2}, "before all of its periods have come"),
        ({"rounds": 10, "participation": 0.1, "baselines": ["local"]}, "local has 1 turn for 2 periods"),
        ({"rounds": 2, "baselines": ["zero-shot", "local"]}, None),
        ({"rounds": 1, "baselines": ["zero-shot"]}, "1 round for 2 periods are too few"),
    ],
)
def test_what_would_let_a_period_pass_by_is_refused_before_anything_is_loaded(settings: dict[str, Any], why: str | None) -> None:
    x = resolve({"periods": 2} | settings).experiment
    if why is None:
        continual.check(x)
    else:
        with pytest.raises(UserError, match=why):
            continual.check(x)


def test_a_method_whose_own_plan_ends_before_the_last_period_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mpft ends after exchanges of its own number"):
        run(tmp_path, method="mpft", model=tiny.folder("clip"), data=toy_runs.source(reads="images"), periods=2)


def test_a_backbone_as_it_is_is_scored_on_all_periods(tmp_path: Path) -> None:
    found = run(
        tmp_path, baselines=["zero-shot"], model=tiny.folder("clip"), data=toy_runs.source(reads="images"), method="promptfl"
    )
    told = [json.loads(line) for line in (found.folder / "baselines" / "zero-shot" / "rounds.jsonl").read_text().splitlines()]
    people = {e["people"] for e in told[-1]["evaluations"]}
    assert {"period 1", "period 2", "period 3", "periods so far"} <= people
    assert "forgetting" not in people


def test_sites_agree_on_periods() -> None:
    assert {"periods", "periods_by", "incremental"} <= set(COMMON)
