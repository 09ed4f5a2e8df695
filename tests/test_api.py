"""The Python API: light to import, and a run in a few lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import tiny
import toy_runs
import weft
from command_line import table
from toy_runs import Told
from weft.data.rows import ClientData, FederatedData, Rows
from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.round import Round
from weft.federation.server import ServerState
from weft.methods.reparameterized.fedit import FedIT
from weft.runs import baselines
from weft.runs.checkpoint import Checkpoint, digest


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


def tensors(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Values at the end, of each server."""
    saved = Checkpoint(folder / "checkpoint").load()
    assert saved is not None
    return [{n.removeprefix("shared:"): v for n, v in values.items() if n.startswith("shared:")} for values, _ in saved.servers]


def python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


def test_importing_weft_and_naming_its_errors_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "numpy", "pydantic", "matplotlib", "peft", "sklearn", "scipy", "typer", "rich")
    out = python(f"import sys, weft; dir(weft); weft.UserError; weft.methods; print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in weft.__all__:
        assert getattr(weft, name) is not None
    assert set(weft.__all__) <= set(dir(weft))
    with pytest.raises(AttributeError, match="absent"):
        weft.absent


# a run --------------------------------------------------------------------------------------------------------------------


def test_a_run_says_its_numbers_and_is_the_same_when_read_again(tmp_path: Path) -> None:
    told = Told()
    run = toy_runs.run(tmp_path, observer=told)
    assert run.metrics["accuracy"] == run.summary["headline"]["value"]
    assert set(run.metrics) == {"accuracy", "macro_f1", "loss", "mean_client", "worst_client"}
    assert run.rounds == told.lines
    again = weft.load_run(run.folder)
    assert (again.metrics, again.rounds, again.summary) == (run.metrics, run.rounds, run.summary)
    assert run.folder.name in repr(run)


def test_a_method_by_slug_or_as_an_object_is_the_same_run(tmp_path: Path) -> None:
    by_slug = toy_runs.run(tmp_path, method="fedit", parameters={"rank": 2, "lr": 0.01})
    from weft.adaptation.optim import Optim

    by_object = toy_runs.run(tmp_path, method=weft.methods.FedIT(rank=2, optim=Optim("adamw", lr=0.01)))
    assert digest(by_slug.folder) == digest(by_object.folder)


def test_data_may_be_dealt_out_already(tmp_path: Path) -> None:
    dealt = weft.data.partition(toy_runs.source(), clients=3, scheme="iid")
    assert digest(toy_runs.run(tmp_path, data=dealt, clients=None).folder) == digest(toy_runs.run(tmp_path).folder)


def test_progress_is_told_in_whole_stages(tmp_path: Path) -> None:
    told = Told()
    toy_runs.run(tmp_path, observer=told, start_head="probe", probe_rounds=2, baselines=["probe", "local"], repeat=2)
    assert not told.open
    assert set(told.stages) >= {"set-up", "rounds", "clients", "baseline local", "repeat 1"}
    for name in ("set-up", "rounds", "clients", "baseline local", "repeat 1"):
        total, done = told.stages[name]
        assert done == total, name
    assert [line["round"] for line in told.lines] == [0, 1]
    assert any(s.startswith("memory: about") for s in told.sentences)


def test_a_different_seed_is_a_different_run(tmp_path: Path) -> None:
    assert digest(toy_runs.run(tmp_path, seed=0).folder) != digest(toy_runs.run(tmp_path, seed=1).folder)


def test_a_prefix_cache_changes_no_number(tmp_path: Path) -> None:
    on, off = (toy_runs.run(tmp_path, baseline="probe", probe_rounds=2, prefix_cache=p) for p in ("auto", "off"))
    for a, b in zip(tensors(on.folder), tensors(off.folder), strict=True):
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-9, atol=1e-11)


def test_a_run_from_python_prints_what_the_command_line_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = toy_runs.run(tmp_path)
    printed = capsys.readouterr().out
    assert re.search(r"^max_length +16 +128 +you", printed, re.MULTILINE)  # what differs, and who said so
    for line in run.rounds:
        assert re.search(rf"^ +{line['round'] + 1} .*\d\.\d{{3}}", printed, re.MULTILINE)
    assert re.search(rf"^accuracy +{run.metrics['accuracy']:.3f}", printed, re.MULTILINE)
    assert f"Saved in {run.folder}" in printed
    assert "weft run" not in printed  # those are commands for a shell


