"""Templates: by name, as text, as a file, and the tokenizer's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.backbones import prompts
from weft.backbones.prompts import Chat, Piece, spelt_out, template
from weft.errors import UserError

PLAIN: Any = SimpleNamespace(chat_template=None)


def talker(said: Any) -> Any:
    """A tokenizer whose chat template is this function of messages and whether an answer is asked for."""
    return SimpleNamespace(
        chat_template="a program", apply_chat_template=lambda m, tokenize, add_generation_prompt: said(m, add_generation_prompt)
    )


def gemma(messages: list[dict[str, str]], ask: bool) -> str:
    turns = "".join(f"<start>{m['role']}\n{m['content']}<end>\n" for m in messages)
    return turns + ("<start>assistant\n" if ask else "")


def text(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


def test_the_template_of_alpaca_is_that_of_its_authors() -> None:
    found = template("alpaca", PLAIN, False)
    assert text(found.prompt("Add.", "1 2", ())) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    assert text(found.prompt("Add.", "", ())) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert found.ending("</s>") == "</s>"


def test_a_backbone_has_the_template_that_suits_it() -> None:
    assert template("", PLAIN, reads_apart=True) is prompts.PLAIN
    assert template("", PLAIN, reads_apart=False) is prompts.ALPACA
    assert isinstance(template("", talker(gemma), reads_apart=False), Chat)
    assert text(template("", PLAIN, True).prompt("Add.", "1 2", ())) == "Add.\n\n1 2\n\n"


def test_a_text_or_a_file_has_its_places_and_what_follows_the_answer(tmp_path: Path) -> None:
    written = "Q: {instruction}\n\nC: {input}\n\nA: {output}###"
    (tmp_path / "mine.txt").write_text(written + "\n", encoding="utf-8")
    assert spelt_out(str(tmp_path / "mine.txt")) == written
    for name in (written, str(tmp_path / "mine.txt")):
        found = template(name, PLAIN, False)
        assert text(found.prompt("a {input}", "b {instruction}", ())) == "Q: a {input}\n\nC: b {instruction}\n\nA: "
        assert text(found.prompt("a", "", ())) == "Q: a\n\nA: "
        assert found.ending("</s>") == "###"
    joined = template("{instruction} {input}: {output}\n", PLAIN, False)
    assert text(joined.prompt("a", "", ())) == "a : "
    assert joined.ending("</s>") == "</s>", "the end of a last line ends no answer"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"Q: {instruction}", "no place for the answer"),
        (b"{instruction} {output} {output}", "more than one place"),
        (b"Q: {output} {instruction}", "no place for the instruction before"),
        (
            b"Q: {instruction} {foo} {output}",
            r"has a place \{foo\} that nothing fills: its places are \{instruction\}",
        ),
        (b"\xff{output}", r"can't be read as UTF-8 \(byte 1 is none\)"),
    ],
)
def test_what_is_no_template_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        spelt_out(str(tmp_path / "t.txt"))


def test_names_that_stand_for_nothing_are_said() -> None:
    with pytest.raises(UserError, match='there is no template "alpace"'):
        template("alpace", PLAIN, False)
    with pytest.raises(UserError, match="has no chat template: use --template alpaca"):
        template("chat", PLAIN, False)


def test_an_answer_ends_as_the_template_ends_a_turn() -> None:
    chat = Chat(talker(gemma))
    assert chat.ending("<end>") == "<end>"
    assert chat.ending("<eos>") == "<end>"
    assert Chat(talker(lambda m, ask: gemma(m, ask) + ("" if ask else "<eos>trailing"))).ending("<eos>") == "<end>\n<eos>"
    assert Chat(talker(lambda m, ask: m[-1]["content"])).ending("<eos>") == "<eos>"
    assert Chat(talker(lambda m, ask: "".join(x["content"] for x in m))).ending("<eos>") == "<eos>"


def test_earlier_answers_are_pieces_of_their_own_and_nothing_is_lost() -> None:
    chat = Chat(talker(gemma))
    history = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    found = chat.prompt("e", "f", history)
    assert [piece.text for piece in found if piece.answer] == ["b<end>", "d<end>"]
    assert text(found) == gemma([{"role": r, "content": t} for r, t in [*history, ("user", "e\n\nf")]], True)


def test_turns_that_a_template_refuses_are_a_sentence() -> None:
    def refuses(messages: Any, ask: bool) -> str:
        raise ValueError("roles must\nalternate")

    with pytest.raises(UserError, match=r"does not take these turns \(roles must alternate\): use --template alpaca"):
        Chat(talker(refuses)).prompt("a", "", ())
