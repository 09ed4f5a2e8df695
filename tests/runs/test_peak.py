"""The most memory in use: what a process had at once, though it gave it back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import toy_runs
from weft.runs import peak
from weft.runs.peak import Peak

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@linux
def test_what_was_given_back_counts_and_what_was_there_before_the_mark_does_not() -> None:
    large = torch.ones(25_000_000)  # 100 MB
    first = Peak(CPU).bytes()
    assert first is not None
    more = torch.ones(50_000_000)
    del more
    grown = Peak.bytes(seen := Peak(CPU))
    assert grown is not None
    assert grown < first + 100e6, "the mark was wiped when it was given back"
    more = torch.ones(50_000_000)
    del more, large
    most = seen.bytes()
    assert most is not None
    assert most > grown + 150e6


@pytest.mark.parametrize("name", ["MARK", "STATUS"])
def test_where_nobody_tells_there_is_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, name, tmp_path / "missing" / "file")
    assert Peak(CPU).bytes() is None


@linux
def test_it_is_told_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "STATUS", tmp_path / "status")
    peak.STATUS.write_text("VmPeak:\t    9 kB\nVmHWM:\t    3 kB\nVmRSS:\t    2 kB\n")
    assert Peak(CPU).bytes() == 3072


@linux
def test_every_round_of_a_run_has_it_and_it_never_falls(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, parameters={"rank": 2, "sites": "q", "steps": 1, "batch": 4})
    found = [line["memory"] for line in run.rounds]
    assert len(found) == 2
    assert 1e7 < found[0] <= found[1] == run.summary["memory"]
    assert [row["memory"] for row in run.records()] == found
