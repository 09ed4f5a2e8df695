"""Sites with sequences of items: each has a file of its own domain, and all together are the simulation of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import command_line
import item_files
import weft
from machines import Machines, coordinate
from toy_runs import Dies, Killed
from weft.data import item_names, load, partition
from weft.errors import UserError
from weft.runs.checkpoint import Checkpoint
from weft.sites.reasons import Reason
from weft.testing.compare import assert_same

SETTINGS: dict[str, Any] = {"method": "pfcr", "rounds": 4, "precision": "float64", "device": "cpu"}
PFCR: dict[str, Any] = {"tuning": 2, "length": 3, "heads": 2, "batch": 8}


def served(machines: Machines, classes: list[str], **changes: Any) -> weft.Run:
    about = SETTINGS | {f"method.{n}": v for n, v in PFCR.items()} | {"method.rank": None}
    return coordinate(machines, **about | {"task": "next-item", "model": item_files.model(), "classes": classes} | changes)


def join(machines: Machines) -> None:
    """Each site is called like the client of a simulation that has its domain, for it draws from streams of that name."""
    for client in partition(load(str(machines.root / "own"), wanted="items"), clients=2, scheme="natural").clients:
        machines.join(client.id, data=str(machines.root / "own" / f"{client.facts['domain']}.csv"))


def test_sites_with_files_of_their_own_domains_give_the_numbers_of_the_simulation_through_a_restart(machines: Machines) -> None:
    classes = item_files.domains(machines.root / "own")
    here = weft.run(
        **SETTINGS,
        model=item_files.model(),
        data=str(machines.root / "own"),
        clients=2,
        task="next-item",
        recipes=False,
        parameters=PFCR,
        baselines=[],
        runs=str(machines.root / "here"),
        quiet=True,
    )
    join(machines)
    with pytest.raises(Killed):
        served(machines, list(classes), observer=Dies(after=2))
    join(machines)  # anew, from their folders
    there = served(machines, list(classes))
    saved = [Checkpoint(run.folder / "checkpoint").load() for run in (here, there)]
    mine, theirs = (s.servers[0][0] for s in saved if s is not None)
    assert_same(mine, theirs, 1e-12)
    for a, b in zip(here.rounds, there.rounds, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-12)
        scores = {(e["view"], e["people"], e["metric"], e["pooling"]): e["value"] for e in a["evaluations"]}
        same = {(e["view"], e["people"], e["metric"], e["pooling"]): e["value"] for e in b["evaluations"]}
        assert {key[2] for key in same} >= {"recall@10", "ndcg@10"}
        assert same == {key: pytest.approx(scores[key], abs=1e-12) for key in same}


def test_a_file_is_called_like_its_domain_or_its_items_are_unknown(machines: Machines) -> None:
    classes = item_files.domains(machines.root / "own")
    shutil.move(machines.root / "own" / "a.csv", machines.root / "own" / "rows.csv")
    machines.join("c0", data=str(machines.root / "own" / "b.csv"))
    machines.join("c1", data=str(machines.root / "own" / "rows.csv"))
    served(machines, list(classes), clients=1, rounds=2)
    assert any('rows.csv has the label "rows/0: w0"' in s for s in machines.said["at c1"])
    assert not any("w0" in s for s in map(str, Reason))


def test_sites_leave_out_what_the_experiment_s_core_leaves_out(machines: Machines) -> None:
    classes = list(item_files.domains(machines.root / "own"))
    with open(machines.root / "own" / "a.csv", "a") as f:
        f.write("late,99,0,seldom\nlate,0,1,w0\nlate,1,2,w7\nlate,2,3,w14\n")
    join(machines)
    run = served(machines, classes, rounds=2, core=5)
    assert run.summary["finished"]
    assert [line["cohort"] for line in run.rounds] == [["c0", "c1"]] * 2
    with pytest.raises(UserError, match="--core is of sequences"):
        served(machines, classes, task="auto", core=5, name="other")


def test_the_items_of_a_file_are_listed_in_the_words_that_an_experiment_declares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = item_files.domains(tmp_path)
    found = {}
    for domain in ("a", "b"):
        got = command_line.weft(capsys, "data", tmp_path / f"{domain}.csv", "--clients", 1, "--json")
        assert got.code == 0, got.err
        found[domain] = json.loads(got.out)["classes"]
    assert found == {d: [n for n in names if item_names.domain_of(n) == d] for d in found}
    command_line.refused(command_line.weft(capsys, "data", tmp_path / "a.csv", "--core", 50), "ask for a smaller --core")
