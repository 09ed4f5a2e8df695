"""What people do with a finished run: score it elsewhere, classify new texts, take its adapter away."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest

import command_line
import tiny
import weft as library
from command_line import refused, weft
from weft.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run; the data lie two folders above it."""
    where = tmp_path_factory.mktemp("after")
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in command_line.small(where, "--quiet")])
    assert left.value.code == 0
    (folder,) = (where / "runs").iterdir()
    return folder


def rows(finished: Path) -> list[tuple[str, str]]:
    with open(finished.parent.parent / "rows.csv", newline="") as f:
        return [(r["text"], r["label"]) for r in csv.DictReader(f)]


def test_predict_gives_the_class_of_each_text_as_the_library_does(finished: Path, capsys: Capture) -> None:
    texts = [text for text, _ in rows(finished)[:7]]
    found = json.loads(weft(capsys, "predict", finished, *texts, "--precision", "float32", "--json").out)
    assert [one["text"] for one in found] == texts
    assert [one["label"] for one in found] == library.load_run(finished).predict(texts)
    for one in found:
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)
    shown = weft(capsys, "predict", finished, *texts, "--precision", "float32").out.splitlines()[-len(texts) :]
    assert [line.split("  ")[0] for line in shown] == [one["label"] for one in found]


def test_eval_reads_a_csv_with_an_index(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = [f"{i},{text},{label}" for i, (text, label) in enumerate(rows(finished))]
    (tmp_path / "rows.csv").write_text("\n".join([",text,label", *lines]) + "\n")
    got = weft(capsys, "eval", finished, "--data", tmp_path / "rows.csv", "--json")
    assert got.code == 0
    assert json.loads(got.out)[0]["n"] == len(lines)
    assert "column 1 has no name" in got.err


def given_on_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data), encoding="ascii"))  # whatever the terminal's encoding is


