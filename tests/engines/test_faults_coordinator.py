"""A coordinator that stops in the middle of a round, and goes on from its checkpoint: no number differs, and nothing is trained
twice.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import toy_runs
from coordinators import Coordinator
from site_faults import PATHS
from toy_runs import Killed
from weft.errors import UserError
from weft.runs.checkpoint import digest, without_times
from weft.storage import files


def disk_is_full(operation: str, path: Path) -> None:
    if operation == "fsync" and path.name == "server-000002.safetensors.tmp":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


STOPS = [(slug, "train") for slug in PATHS] + [("fedsa-lora", "test"), ("fedsa-lora", "disk")]


@pytest.mark.parametrize(("slug", "fault"), STOPS)
def test_a_coordinator_that_stops_in_a_round_repeats_it_and_no_site_trains_twice(
    slug: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    toy_runs.light(monkeypatch)
    with monkeypatch.context() as patch:
        whole = Coordinator(slug, tmp_path / "whole", patch)
        lines = whole.play()
    with monkeypatch.context() as patch:
        cut = Coordinator(slug, tmp_path / "cut", patch)
        if fault == "disk":
            with patch.context() as disk, pytest.raises(UserError, match="the disk is full; what was saved before is intact"):
                disk.setattr(files, "point", disk_is_full)
                cut.play()
        else:
            cut.die = (fault, 1)
            with pytest.raises(Killed):
                cut.play()
        assert len(toy_runs.finished_rounds(cut.root / "run")) == 1
        again = cut.play()
    assert cut.told.sentences == whole.told.sentences == []
    assert [without_times(line) for line in again] == [without_times(line) for line in lines]
    assert digest(cut.root / "run") == digest(whole.root / "run")
    assert cut.left() == whole.left()
    assert sorted(cut.trained) == sorted(whole.trained) == [(c.id, t) for c in cut.material.clients for t in range(3)]
