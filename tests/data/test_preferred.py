"""Rows with a chosen and a rejected answer: from columns, chats and transcripts, from the hub, and those that come with Weft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from weft.data import Rows, Source, load, preferred
from weft.data.docstrings import docstrings
from weft.data.rows import fingerprint
from weft.errors import UserError

SYSTEM, HI, HELLO = ({"role": r, "content": c} for r, c in (("system", "be kind"), ("user", "hi"), ("assistant", "hello")))
WHO = {"role": "user", "content": "who?"}


def said(words: str) -> dict[str, str]:
    return {"role": "assistant", "content": words}


def read(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Source:
    file = folder / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return load(file, **more)


def columns(rows: Rows) -> tuple[Any, ...]:
    return rows.texts, rows.answers, rows.rejected


PLAIN = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "user": f"u{i % 2}"} for i in range(6)]


@pytest.mark.parametrize("wanted", ["preferences", "classes", "any"])
def test_columns_chosen_and_rejected_are_told_by_their_names(tmp_path: Path, wanted: Any) -> None:
    source = read(tmp_path, [*PLAIN, PLAIN[0] | {"rejected": "good 0 "}, PLAIN[0] | {"chosen": ""}], wanted=wanted)
    assert columns(source.train) == tuple([row[name] for row in PLAIN] for name in ("prompt", "chosen", "rejected"))
    assert (source.key_name, source.classes) == ("user", ("chosen",))
    assert source.notes[0] == (
        'set.jsonl: guessed that "prompt" is asked (--text), "chosen" the preferred answer (--label), '
        'and "rejected" the other one.'
    )
    assert source.notes[-1] == "set.jsonl: dropped 2 of 8 train rows without two different answers to one prompt."


def test_columns_may_be_named_and_have_an_input_beside(tmp_path: Path) -> None:
    rows = [{"ask": "do", "context": "this", "chosen": f"a{i}", "rejected": "b"} for i in range(3)]
    train = read(tmp_path, rows, text="ask", label="chosen", wanted="preferences").train
    assert columns(train) == (["do"] * 3, ["a0", "a1", "a2"], ["b"] * 3)
    assert train.pairs == ["this"] * 3


def test_for_generation_the_chosen_answer_alone_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, PLAIN, wanted="answers").train.rejected is None


def test_turns_that_chats_have_in_common_are_their_prompt(tmp_path: Path) -> None:
    before = [SYSTEM, HI, HELLO, WHO]
    rows = [
        {"prompt": "who?", "chosen": [*before, said("me")], "rejected": [*before, said("no")]},  # as ultrafeedback
        {"prompt": "who?", "chosen": [WHO, said("me")], "rejected": [WHO, said("no")]},
        {"prompt": "who?", "chosen": [said("me")], "rejected": [said("no")]},
        {"prompt": "hi", "chosen": [HI, said("me")], "rejected": [WHO, said("no")]},  # answers to different questions
    ]
    source = read(tmp_path, rows)
    assert columns(source.train) == (["who?"] * 3, ["me"] * 3, ["no"] * 3)
    assert source.train.history == [(("system", "be kind"), ("user", "hi"), ("assistant", "hello")), (), ()]
    assert "dropped 1 of 4" in source.notes[-1]
    listed = [{"prompt": before, "chosen": [said("me")], "rejected": [said("no")]}]
    assert read(tmp_path, listed).train.history == source.train.take(np.array([0])).history


def test_transcripts_are_parted_into_turns(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: who?\n\nAssistant:"
    twice = "\n\nHuman: hi\n\nHuman: who?\n\nAssistant: "
    rows = [
        {"chosen": f"{start} me.\n\nReally.", "rejected": f"{start} no"},
        {"chosen": f"{twice}me", "rejected": f"{twice}no"},
        {"chosen": f"{start} me", "rejected": start},
        {"chosen": f"{start} me", "rejected": "\n\nHuman: who?\n\nAssistant: no"},
        {"chosen": f"{start} me\n\nHuman: oh", "rejected": f"{start} no\n\nHuman: oh"},
        {"chosen": "well, me", "rejected": "no"},
    ]
    source = read(tmp_path, rows)
    assert columns(source.train) == (["who?", "hi\n\nwho?"], ["me.\n\nReally.", "me"], ["no", "no"])
    assert source.train.history == [(("user", "hi"), ("assistant", "hello")), ()]
    assert "dropped 4 of 6" in source.notes[-1]


@pytest.mark.parametrize(
    ("rows", "asked", "words"),
    [
        ([{"prompt": "a", "completion": "b"}], {}, 'has no columns "chosen" and "rejected" .*prompt, completion: rename them'),
        ([{"chosen": "a", "rejected": "b"}], {}, 'has no columns "chosen" and "rejected" with .* name the prompt with --text.$'),
        (PLAIN, {"text": "rejected"}, 'are column "rejected" of set.jsonl: name another prompt'),
        (PLAIN, {"key": "who"}, 'has no column "who", asked for by --key'),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], {}, "no training rows with two different answers to one"),
        ([{"prompt": "a", "chosen": 1, "rejected": "b"}], {}, 'column "chosen" holds neither texts nor chats'),
    ],
)
def test_what_can_not_be_compared_is_one_sentence(tmp_path: Path, rows: Any, asked: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path, rows, wanted="preferences", **asked)
    assert "\n" not in str(error.value)


def test_pictures_have_no_answers_to_compare() -> None:
    table = {"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]}
    with pytest.raises(UserError, match="such rows have no image: leave --image out"):
        preferred.recognised("the set", table, {"image": "prompt"}, "preferences")


def test_a_label_beside_them_is_what_is_meant(tmp_path: Path) -> None:
    rows = [row | {"text": row["prompt"], "label": i % 2} for i, row in enumerate(PLAIN)]
    assert read(tmp_path, rows).train.of_classes
    assert read(tmp_path, rows, wanted="preferences").train.rejected is not None


# rows ---------------------------------------------------------------------------------------------------------------------


def test_rows_keep_rejected_answers_and_tell_them_apart() -> None:
    rows = Rows(texts=["a", "b", "c"], answers=["x", "y", "z"], rejected=["p", "q", "r"])
    assert rows.take(np.array([2, 0])).rejected == ["r", "p"]
    assert Rows.concatenate([rows, rows.take(np.array([1]))]).rejected == ["p", "q", "r", "q"]
    other = Rows(texts=["a", "b", "c"], answers=["x", "y", "z"], rejected=["p", "q", "R"])
    without = Rows(texts=["a", "b", "c"], answers=["x", "y", "z"])
    assert len({fingerprint(("c",), {"train": some}) for some in (rows, other, without)}) == 3
    for more, words in (
        ({"rejected": ["p"]}, "better ones as answers"),
        ({"rejected": [1, 2], "answers": ["x", "y"]}, "must be"),
    ):
        with pytest.raises(UserError, match=words):
            Rows(texts=["a", "b"], labels=[0, 0], **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="differ in what they hold"):
        Source("set", ("c",), rows, test=without)


# sets of the catalogue ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "splits", "one"),
    [
        (
            "hh-rlhf",
            ("train", "test"),
            {"chosen": "\n\nHuman: who?\n\nAssistant: me", "rejected": "\n\nHuman: who?\n\nAssistant: no"},
        ),
        (
            "ultrafeedback",
            ("train_sft", "train_prefs", "test_sft", "test_prefs"),
            {"prompt": "who?", "chosen": [WHO, said("me")], "rejected": [WHO, said("no")], "score_chosen": 8.0},
        ),
    ],
)
@pytest.mark.parametrize("wanted", ["classes", "preferences"])
def test_sets_on_the_hub_are_read_from_their_own_splits(
    name: str, splits: tuple[str, ...], one: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {split: datasets.Dataset.from_list([one] * (2 + i)) for i, split in enumerate(splits)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(made))
    source = load(name, wanted=wanted)
    assert columns(source.train) == (["who?"] * len(source.train), ["me"] * len(source.train), ["no"] * len(source.train))
    assert source.test is not None
    assert (len(source.train), len(source.test)) == ((2, 3) if len(splits) == 2 else (3, 5))
    assert not any("guessed" in note for note in source.notes)


def test_of_the_standard_library_each_sentence_is_chosen_once_and_rejected_once_within_its_module() -> None:
    source, plain = load("docstring_preferences"), docstrings()
    assert source.fingerprint != plain.fingerprint
    assert set(source.unseen) <= set(plain.unseen)
    for rows in (source.train, *source.unseen.values()):
        answers, rejected, keys = rows.answers, rows.rejected, rows.keys
        assert answers is not None
        assert rejected is not None
        assert keys is not None
        assert sorted(zip(keys, answers, strict=True)) == sorted(zip(keys, rejected, strict=True))
        assert all(one != other for one, other in zip(answers, rejected, strict=True))
    assert len(source.train) > 0.99 * len(plain.train)
