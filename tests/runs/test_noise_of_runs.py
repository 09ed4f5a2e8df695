"""Correlated noise of a run that is stopped and goes on: the same path, or a new pass that is paid for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from dp_accounting.dp_event import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant

import toy_runs
import weft
from toy_runs import Dies, Killed, kill_at
from weft.runs.checkpoint import digest, without_times

ROUNDS = 6


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


def settings(factorization: str) -> dict[str, Any]:
    """Two passes of four rounds, the second of which is cut short."""
    return {
        "method": "fedbf",
        "privacy": f"dp-ftrl:noise=0.5,clip=0.01,factorization={factorization}",
        "delta": 1e-3,
        "participation": 0.25,
        "clients": 4,
        "rounds": ROUNDS,
        "data": toy_runs.source(40),
        "parameters": {"steps": 1, "batch": 4},
        "insecure_noise": True,
        "baselines": [],
        "eval_every": 0,
        "name": "it",
    }


def spent(run: weft.Run) -> list[float]:
    return [line["privacy"]["client_epsilon"] for line in run.rounds]


@pytest.mark.parametrize("factorization", ["tree", "banded", "banded,bands=2"])
def test_a_run_that_goes_on_between_rounds_has_the_noise_of_one_that_never_stopped(factorization: str, tmp_path: Path) -> None:
    about = settings(factorization)
    whole = toy_runs.run(tmp_path / "whole", **about)
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "cut", observer=Dies(1), **about)
    with pytest.raises(Killed):
        weft.resume(tmp_path / "cut" / "it", data=about["data"], observer=Dies(2))
    again = weft.resume(tmp_path / "cut" / "it", data=about["data"])
    assert digest(whole.folder) == digest(again.folder)
    assert [without_times(line) for line in whole.rounds] == [without_times(line) for line in again.rounds]
    assert len({*spent(again)}) == 2, "two passes"


@pytest.mark.parametrize(("factorization", "norm"), [("tree", math.sqrt(3)), ("banded", 1.2197), ("banded,bands=1", 1.0)])
def test_a_run_that_is_killed_in_a_round_begins_and_pays_for_another_pass(
    factorization: str, norm: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third round may have gone out under its noise, which nothing else may have."""
    about = settings(factorization)
    with monkeypatch.context() as patch:
        points = kill_at(patch, -1)
        whole = toy_runs.run(tmp_path / "whole", **about)
    third = [i for i, p in enumerate(points) if p == "rename privacy.json"][2]
    with monkeypatch.context() as patch:
        kill_at(patch, third + 2)
        with pytest.raises(Killed):
            toy_runs.run(tmp_path / "cut", **about)
    again = weft.resume(tmp_path / "cut" / "it", data=about["data"])
    costs = [RdpAccountant().compose(GaussianDpEvent(0.5 / norm), k).get_epsilon(1e-3) for k in (1, 2, 3)]
    assert spent(whole) == pytest.approx([costs[0]] * 4 + [costs[1]] * 2, rel=1e-3)
    assert spent(again) == pytest.approx([costs[0]] * 2 + [costs[1]] * 2 + [costs[2]] * 2, rel=1e-3)
    assert (digest(whole.folder)["server"] == digest(again.folder)["server"]) == (factorization == "banded,bands=1")
