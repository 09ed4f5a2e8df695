"""What a run that is refused or ended in its set-up leaves behind: nothing. One that has saved a round can be gone on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import weft
from toy_runs import Told, run, source
from weft.errors import Interrupted, UserError
from weft.federation.server import ServerState
from weft.methods import FedIT
from weft.runs import directory as directories


class RefusesAtTheStart(FedIT):
    def start(self, server: ServerState) -> None:
        raise UserError("this can't begin: choose another.")


class RefusesItsRound(FedIT):
    def aggregate(self, server: ServerState, updates: Any) -> None:
        if server.round.index == 1:
            raise UserError("this can't go on: choose another.")
        super().aggregate(server, updates)


def test_a_run_that_is_refused_after_its_set_up_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this can't begin"):
        run(tmp_path, method=RefusesAtTheStart(rank=2))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_after_a_saved_round_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this can't go on"):
        run(tmp_path, method=RefusesItsRound(rank=2))
    (folder,) = tmp_path.iterdir()
    assert len(directories.read_rounds(folder / "rounds.jsonl")) == 1
    assert weft.resume(folder, method=FedIT(rank=2), data=source()).summary["finished"]


class AskedToEnd(Told):
    """Sends the signal that asks a process to end, in set-up or after the first round."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def advance(self, stage: str, by: int = 1, **figures: Any) -> None:
        if stage == self.stage:
            os.kill(os.getpid(), signal.SIGTERM)
        super().advance(stage, by, **figures)


@pytest.mark.parametrize("stage", ["set-up", "rounds"])
def test_sigterm_ends_a_run_as_ctrl_c_does(stage: str, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as ended:
        run(tmp_path, observer=AskedToEnd(stage))
    assert ended.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if stage == "set-up":
        assert str(ended.value) == "Stopped: nothing had begun yet."
        assert list(tmp_path.iterdir()) == []
    else:
        assert "weft resume" in str(ended.value)


def test_a_process_that_does_something_of_its_own_at_sigterm_goes_on_doing_it(tmp_path: Path) -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        assert run(tmp_path, observer=AskedToEnd("set-up")).summary["finished"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert set(asked) == {signal.SIGTERM}
