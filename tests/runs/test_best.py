"""The model that a run keeps is that of the round which validation rows like best, if that is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import toy_runs
import weft
from toy_runs import Dies, Killed, Told
from weft.errors import UserError
from weft.export import export_run
from weft.methods import FedIT
from weft.runs import best
from weft.runs.best import Best
from weft.runs.checkpoint import Checkpoint, Kept, digest
from weft.runs.result import best_by_validation

ROUNDS, BEST = 5, 3
SETTINGS: dict[str, Any] = {
    "rounds": ROUNDS,
    "seed": 1,
    "val_fraction": 0.3,
    "baselines": [],
    "parameters": {"lr": 0.05, "rank": 2, "batch": 4},
    "precision": "float32",
}


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> weft.Run:
    return toy_runs.run(tmp_path_factory.mktemp("kept"), keep="best", **SETTINGS)


def test_its_export_is_that_of_a_run_which_ended_with_the_best_round(kept: weft.Run, tmp_path: Path) -> None:
    assert kept.summary["best_by_validation"]["round"] == BEST < ROUNDS - 1
    assert kept.summary["adapter"]["round"] == BEST
    short = toy_runs.run(tmp_path / "short", **SETTINGS | {"rounds": BEST + 1})
    whole = toy_runs.run(tmp_path / "whole", **SETTINGS)
    assert same(adapter(kept.folder / "adapter"), adapter(short.folder / "adapter"))
    assert not same(adapter(kept.folder / "adapter"), adapter(whole.folder / "adapter"))
    assert whole.summary["adapter"]["round"] == ROUNDS - 1
    # what it played and says of its last round is the same
    assert digest(kept.folder) == digest(whole.folder)
    for name in ("headline", "best_by_validation", "metrics"):
        assert kept.summary[name] == whole.summary[name]


@pytest.mark.parametrize("after", range(ROUNDS))
def test_killed_after_any_round_and_resumed_it_keeps_the_same(after: int, kept: weft.Run, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        toy_runs.run(tmp_path, observer=Dies(after), keep="best", **SETTINGS)
    (folder,) = tmp_path.iterdir()
    run = weft.resume(folder, data=toy_runs.source())
    assert run.summary["adapter"]["round"] == BEST
    assert digest(run.folder) == digest(kept.folder)
    assert same(adapter(run.folder / "adapter"), adapter(kept.folder / "adapter"))


def test_what_the_server_of_that_round_had_noted_of_clients_stays_too(tmp_path: Path) -> None:
    about = SETTINGS | {"keep": "best", "codec": "shift+topk:share=0.3"}
    run = toy_runs.run(tmp_path / "whole", **about)
    state = Checkpoint(run.folder / "checkpoint").load()
    assert state is not None
    last, (of_best,) = state.servers[0][1]["notes"], state.best["kept"]["states"]  # type: ignore[index]
    assert run.summary["best_by_validation"]["round"] < ROUNDS - 1
    assert of_best["notes"].keys() == last.keys() != set()
    assert not set(of_best["notes"].values()) & set(last.values())
    assert len(list((run.folder / "notes" / "0").iterdir())) == 2 * len(last)
    with pytest.raises(Killed):
        toy_runs.run(tmp_path / "cut", observer=Dies(ROUNDS - 2), **about)
    (folder,) = (tmp_path / "cut").iterdir()
    again = weft.resume(folder, data=toy_runs.source())
    assert digest(again.folder) == digest(run.folder)
    assert {p.name for p in (folder / "notes" / "0").iterdir()} == {p.name for p in (run.folder / "notes" / "0").iterdir()}


def test_beside_the_checkpoint_lie_the_servers_of_that_round_and_no_other(kept: weft.Run) -> None:
    names = {p.name for p in (kept.folder / "checkpoint").iterdir()}
    assert names == {"state.json", f"server-{BEST + 1:06d}.safetensors", f"server-{ROUNDS:06d}-end.safetensors"}


def test_an_adapter_that_is_made_anew_from_the_checkpoint_is_the_same(tmp_path: Path) -> None:
    import tiny
    from command_line import table

    table(tmp_path / "rows.csv")
    settings = SETTINGS | {"data": str(tmp_path / "rows.csv"), "model": tiny.folder("bert")}
    for seed in range(9):
        run = toy_runs.run(tmp_path / f"runs{seed}", keep="best", **settings | {"seed": seed})
        if run.summary["adapter"]["round"] < ROUNDS - 1:
            break
    assert run.summary["adapter"]["round"] < ROUNDS - 1
    before = adapter(run.folder / "adapter")
    shutil.rmtree(run.folder / "adapter")
    told = Told()
    weft.resume(run.folder, observer=told)
    assert any("made anew" in s for s in told.sentences)
    assert same(adapter(run.folder / "adapter"), before)
    export_run(run.folder, tmp_path / "again")
    assert same(adapter(tmp_path / "again"), before)


def test_without_validation_rows_the_last_round_is_kept_and_that_is_said(tmp_path: Path) -> None:
    told = Told()
    run = toy_runs.run(tmp_path, keep="best", observer=told, **SETTINGS | {"val_fraction": 0.0, "rounds": 2})
    assert run.summary["adapter"]["round"] == 1
    assert "no round was scored on validation rows: the model of the last one is kept." in told.sentences


def test_a_method_whose_models_are_clients_own_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fedsa-lora gives every client a model of its own.*: leave out keep = \"best\"\."):
        toy_runs.run(tmp_path, method="fedsa-lora", keep="best", model="not/there")


def test_it_is_the_first_view_by_which_a_model_is_chosen() -> None:
    class Viewed(FedIT):
        seen: ClassVar[tuple[str, ...]] = ()

        @property
        def views(self) -> tuple[str, ...]:
            return self.seen

    class CommonFirst(Viewed):
        seen: ClassVar[tuple[str, ...]] = ("global", "personal")

    class OwnFirst(Viewed):
        seen: ClassVar[tuple[str, ...]] = ("personal", "global")

    best.check("best", CommonFirst())
    best.check("last", OwnFirst())
    with pytest.raises(UserError, match="gives every client a model of its own"):
        best.check("best", OwnFirst())


# which is best ------------------------------------------------------------------------------------------------------------


def line(t: int, metric: str, value: float) -> dict[str, Any]:
    common = {"view": "global", "moment": "received", "pooling": "pooled", "n": 9}
    return {
        "round": t,
        "evaluations": [
            common | {"people": "global test", "metric": metric, "value": 0.5},
            common | {"people": "validation", "metric": metric, "value": value},
        ],
    }


@pytest.mark.parametrize(
    ("metric", "values", "wanted"),
    [("accuracy", (0.3, 0.6, 0.6, 0.5), 1), ("perplexity", (3.0, 2.0, 2.0, 4.0), 1), ("accuracy", (0.1, 0.2, 0.3, 0.4), 3)],
)
def test_the_earliest_of_the_best_is_kept_whether_more_is_better_or_less(metric: str, values: Any, wanted: int) -> None:
    found: Best | None = None
    for t, value in enumerate(values):
        found = best.better(line(t, metric, value), found)
    assert found == Best(wanted, metric, values[wanted])


def test_a_round_that_is_scored_by_another_metric_takes_the_place_of_what_it_can_not_be_compared_with() -> None:
    found = best.better(line(1, "loss", 0.1), Best(0, "rouge_l", 0.9))
    assert found == Best(1, "loss", 0.1)
    assert best.better({"round": 2, "evaluations": []}, found) == found


def test_of_all_rounds_those_are_compared_that_are_scored_as_the_last_one_is() -> None:
    lines = [line(0, "rouge_l", 0.9), line(1, "loss", 0.3), line(2, "loss", 0.2), line(3, "loss", 0.4)]
    top = best_by_validation(lines)
    assert top is not None
    assert (top["round"], top["metric"], top["validation"]) == (2, "loss", 0.2)


def test_what_is_saved_of_it_comes_back() -> None:
    now, other = Kept("now", "a", [{}]), Kept("other", "b", [{}])
    one = Best(2, "accuracy", 0.5)
    assert best.read(None, now) is None
    assert best.read(json.loads(json.dumps(one.as_json())), now) == one.at(now)
    assert best.read(json.loads(json.dumps(one.at(other).as_json())), now) == one.at(other)
