"""Tables of rows with two answers: where their sequences lie, and the log-probabilities of the frozen model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny import backbone
from weft.backbones.preference_table import Preferences, preferences
from weft.backbones.reply_table import replies
from weft.data.rows import Rows
from weft.testing.models import PAIRED

ROWS = Rows(
    texts=["w1 w2", "w3", "w4 w5 w6 w7"],
    answers=["w8", "w9 w10 w11", "w12 w13"],
    rejected=["w14 w15", "w16", "w17 w18"],
    ids=np.array([7, 5, 6]),
)


def table(kind: str = "llama", rows: Rows = ROWS, longest: int = 48) -> Preferences:
    b = backbone(kind, classes=1, task="generation", checkpoint="pair" if kind in PAIRED else "lm")
    return preferences(b, rows, longest)


def words(t: Preferences, ids: Tensor) -> str:
    return t.backbone.tokenizer.decode(ids, skip_special_tokens=True)


def log_probabilities(t: Preferences, answers: Any, i: int) -> float:
    """By the model itself, of a row that lies alone: log π of the answer, token by token."""
    b = t.backbone
    alone = replies(b, Rows(texts=[ROWS.texts[i]], answers=[answers[i]]), 48)  # type: ignore[index]
    labels, _ = alone.targets(np.array([0]))
    inputs = alone.collate(np.array([0]))
    with torch.no_grad():
        z = b.model(**inputs).logits[0].log_softmax(-1)
    y = labels[0]
    z = z if b.encoder_decoder else z[-len(y) - 1 : -1]
    return float(sum(z[place, token] for place, token in enumerate(y.tolist())))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_two_sequences_of_a_row_lie_next_to_each_other(kind: str) -> None:
    t = table(kind)
    index = np.array([2, -1, 0])
    labels, mask = t.targets(index)
    said = [words(t, one[valid]) for one, valid in zip(labels, mask, strict=True)]
    assert said == ["w12 w13", "w17 w18", "", "", "w8", "w14 w15"]
    inputs = t.collate(index)
    assert {len(value) for value in inputs.values()} == {6}
    assert t.places(index).sum(1).tolist() == mask.sum(1).tolist() == [3, 3, 0, 0, 2, 3]  # with what ends them
    assert (len(t), t.row_ids.tolist(), t.wanted, t.asked) == (
        3,
        [7, 5, 6],
        ("w8", "w9 w10 w11", "w12 w13"),
        tuple(ROWS.texts or ()),
    )
    longest = [max(t.sequences.lengths[2 * i], t.sequences.lengths[2 * i + 1]) for i in range(3)]
    assert t.lengths.tolist() == [2 * own for own in longest]
    for mine, both in ((t.widths, t.sequences.widths), (t.begins, t.sequences.begins)):
        assert mine.tolist() == both[[0, 2, 4]].tolist(), "of the sequence with the chosen answer"
    assert "w3" in words(t, t.prompts(np.array([1]))["input_ids"][0])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "t5", "bart"])
def test_beside_a_row_are_the_log_probabilities_of_its_answers(kind: str) -> None:
    t = table(kind)
    found = t.beside(np.array([[1, 0], [-1, 2]]))
    assert found.dtype == torch.float64
    assert found[1, 0].tolist() == [0, 0]
    for i, own in ((1, found[0, 0]), (0, found[0, 1]), (2, found[1, 1])):
        wanted = [log_probabilities(t, answers, i) for answers in (ROWS.answers, ROWS.rejected)]
        np.testing.assert_allclose(own.numpy(), wanted, rtol=1e-6 if kind == "gemma2" else 1e-12)


def test_they_do_not_depend_on_who_asks_when_and_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, alone = table(), table(), table(rows=ROWS.take(np.array([2])))
    read: list[int] = []
    monkeypatch.setattr(Preferences, "_read", lambda t, i, old=Preferences._read: read.append(i) or old(t, i))  # type: ignore[func-returns-value]
    whole = first.beside(np.array([[0, 1, 2]]))
    assert torch.equal(second.beside(np.array([[2], [0]]))[:, 0], whole[0, [2, 0]])
    assert torch.equal(second.beside(np.array([[1, 0]]))[0], whole[0, [1, 0]])
    assert torch.equal(alone.beside(np.array([[0]]))[0, 0], whole[0, 2]), "a site has the numbers of a simulation"
    assert read == [0, 1, 2, 0, 2, 1, 0]


def test_both_answers_follow_the_prompt_that_leaves_room_for_the_longer_one() -> None:
    rows = Rows(
        texts=[" ".join(f"w{i}" for i in range(30))],
        answers=["w40"],
        rejected=["w41 w42 w43 w44 w45 w46"],
        history=[(("user", "w50"), ("assistant", "w51"))],
    )
    b = backbone("llama", classes=1, task="generation", checkpoint="lm")
    words_of_chat = (
        "{% for m in messages %}{{ m['content'] + ' ' }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    before, b.tokenizer.chat_template = b.tokenizer.chat_template, words_of_chat
    try:
        whole, cut = preferences(b, rows, 60), preferences(b, rows, 24)
    finally:
        b.tokenizer.chat_template = before
    for t, shortened in ((whole, False), (cut, True)):
        one, other = (t.sequences.ids[a:z] for a, z in zip(t.sequences.offsets[:-1], t.sequences.offsets[1:], strict=True))
        begins = t.sequences.begins.tolist()
        assert begins[0] == begins[1]
        assert (one[: begins[0]] == other[: begins[0]]).all()
        assert (begins[0] < 20) == shortened
        assert max(len(one), len(other)) <= (24 if shortened else 60)
        labels, mask = t.targets(np.array([0]))
        assert [words(t, y[m]) for y, m in zip(labels, mask, strict=True)] == ["w40", "w41 w42 w43 w44 w45 w46"]
    assert "w51" in words(whole, torch.from_numpy(whole.sequences.ids[: whole.sequences.begins[0]]))
