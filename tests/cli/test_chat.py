"""Talking to a finished run: at a terminal, through a pipe, with a client's own model; and texts by weft predict."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

import language_exports as exports
import tiny
import weft as library
from command_line import Outcome, refused, weft
from language_exports import FEDIT, HERE
from weft.cli import main
from weft.export import export, export_run, load
from weft.export.conversation import Conversation

Capture = pytest.CaptureFixture[str]
Chat = Callable[..., Outcome]
SHORT: Any = {"new_tokens": 5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs: one of a model for all, one of clients' own models."""
    where = tmp_path_factory.mktemp("chat")
    base, data = exports.chatty(where / "base"), exports.rows_file(where / "rows.jsonl")
    usual = ["--task", "generation", "--model", base, "--data", data, "--partition", "iid", "--clients", 2, "--rounds", 1]
    usual += ["--samples", 1, "--new-tokens", 5, "--max-length", 40, "--device", "cpu", "--precision", "float32", "--quiet"]
    for method in ("fedit", "fedsa-lora"):
        more = [
            "--method",
            method,
            "--set",
            "method.lr=0.05",
            "--set",
            "method.rank=2",
            "--runs",
            where / "runs",
            "--name",
            method,
        ]
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in ("run", *usual, *more)])
        assert left.value.code == 0
    return {name: where / "runs" / name for name in ("fedit", "fedsa-lora")}


@pytest.fixture
def chat(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """``weft chat`` with these lines on its standard input, which is no terminal."""

    def talk(folder: Path, lines: str | bytes, *more: object) -> Outcome:
        data = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data), encoding="ascii"))
        place = () if "--client" in more else ("--precision", "float32")
        return weft(capsys, "chat", folder, "--new-tokens", 5, *place, *more)

    return talk


def test_a_conversation_through_a_pipe_is_that_of_the_library(runs: dict[str, Path], chat: Chat) -> None:
    got = chat(runs["fedit"], "w1 w2\n\nw3\n/reset\nw3\n/exit\nw4\n")
    model = load(runs["fedit"], **HERE)
    (first,) = model.generate(["w1 w2"], **SHORT)
    (second,) = model.generate([[("user", "w1 w2"), ("assistant", first), ("user", "w3")]], **SHORT)
    (alone,) = model.generate(["w3"], **SHORT)
    assert second != alone
    assert (got.code, got.out.splitlines()) == (0, [first, second, alone])
    assert library.load_run(runs["fedit"]).generate(["w3"], **SHORT) == load(runs["fedit"]).generate(["w3"], **SHORT)


def test_system_words_and_temperature_count(runs: dict[str, Path], chat: Chat) -> None:
    model = load(runs["fedit"], **HERE)
    (told,) = model.generate([[("system", "w50 w51"), ("user", "w1")]], **SHORT)
    assert chat(runs["fedit"], "w1\n/reset\nw1\n", "--system", "w50 w51").out.splitlines() == [told, told]
    drawn = chat(runs["fedit"], "w1\n/reset\nw1\n", "--temperature", "3").out.splitlines()
    assert drawn[0] != drawn[1]


def test_a_clients_own_model_answers(runs: dict[str, Path], chat: Chat, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in runs["fedsa-lora"].rglob("*") if p.is_file()}
    got = chat(runs["fedsa-lora"], "w1 w2\nw3\n", "--client", "c1")
    export_run(runs["fedsa-lora"], tmp_path / "c1", client="c1")
    talk = Conversation(load(tmp_path / "c1", **HERE), **SHORT)
    assert got.out.splitlines() == [talk.answer("w1 w2", str), talk.answer("w3", str)]
    assert got.out != chat(runs["fedsa-lora"], "w1 w2\nw3\n").out
    assert {p: p.read_bytes() for p in runs["fedsa-lora"].rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--client", "c1"], "fedit has one model for all clients: leave the client out."),
        (["--client", "c9"], 'this run has no client "c9"'),
        (["--client", "c1", "--base", "x"], "leave --base, --device and --precision out."),
    ],
)
def test_who_has_no_model_of_his_own_is_refused(more: list[str], words: str, runs: dict[str, Path], chat: Chat) -> None:
    refused(chat(runs["fedit"], "w1\n", *more), words)


def test_what_can_not_be_asked_is_one_sentence(runs: dict[str, Path], chat: Chat) -> None:
    refused(chat(runs["fedit"] / "adapter", "w1\n", "--client", "c1"), "is not the folder of a run")
    refused(chat(runs["fedit"], "café\n".encode("latin-1")), "line 1 of the standard input is not UTF-8")


