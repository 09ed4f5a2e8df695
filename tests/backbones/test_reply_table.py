"""Prompts and answers as tokens: what is learnt, what predicts it, and what is cut where rows are too long."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tiny import backbone
from weft.backbones.backbone import Backbone
from weft.backbones.reply_table import Pairs, Replies, replies
from weft.data.rows import Rows
from weft.errors import UserError
from weft.testing.models import PAIRED

FRAME = "w90 {instruction}\n\nw91 {input}\n\nw92 {output}"
CHATML = (
    "{% for m in messages %}{{ '<u>' if m['role'] == 'user' else '<a>' }}{{ m['content'] }}<stop>\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def model(kind: str = "llama", template: str = FRAME) -> Backbone:
    b = backbone(kind, classes=1, task="generation", checkpoint="pair" if kind in PAIRED else "lm")
    return replace(b, options=replace(b.options, template=template))


def chatting(end: str) -> Backbone:
    """One whose turns end with a token that is, or is not, the one that ends its texts."""
    b = model(template="chat")
    tokenizer: Any = copy.deepcopy(b.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<u>", "<a>", "<stop>"]})
    tokenizer.chat_template = CHATML
    if end == "<stop>":
        tokenizer.eos_token = "<stop>"
    return replace(b, tokenizer=tokenizer)


def row(b: Backbone, longest: int = 48, **columns: Any) -> tuple[list[str], list[str], Replies]:
    """The tokens of a single row, and those of them that are learnt."""
    made = {"texts": [""], "answers": [""]} | {name: [value] for name, value in columns.items()}
    table = replies(b, Rows(**made), longest)
    labels, mask = table.targets(np.array([0]))
    words = b.tokenizer.convert_ids_to_tokens
    return words(table.ids.tolist()), words(labels[mask].tolist()), table


def test_a_row_is_prompt_answer_and_end_of_which_the_last_two_are_learnt() -> None:
    ids, learnt, table = row(model(), texts="w1 w2", pairs="w3", answers="w4 w5")
    assert ids == ["<s>", "w90", "w1", "w2", "w91", "w3", "w92", "w4", "w5", "</s>"]
    assert learnt == ["w4", "w5", "</s>"]
    assert table.prompts(np.array([0]))["input_ids"].tolist() == [table.ids[:7].tolist()]
    assert (table.wanted, table.asked, table.notes) == (("w4 w5",), ("w1 w2\n\nw3",), ())
    without = row(model(), texts="w1", answers="w4")
    assert without[0] == ["<s>", "w90", "w1", "w92", "w4", "</s>"]


def test_a_token_is_predicted_from_its_left_neighbour() -> None:
    table = replies(model(), Rows(texts=["w1", "w2 w3", "w4"], answers=["w5 w6", "w7", ""]), 48)
    index = np.array([1, -1, 0, 2])
    labels, mask = table.targets(index)
    places, shown = table.places(index), table.collate(index)["input_ids"]
    assert places.shape == shown.shape
    assert places.sum(1).tolist() == mask.sum(1).tolist() == [2, 0, 3, 1]
    assert torch.equal(shown[:, 1:][places[:, :-1]], labels[mask])


def test_prompts_stand_at_the_right_so_that_an_answer_follows_at_once() -> None:
    table = replies(model(), Rows(texts=["w1", "w2 w3", "w4"], answers=["w5 w6", "w7", ""]), 48)
    asked = table.prompts(np.array([0, 1, -1]))
    words = [model().tokenizer.convert_ids_to_tokens(ids[m.bool()]) for ids, m in zip(*asked.values(), strict=True)]
    assert words[:2] == [["<s>", "w90", "w1", "w92"], ["<s>", "w90", "w2", "w3", "w92"]]
    assert asked["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_an_encoder_reads_the_prompt_and_a_decoder_writes_the_answer() -> None:
    b = model("t5", "plain")
    ids, learnt, table = row(b, texts="w1", pairs="w2", answers="w3 w4")
    assert (ids, learnt) == (["w1", "w2", "</s>"], ["w3", "w4", "</s>"])
    assert isinstance(table, Pairs)
    both = replies(b, Rows(texts=["w1", "w2 w3"], answers=["w5 w6", "w7"]), 48)
    index = np.array([1, -1, 0])
    inputs, (labels, mask) = both.collate(index), both.targets(index)
    assert torch.equal(both.places(index), mask)
    assert both.lengths.tolist() == [2 + 3, 3 + 2], "of what is read and what is written, each with what ends it"
    start = b.model.config.decoder_start_token_id
    for i, (before, own, valid) in enumerate(zip(inputs["decoder_input_ids"], labels, mask, strict=True)):
        n = int(valid.sum())
        assert before[0] == start
        assert before[1:n].tolist() == own[: max(n - 1, 0)].tolist(), i


# what is cut --------------------------------------------------------------------------------------------------------------


def words(first: int, n: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + n))


def test_a_prompt_is_shortened_at_its_end_before_its_answer_and_its_frame_are() -> None:
    ids, learnt, table = row(model(), 12, texts=words(1, 30), answers="w60 w61")
    assert (ids[:3], ids[-4:]) == (["<s>", "w90", "w1"], ["w92", "w60", "w61", "</s>"])
    assert ids[2:-4] == words(1, len(ids) - 6).split()
    assert 10 <= len(ids) <= 12
    assert learnt == ["w60", "w61", "</s>"]
    assert table.notes == ("1 of 1 prompt are shortened to --max-length 12.",)


def test_of_an_instruction_and_its_input_the_longer_one_is_shortened() -> None:
    ids, _, _ = row(model(), 16, texts="w1 w2", pairs=words(3, 40), answers="w60")
    assert ids[:4] == ["<s>", "w90", "w1", "w2"]
    assert ids[4:7] == ["w91", "w3", "w4"]
    assert ids[-3:] == ["w92", "w60", "</s>"]


def test_an_answer_may_take_all_but_a_fourth_of_a_row_and_what_goes_beyond_it_is_cut_without_an_end() -> None:
    rows = Rows(texts=["w1", "w1", "w1"], answers=["w5", "w6", words(10, 40)])
    table = replies(model(), rows, 20)
    labels, mask = table.targets(np.array([2]))
    assert model().tokenizer.decode(labels[mask]) == words(10, 15)
    assert table.notes == ("1 of 3 answers are cut to --max-length 20, without an end.",)
    assert max(table.widths) <= 20


def test_answers_of_which_half_do_not_fit_are_cut_and_not_refused() -> None:
    table = replies(model(), Rows(texts=["w1"] * 2, answers=["w5", words(1, 40)]), 20)
    assert table.notes == ("1 of 2 answers are cut to --max-length 20, without an end.",)


def test_answers_that_mostly_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="2 of 3 answers are longer than --max-length 20 leaves room for"):
        replies(model(), Rows(texts=["w1"] * 3, answers=["w5", words(1, 40), words(1, 40)]), 20)


@pytest.mark.parametrize("longest", [2, 3, 4, 5])
def test_the_shortest_rows_hold_a_token_of_the_prompt_and_their_answer(longest: int) -> None:
    ids, learnt, _ = row(model(), longest, texts=words(1, 9), answers="")
    assert len(ids) <= longest
    assert learnt == ["</s>"]
    assert ids[-2:] == ["w92", "</s>"], "the end of a template says where the answer begins"


def test_a_row_of_one_token_predicts_nothing_and_is_refused() -> None:
    with pytest.raises(UserError, match="--max-length 1 leaves no token to predict"):
        row(model(), 1, answers=words(1, 9))


def test_running_text_is_learnt_but_for_the_token_that_starts_it() -> None:
    ids, learnt, table = row(model(), answers="w1 w2")
    assert (ids, learnt) == (["<s>", "w1", "w2", "</s>"], ["w1", "w2", "</s>"])
    assert table.begins.tolist() == [1]
    own = row(model("gpt2"), answers="w1 w2")
    assert own[1] == ["w2", "</s>"]  # whose texts start with no token of its own
    assert own[2].prompts(np.array([0]))["input_ids"].tolist() == [own[2].ids[:1].tolist()]  # nothing follows nothing
    assert row(model(), 4, answers=words(1, 9))[0] == ["<s>", "w1", "w2", "w3"]
    assert row(model("gpt2"), answers="")[0] == ["</s>", "</s>"]


# conversations ------------------------------------------------------------------------------------------------------------

HISTORY = [("user", "w1"), ("assistant", "w2"), ("user", "w3"), ("assistant", "w4 w5")]


@pytest.mark.parametrize("end", ["<stop>", "</s>"])
def test_every_answer_of_a_conversation_is_learnt_with_the_token_that_ends_its_turn(end: str) -> None:
    b = chatting(end)
    ids, learnt, _ = row(b, history=HISTORY, texts="w6", answers="w7")
    last = ["<stop>"] if end == "<stop>" else ["<stop>", "</s>"]
    talk = [
        "<u>",
        "w1",
        "<stop>",
        "<a>",
        "w2",
        "<stop>",
        "<u>",
        "w3",
        "<stop>",
        "<a>",
        "w4",
        "w5",
        "<stop>",
        "<u>",
        "w6",
        "<stop>",
    ]
    assert ids == [*talk, "<a>", "w7", *last]
    assert learnt == ["w2", "<stop>", "w4", "w5", "<stop>", "w7", *last]


def test_what_a_template_puts_behind_the_end_of_an_answer_is_not_learnt() -> None:
    b = chatting("<stop>")
    b.tokenizer.chat_template = CHATML.replace("<stop>", "<stop> w89")
    ids, learnt, _ = row(b, history=HISTORY[:2], texts="w6", answers="w7")
    assert " ".join(ids) == "<u> w1 <stop> w89 <a> w2 <stop> w89 <u> w6 <stop> w89 <a> w7 <stop>"
    assert learnt == ["w2", "<stop>", "w7", "<stop>"]


def test_the_oldest_turns_go_first() -> None:
    ids, learnt, table = row(chatting("<stop>"), 14, history=HISTORY, texts="w6", answers="w7")
    assert ids == ["<u>", "w3", "<stop>", "<a>", "w4", "w5", "<stop>", "<u>", "w6", "<stop>", "<a>", "w7", "<stop>"]
    assert learnt == ["w4", "w5", "<stop>", "w7", "<stop>"]
    assert table.notes == ("1 of 1 prompt are shortened to --max-length 14.",)
    system = [("system", "w8"), *HISTORY]
    assert row(chatting("<stop>"), 14, history=system, texts="w6", answers="w7")[0][:3] == ["<a>", "w8", "<stop>"]


def test_earlier_answers_that_a_template_shows_in_another_form_are_not_learnt() -> None:
    b = chatting("<stop>")
    b.tokenizer.chat_template = (
        "{% for m in messages %}{{ '<u>' if m['role'] == 'user' else '<a>w9 ' if loop.last else '<a>' }}{{ m['content'] }}<stop>"
        "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    _, learnt, _ = row(b, history=HISTORY[:2], texts="w6", answers="w7")
    assert learnt == ["w7", "<stop>"]


def test_only_a_chat_template_has_a_place_for_earlier_turns() -> None:
    with pytest.raises(UserError, match="which only --template chat has a place for"):
        row(model(), history=HISTORY, texts="w6", answers="w7")


# languages ----------------------------------------------------------------------------------------------------------------


def test_what_a_translator_marks_is_said_and_what_it_can_not_mark_is_refused() -> None:
    b = model("mbart", "plain")
    tokenizer: Any = copy.deepcopy(b.tokenizer)
    tokenizer.src_lang, tokenizer.tgt_lang = "en_XX", "ro_RO"
    marked = replace(b, tokenizer=tokenizer)
    assert (
        row(marked, texts="w1", answers="w2")[2].notes[0].startswith("all rows are marked as en_XX, and what is to be written as")
    )
    tokenizer.tgt_lang = None
    with pytest.raises(UserError, match="set its src_lang and tgt_lang"):
        row(marked, texts="w1", answers="w2")


def test_a_template_that_leaves_no_room_for_what_is_asked_is_noted() -> None:
    long = model(template=" ".join(f"w{i}" for i in range(30)) + " {instruction} w91 {output}")
    ids, learnt, table = row(long, 12, texts="w40 w41", answers="w4")
    assert "w40" not in ids
    assert (ids[-3:], learnt) == (["w91", "w4", "</s>"], ["w4", "</s>"])
    assert table.notes[1] == (
        "--max-length 12 leaves no room for what is asked in 1 of 1 row, as the template alone is longer: give a larger one."
    )
    assert not any("no room" in note for note in row(long, 48, texts="w40 w41", answers="w4")[2].notes)