def test_a_run_from_python_can_be_quiet_or_watched_by_somebody_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    toy_runs.run(tmp_path, quiet=True)
    run = toy_runs.run(tmp_path, observer=told)
    assert told.lines
    assert weft.resume(run.folder, data=toy_runs.source(), quiet=True).finished
    assert capsys.readouterr() == ("", "")
    weft.resume(run.folder, data=toy_runs.source())
    assert "is finished already" in capsys.readouterr().out


def test_a_notebook_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would lay every line into a block of its own, and ask for widgets to draw its bars."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    toy_runs.run(tmp_path)
    printed = capsys.readouterr().out
    assert re.search(r"^ *round +loss +accuracy", printed, re.MULTILINE)
    assert "\x1b" not in printed


def test_data_that_are_none_do_not_mean_the_usual_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data is None"):
        weft.run(data=None, model=tiny.folder("bert"), runs=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [3, "", object(), FederatedData])
def test_a_method_that_is_none_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method"):
        toy_runs.run(tmp_path, method=wrong)


def test_a_class_stands_for_its_defaults_and_a_path_for_its_name(tmp_path: Path) -> None:
    table(tmp_path / "rows.csv")
    run = toy_runs.run(tmp_path / "runs", method=weft.methods.FedIT, data=tmp_path / "rows.csv", model=Path(tiny.folder("bert")))
    assert run.summary["settings"]["data"]["value"] == str(tmp_path / "rows.csv")


# repeats ------------------------------------------------------------------------------------------------------------------


def test_a_repeat_is_compared_and_noted(tmp_path: Path) -> None:
    told = Told()
    run = toy_runs.run(tmp_path, repeat=3, observer=told, method="fedsa-lora", start_head="probe", probe_rounds=1)
    assert run.summary["repeat"] == {"runs": 3, "identical": True}
    assert sum("the same numbers, bit for bit" in s for s in told.sentences) == 2


def test_a_repeat_that_differs_is_an_error_that_says_where(tmp_path: Path) -> None:
    class Drifting(FedIT):
        """Remembers how often it was run, which no method may."""

        calls: ClassVar[list[int]] = []

        def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
            super().aggregate(server, updates)
            self.calls.append(0)
            (name, *_) = server.shared
            server.write(name, server.shared[name] + 1e-6 * (len(self.calls) == 4))  # type: ignore[operator]

    with pytest.raises(UserError, match=r"the repeat gave other numbers \(server, round 1\)"):
        toy_runs.run(tmp_path, method=Drifting(), repeat=2)
    (folder,) = tmp_path.iterdir()
    found = weft.load_run(folder)
    assert found.finished  # the first run's numbers are kept
    assert found.summary["repeat"] == {"runs": 2, "identical": False}


def test_an_object_that_no_slug_stands_for_is_needed_to_go_on(tmp_path: Path) -> None:
    class Mine(FedIT):
        """Not registered."""

    class Stop(weft.Observer):
        def round_done(self, record: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    whole = toy_runs.run(tmp_path / "whole", method=Mine())
    with pytest.raises(weft.Interrupted):
        toy_runs.run(tmp_path / "cut", method=Mine(), observer=Stop())
    (folder,) = (tmp_path / "cut").iterdir()
    with pytest.raises(UserError, match="method was given as an object"):
        weft.resume(folder, data=toy_runs.source())
    assert digest(weft.resume(folder, data=toy_runs.source(), method=Mine()).folder) == digest(whole.folder)


# baselines ----------------------------------------------------------------------------------------------------------------


def alone(dealt: FederatedData, client: int) -> FederatedData:
    """A federation of this one client, with everybody's test rows."""
    return replace(dealt, clients=[dealt.clients[client]])


@pytest.mark.parametrize("slug", ["fedit", "feddat"])
def test_local_is_each_client_in_a_federation_of_its_own(slug: str, tmp_path: Path) -> None:
    dealt = weft.data.partition(toy_runs.source(), clients=3, scheme="iid")
    common: dict[str, Any] = {"method": slug, "clients": None, "start_head": "probe", "probe_rounds": 2, "pack": 1}
    together = tensors(toy_runs.run(tmp_path, data=dealt, baseline="local", **common).folder)
    assert len(together) == 3
    for i, found in enumerate(together):
        (wanted,) = tensors(toy_runs.run(tmp_path, data=alone(dealt, i), **common).folder)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


def test_the_models_of_clients_alone_share_one_test_set_between_them(tmp_path: Path) -> None:
    dealt = weft.data.partition(toy_runs.source(), clients=3, scheme="iid", test_fraction=0.3)
    run = toy_runs.run(tmp_path, data=dealt, baseline="local", clients=None, parameters={"lr": 0.0})
    one = toy_runs.run(tmp_path, data=dealt, clients=None, parameters={"lr": 0.0})  # untrained: all models are the same
    top, same = run.summary["headline"], one.summary["headline"]
    assert top["pooling"] == "pooled over clients' models"
    assert (top["n"], top["value"], top["low"]) == (same["n"], same["value"], same["low"])
    assert run.metrics["mean_client"] == one.metrics["mean_client"]


SPLITS = ("train", "val", "test")


def test_central_is_one_client_with_all_rows(tmp_path: Path) -> None:
    dealt = weft.data.partition(toy_runs.source(), clients=3, scheme="iid")
    one = replace(dealt, clients=[ClientData("all", *(Rows.concatenate([getattr(c, s) for c in dealt.clients]) for s in SPLITS))])
    run = toy_runs.run(tmp_path, data=dealt, baseline="central", clients=None)
    (found,), (wanted,) = tensors(run.folder), tensors(toy_runs.run(tmp_path, data=one, clients=None).folder)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)
    assert all(line["cohort"] == ["all"] for line in run.rounds)
    assert run.summary["headline"]["n"] == len(dealt.test)


