"""Callbacks are told of a run in its order, may stop it, and never end it by failing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from paths import ROOT
from toy_runs import Dies, Killed, Told
from weft.callbacks import EarlyStopping, Profiler
from weft.errors import UserError
from weft.playing import execute
from weft.runs.checkpoint import digest

SMALL: dict[str, Any] = {"baselines": [], "parameters": {"steps": 1, "batch": 4}, "rounds": 3}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


class Notes(weft.Callback):
    """Writes down what it is told, and asks to stop after a round."""

    def __init__(self, stop: int | None = None):
        self.told: list[Any] = []
        self.stop = stop

    def run_started(self, about: Mapping[str, Any]) -> bool:
        self.about = about
        self.told.append(("started", [line["round"] for line in about["played"]]))
        return self.stop is not None and any(line["round"] >= self.stop for line in about["played"])

    def round_done(self, record: Mapping[str, Any]) -> bool:
        self.told.append(record["round"])
        return self.stop is not None and record["round"] >= self.stop

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        self.told.append(("finished", summary["finished"], summary["rounds"]))

    def close(self) -> None:
        self.told.append("closed")


def test_it_is_told_of_each_round_once_and_in_order_beside_the_observer(tmp_path: Path) -> None:
    one, told = Notes(), Told()
    run = toy_runs.run(tmp_path, callbacks=[one], observer=told, **SMALL)
    assert one.told == [("started", []), 0, 1, 2, ("finished", True, 3), "closed"]
    assert one.about["folder"] == str(run.folder)
    assert one.about["settings"] == run.summary["settings"]
    assert [line["round"] for line in told.lines] == [0, 1, 2]


def test_of_a_resumed_run_it_is_told_what_was_played_and_then_the_rest(tmp_path: Path) -> None:
    first, second = Notes(), Notes()
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, callbacks=[first], observer=Dies(1), **SMALL)
    assert first.told == [("started", []), 0, "closed"]  # killed before it was told of the second
    (folder,) = tmp_path.iterdir()
    weft.resume(folder, data=toy_runs.source(), callbacks=[second], quiet=True)
    assert second.told == [("started", [0, 1]), 2, ("finished", True, 3), "closed"]


def test_repeats_baselines_and_set_up_are_not_told(tmp_path: Path) -> None:
    one = Notes()
    more = SMALL | {"baselines": ["local"], "start_head": "probe", "probe_rounds": 2}
    toy_runs.run(tmp_path, callbacks=[one], **more)
    assert one.told == [("started", []), 0, 1, 2, ("finished", True, 3), "closed"]
    with pytest.raises(UserError, match="leave repeat out"):
        toy_runs.run(tmp_path, callbacks=[one], repeat=2, **SMALL)


def test_true_makes_a_round_the_last_and_the_run_is_finished(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, callbacks=[Notes(stop=1)], **SMALL | {"rounds": 5})
    assert (len(run.rounds), run.finished) == (2, True)
    assert run.summary["stopped"] == {"round": 1, "why": "a callback asked for it"}
    assert run.summary["headline"]["round"] == 1


def test_a_round_that_was_not_scored_is_followed_by_one_that_is(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, callbacks=[Notes(stop=0)], **SMALL | {"rounds": 5, "eval_every": 0})
    assert (len(run.rounds), run.summary["stopped"]["round"], run.summary["headline"]["round"]) == (2, 1, 1)


def test_killed_where_it_was_about_to_ask_it_stops_at_the_same_round(tmp_path: Path) -> None:
    whole = toy_runs.run(tmp_path / "whole", callbacks=[Notes(stop=1)], **SMALL | {"rounds": 5})
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "cut", callbacks=[Notes(stop=1)], observer=Dies(1), **SMALL | {"rounds": 5})
    (folder,) = (tmp_path / "cut").iterdir()
    again = weft.resume(folder, data=toy_runs.source(), callbacks=[Notes(stop=1)], quiet=True)
    assert digest(again.folder) == digest(whole.folder)
    assert again.summary["stopped"] == whole.summary["stopped"]


def test_a_stop_that_was_asked_for_is_saved_and_needs_nobody_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(execute, "export_adapter", dies)
        with pytest.raises(Killed):
            toy_runs.run(tmp_path, callbacks=[Notes(stop=1)], **SMALL | {"rounds": 5})
    (folder,) = tmp_path.iterdir()
    again = weft.resume(folder, data=toy_runs.source(), quiet=True)
    assert (len(again.rounds), again.finished) == (2, True)
    assert again.summary["stopped"] == {"round": 1, "why": "a callback asked for it"}


def test_the_example_of_the_docs_stops_once_so_much_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs" / "tracking.md").read_text().split("```python")[1].split("```")[0]
    known: dict[str, Any] = {}
    exec(code.split("weft.run(")[0], known)
    whole = toy_runs.run(tmp_path / "whole", **SMALL)
    each = [known["uploaded"](line) for line in whole.rounds]
    run = toy_runs.run(tmp_path / "some", callbacks=[known["Budget"](each[0] + 1)], **SMALL)
    assert len(run.rounds) == 2
    assert (tmp_path / "sent.txt").read_text() == f"{run.folder.name}: {sum(each[:2]):,} bytes\n"
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "cut", callbacks=[known["Budget"](each[0] + 1)], observer=Dies(0), **SMALL)
    (folder,) = (tmp_path / "cut").iterdir()
    again = weft.resume(folder, data=toy_runs.source(), callbacks=[known["Budget"](each[0] + 1)], quiet=True)
    assert len(again.rounds) == 2


@pytest.mark.parametrize("hook", ["run_started", "round_done", "run_finished", "close"])
def test_one_that_fails_is_left_alone_which_is_said_once_and_the_others_go_on(hook: str, tmp_path: Path) -> None:
    class Broken(Notes):
        pass

    def fail(*_: Any) -> None:
        raise RuntimeError("no\nroom")

    broken, other, told = Broken(), Notes(), Told()
    setattr(broken, hook, fail)
    run = toy_runs.run(tmp_path, callbacks=[broken, other], observer=told, **SMALL)
    assert run.finished
    assert other.told == [("started", []), 0, 1, 2, ("finished", True, 3), "closed"]
    said = [s for s in told.sentences if "left alone" in s]
    assert said == ["Broken failed and is left alone from here on (RuntimeError: no room)."]


def test_ctrl_c_in_a_callback_stops_the_run_as_elsewhere(tmp_path: Path) -> None:
    class Pressed(Notes):
        def round_done(self, record: Mapping[str, Any]) -> bool:
            raise KeyboardInterrupt

    one = Pressed()
    with pytest.raises(weft.Interrupted):
        toy_runs.run(tmp_path, callbacks=[one], **SMALL)
    assert one.told[-1] == "closed"


# early stopping, and the profiler -----------------------------------------------------------------------------------------


def line(t: int, loss: float) -> dict[str, Any]:
    return {"round": t, "loss": loss, "bytes": {}}


def test_early_stopping_asks_where_its_number_gets_no_better_and_knows_it_again() -> None:
    one = EarlyStopping("training_loss", after=2)
    assert one.run_started({"played": []}) is False
    assert [one.round_done(line(t, v)) for t, v in enumerate((3.0, 2.0, 2.0))] == [False, False, False]
    assert one.round_done(line(3, 2.5)) is True
    played = [line(t, v) for t, v in enumerate((3.0, 2.0, 2.0, 2.5))]
    again = EarlyStopping("training_loss", after=2)
    assert again.run_started({"played": played[:3]}) is False
    assert again.round_done(played[3]) is True
    assert again.run_started({"played": played}) is True
    more = EarlyStopping("training_loss", after=2, less=False)
    assert [more.round_done(line(t, v)) for t, v in enumerate((1.0, 2.0, 3.0))] == [False, False, False]
    assert EarlyStopping("global/validation", after=1).round_done(line(0, 1.0)) is False


def test_the_profiler_writes_a_trace_of_the_first_rounds(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, callbacks=[Profiler(rounds=1)], **SMALL)
    trace = json.loads((run.folder / "tracking" / "profile.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::addmm", "aten::mm"} & names
    both = toy_runs.run(tmp_path, callbacks=[Profiler(rounds=9)], **SMALL)  # of fewer rounds than it waits for
    assert (both.folder / "tracking" / "profile.json").stat().st_size > (run.folder / "tracking" / "profile.json").stat().st_size
