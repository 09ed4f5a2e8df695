"""What bad input gets: one sentence on stderr that says what is wrong and what to do, exit code 2, and nothing saved is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

import command_line
import tiny
import toy_runs
from command_line import Outcome, refused, weft
from weft.cli import main
from weft.engines.engine import Engine
from weft.federation.method import Method
from weft.storage import files

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy_runs.light(monkeypatch)
    monkeypatch.chdir(tmp_path)


def typing(capsys: Capture, where: Path, *more: object) -> Outcome:
    """A small run with more arguments, without what is told while it goes."""
    return weft(capsys, *command_line.small(where, "--quiet", *more))


# names and values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("rum", ('"rum"', 'Did you mean "run"?')),
        ("run --methode fedit", ('"--methode"', 'Did you mean "--method"?')),
        ("run --method fedtt", ('"fedtt"', 'Did you mean "fedit"?')),
        ("methods flor", ('"flor"', 'Did you mean "flora"?')),
        ("methods fedit --model minilmm", ('"minilmm"', '"minilm"')),
        ("data pydoc", ('"pydoc"', 'Did you mean "pydocs"?')),
        ("run --set method.rnk=3", ('"rnk"', "rank")),
        ("run --set roundz=3", ('"roundz"', '"rounds"')),
        ("run --set rank=3", ('"rank"', "method.rank")),
        ("run --set method.rank", ("NAME=VALUE",)),
        ("run --set method.rank=many", ('"rank"', "whole number", "many")),
        ("run --set method.optim.kind=adamww", ('"adamww"', '"adamw"')),
        ("run --rounds many", ("--rounds", "many")),
        ("run --rounds", ("--rounds",)),
        ("run --rounds 0", ("rounds", "at least 1")),
        ("run --participation 1.5", ("participation", "at most 1")),
        ("run --dropout -0.1", ("dropout", "at least 0")),
        ("run --partition dirchlet", ('"dirchlet"', '"dirichlet"')),
        ("run --pack many", ("pack", "many")),
        ("run --quiet --codec quant9", ('"quant9"', 'Did you mean "quant8"?')),
        ("run --quiet --codec qsgd:levls=3", ('"qsgd"', '"levls"', 'did you mean "levels"?')),
        ("run --quiet --codec topk:share=2", ('"topk"', "0 < share ≤ 1, not 2")),
        ("run --quiet --codec quant8+topk", ('"quant8+topk"', "can't be decoded")),
        ("run --quiet --set codec=topk:share=0.1+quant9", ('"quant9"', 'Did you mean "quant8"?')),
        ("run --baseline locl", ('"locl"', '"local"')),
        ("run --baselines probe,locl", ("baselines", '"local"')),
        ("run none.toml", ("none.toml",)),
        ("run a b", ("b",)),
        ("data pydocs --clients 0", ("--clients",)),
        ("resume", ("RUN",)),
        ("resume runs/none", ("runs/none",)),
    ],
)
def test_a_wrong_name_or_value_is_named_with_what_was_likely_meant(
    line: str, fragments: tuple[str, ...], capsys: Capture
) -> None:
    refused(weft(capsys, *line.split()), *fragments)


def test_an_unknown_model_of_a_run_is_named_with_the_nearest(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    data = command_line.table(tmp_path / "rows.csv")
    refused(weft(capsys, "run", "--quiet", "--data", data, "--model", "minilmm"), '"minilmm"', '"minilm"')
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(("option", "fragments"), [("--device", ('"tpu"', "cpu")), ("--precision", ("float32", "tpu"))])
def test_an_unknown_device_or_precision_is_refused(
    option: str, fragments: tuple[str, ...], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused(typing(capsys, tmp_path, option, "tpu"), *fragments)


def test_an_unknown_way_to_deal_data_is_named_with_the_nearest(capsys: Capture, tmp_path: Path) -> None:
    data = command_line.table(tmp_path / "rows.csv")
    refused(weft(capsys, "data", data, "--partition", "dirchlet"), '"dirchlet"', 'Did you mean "dirichlet"?')


def test_several_wrong_settings_are_told_at_once(capsys: Capture) -> None:
    got = weft(capsys, "run", "--rounds", 0, "--alpha", -1, "--set", "seed=many")
    refused(got, "rounds", "alpha", "seed")


def test_an_experiment_file_that_is_no_toml_is_named(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = = 3\n")
    refused(weft(capsys, "run", tmp_path / "bad.toml"), "bad.toml", "TOML")


# data and backbone --------------------------------------------------------------------------------------------------------


def test_a_file_without_a_label_column_says_which_columns_it_has(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "plain.csv").write_text("text,number\n" + "".join(f"some text {i},{i}\n" for i in range(30)))
    for command in (["data", tmp_path / "plain.csv"], ["run", "--data", tmp_path / "plain.csv"]):
        refused(weft(capsys, *command, *(["--quiet"] if command[0] == "run" else [])), "plain.csv", "--label")
    refused(weft(capsys, "data", tmp_path / "plain.csv", "--label", "lable"), '"lable"')


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological"])
def test_more_clients_than_a_partitioner_can_fill_are_refused(scheme: str, capsys: Capture, tmp_path: Path) -> None:
    refused(typing(capsys, tmp_path, "--clients", 500, "--partition", scheme), "500", "fewer clients")
    refused(weft(capsys, "data", tmp_path / "rows.csv", "--clients", 500, "--partition", scheme), "500")


def test_a_backbone_that_lacks_what_a_method_needs_is_refused_with_the_fix(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused(weft(capsys, "methods", "fedbf", "--model", tiny.folder("llama")), "bias", "--set method.add_missing=true")
    got = typing(capsys, tmp_path, "--method", "fedbf", "--model", tiny.folder("llama"))
    refused(got, "bias", "--set method.add_missing=true")


# disk -----------------------------------------------------------------------------------------------------------------------


def test_a_file_where_the_runs_should_go_is_named(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    refused(typing(capsys, tmp_path), str(tmp_path / "runs"), "--runs")


def test_a_name_that_is_taken_is_never_written_over(capsys: Capture, tmp_path: Path) -> None:
    assert typing(capsys, tmp_path, "--name", "mine").code == 0
    before = (tmp_path / "runs" / "mine" / "summary.json").read_bytes()
    refused(typing(capsys, tmp_path, "--name", "mine"), "mine", "--name")
    assert (tmp_path / "runs" / "mine" / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("code", "why"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied"), (errno.EROFS, "read-only")]
)
def test_a_disk_that_takes_no_more_stops_the_run_and_what_was_saved_goes_on(
    code: int, why: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(operation: str, path: Path) -> None:
        if operation == "write" and "server-000002" in path.name:  # the save after the second round
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "point", full)
    refused(typing(capsys, tmp_path), why)
    (folder,) = (tmp_path / "runs").iterdir()
    monkeypatch.setattr(files, "point", lambda *_: None)
    assert weft(capsys, "resume", folder, "--quiet") == Outcome(0, "", "")
    assert json.loads((folder / "summary.json").read_text())["finished"] is True


def test_a_picture_that_can_not_be_written_is_told(capsys: Capture, tmp_path: Path) -> None:
    data = command_line.table(tmp_path / "rows.csv")
    got = weft(capsys, "data", data, "--clients", 2, "--partition", "iid", "--out", tmp_path / "rows.csv" / "deal.png")
    assert got.code == 2
    assert "client" in got.out  # the table is there all the same
    assert "the picture was not drawn" in got.err
    assert "deal.png" in got.err


@pytest.mark.parametrize(
    "victim", ["checkpoint/state.json", "checkpoint/server-*.safetensors", "experiment.toml", "summary.json"]
)
def test_a_damaged_file_of_a_run_is_named(victim: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped(capsys, tmp_path, monkeypatch)
    (path,) = folder.glob(victim)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half + b"\n= =")  # no TOML and no JSON, wherever the cut was
    refused(weft(capsys, "resume", folder, "--quiet"), path.name)


DEEP = b"[" * 100_000
HEADER = len(DEEP).to_bytes(8, "little") + DEEP  # of safetensors


@pytest.mark.parametrize("command", ["resume", "predict", "export", "eval"])
@pytest.mark.parametrize(
    ("victim", "content"),
    [
        ("checkpoint/state.json", DEEP),
        ("checkpoint/server-*.safetensors", HEADER),
        ("experiment.toml", b"a = " + DEEP),
        ("experiment.toml", b"[a" + b".a" * 10_000 + b"]\nb = 1"),
        ("summary.json", DEEP),
        ("summary.json", b"[]"),
        ("summary.json", b'{"format": 1}'),
        ("rounds.jsonl", DEEP),
        ("rounds.jsonl", b"3\n" * 5000),
        ("adapter/weft.json", DEEP),
        ("adapter/weft.json", b"[]"),
        ("adapter/adapter_config.json", DEEP),
        ("adapter/adapter_model.safetensors", HEADER),
    ],
)
def test_a_file_of_a_run_that_nobody_wrote_is_one_sentence_or_is_not_needed(
    command: str, victim: str, content: bytes, capsys: Capture, tmp_path: Path, whole: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (path,) = folder.glob(victim)
    path.write_bytes(content)
    more: dict[str, tuple[object, ...]] = {
        "predict": ("w1 w2",),
        "export": ("--to", tmp_path / "new"),
        "eval": ("--data", folder.parent / "rows.csv"),
    }
    command_line.table(tmp_path / "rows.csv")
    got = weft(capsys, command, folder, *more.get(command, ()))
    assert "Traceback" not in got.err
    needed = {"resume": ("summary", "rounds", "checkpoint"), "predict": ("adapter",), "eval": ("adapter",)}  # it is finished
    if victim.startswith(needed.get(command, ())):
        assert got.code == 2
        assert path.parent.name in got.err.splitlines()[-1]
    assert got.code in (0, 2)
    assert got.code == 0 or re.fullmatch(r"Error: [^\n]*[.?]\n", got.err)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with an adapter."""
    where = tmp_path_factory.mktemp("whole")
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in command_line.small(where, "--quiet", "--rounds", 1, "--name", "it")])
    assert not left.value.code
    return where / "runs" / "it"


