"""Where the words of a sentence are among its tokens: its first token stands for each, and a word without one is counted."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import tiny
from tagged_sets import byte_level
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.token_table import Tokens, by_word, first_tokens, glues, tokenize
from weft.data.rows import Rows
from weft.data.tagged import rows_of, within
from weft.errors import UserError
from weft.federation.batch import make_batch
from weft.tasks.tagging import Tagging

TAGS = ("O", "B-X", "I-X")


@functools.cache
def model(kind: str) -> Backbone:
    if kind == "bert":
        return tiny.backbone("bert", classes=len(TAGS), task="tokens")
    return load(byte_level(kind), classes=TAGS, device="cpu", precision="float64", task="tokens")


def sentences(n: int = 40, longest: int = 9, seed: int = 0, empty: float = 0.0) -> Rows:
    """Words of one to several tokens, for either tokenizer; a share of them is of none."""
    draw = np.random.default_rng(seed)

    def word() -> str:
        if draw.random() < empty:
            return ""
        return ".".join(f"w{draw.integers(90)}" for _ in range(int(draw.integers(1, 4))))

    words = [tuple(word() for _ in range(int(draw.integers(1, longest + 1)))) for _ in range(n)]
    return rows_of(words, [draw.integers(len(TAGS), size=len(row)) for row in words])


def pieces(backbone: Backbone, word: str) -> list[int]:
    """The tokens of a word by itself, as it stands within a text."""
    found: list[int] = backbone.tokenizer(word if backbone.name == tiny.folder("bert") else f" {word}", add_special_tokens=False)[
        "input_ids"
    ]
    return found if word else []


def by_hand(backbone: Backbone, row: Sequence[str], tags: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """Token ids of a sentence and the tag of each, -1 of one that is no word's first."""
    framed = backbone.tokenizer("w1")["input_ids"]
    alone = backbone.tokenizer("w1", add_special_tokens=False)["input_ids"]
    head = framed[: framed.index(alone[0])]
    tail = framed[len(head) + len(alone) :]
    ids, found = [], []
    for word, tag in zip(row, tags, strict=True):
        own = pieces(backbone, word)
        ids += own
        found += [int(tag), *[-1] * (len(own) - 1)][: len(own)]
    keep = limit - len(head) - len(tail)
    before, after = [-1] * len(head), [-1] * len(tail)
    return [*head, *ids[:keep], *tail], [*before, *found[:keep], *after]


def read(table: Tokens, i: int) -> tuple[list[int], list[int]]:
    assert table.tags is not None
    cut = slice(table.offsets[i], table.offsets[i + 1])
    return table.ids[cut].tolist(), table.tags[cut].tolist()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
@pytest.mark.parametrize("limit", [64, 12])
def test_the_tag_of_a_word_lies_at_its_first_token_and_nowhere_else(kind: str, limit: int) -> None:
    backbone, rows = model(kind), sentences()
    table = tokenize(backbone, rows, limit)
    assert rows.words is not None
    assert rows.tags is not None
    split = 0
    for i, (words, tags) in enumerate(zip(rows.words, rows.tags, strict=True)):
        ids, places = read(table, i)
        assert (ids, places) == by_hand(backbone, words, tags.tolist(), limit)
        assert len(ids) <= limit
        split += len(ids) > 2 + len(words)
    assert split > 20, "words of one token tell nothing"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_first_tokens_are_those_that_a_loop_over_the_words_of_tokens_finds(kind: str) -> None:
    backbone, rows = model(kind), sentences(seed=3)
    assert rows.words is not None
    out = by_word(backbone.tokenizer, rows.words, 20, backbone.name)
    for i in range(len(rows)):
        found, last = [], None
        for place, word in enumerate(out.word_ids(i)):
            if word is not None and word != last:
                found.append([word, place])
            last = word
        assert first_tokens(out.word_ids(i)).tolist() == found


def test_a_word_whose_tokens_come_in_two_stretches_has_one_place() -> None:
    assert first_tokens([None, 0, 1, 0, 3, None]).tolist() == [[0, 1], [1, 2], [3, 4]]
    assert first_tokens([None, None]).shape == (0, 2)
    assert first_tokens([]).shape == (0, 2)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_byte_level_words_keep_the_space_before_them(kind: str) -> None:
    """A sentence word by word is the text that the model was pretrained on, not one long word."""
    backbone = model(kind)
    assert glues(backbone.tokenizer)
    ids, _ = read(tokenize(backbone, rows_of([("w1", "ab3cd", "photo")], [np.zeros(3, int)])), 0)
    assert ids == backbone.tokenizer(" w1 ab3cd photo")["input_ids"]
    assert not glues(model("bert").tokenizer)


# words without a place ------------------------------------------------------------------------------------------------