def test_where_steps_are_counted_central_takes_those_of_all_clients(tmp_path: Path) -> None:
    dealt = weft.data.partition(toy_runs.source(), clients=3, scheme="iid")
    one = replace(dealt, clients=[ClientData("all", *(Rows.concatenate([getattr(c, s) for c in dealt.clients]) for s in SPLITS))])
    run = toy_runs.run(tmp_path, data=dealt, baseline="central", clients=None, parameters={"steps": 2})
    (found,), (wanted,) = (
        tensors(run.folder),
        tensors(toy_runs.run(tmp_path, data=one, clients=None, parameters={"steps": 6}).folder),
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


def test_central_keeps_the_splits_of_all_clients_and_alone_it_takes_their_steps() -> None:
    _, clients, _ = tiny.states()
    ((everybody,),) = baselines.federations(clients, "central")
    for split in SPLITS:
        rows = [row for client in clients for row in getattr(client.data, split).tolist()]
        assert getattr(everybody.data, split).tolist() == sorted(rows)
    assert everybody.n == len(everybody.data.train) == sum(c.n for c in clients)
    assert [[c.id for c in own] for own in baselines.federations(clients, "local")] == [[c.id] for c in clients]
    for baseline, steps in ((None, 2), ("local", 2), ("zero-shot", 2), ("central", 12)):
        assert baselines.with_all_steps(FedIT(steps=2), baseline, 6).steps == steps
    assert baselines.with_all_steps(FedIT(epochs=2.0), "central", 6) == FedIT(epochs=2.0)


def test_the_rate_of_a_probe_falls_to_nothing_over_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.Probe, "fit", lambda self, pack, lr: lr)
    rates = [baselines.Probe(rounds=4).train(SimpleNamespace(round=Round(i))) for i in range(6)]  # type: ignore[arg-type]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0, 0.0])


def test_clients_alone_get_as_many_turns_as_in_the_federation_on_average(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, baseline="local", rounds=6, participation=0.5, dropout=0.5)
    assert len(run.rounds) == 3
    assert all(len(line["cohort"]) == 3 and not line["lost"] for line in run.rounds)


def test_a_probe_moves_the_head_and_nothing_else(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, baseline="probe", probe_rounds=3)
    (found,) = tensors(run.folder)
    assert {n.split("/")[0] for n in found} == {"head"}
    assert len(run.rounds) == 3
    up = run.summary["bytes"]["train"]["up"]["parts"]
    assert up["head"] == 3 * 3 * (32 * 3 + 3) * 8
    assert up.get("facts", 0) == 0


def test_the_probe_beside_a_method_is_its_heads_own_training(tmp_path: Path) -> None:
    beside = toy_runs.run(tmp_path, start_head="probe", probe_rounds=3, baselines=["probe"])
    itself = toy_runs.run(tmp_path, baseline="probe", probe_rounds=3)
    without = toy_runs.run(tmp_path, probe_rounds=3, baselines=["probe"])
    wanted = itself.summary["headline"]
    assert beside.summary["baselines"]["probe"]["headline"] == wanted
    assert without.summary["baselines"]["probe"]["headline"] == wanted
    assert not (beside.folder / "baselines").exists()


