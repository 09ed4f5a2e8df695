"""Turns of a conversation: pieces make up the answer, what was stopped counts as far as it was shown."""

from __future__ import annotations

from pathlib import Path

import pytest

import language_exports as exports
from language_exports import HERE
from weft.errors import UserError
from weft.export import Predictor, load
from weft.export.conversation import Conversation, Pieces


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    where = tmp_path_factory.mktemp("talk")
    exports.finished(where / "m", template="chat", base=exports.chatty(where / "base"))
    return load(where / "m", **HERE)


def test_the_pieces_make_up_the_answer(model: Predictor) -> None:
    talk = Conversation(model, new_tokens=9)
    pieces: list[str] = []
    said = talk.answer("w1 w2", pieces.append)
    assert len(pieces) > 2
    assert "".join(pieces) == said
    assert talk.turns == [("user", "w1 w2"), ("assistant", said)]


def test_what_was_shown_of_a_stopped_answer_counts_as_said(model: Predictor) -> None:
    talk = Conversation(model, new_tokens=9)
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.answer("w1 w2", show)
    assert talk.turns == [("user", "w1 w2"), ("assistant", "".join(shown))]
    assert talk.answer("w3", str) == model.generate([[*talk.turns[:2], ("user", "w3")]], new_tokens=9)[0]
    talk.reset()
    assert talk.turns == []


def test_without_a_chat_template_each_line_stands_alone(tmp_path: Path) -> None:
    exports.finished(tmp_path / "m", "t5")
    model = load(tmp_path / "m", **HERE)
    talk = Conversation(model, new_tokens=9)
    assert not model.converses
    assert [talk.answer(line, str) for line in ("w1 w2", "w3")] == model.generate(["w1 w2", "w3"], new_tokens=9)
    with pytest.raises(UserError, match="no place for a system's words"):
        Conversation(model, "be brief")


def test_blanks_around_an_answer_are_not_shown(model: Predictor) -> None:
    shown: list[str] = []
    pieces = Pieces(model.backbone.tokenizer, shown.append)
    for text in ("\n ", " a", " ", "b\n", "\n"):
        pieces.on_finalized_text(text)
    assert (shown, pieces.shown) == (["a", " b"], "a b")