# being stopped ----------------------------------------------------------------------------------------------------------------


def stopped(capsys: Capture, where: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was stopped by Ctrl-C in its second round."""
    ordinary = Engine.round

    def round(self: Engine, t: int, *more: Any) -> Any:
        if t == 1:
            raise KeyboardInterrupt
        return ordinary(self, t, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "round", round)
        got = typing(capsys, where)
    (folder,) = (where / "runs").iterdir()
    assert (got.code, got.out) == (130, "")
    assert f"weft resume {folder}" in got.err
    assert "Traceback" not in got.err
    return folder


def test_ctrl_c_says_how_to_go_on_and_the_run_does_go_on(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(capsys, tmp_path, monkeypatch)
    got = weft(capsys, "resume", folder)
    assert got.code == 0
    assert re.findall(r"^ +(\d)  \d", got.out, re.MULTILINE) == ["1", "2"]  # the rows of the rounds, before and after
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 2


def test_ctrl_c_elsewhere_leaves_without_a_traceback(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.methods import registry

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "infos", interrupted)
    got = weft(capsys, "methods")
    assert (got.code, got.out) == (130, "")
    assert "Traceback" not in got.err


def test_too_little_memory_names_the_flag_to_lower(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def train(self: Method, pack: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Method, "train", train)
    refused(typing(capsys, tmp_path), "out of memory", "--pack 1")


# libraries ----------------------------------------------------------------------------------------------------------------------


def test_what_libraries_say_stays_off_the_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.methods import registry

    def talking() -> Any:
        warnings.warn("Glyph 20013 missing from font(s) DejaVu Sans.", UserWarning, stacklevel=1)
        warnings.warn("this will be removed in a future release", FutureWarning, stacklevel=1)
        logging.getLogger("matplotlib.font_manager").warning("findfont: Font family not found")
        return {}

    monkeypatch.setattr(registry, "infos", talking)
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    with warnings.catch_warnings():
        got = weft(capsys, "methods")
    assert (got.code, got.err) == (0, "")
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with warnings.catch_warnings():
        weft(capsys, "methods")
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"  # who wants to hear them, does


# bugs ---------------------------------------------------------------------------------------------------------------------------


def test_a_bug_keeps_its_traceback_and_says_how_to_report_it(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.methods import registry

    def broken() -> Any:
        raise RuntimeError("something that nobody foresaw")

    monkeypatch.setattr(registry, "infos", broken)
    got = weft(capsys, "methods")
    assert got.code == 1
    assert "Traceback" in got.err
    assert "RuntimeError: something that nobody foresaw" in got.err
    assert "weft env" in got.err