def notes(kind: str, limit: int, *words: tuple[str, ...]) -> tuple[list[list[int]], list[str]]:
    """The words of each row that have a place, and what is said of others."""
    rows = rows_of(words, [np.arange(len(row)) for row in words])  # each word's tag is its number
    table = tokenize(model(kind), rows, limit)
    return [[tag for tag in read(table, i)[1] if tag >= 0] for i in range(len(words))], list(table.notes)


def test_words_beyond_the_longest_row_are_counted() -> None:
    kept, said = notes("bert", 6, ("w1", "w2", "w3", "w4"), ("w1", "w2", "w3", "w4", "w5"), ("w1.w2.w3", "w4", "w5"), ("w1",))
    assert kept == [[0, 1, 2, 3], [0, 1, 2, 3], [0], [0]]
    assert said == [
        "3 of 13 words lie beyond 6 tokens of their sentence: they are neither trained on nor scored (--set max_length)."
    ]


def test_words_that_the_tokenizer_makes_nothing_of_are_counted() -> None:
    kept, said = notes("bert", 64, ("w1", "", "w3"), (" ",), ("w1",))
    assert kept == [[0, 2], [], [0]]
    assert said == ["the tokenizer makes nothing of 2 of 5 words: they are neither trained on nor scored."]


def test_a_row_that_is_cut_may_also_hold_words_without_tokens() -> None:
    kept, said = notes("bert", 5, ("w1", "", "w3", "w4", "w5", "w6"), ("", "w2"))
    assert kept == [[0, 2, 3], [1]]
    assert [note.split(" words")[0] for note in said] == ["2 of 8", "the tokenizer makes nothing of 2 of 8"]


def test_words_that_all_have_a_place_are_nothing_to_speak_of() -> None:
    assert notes("gpt2", 64, ("w1", "w2"), ("ab3cd",)) == ([[0, 1], [0]], [])


# shapes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_tags_are_as_wide_as_the_inputs_whatever_rows_are_asked_for(kind: str) -> None:
    table = tokenize(model(kind), sentences(empty=0.3), 24)
    draw = np.random.default_rng(0)
    for _ in range(50):
        index = draw.integers(-1, len(table), size=int(draw.integers(1, 6)))
        tags, inputs = table.tags_of(index), table.collate(index)
        assert tags.shape == tuple(inputs["input_ids"].shape)
        assert not (tags >= 0)[inputs["attention_mask"].numpy() == 0].any()
        for own, i in zip(tags.tolist(), index, strict=True):
            wanted = read(table, i)[1] if i >= 0 else []
            assert own == wanted + [-1] * (len(own) - len(wanted))
    assert table.tags_of(np.array([-1, -1])).tolist() == [[-1], [-1]]


def test_targets_put_the_places_of_a_row_next_to_each_other() -> None:
    table, task = tokenize(model("bert"), sentences(), 24), Tagging(TAGS)
    index = np.array([[3, -1, 5], [8, 1, -1]])
    labels, mask = task.targets(table, index)
    width = table.collate(index.reshape(-1))["input_ids"].shape[1]
    assert labels.shape == mask.shape == (2, 3 * width)
    for k, b in np.ndindex(2, 3):
        own = read(table, index[k, b])[1] if index[k, b] >= 0 else []
        cut = slice(b * width, (b + 1) * width)
        assert labels[k, cut][mask[k, cut]].tolist() == [tag for tag in own if tag >= 0]


def test_every_place_of_a_row_may_be_what_the_row_may() -> None:
    rows = sentences(6)
    whose = ["a", "b"] * 3
    spaces = {"a": np.array([True, True, False]), "b": np.array([True, False, True])}
    allowed = within(Rows(rows.texts, labels=rows.labels, keys=whose, words=rows.words, tags=rows.tags), spaces)
    table = tokenize(model("bert"), allowed, 24)
    index = np.array([[1, 4, -1], [2, -1, -1]])
    batch = make_batch(Tagging(TAGS), table, index, None, torch.device("cpu"))
    assert batch.allowed is not None
    assert allowed.allowed is not None
    places = batch.allowed.view(2, 3, -1, len(TAGS))
    for k, b in np.ndindex(2, 3):
        wanted = allowed.allowed[index[k, b]] if index[k, b] >= 0 else np.ones(3, bool)
        assert (places[k, b].numpy() == wanted).all()
    assert batch.allowed.shape[:2] == batch.labels.shape


def test_a_tokenizer_that_cannot_tell_words_apart_is_refused() -> None:
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    assert not slow.is_fast
    with pytest.raises(UserError, match='the tokenizer of "old" does not tell which token belongs to which word') as caught:
        by_word(slow, [["a"]], 8, "old")
    assert "choose another --model" in str(caught.value)
