"""The most memory in use: what a process had at once, though it gave it back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toy_runs
from weft.runs import peak
from weft.runs.peak import Peak

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


ALONE = """
import torch
from weft.runs.peak import Peak
device = torch.device("cpu")
large = torch.ones(25_000_000)  # 100 MB
first = Peak(device).bytes()
more = torch.ones(50_000_000)
del more
seen = Peak(device)
grown = seen.bytes()
more = torch.ones(50_000_000)
del more, large
print(first, grown, seen.bytes())
"""
"""In a process of its own: what other tests have left is collected at any moment, and gives more back than this takes."""


@linux
def test_what_was_given_back_counts_and_what_was_there_before_the_mark_does_not() -> None:
    said = subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True, text=True).stdout
    first, grown, most = map(int, said.split())
    assert grown < first + 100e6, "the mark was wiped when it was given back"
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