@pytest.mark.parametrize(
    "data",
    [
        "w1 w2\n\nw40 é w41\n".encode(),
        "\ufeffw1 w2\r\nw40 é w41".encode(),
        "w1 w2\nw40 é w41\n".encode("utf-16"),  # what PowerShell writes
    ],
)
def test_predict_reads_lines_from_stdin(finished: Path, data: bytes, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    given_on_stdin(monkeypatch, data)
    found = json.loads(weft(capsys, "predict", finished, "--json").out)
    assert [one["text"] for one in found] == ["w1 w2", "w40 é w41"]


def test_texts_in_another_encoding_are_one_sentence(finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    given_on_stdin(monkeypatch, "fine\ncafé\n".encode("latin-1"))
    refused(weft(capsys, "predict", finished), "the standard input is not UTF-8 text (line 2, byte 8)")
    refused(weft(capsys, "predict", finished, os.fsdecode("café".encode("latin-1"))), '"caf\\udce9" is not UTF-8')


def test_predict_without_texts_at_a_terminal_says_how_to_give_them(
    finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    got = weft(capsys, "predict", finished)
    assert (got.code, got.out) == (2, "")
    assert "stdin" in got.err


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run on pairs."""
    where = tmp_path_factory.mktemp("pairs")
    data = tiny.rows(60, 3, pairs=True)
    arguments = command_line.small(where, "--quiet")
    with open(where / "rows.csv", "w", newline="") as f:
        body = zip(data.texts or (), data.pairs or (), (f"class {y}" for y in data.labels), strict=True)
        csv.writer(f).writerows([("premise", "hypothesis", "label"), *body])
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    assert left.value.code == 0
    (folder,) = (where / "runs").iterdir()
    return folder


def test_a_model_of_pairs_is_asked_for_pairs_on_the_command_line(
    paired: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = library.load_run(paired).predict([("w1 w2", "w3"), ("w40", "w41 w42")])
    more = ("--precision", "float32", "--json")
    found = json.loads(weft(capsys, "predict", paired, "w1 w2", "w3", "w40", "w41 w42", *more).out)
    assert [(one["text"], one["pair"], one["label"]) for one in found] == [
        ("w1 w2", "w3", expected[0]),
        ("w40", "w41 w42", expected[1]),
    ]
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"w1 w2\tw3\n\nw40\tw41 w42\n")))
    assert json.loads(weft(capsys, "predict", paired, *more).out) == found
    shown = weft(capsys, "predict", paired, "w1 w2", "w3", "--precision", "float32").out.splitlines()
    assert shown[0].split() == ["label", "probability", "text", "pair"]
    command_line.refused(
        weft(capsys, "predict", paired, "w1 w2 w3"), "pairs of texts", "an odd number of texts was given (1)", "in turn"
    )
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"w1 w2\tw3\nw40 w41 w42\n")))
    command_line.refused(weft(capsys, "predict", paired), "line 2 is no pair", "a tab")


def test_the_farewell_of_a_run_on_pairs_proposes_a_command_that_works(paired: Path, capsys: Capture) -> None:
    from rich.console import Console

    from weft.cli import plan
    from weft.runs.shelf import Shelf

    out = Console(file=StringIO(), width=500)
    plan.farewell(out, library.load_run(paired), Shelf())
    (line,) = [line for line in out.file.getvalue().splitlines() if line.startswith("Try it: ")]  # type: ignore[attr-defined]
    program, *arguments = shlex.split(line.removeprefix("Try it: "))
    assert program == "weft"
    assert weft(capsys, *arguments).code == 0


def test_eval_gives_the_accuracy_of_the_predictions(finished: Path, capsys: Capture) -> None:
    data = finished.parent.parent / "rows.csv"
    found = json.loads(weft(capsys, "eval", finished, "--data", data, "--precision", "float32", "--json").out)
    predicted = library.load_run(finished).predict([text for text, _ in rows(finished)])
    right = [a == b for a, (_, b) in zip(predicted, rows(finished), strict=True)]
    accuracy = next(e for e in found if e["metric"] == "accuracy")
    assert accuracy["value"] == pytest.approx(sum(right) / len(right), abs=1e-12)
    assert accuracy["n"] == len(right)
    shown = weft(capsys, "eval", finished, "--data", data, "--precision", "float32").out
    assert f"{accuracy['value']:.4f}" in shown
    assert f"{len(right)} rows of rows.csv (train)" in shown


def test_eval_on_labels_that_the_model_does_not_know_is_refused(finished: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("text,label\n" + "w1 w2,left\nw3 w4,right\n" * 5)
    got = weft(capsys, "eval", finished, "--data", tmp_path / "other.csv")
    assert got.code == 2
    assert '"left"' in got.err.splitlines()[-1]


def test_an_exported_adapter_predicts_like_its_run(finished: Path, capsys: Capture, tmp_path: Path) -> None:
    got = weft(capsys, "export", finished, "--to", tmp_path / "mine")
    assert got.code == 0
    assert "PeftModel.from_pretrained" in got.out
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    line = ("w1 w2 w3", "w50", "--precision", "float32", "--json")
    assert weft(capsys, "predict", tmp_path / "mine", *line).out == weft(capsys, "predict", finished, *line).out


@pytest.mark.parametrize(
    ("more", "fragment"), [(["--view", "personal"], "personal"), (["--client", "c0"], "one model for all clients")]
)
def test_export_of_what_the_method_does_not_have_is_refused(
    more: list[str], fragment: str, finished: Path, capsys: Capture, tmp_path: Path
) -> None:
    got = weft(capsys, "export", finished, "--to", tmp_path / "mine", *more)
    assert (got.code, got.out) == (2, "")
    assert fragment in got.err
    assert not (tmp_path / "mine").exists()


def test_export_writes_over_nothing(finished: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    got = weft(capsys, "export", finished, "--to", tmp_path / "mine")
    assert got.code == 2
    assert "mine exists" in got.err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", [["eval", "--data", "pydocs"], ["predict", "a text"], ["export", "--to", "x"]])
def test_a_folder_without_a_run_is_named(command: list[str], capsys: Capture, tmp_path: Path) -> None:
    name, *more = command
    got = weft(capsys, name, tmp_path / "none", *more)
    assert (got.code, got.out) == (2, "")
    assert str(tmp_path / "none") in got.err