def test_a_slip_is_told_and_the_next_line_is_asked(runs: dict[str, Path], chat: Chat) -> None:
    plain, slipped = chat(runs["fedit"], "w1\n"), chat(runs["fedit"], "/forget\n/help\nw1\n")
    assert (slipped.code, slipped.out) == (0, plain.out)
    assert 'there is no command "/forget": /reset forgets' in slipped.err
    assert slipped.err.count("/exit leaves") == 2


def test_ctrl_c_stops_an_answer_and_the_next_one_leaves(
    runs: dict[str, Path], chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def answer(self: Conversation, text: str, show: Callable[[str], object]) -> str:
        heard.append(text)
        if text != "w2":
            raise KeyboardInterrupt
        show("fine")
        return "fine"

    monkeypatch.setattr(Conversation, "answer", answer)
    got = chat(runs["fedit"], "w1\nw2\nw3\nw4\nw5\n")
    assert (got.code, got.err.splitlines()[-1]) == (130, "Stopped.")
    assert heard == ["w1", "w2", "w3", "w4"]
    assert got.out.split() == ["fine"]


def test_at_a_terminal_there_are_signs_and_slips_are_told(
    runs: dict[str, Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["/forget", "w1 w2"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def asked(sign: str) -> str:
        assert sign == "> "
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", asked)
    got = weft(capsys, "chat", runs["fedit"], "--new-tokens", 5, "--precision", "float32")
    (said,) = load(runs["fedit"], **HERE).generate(["w1 w2"], **SHORT)
    assert got.code == 0
    assert "/exit leaves" in got.out
    assert said in got.out.splitlines()
    assert 'no command "/forget"' in got.err


# texts by weft predict ------------------------------------------------------------------------------------------------


def test_predict_prints_what_is_written(runs: dict[str, Path], capsys: Capture) -> None:
    asked = ["w1 w2", "w9"]
    ours = load(runs["fedit"], **HERE).generate(asked, new_tokens=3)
    place = ("--precision", "float32", "--new-tokens", 3)
    found = json.loads(weft(capsys, "predict", runs["fedit"], *asked, *place, "--json").out)
    assert found == [{"prompt": p, "text": t} for p, t in zip(asked, ours, strict=True)]
    shown = weft(capsys, "predict", runs["fedit"], *asked, *place)
    assert shown.out.splitlines() == [asked[0], ours[0], "", asked[1], ours[1]]
    refused(weft(capsys, "predict", runs["fedit"], "w1", "--types", "X"), "leave --types out")
    refused(weft(capsys, "predict", runs["fedit"], "w1", "--beams", "2", "--temperature", "1"), "set beams = 1")


def test_eval_says_which_rows_each_number_is_over(runs: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    """Texts are written for as many rows as the run's own scores had, one of these."""
    data = exports.rows_file(tmp_path / "more.jsonl", 7)
    asked = ("eval", runs["fedit"], "--data", data, "--precision", "float32")
    over = {e["metric"]: e["n"] for e in json.loads(weft(capsys, *asked, "--json").out)}
    assert (over["rouge_l"], over["loss"]) == (1, 7)
    shown = weft(capsys, *asked).out.splitlines()
    assert [line for line in shown if line.split()[-1:] == ["rows"]]
    assert {line.split()[0]: line.split()[-1] for line in shown if line.startswith(("rouge", "loss"))} == {
        "rouge": "1",
        "loss": "7",
    }
    assert "7 rows of" in shown[-1]
    assert "texts were written for 1 of them" in shown[-1]


def test_how_to_write_is_no_question_to_a_classifier(tmp_path: Path, chat: Chat, capsys: Capture) -> None:
    run = tiny.federation(FEDIT, "bert", precision="float32")
    export(run.method, run.server, tmp_path, {})
    refused(weft(capsys, "predict", tmp_path, "w1", "--new-tokens", "3"), "writes no text, which alone --new-tokens is for")
    refused(chat(tmp_path, "w1\n"), "this model writes no text, so there is nothing to talk about: use weft predict.")


def test_what_a_model_writes_gives_no_orders_to_a_terminal() -> None:
    from weft.report.console import visible

    assert visible("a\x1b[2Jb\n\tü\x07") == "a\N{REPLACEMENT CHARACTER}[2Jb\n\tü\N{REPLACEMENT CHARACTER}"


def test_export_merged_says_what_it_made(runs: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    got = weft(capsys, "export", runs["fedit"], "--to", tmp_path / "out", "--merged", "--precision", "bfloat16")
    assert got.code == 0
    assert "loads with transformers alone" in got.out
    assert "Its weights are bfloat16" in got.out
