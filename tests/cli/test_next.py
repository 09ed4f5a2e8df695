"""The command that a run proposes: it can be typed, is the same experiment but for one thing, and says no more than it must."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import cifar_resnets
import command_line
import toy_runs
import weft as library
from command_line import table, weft
from every_method import METHODS, some
from weft import experiment
from weft import start as starting
from weft.cli import plan, retyped
from weft.experiment import Experiment
from weft.methods import registry
from weft.report import verdict
from weft.report.verdict import Finding

Capture = pytest.CaptureFixture[str]


def typed(line: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Experiment:
    """The experiment that a command line would run."""
    found: list[Experiment] = []

    def start(resolved: experiment.Resolved, **_: object) -> None:
        found.append(resolved.experiment)
        raise library.UserError("enough.")

    with monkeypatch.context() as patch:
        patch.setattr(starting, "start", start)
        name, *words = shlex.split(line)
        assert name == "weft"
        weft(capsys, *words)
    return found[0]


def summary(settings: dict[str, Any], file: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What ``summary.json`` says of settings."""
    resolved = experiment.resolve(settings, file)
    told = {n: {"value": v, "origin": resolved.origin[n]} for n, v in resolved.experiment.flat().items()}
    return {"settings": told, "method": {"object": False}, "data": {"object": False}} | more


TYPED: list[dict[str, Any]] = [
    {},
    {"text": "query", "label": "intent", "data": "my rows/a b's.csv", "clients": 5, "alpha": 0.3, "rounds": 7, "seed": 3},
    {"method.rank": 8, "method.lr": 2e-3, "method.steps": 5, "model": "owner/model", "partition": "iid", "max_length": 64},
    {"recipes": False, "by_length": False, "debug": True, "trust_remote_code": True, "eval_every": 0},
    {"recipes": True, "by_length": True, "baselines": ["local", "probe"], "limit": 100, "pack": 4},
    {"baselines": [], "leave_out": ["a b", "it's"], "val_fraction": 0.25, "probe_rounds": 5, "start_head": "probe"},
    {"classes": ["yes", "no, never", 'a "b"', "1"], "text": "3", "label": "true", "key": "none given", "pair": "  spaces "},
    {"method": "flora", "method.ranks": (4, 8), "codec": "quant8", "device": "cpu", "precision": "float32"},
    {"method": "promptfl", "method.batch": 4},
    {"robust": "median", "robust_share": 0.3, "participation": 0.9, "dropout": 0.1, "runs": "else where", "name": "mine"},
    {"data": "glyphs", "method": "pfedpg"},
]


