"""A run stops where its validation score does not get better, and decides alike after a kill at any place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from command_line import refused, small
from command_line import weft as typed
from toy_runs import Dies, Killed, Told, kill_at
from weft.errors import UserError
from weft.runs.checkpoint import digest
from weft.runs.result import best_by_validation
from weft.runs.stopping import Patience, Score, stalled

SETTINGS: dict[str, Any] = {
    "rounds": 9,
    "seed": 1,
    "val_fraction": 0.3,
    "baselines": [],
    "parameters": {"lr": 0.05, "rank": 2, "batch": 4},
    "precision": "float32",
    "stop_after": 3,
}

LAST = 7
"""Rounds that are played."""


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> weft.Run:
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        return toy_runs.run(tmp_path_factory.mktemp("stopped"), keep="best", **SETTINGS)


def validation(run: weft.Run) -> list[float]:
    found = (best_by_validation([line]) for line in run.rounds)
    return [one["validation"] for one in found if one is not None]


def by_hand(scores: list[float], after: int, delta: float = 0.0) -> int:
    """The number of rounds that are played, written down anew."""
    best, waited = scores[0], 0
    for i, score in enumerate(scores[1:], 1):
        waited += 1
        if score > best + delta:
            best, waited = score, 0
        if waited == after:
            return i + 1
    return len(scores)


def test_it_stops_where_the_rule_says_and_plays_the_same_rounds_as_one_that_does_not(stopped: weft.Run, tmp_path: Path) -> None:
    whole = toy_runs.run(tmp_path, **SETTINGS | {"stop_after": None})
    wanted = by_hand(validation(whole), 3)
    assert wanted == LAST < 9
    assert len(stopped.rounds) == wanted
    assert stopped.finished
    assert [toy_lines(line) for line in stopped.rounds] == [toy_lines(line) for line in whole.rounds[:wanted]]
    why = stopped.summary["stopped"]
    assert why["round"] == wanted - 1
    best = max(validation(stopped))
    number = validation(stopped).index(best) + 1
    assert why["why"] == f"3 rounds without a better validation accuracy than {best:.4g} of round {number}"
    assert stopped.summary["adapter"]["round"] == number - 1
    assert "stopped" not in whole.summary


def toy_lines(line: dict[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in line.items() if n not in ("seconds", "memory")}


@pytest.mark.parametrize("after", range(LAST))
def test_killed_after_any_round_and_resumed_it_stops_at_the_same(after: int, stopped: weft.Run, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, observer=Dies(after), keep="best", **SETTINGS)
    (folder,) = tmp_path.iterdir()
    again = weft.resume(folder, data=toy_runs.source(), quiet=True)
    assert digest(again.folder) == digest(stopped.folder)
    assert again.summary["stopped"] == stopped.summary["stopped"]
    assert {p.name for p in (folder / "checkpoint").iterdir()} == {p.name for p in (stopped.folder / "checkpoint").iterdir()}


def test_killed_at_any_write_around_its_end_it_stops_at_the_same(
    stopped: weft.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as counting:
        passed = kill_at(counting, 0)
        toy_runs.run(tmp_path / "counted", keep="best", **SETTINGS)
    end = max(i for i, one in enumerate(passed) if one == "rename state.json") + 1
    for number in range(end - 6, min(end + 3, len(passed)) + 1, 3):
        with monkeypatch.context() as killing:
            kill_at(killing, number)
            with pytest.raises(Killed):
                toy_runs.run(tmp_path / str(number), keep="best", **SETTINGS)
        (folder,) = (tmp_path / str(number)).iterdir()
        again = weft.resume(folder, data=toy_runs.source(), quiet=True)
        assert digest(again.folder) == digest(stopped.folder), number
        assert again.summary["stopped"] == stopped.summary["stopped"]


def test_a_delta_asks_for_more_and_rounds_that_are_not_scored_do_not_decide(stopped: weft.Run, tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path / "delta", **SETTINGS | {"stop_delta": 0.9})
    assert len(run.rounds) == 4
    assert "by more than 0.9" in run.summary["stopped"]["why"]
    rare = toy_runs.run(tmp_path / "rare", **SETTINGS | {"eval_every": 3, "stop_after": 2, "stop_delta": 0.9})
    assert len(rare.rounds) == 6  # the first score is of round 3, and 2 rounds later none is scored
    assert rare.summary["headline"]["round"] == 5


def test_repeats_stop_alike(tmp_path: Path) -> None:
    told = Told()
    run = toy_runs.run(tmp_path, repeat=2, observer=told, **SETTINGS | {"stop_delta": 0.9})
    assert run.summary["repeat"] == {"runs": 2, "identical": True}
    assert any(s.startswith("stopped after round 4: 3 rounds without") for s in told.sentences)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_fraction": 0.0}, "there are none: give --set val_fraction=0.1"),
        ({"eval_every": 0}, "give another"),
        ({"stop_after": None, "stop_delta": 0.1}, "nothing stops the run"),
    ],
)
def test_where_nothing_could_ever_stop_it_that_is_said_and_no_folder_left(changes: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        toy_runs.run(tmp_path, **SETTINGS | changes)
    assert list(tmp_path.iterdir()) == []


def test_sites_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('classes = ["a", "b"]\nstop_after = 2\n')
    got = typed(capsys, "serve", file, "--insecure", "--runs", tmp_path / "runs")
    assert (got.code, "stop_after is for simulations" in got.err) == (2, True)


def test_it_is_typed_as_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--stop-after", 1, "--set", "stop_delta=0.9", "--rounds", 5, "--set", "val_fraction=0.3", "--json")
    got = typed(capsys, *small(tmp_path, *options))
    assert json.loads(got.out)["stopped"]["round"] == 1
    refused(typed(capsys, *small(tmp_path, "--stop-after", 0)), "stop_after is 0, but must be at least 1")


# the rule -----------------------------------------------------------------------------------------------------------------


def scores(*values: float, metric: str = "accuracy", every: int = 1) -> list[Score]:
    return [Score((i + 1) * every - 1, metric, v, v) for i, v in enumerate(values)]


def test_patience_counts_rounds_since_the_first_of_the_best() -> None:
    rule = Patience(2)
    assert rule.over([]) is None
    assert rule.over(scores(0.5, 0.4)) is None
    assert rule.over(scores(0.5, 0.4, 0.5)) == "2 rounds without a better accuracy than 0.5 of round 1"
    assert rule.over(scores(0.5, 0.4, 0.6)) is None
    assert Patience(3).over(scores(0.5, 0.4, every=2)) is None
    assert Patience(2).over(scores(0.5, 0.4, every=2)) is not None
    assert Patience(1, 0.1).over(scores(0.5, 0.59)) is not None
    assert Patience(1, 0.1).over(scores(0.5, 0.61)) is None
    other = [Score(3, "loss", 1.0, -1.0)]
    assert rule.over(scores(0.5, 0.4, 0.3) + other) is None


def test_less_is_better_of_a_perplexity_and_a_round_without_a_score_decides_nothing() -> None:
    def line(t: int, value: float | None) -> dict[str, Any]:
        one = {"view": "global", "moment": "received", "pooling": "pooled", "n": 9, "metric": "perplexity"}
        two = [one | {"people": "global test", "value": 3.0}, one | {"people": "validation", "value": value}]
        return {"round": t, "evaluations": two}

    assert stalled([line(0, 9.0), line(1, 8.0)], Patience(1)) is None
    assert stalled([line(0, 8.0), line(1, 9.0)], Patience(1)) is not None
    assert stalled([line(0, 8.0), line(1, 9.0), {"round": 2}], Patience(1)) is None
    assert stalled([line(0, 8.0), line(1, None)], Patience(1)) is None
