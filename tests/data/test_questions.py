"""Questions about pictures: the rows themselves, and from columns, several people's answers and zips to a source."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from weft.data import Rows, Source, labels, load, partition, questions
from weft.data.rows import BOTH, fingerprint
from weft.errors import UserError

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
ASKED = [
    {"question": "which colour?", "answer": "Red.", "image": "0.png", "type": "colour"},
    {"question": "is it red?", "answer": "no", "image": "1.png", "type": "yes or no"},
    {"question": "which colour?", "answer": "green", "image": "1.png", "type": "colour"},
    {"question": "is it red?", "answer": "yes", "image": "0.png", "type": "yes or no"},
]


def pixels(i: int) -> np.ndarray:
    return np.full((4, 4, 3), COLOURS[i], np.uint8)


def rows(**changed: Any) -> Rows:
    columns = {
        "texts": ["what?", "where?", "what?"],
        "images": [pixels(0), pixels(0), pixels(1)],
        "labels": [0, 1, 2],
        "votes": [{0: 1.0, 1: 0.3}, {1: 0.6}, {2: 1.0}],
    }
    return Rows(**columns | changed)


def read(folder: Path, given: list[dict[str, Any]], pictures: int = 2, **more: Any) -> Source:
    for i in range(pictures):
        Image.fromarray(pixels(i)).save(folder / f"{i}.png")
    file = folder / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, given)))
    return load(file, **more)


# rows ---------------------------------------------------------------------------------------------------------------------


def test_texts_about_pictures_are_read_as_both_and_stay_in_step() -> None:
    assert (rows().read_as, rows(images=None, votes=None).read_as) == (BOTH, "texts")
    taken = rows().take(np.array([2, 0]))
    assert (taken.texts, taken.votes) == (["what?", "what?"], [{2: 1.0}, {0: 1.0, 1: 0.3}])
    assert taken.images is not None
    assert np.array_equal(np.asarray(taken.images[0]), pixels(1))
    both = Rows.concatenate([rows(ids=[0, 1, 2]), rows(ids=[3, 4, 5])])
    assert both.votes == [*rows().votes, *rows().votes]  # type: ignore[misc]
    assert sorted(rows().every_vote.tolist()) == [0, 1, 1, 2]


def test_what_a_row_holds_is_its_question_and_its_picture() -> None:
    one = rows()
    contents = [one.content(i) for i in range(3)]
    assert len(set(contents)) == 3
    again = rows(texts=["what?", "what?", "where?"])
    assert again.content(0) == again.content(1) == contents[0]
    assert again.content(2) not in contents


def test_the_fingerprint_follows_pictures_and_votes() -> None:
    changed: list[dict[str, Any]] = [
        {},
        {"images": [pixels(0), pixels(2), pixels(1)]},
        {"texts": ["what?", "where?", "why?"]},
        {"votes": [{0: 1.0, 1: 0.6}, {1: 0.6}, {2: 1.0}]},
        {"votes": None},
    ]
    found = [fingerprint("abc", {"train": rows(**more)}) for more in changed]
    assert len(set(found)) == len(changed)
    assert found[0] == fingerprint("abc", {"train": rows(votes=[{1: 0.3, 0: 1.0}, {1: 0.6}, {2: 1.0}])})


def test_classes_that_are_numbered_anew_take_their_votes_along() -> None:
    found = labels.relabelled(rows(), np.array([2, 0, 1]), 3)
    assert found.labels.tolist() == [2, 0, 1]
    assert found.votes == [{2: 1.0, 0: 0.3}, {0: 0.6}, {1: 1.0}]
    assert labels.every_label([rows()]).tolist() == [0, 1, 2, 0, 1, 1, 2]
    source = Source("set", ("a", "b", "c"), rows(labels=[0, 1, 0], votes=[{0: 1.0}, {1: 1.0}, {0: 0.6, 2: 0.3}]))
    assert labels.declared(source, ["c", "b", "a"]).train.votes == [{2: 1.0}, {1: 1.0}, {2: 0.6, 0: 0.3}]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"votes": [{1: 1.0}, {1: 0.6}, {2: 1.0}]}, "row 0 with the label 0"),
        ({"votes": [{0: 0.3, 1: 0.6}, {1: 0.6}, {2: 1.0}]}, "row 0 with the label 0"),
        ({"votes": [{0: 1.0}, {1: 1.5}, {2: 1.0}]}, "row 1 with the label 1"),
        ({"votes": [{0: 1.0}, {1: 1.0}, {2: 1.0, -1: 0.3}]}, "row 2 with the label 2"),
        ({"votes": [{0: 1.0}, {1: 1.0}, "yes"]}, "row 2"),
        ({"votes": [{0: 1.0}]}, "votes has 1 entries for 3"),
        ({"pairs": ["a", "b", "c"]}, "texts about images have no pairs"),
        ({"items": [(0,), (1,), (2,)]}, "texts about images have no items"),
        ({"texts": None, "images": None}, "texts, images, or texts about images"),
    ],
)
def test_what_is_no_question_about_a_picture_is_one_sentence(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rows(**changed)


def test_a_vote_for_a_class_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match="labels of set go from 0 to 2, but it has 2 classes"):
        Source("set", ("a", "b"), rows(labels=[0, 1, 0], votes=[{0: 1.0}, {1: 1.0}, {0: 0.6, 2: 0.3}]))


# columns ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["questions", "classes", "any"])
def test_columns_are_told_by_their_names_and_the_type_of_a_question_is_the_natural_client(tmp_path: Path, wanted: Any) -> None:
    source = read(tmp_path, ASKED, wanted=wanted)
    assert source.classes == ("green", "no", "red", "yes")
    assert (source.key_name, source.label_name) == ("type", "answer")
    assert [source.classes[i] for i in source.train.labels] == ["red", "no", "green", "yes"]
    assert source.train.texts == [row["question"] for row in ASKED]
    assert source.train.votes is None
    assert source.train.images is not None
    assert [np.asarray(source.train.images[i])[0, 0].tolist() for i in range(4)] == [list(COLOURS[i]) for i in (0, 1, 1, 0)]
    assert source.notes[0] == (
        'set.jsonl: guessed that "image" is the picture (--image), "question" is the question (--text), "answer" is the answer '
        '(--label), "type" is the natural client (2 of them; --key).'
    )


def test_of_names_in_two_cases_the_first_column_is_meant(tmp_path: Path) -> None:
    source = read(tmp_path, [{"Question": f"first {i}?", **row} for i, row in enumerate(ASKED)], wanted="questions")
    assert source.train.texts == [f"first {i}?" for i in range(4)]


def test_a_text_that_is_named_is_a_question_only_if_it_is_called_one_or_a_picture_is_named_too(tmp_path: Path) -> None:
    given = [{"Question": row["question"], "image": row["image"], "answer": row["answer"]} for row in ASKED]
    assert read(tmp_path, given, wanted="any", text="Question").train.read_as == BOTH
    assert read(tmp_path, given, wanted="any", text="answer", image="image", label="Question").train.read_as == BOTH
    assert read(tmp_path, ASKED, wanted="any", text="type", label="answer").train.read_as == "texts"
    pairs = read(tmp_path, ASKED, wanted="any", text="question", pair="type", label="answer").train
    assert (pairs.read_as, pairs.pairs) == ("texts", [row["type"] for row in ASKED])


def test_numbers_beside_questions_and_pictures_are_read_off_the_text_alone(tmp_path: Path) -> None:
    given = [row | {"score": i / 2} for i, row in enumerate(ASKED)]
    found = read(tmp_path, given, wanted="numbers", text="question", label="score").train
    assert (found.read_as, found.numbers.tolist()) == ("texts", [0.0, 0.5, 1.0, 1.5])  # type: ignore[union-attr]


def test_one_column_has_one_use(tmp_path: Path) -> None:
    asked = [{"image": row["image"], "answer": row["question"], "label": row["answer"]} for row in ASKED]
    source = read(tmp_path, asked, wanted="questions", image="image", text="answer")
    assert (source.label_name, source.train.texts) == ("label", [row["question"] for row in ASKED])
    kinds = read(tmp_path, ASKED, wanted="questions", label="type")
    assert (kinds.classes, kinds.key_name, kinds.train.keys) == (("colour", "yes or no"), None, None)


def test_a_key_may_be_named_and_rows_without_one_are_nobody_s(tmp_path: Path) -> None:
    given = [row | {"who": who} for row, who in zip(ASKED, ("ann", "bob ", None, "ann"), strict=True)]
    source = read(tmp_path, given, wanted="questions", key="who")
    assert (source.key_name, source.train.keys) == ("who", ["ann", "bob", "", "ann"])
    assert source.notes[-1] == "set.jsonl: 1 of 4 training rows have no who."


def test_a_column_without_pictures_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'column "image" of set\.jsonl holds no pictures: name another with --image'):
        read(tmp_path, [row | {"image": i} for i, row in enumerate(ASKED)], image="image", text="question")


def test_columns_with_other_names_can_be_named(tmp_path: Path) -> None:
    names = {"question": "said", "answer": "reply", "image": "shown", "type": "type"}
    given = [{names[name]: value for name, value in row.items()} for row in ASKED]
    with pytest.raises(UserError, match="no columns that look like pictures and the questions"):
        read(tmp_path, given, wanted="questions")
    source = read(tmp_path, given, wanted="questions", image="shown", text="said", label="reply")
    assert source.classes == ("green", "no", "red", "yes")
    with pytest.raises(UserError, match='column "type" names 4 of 4 pictures that do not exist'):
        read(tmp_path, given, wanted="questions", image="type", text="said", label="reply")


def test_a_table_without_an_answer_is_one_sentence(tmp_path: Path) -> None:
    given = [{n: v for n, v in row.items() if n != "answer"} for row in ASKED]
    with pytest.raises(UserError, match="no column that looks like an answer; its columns are question, image, type: name it"):
        read(tmp_path, given, wanted="questions")


def test_rows_without_picture_question_or_answer_are_dropped_and_counted(tmp_path: Path) -> None:
    more = [ASKED[0] | {"image": None}, ASKED[1] | {"question": " "}, ASKED[2] | {"answer": None}]
    source = read(tmp_path, [*ASKED, *more], wanted="questions")
    assert len(source.train) == 4
    assert source.notes[-1] == "set.jsonl: dropped 3 of 7 train rows without a picture, question or a label in use."


def test_a_row_is_known_by_its_place_in_all_tables_whichever_rows_are_dropped(tmp_path: Path) -> None:
    train = [ASKED[0] | {"answer": None}, *ASKED]
    test = [ASKED[3], ASKED[1] | {"question": ""}, ASKED[2]]
    given = [row | {"split": split} for split, some in (("train", train), ("test", test), ("validation", ASKED)) for row in some]
    source = read(tmp_path, given, wanted="questions")
    assert source.test is not None
    assert source.validation is not None
    assert [rows.ids.tolist() for rows in (source.train, source.test)] == [[1, 2, 3, 4], [5, 7]]
    assert source.validation.ids.tolist() == [8, 9, 10, 11]
    assert [source.classes[i] for i in source.test.labels] == ["yes", "green"]
    assert source.notes[1:] == (
        "set.jsonl: dropped 1 of 5 train rows without a picture, question or a label in use.",
        "set.jsonl: dropped 1 of 3 test rows without a picture, question or a label in use.",
    )


def test_a_test_split_whose_answers_are_kept_back_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    kept_back = [{n: v for n, v in row.items() if n != "answer"} for row in ASKED]
    source = read(tmp_path, [*(row | {"split": "train"} for row in ASKED), *(row | {"split": "test"} for row in kept_back)])
    assert source.test is None
    assert source.notes[-1] == "set.jsonl: the test split has no labels and is not used."


def test_test_rows_without_a_column_of_questions_are_one_sentence(tmp_path: Path) -> None:
    for i in range(2):
        Image.fromarray(pixels(i)).save(tmp_path / f"{i}.png")
    without = [{n: v for n, v in row.items() if n != "question"} for row in ASKED]
    for split, rows_of in (("train", ASKED), ("test", without)):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows_of)))
    with pytest.raises(UserError, match=r'the test rows of .* have no column "question", which its train rows have'):
        load(tmp_path, wanted="questions")


def test_pictures_that_questions_name_and_that_are_missing_are_one_sentence(tmp_path: Path) -> None:
    more = [ASKED[0] | {"image": f"{i}.png"} for i in (7, 8, 9)]
    with pytest.raises(UserError, match=r'column "image" names 3 of 7 pictures that do not exist, first 7\.png') as found:
        read(tmp_path, [*ASKED, *more], wanted="questions")
    assert "\n" not in str(found.value)


def test_where_answers_are_wanted_they_are_texts_to_generate(tmp_path: Path) -> None:
    source = read(tmp_path, ASKED, wanted="answers")
    assert source.classes == ("answer",)
    assert source.train.answers == ["red", "no", "green", "yes"]
    assert source.train.read_as == BOTH


def test_of_several_people_s_answers_the_most_frequent_is_to_be_generated(tmp_path: Path) -> None:
    given = [{"question": "what?", "answers": ["dog", "cat", "Cat", "fox"], "image": "0.png"}]
    assert read(tmp_path, given, wanted="answers").train.answers == ["cat"]


# several people ------------------------------------------------------------------------------------------------------------


def official(people: list[str], answer: str) -> float:
    """The accuracy of an answer by VQA's own evaluation: over everybody who is left out, min(agreeing others / 3, 1)."""
    others = [people[:i] + people[i + 1 :] for i in range(len(people))]
    return float(np.mean([min(other.count(answer) / 3, 1.0) for other in others]))


