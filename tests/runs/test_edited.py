"""An experiment file that was edited after its run began: what may change goes on and is written down, the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy_runs
import weft
from toy_runs import Dies, Killed, Told
from weft.errors import UserError
from weft.runs.checkpoint import digest


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


def stopped(tmp_path: Path, **more: Any) -> Path:
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, name="mine", rounds=3, observer=Dies(), **more)
    return tmp_path / "mine"


def edit(folder: Path, old: str, new: str) -> None:
    file = folder / "experiment.toml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def resume(folder: Path, told: Told | None = None) -> weft.Run:
    return weft.resume(folder, data=toy_runs.source(), observer=told)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lr = 0.0003", "lr = 0.01", "method.optim.lr is 0.01 and was 0.0003"),
        ('\ncodec = "identity"', '\ncodec = "quant8"', 'codec is "quant8" and was "identity"'),
        ("seed = 0", "seed = 1", "seed is 1 and was 0"),
        ("max_length = 16", "max_length = 8", "max_length is 8 and was 16"),
        ('robust = "none"', 'robust = "median"', 'robust is "median"'),
        ('precision = "float64"', 'precision = "float32"', 'precision is "float32" and was "float64"'),
    ],
)
def test_a_setting_that_what_was_learnt_rests_on_can_not_change(old: str, new: str, words: str, tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "experiment.toml"}
    kept = (folder / "experiment.toml").read_text()
    edit(folder, old, new)
    with pytest.raises(UserError) as e:
        resume(folder)
    assert f"experiment.toml was edited since its run began ({words}" in str(e.value)
    assert f"put that back, or begin a new run with weft run {folder}/experiment.toml" in str(e.value)
    assert {p: p.read_bytes() for p in before} == before
    (folder / "experiment.toml").write_text(kept)
    whole = toy_runs.run(tmp_path / "whole", rounds=3)
    assert digest(resume(folder).folder) == digest(whole.folder)


def test_more_rounds_go_on_and_are_said_and_written_down(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    edit(folder, "\nrounds = 3", "\nrounds = 5")
    told = Told()
    done = resume(folder, told)
    assert len(done.rounds) == 5
    assert any("rounds is 5 and was 3): it goes on with that from round 2 on" in s for s in told.sentences)
    assert done.summary["settings"]["rounds"] == {"value": 5, "origin": "user"}
    assert done.summary["edited"] == [{"round": 2, "settings": {"rounds": {"before": 3, "after": 5}}}]
    assert "\nrounds = 5" in (folder / "experiment.toml").read_text()


@pytest.mark.parametrize("privacy", ["dp-fedavg", "dp-ftrl", "ldp", "dp-sgd"])
def test_noise_that_was_found_for_some_rounds_is_not_for_others(privacy: str, tmp_path: Path) -> None:
    """What was sent under more noise would else be counted as if it were under less, or the other way round."""
    about: dict[str, Any] = {"privacy": privacy, "epsilon": 8.0, "delta": 1e-2, "baselines": []}
    folder = stopped(tmp_path, **about)
    edit(folder, "\nrounds = 3", "\nrounds = 5")
    with pytest.raises(
        UserError, match=r"rounds is 5 and was 3\), and its noise was found for as many rounds as it was begun with"
    ):
        resume(folder)
    edit(folder, "\nrounds = 5", "\nrounds = 3")
    assert resume(folder).finished
    told = stopped(tmp_path / "given", **about | {"privacy": f"{privacy}:noise=3", "epsilon": None})
    edit(told, "\nrounds = 3", "\nrounds = 5")
    assert len(resume(told).rounds) == 5


def test_an_edit_is_said_once_and_an_untouched_file_is_none(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    edit(folder, "eval_every = 1", "eval_every = 2")
    about = json.loads((folder / "summary.json").read_text())
    with pytest.raises(Killed):
        weft.resume(folder, data=toy_runs.source(), observer=Dies(after=1))
    assert "edited" not in about
    told = Told()
    done = resume(folder, told)
    assert not any("edited" in s for s in told.sentences)
    assert len(done.summary["edited"]) == 1


def test_each_edit_is_written_down_beside_those_before(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    edit(folder, "eval_every = 1", "eval_every = 2")
    with pytest.raises(Killed):
        weft.resume(folder, data=toy_runs.source(), observer=Dies(after=1))
    edit(folder, "\nrounds = 3", "\nrounds = 5")
    assert [sorted(e["settings"]) for e in resume(folder).summary["edited"]] == [["eval_every"], ["rounds"]]


def test_a_run_that_was_begun_before_what_is_spelt_out_was_noted_goes_on(tmp_path: Path) -> None:
    folder = stopped(tmp_path)
    file = folder / "summary.json"
    about = json.loads(file.read_text())
    del about["pinned"], about["settings"]["by_length"]
    file.write_text(json.dumps(about))
    told = Told()
    assert resume(folder, told).finished
    assert not any("edited" in s for s in told.sentences)


def test_a_finished_run_does_not_pretend_to_have_obeyed(tmp_path: Path) -> None:
    folder = toy_runs.run(tmp_path, name="mine").folder
    told = Told()
    weft.resume(folder, observer=told)
    assert told.sentences == [f"{folder} is finished already: there is nothing to do."]
    edit(folder, "\nrounds = 2", "\nrounds = 5")
    with pytest.raises(
        UserError, match=r"has played all its rounds, and its experiment.toml was edited since \(rounds is 5 and was 2"
    ):
        weft.resume(folder)


def test_a_method_object_with_other_settings_is_no_continuation(tmp_path: Path) -> None:
    from weft.methods import FedIT

    folder = stopped(tmp_path, method=FedIT(rank=2))
    with pytest.raises(UserError, match=r"method.rank is 4 and was 2"):
        weft.resume(folder, method=FedIT(rank=4), data=toy_runs.source())