@pytest.mark.parametrize("settings", TYPED, ids=lambda s: ",".join(s) or "nothing")
def test_the_command_of_the_same_experiment_is_the_same_experiment(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    line = retyped.command(summary(settings), {})
    assert line is not None
    wanted = experiment.resolve(settings).experiment
    assert typed(line, monkeypatch, capsys) == wanted.model_copy(update={"name": None})


def test_the_command_of_a_replayed_file_says_only_what_is_different(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import tomllib

    first = experiment.resolve({"clients": 5, "method.rank": 3, "model": "owner/model"})
    file = tomllib.loads(experiment.to_toml(first.experiment, {}))
    line = retyped.command(summary({}, file), {})
    assert line is not None
    assert shlex.split(line)[2:] == shlex.split("--method fedit --set method.rank=3 --model owner/model --no-recipes --clients 5")
    assert typed(line, monkeypatch, capsys) == experiment.resolve({}, file).experiment


@pytest.mark.parametrize("slug", some(METHODS))
def test_another_method_is_proposed_on_the_same_data_backbone_and_deal(
    slug: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    batch = {"method.batch": 7} if "batch" not in registry.load(slug).unused else {}
    settings: dict[str, Any] = {"method": slug, "clients": 5, "rounds": 3, "baseline": "local"} | batch
    about = summary(settings) | {"method": {"object": False, "slug": slug}, "rounds": 3, "evaluations": [], "headline": None}

    class Done:
        summary = about
        rounds = ()

    line, *_ = plan.suggestions(Done(), lambda _: True)  # type: ignore[arg-type]
    got, before = typed(line, monkeypatch, capsys), experiment.resolve(settings).experiment
    assert got.method != slug
    assert got.parameters["batch"] == 7 or not batch
    same = ("model", "data", "clients", "rounds", "partition", "alpha", "seed", "start_head", "max_length")
    assert {n: getattr(got, n) for n in same} == {n: getattr(before, n) for n in same}
    assert got.baseline is None


@pytest.mark.parametrize("more", [{"method": {"object": True}}, {"data": {"object": True}}, {"served": {}}])
def test_what_no_command_can_say_gets_none(more: dict[str, Any]) -> None:
    assert retyped.command(summary({}, **more), {}) is None


def test_a_change_is_in_the_command(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    line = retyped.command(summary({"method.lr": 1.0, "text": "a"}), {"method.optim.lr": 0.1, "start_head": "probe"})
    assert line is not None
    got = typed(line, monkeypatch, capsys)
    assert (got.parameters["optim.lr"], got.start_head, got.text) == (0.1, "probe", "a")


@pytest.mark.parametrize(("wrong", "second"), [([], "flora"), ([Finding("It guesses.", changes={"rounds": 3})], "fedit")])
def test_the_proposed_command_runs_and_compares(
    wrong: list[Finding], second: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_runs.light(monkeypatch)
    monkeypatch.setattr(verdict, "findings", lambda *_: wrong)
    monkeypatch.chdir(tmp_path)
    rows = table(tmp_path / "my rows.csv", label="intent")
    rows.write_text(rows.read_text().replace("text,", "query,", 1))
    columns = ("--text", "query", "--label", "intent", "--alpha", 0.7, "--partition", "dirichlet", "--seed", 4)
    first = weft(capsys, *command_line.small(tmp_path, "--data", rows.name, *columns))
    assert first.code == 0
    (line,) = [found.removeprefix("Next: ") for found in first.out.splitlines() if found.startswith("Next: ")]
    assert weft(capsys, *shlex.split(line)[1:], "--quiet").code == 0
    a, b = sorted((tmp_path / "runs").iterdir(), key=lambda folder: folder.stat().st_ctime)
    one, two = library.load_run(a).summary, library.load_run(b).summary
    assert (one["method"]["slug"], two["method"]["slug"]) == ("fedit", second)
    assert one["settings"]["seed"]["value"] == 4
    assert two["settings"]["seed"]["value"] == 4
    assert two["settings"]["rounds"]["value"] == (3 if wrong else 2)
    for name in ("data", "backbone"):
        assert one[name] == two[name]


def next_of(capsys: Capture, where: Path, *words: object) -> list[str]:
    """What a run on drawn letters proposes to type next, without ``weft``."""
    small = ("--limit", 40, "--clients", 2, "--rounds", 1, "--runs", where / "runs", "--device", "cpu", "--precision", "float32")
    done = weft(capsys, "run", *words, *small)
    assert done.code == 0, done.err
    (line,) = [found.removeprefix("Next: weft ") for found in done.out.splitlines() if found.startswith("Next: ")]
    return shlex.split(line)


def test_a_method_that_the_backbone_refuses_is_not_proposed(capsys: Capture, tmp_path: Path) -> None:
    resnet = ("--model", cifar_resnets.saved(tmp_path / "resnet8.npz"), "--data", "glyphs")
    assert weft(capsys, "run", *resnet, "--method", "flora", "--dry-run").code == 2
    proposed = next_of(capsys, tmp_path, *resnet, "--method", "fedavg", "--batch-norms", "averaged")
    assert weft(capsys, *proposed, "--dry-run").code == 0
    assert proposed[proposed.index("--batch-norms") + 1] == "averaged"


def test_the_next_command_after_encoders_side_by_side_starts(capsys: Capture, tmp_path: Path) -> None:
    proposed = next_of(capsys, tmp_path, "--model", "glyph-vit+drawn-clip", "--data", "glyphs", "--method", "fedpcl")
    assert "--method" in proposed
    assert weft(capsys, *proposed, "--dry-run").code == 0


def test_a_run_that_was_resumed_proposes_a_method_too(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    line = [str(word) for word in command_line.small(tmp_path, "--name", "it")]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(starting.execute, "go_on", stop)
        command_line.main(line)
    done = weft(capsys, "resume", tmp_path / "runs" / "it")
    assert done.code == 0
    (proposed,) = [found for found in done.out.splitlines() if found.startswith("Next: ")]
    assert proposed.startswith("Next: weft run --method")