@pytest.mark.parametrize(("agree", "right"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_of_ten_people_an_answer_is_as_right_as_vqas_accuracy_has_it(agree: int, right: float) -> None:
    people = ["cat"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert questions.votes_of(Counter(people))["cat"] == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("people", [["a"] * 4, ["a", "a", "b", "c"], ["a", "b", "b", "b", "c"], ["a"] * 7 + ["b"] * 4])
def test_of_any_number_of_people_it_is_the_mean_over_all_who_could_be_left_out(people: list[str]) -> None:
    found = questions.votes_of(Counter(people))
    assert found == pytest.approx({answer: official(people, answer) for answer in set(people)})


def test_of_few_people_it_is_the_share_of_them() -> None:
    assert questions.votes_of(Counter(["a", "a", "b"])) == pytest.approx({"a": 2 / 3, "b": 1 / 3})


def test_answers_of_several_people_become_votes_and_the_best_is_the_label(tmp_path: Path) -> None:
    people = [["cat"] * 6 + ["Dog."] * 3 + ["fox"], ["two"] * 2 + ["2 "] * 8]
    given = [
        {"question": "what?", "answers": people[0], "image": "0.png"},
        {"question": "how many?", "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(people[1])], "image": "1.png"},
    ]
    source = read(tmp_path, given, wanted="questions")
    assert source.classes == ("2", "cat", "dog", "fox", "two")
    assert [source.classes[i] for i in source.train.labels] == ["cat", "2"]
    assert source.train.votes is not None
    named = [{source.classes[c]: round(v, 9) for c, v in own.items()} for own in source.train.votes]
    assert named == [{"cat": 1.0, "dog": 0.9, "fox": 0.3}, {"2": 1.0, "two": 0.6}]


def test_answers_of_several_people_come_before_the_one_that_was_made_of_them(tmp_path: Path) -> None:
    people = (["a", "b"], ["b"], ["a"], ["b", "a"])
    source = read(tmp_path, [row | {"answers": own} for row, own in zip(ASKED, people, strict=True)], wanted="questions")
    assert (source.label_name, source.classes) == ("answers", ("a", "b"))
    assert source.train.votes == [{0: 0.5, 1: 0.5}, {1: 1.0}, {0: 1.0}, {0: 0.5, 1: 0.5}], "also where some rows have one alone"


def test_people_s_answers_may_be_an_object_of_lists() -> None:
    given = {"answer": ["cat", "dog", "cat"], "answer_id": [1, 2, 3]}
    assert questions.answers_of(given, "answers", "set") == Counter({"cat": 2, "dog": 1})


@pytest.mark.parametrize(
    ("given", "spelt"),
    [(" A Dog . ", "a dog"), ("U.S.", "u.s"), (3, "3"), (2.0, "2"), (True, "true"), (["Yes", None, "."], "yes")],
)
def test_an_answer_has_one_spelling(given: Any, spelt: str) -> None:
    assert questions.answers_of(given, "answer", "set") == Counter({spelt: 1})


def test_classes_are_the_answers_of_most_rows_and_of_equally_many_the_first_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many people gave an answer to one question, it is one question."""
    monkeypatch.setattr(questions, "MOST_ANSWERS", 2)
    people = [["z"] * 9 + ["b"], ["b"], ["c"], ["a", "c"], ["a"]]
    source = read(tmp_path, [{"question": f"q{i}?", "answers": own, "image": "0.png"} for i, own in enumerate(people)])
    assert source.classes == ("a", "b")
    assert source.train.texts == ["q0?", "q1?", "q3?", "q4?"], "a row stays with one answer that is a class"
    assert source.train.votes is not None
    assert source.train.votes[0] == pytest.approx({1: 0.3}), "one of ten people"
    assert source.train.votes[2] == {0: 0.5}


def test_rare_answers_are_no_classes_and_rows_that_have_no_other_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "MOST_ANSWERS", 2)
    given = [{"question": f"q{i}?", "answer": a, "image": "0.png"} for i, a in enumerate(["a", "b", "a", "b", "c"])]
    source = read(tmp_path, given, wanted="questions")
    assert source.classes == ("a", "b")
    assert source.train.texts == ["q0?", "q1?", "q2?", "q3?"]
    assert source.notes[-1] == ("set.jsonl: 1 of 5 train rows have none of the 2 answers that are classes, and are left out.")


def test_test_rows_whose_answers_are_no_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    test = [ASKED[0] | {"answer": "blue"}, ASKED[1], ASKED[2] | {"answer": "violet"}]
    source = read(tmp_path, [*(row | {"split": "train"} for row in ASKED), *(row | {"split": "test"} for row in test)])
    assert source.test is not None
    assert (source.test.texts, source.test.ids.tolist()) == (["is it red?"], [5])
    assert source.notes[-1] == "set.jsonl: 2 of 3 test rows have none of the 4 answers that are classes, and are left out."


def test_one_answer_in_one_split_and_several_in_another_are_votes_in_both(tmp_path: Path) -> None:
    train = [{k: v for k, v in row.items() if k != "answer"} | {"answers": [row["answer"], "no"]} for row in ASKED]
    test = [row | {"answers": row["answers"][:1]} for row in train]
    source = read(tmp_path, [*(row | {"split": "train"} for row in train), *(row | {"split": "test"} for row in test)])
    assert source.classes == ("green", "no", "red", "yes")
    assert source.train.votes == [{2: 0.5, 1: 0.5}, {1: 1.0}, {0: 0.5, 1: 0.5}, {3: 0.5, 1: 0.5}]
    assert source.test is not None
    assert source.test.votes == [{2: 1.0}, {1: 1.0}, {0: 1.0}, {3: 1.0}]


def test_among_declared_answers_rows_without_one_are_left_out_and_counted_and_so_are_votes_for_others() -> None:
    source = Source(
        "set", ("a", "b", "c"), rows(), test=rows(votes=[{2: 1.0}, {1: 1.0}, {1: 0.3}], labels=[2, 1, 1], ids=[3, 4, 5])
    )
    found = labels.declared(source, ("B", "c", "b"))
    assert found.train.texts == ["what?", "where?", "what?"]
    assert found.train.votes == [{2: 0.3}, {2: 0.6}, {1: 1.0}], "no more right than they were"
    assert found.train.labels.tolist() == [2, 2, 1]
    assert found.notes == source.notes
    few = labels.declared(source, ("a", "b"))
    assert (few.train.texts, few.train.votes) == (["what?", "where?"], [{0: 1.0, 1: 0.3}, {1: 0.6}])
    assert few.test is not None
    assert (few.test.ids.tolist(), few.test.labels.tolist()) == ([4, 5], [1, 1])
    assert few.notes[len(source.notes) :] == tuple(
        f"set: 1 of 3 {split} rows have none of the 2 answers that are classes, and are left out." for split in ("train", "test")
    )
    with pytest.raises(UserError, match='the label "a", which is none of'):
        labels.declared(source, ("x", "y"))


@pytest.mark.parametrize("odd", [[["a"]], {"who": "a"}])
def test_what_is_no_answer_is_one_sentence(tmp_path: Path, odd: Any) -> None:
    with pytest.raises(UserError, match=r'column "answer" of set\.jsonl holds'):
        read(tmp_path, [ASKED[0] | {"answer": odd}], wanted="questions")


def test_a_row_that_holds_no_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'"answer" of set\.jsonl holds \{\'who\': \'a\'\} in row 2 of the train rows'):
        read(tmp_path, [*ASKED[:2], ASKED[0] | {"answer": {"who": "a"}}], wanted="questions")


def test_a_column_that_is_empty_in_most_rows_is_not_the_one_that_is_guessed(tmp_path: Path) -> None:
    """Answers of several people to some questions go after the one answer that every question has."""
    asked = [ASKED[0] | {"answers": ["a", "b"]}, ASKED[1] | {"answers": []}, *ASKED[2:], *ASKED]
    source = read(tmp_path, asked, wanted="questions")
    assert (source.label_name, len(source.train)) == ("answer", len(asked))
    half = [row | {"answers": ["ab"[i % 4 // 2]]} if i % 2 else row for i, row in enumerate(ASKED * 2)]
    assert read(tmp_path, half, wanted="questions").label_name == "answers"


def test_equal_questions_about_equal_pictures_are_called_so(tmp_path: Path) -> None:
    fed = partition(read(tmp_path, ASKED * 3, wanted="questions"), clients=1)
    assert any("rows repeat the question and picture of another" in note for note in fed.notes)


# zips ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("called", ["{}.zip", "{}_images.zip", "{}-images.zip"])
def test_pictures_lie_in_a_zip_beside_each_table(tmp_path: Path, called: str) -> None:
    for split, shown in (("train", (0, 1)), ("test", (2, 2))):
        with gzip.open(tmp_path / f"{split}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, ASKED)))
        with zipfile.ZipFile(tmp_path / called.format(split), "w") as archive:
            for i, colour in enumerate(shown):
                Image.fromarray(pixels(colour)).save(tmp_path / "one.png")
                archive.write(tmp_path / "one.png", f"{i}.png")
    (tmp_path / "one.png").unlink()
    source = load(tmp_path, wanted="questions")
    assert source.test is not None
    for table, shown in ((source.train, (0, 1, 1, 0)), (source.test, (2, 2, 2, 2))):
        assert table.images is not None
        assert [np.asarray(table.images[i])[0, 0].tolist() for i in range(4)] == [list(COLOURS[c]) for c in shown]
    assert source.train.images is not None
    assert source.train.images.key(0) == source.train.images.key(3) != source.train.images.key(1)