def test_a_head_starts_where_its_probe_ended(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, start_head="probe", probe_rounds=3, parameters={"lr": 0.0})
    (probe,), (found,) = tensors(run.folder / "setup"), tensors(run.folder)
    for name, value in probe.items():
        assert torch.equal(found[name], value)
    before = toy_runs.run(tmp_path, parameters={"lr": 0.0})
    assert not torch.equal(tensors(before.folder)[0][name], value)


def test_a_settings_mistake_costs_no_folder_and_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no setting "rank", but one of the method: write method\.rank'):
        toy_runs.run(tmp_path, rank=3)
    for name, value in {"model": "minlm", "data": "pydoc", "device": "gpu", "codec": "quant9", "method": "fedti"}.items():
        with pytest.raises(UserError, match=rf'"{value}".* Did you mean'):
            toy_runs.run(tmp_path, **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"method": "flora"}, {"method": "feddat"}, {"baseline": "probe", "probe_rounds": 2}])
def test_a_run_ends_with_an_adapter_that_predicts_as_the_run_did(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from weft.backbones.load import load
    from weft.runs import prepare

    monkeypatch.undo()
    monkeypatch.setattr(prepare, "load_backbone", lambda name, **_: load(name, classes=3, device="cpu", precision="float32"))
    run = toy_runs.run(tmp_path, test_fraction=0.4, **settings)
    assert run.adapter == run.folder / "adapter"
    report = run.summary["adapter"]
    assert report["difference"] <= report["tolerance"]
    assert json.loads((run.adapter / "weft.json").read_text())["run"] == run.folder.name
    test = weft.data.partition(toy_runs.source(), clients=3, scheme="iid", test_fraction=0.4).test
    right = [p == toy_runs.CLASSES[y] for p, y in zip(run.predict(test.texts), test.labels.tolist(), strict=True)]
    if run.summary["headline"]["people"] == "global test":
        assert sum(right) / len(right) == run.summary["headline"]["value"]


def test_a_run_killed_while_it_writes_its_adapter_writes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.storage import files

    monkeypatch.undo()

    def point(operation: str, path: Path) -> None:
        if (operation, path.name) == ("rename", "adapter"):
            raise toy_runs.Killed

    with monkeypatch.context() as patch, pytest.raises(toy_runs.Killed):
        patch.setattr(files, "point", point)
        toy_runs.run(tmp_path, precision="float32")
    (folder,) = tmp_path.iterdir()
    assert weft.load_run(folder).adapter is None
    again = weft.resume(folder, data=toy_runs.source())
    assert again.finished
    assert again.adapter is not None
    assert not list(folder.glob("*.tmp"))


def test_an_export_that_is_impossible_costs_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    class Twice(FedIT):
        """Predicts in two passes, which no file of parts can say."""

        def forward(self, pack: Any, batch: Any, view: str | None = None) -> Any:
            from weft.tasks.outputs import Output

            return Output((pack(batch).logits + pack(batch).logits) / 2)

    told = Told()
    run = toy_runs.run(tmp_path, method=Twice(), precision="float32", observer=told)
    assert run.finished
    assert run.adapter is None
    assert "register it" in run.summary["adapter"]["refused"]
    assert any(s.startswith("no adapter was written") for s in told.sentences)


def test_tiny_models_are_loaded_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.backbones.load import load
    from weft.runs import prepare

    monkeypatch.setattr(prepare, "load_backbone", load)
    run = toy_runs.run(tmp_path, precision="float32")
    assert run.summary["backbone"]["sha256"] == load(tiny.folder("bert"), classes=3, device="cpu").weight_hash
    assert run.summary["backbone"]["precision"] == "float32"


def test_all_that_a_backbone_lacks_is_said_at_once(tmp_path: Path) -> None:
    """Nothing is left of the run, and each reason comes with its way out."""
    from weft.adaptation.tokens import ClassContext, ImageTokens
    from weft.federation.scope import SHARED

    class Both(FedIT):
        def adapt(self, backbone: Any, task: Any, client: Any) -> Any:
            return {"a": (ClassContext(2), SHARED), "b": (ImageTokens(2), SHARED), "head": (task.head, SHARED)}

    with pytest.raises(UserError, match=r"no text tower.*--model glyph-clip.*no picture patches.*--model glyph-vit"):
        toy_runs.run(tmp_path, method=Both())
    assert not any(tmp_path.iterdir())
