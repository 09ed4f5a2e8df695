"""Ranks that an experiment deals out reach clients, in a simulation and at sites, and give way to what these say themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from machines import Machines, coordinate
from weft.experiment import handed, resolve

RANKS = "1:2,3"
BLOCKS, SIDES, BYTES = 3, 32 + 32, 8


def dealt(n: int) -> list[int]:
    given = handed.facts_of(resolve({"method": "flora", "ranks": RANKS}).experiment)
    return [given(i)["rank"] for i in range(n)]


def sent(run: weft.Run) -> list[int]:
    """Ranks that all clients together have sent in each round."""
    ranks = [line["bytes"]["train"]["up"]["parts"]["lora"] / (BLOCKS * SIDES * BYTES) for line in run.rounds]
    assert all(r == int(r) for r in ranks)
    return [int(r) for r in ranks]


def test_clients_of_a_simulation_have_the_ranks_that_were_dealt_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)
    about: dict[str, Any] = {"method": "flora", "parameters": {"rank": 2, "sites": "q", "steps": 1}}
    assert sent(toy_runs.run(tmp_path, name="alike", **about)) == [6, 6]
    wanted = sum(dealt(3))
    assert wanted not in (3, 6, 9)
    assert sent(toy_runs.run(tmp_path, name="dealt", ranks=RANKS, **about)) == [wanted, wanted]
    with pytest.raises(toy_runs.Killed):
        toy_runs.run(tmp_path, name="killed", ranks=RANKS, observer=toy_runs.Dies(), **about)
    assert sent(weft.resume(tmp_path / "killed", data=toy_runs.source())) == [wanted, wanted]


def test_sites_have_the_ranks_that_were_dealt_unless_they_say_their_own_and_so_has_a_late_one(machines: Machines) -> None:
    machines.join("east")
    machines.join("north", facts={"rank": 4})

    class Watching(toy_runs.Told):
        def round_done(self, record: dict[str, Any]) -> None:
            super().round_done(record)
            if record["round"] == 0:
                machines.join("west")

    about: dict[str, Any] = {"method.rank": 2, "method.sites": "q", "method.steps": 1}
    done = coordinate(machines, Watching(), method="flora", ranks=RANKS, rounds=3, **about)
    first, _, third = dealt(3)
    assert sent(done)[0] == first + 4
    assert sent(done)[-1] == first + 4 + third
