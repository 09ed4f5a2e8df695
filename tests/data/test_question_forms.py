"""Lists of questions, choices and boxes: from files and from sets of the hub to rows, and to a run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

import weft
from weft.data import Source, load, questions
from weft.data.hub_sets import catalogue
from weft.data.images import Images
from weft.data.question_forms import ASKS, fractions
from weft.data.rows import BOTH
from weft.errors import UserError
from weft.experiment.layers import resolve
from weft.tasks.boxes import box_of

WIDE = (40, 20)  # width and height of the pictures


def encoded(shade: int, size: tuple[int, int] = WIDE, turned: int | None = None) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    if turned is not None:
        exif[0x0112] = turned
    Image.new("RGB", size, (shade, 90, 40)).save(file, "png", exif=exif)
    return file.getvalue()


def shades(source: Source) -> list[int]:
    assert source.train.images is not None
    return [np.asarray(source.train.images[i])[0, 0, 0].item() for i in range(len(source.train))]


def read(folder: Path, given: list[dict[str, Any]], **more: Any) -> Source:
    """Rows of a file, each about a picture of its own shade."""
    for i in range(len(given)):
        (folder / f"{i}.png").write_bytes(encoded(i))
    file = folder / "set.jsonl"
    file.write_text("\n".join(json.dumps({"image": f"{i}.png"} | row) for i, row in enumerate(given)))
    return load(file, **more)


# lists of questions -------------------------------------------------------------------------------------------------------


def test_a_list_of_questions_is_a_row_for_each_with_its_own_answer_and_the_picture_once(tmp_path: Path) -> None:
    given = [
        {"questions": ["who?", "what?"], "answers": ["Ann.", "a book"], "genre": "art"},
        {"questions": ["who?"], "answers": ["Bob"], "genre": "law"},
        {"questions": ["who?", "what?", "when?"], "answers": ["Eve", None, "1990"], "genre": "art"},
    ]
    source = read(tmp_path, given, wanted="answers")
    rows = source.train
    assert rows.texts == ["who?", "what?", "who?", "who?", "when?"]
    assert rows.answers == ["ann", "a book", "bob", "eve", "1990"]
    assert rows.keys == ["art", "art", "law", "art", "art"]
    assert (rows.read_as, source.key_name, rows.ids.tolist()) == (BOTH, "genre", [0, 1, 2, 3, 5])
    assert shades(source) == [0, 0, 1, 2, 2]
    assert rows.images is not None
    assert rows.images.key(0) == rows.images.key(1) != rows.images.key(2)
    assert "set.jsonl: dropped 1 of 6 train rows without a picture, question or a label in use." in source.notes


def test_lists_of_questions_have_classes_too_and_several_people_s_answers_to_one_question_stay_votes(tmp_path: Path) -> None:
    source = read(tmp_path, [{"questions": ["a?", "b?"], "answers": ["x", ["y", "x"]]}] * 2, wanted="questions")
    assert source.classes == ("x", "y")
    assert source.train.votes == [{0: 1.0}, {0: 0.5, 1: 0.5}] * 2
    assert questions.answers_of(["x", "y"], "answers", "set").total() == 2


def test_rows_with_another_number_of_answers_than_of_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"questions": ["a?"], "answers": ["x"]},
        {"questions": ["a?"], "answers": ["x", "y"]},
        {"questions": ["a?", "b?"], "answers": ["x"]},
        {"questions": ["b?"], "answers": ["y"]},
    ]
    source = read(tmp_path, given, wanted="questions")
    assert source.train.texts == ["a?", "b?"]
    assert source.train.ids.tolist() == [0, 1]
    assert source.notes[-1] == (
        "set.jsonl: left out 2 of 4 train rows with another number of answers than of questions, first row 1."
    )


# choices ------------------------------------------------------------------------------------------------------------------

CHOSEN = [
    {"question": "which is red?", "choices": ["sky", "blood"], "answer": 1, "hint": ""},
    {"question": "which is blue? ", "choices": ["sky", "blood", "grass"], "answer": "A", "hint": "Look up. "},
    {"question": "which is green?", "choices": ["sky", "blood", "grass"], "answer": "2", "hint": None},
]


@pytest.mark.parametrize("wanted", ["answers", "questions"])
def test_choices_are_lines_behind_the_question_and_a_letter_is_the_answer(tmp_path: Path, wanted: Any) -> None:
    source = read(tmp_path, CHOSEN, wanted=wanted)
    assert source.train.texts == [
        f"which is red?\nA. sky\nB. blood\n{ASKS}",
        f"Look up.\nwhich is blue?\nA. sky\nB. blood\nC. grass\n{ASKS}",
        f"which is green?\nA. sky\nB. blood\nC. grass\n{ASKS}",
    ]
    if wanted == "answers":
        assert source.train.answers == ["B", "A", "C"]
    else:
        assert [source.classes[i] for i in source.train.labels] == ["B", "A", "C"]
    assert '"hint" is what stands before it (--pair)' in source.notes[0]
    assert source.notes[1] == 'set.jsonl: "choices" are choices, and the letter of the right one is the answer.'


def test_what_stands_before_a_question_with_choices_may_be_named(tmp_path: Path) -> None:
    source = read(tmp_path, [row | {"lecture": "Colours."} for row in CHOSEN], wanted="answers", pair="lecture")
    assert source.train.texts is not None
    assert all(text.startswith("Colours.\nwhich is") for text in source.train.texts)


@pytest.mark.parametrize("odd", [2, -1, "C", "b", "blood", 0.5, True])
def test_rows_whose_answer_is_none_of_their_choices_are_left_out_and_counted(tmp_path: Path, odd: Any) -> None:
    source = read(tmp_path, [*CHOSEN, {"question": "?", "choices": ["x", "y"], "answer": odd}], wanted="answers")
    assert len(source.train) == len(CHOSEN)
    assert source.notes[-1] == "set.jsonl: left out 1 of 4 train rows whose answer is none of their choices, first row 3."


def test_choices_that_are_no_list_or_that_no_letter_is_left_for_are_none(tmp_path: Path) -> None:
    more = [{"question": "?", "choices": c, "answer": 0} for c in (None, [], "abc", [str(i) for i in range(27)])]
    source = read(tmp_path, [*CHOSEN, *more], wanted="answers")
    assert len(source.train) == len(CHOSEN)
    assert any("left out 4 of 7 train rows whose answer is none of their choices, first row 3" in note for note in source.notes)


def test_a_column_of_options_that_is_no_list_of_texts_changes_nothing(tmp_path: Path) -> None:
    given = [{"question": "what?", "options": "none", "answer": one} for one in ("x", "y")]
    assert read(tmp_path, given, wanted="questions").train.texts == ["what?", "what?"]


def test_test_rows_without_choices_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"image": "0.png", "question": "?", "answer": 0}))
    read(tmp_path, CHOSEN)
    (tmp_path / "set.jsonl").rename(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r'the test rows of .* have no column "choices", which its train rows have'):
        load(tmp_path, wanted="answers")


# boxes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "written"),
    [
        ([10, 5, 20, 10], "[0.250, 0.250, 0.750, 0.750]"),
        ([0, 0, 40, 20], "[0.000, 0.000, 1.000, 1.000]"),
        ([-0.9, 0, 41.5, 20.8], "[0.000, 0.000, 1.000, 1.000]"),  # rounded at the edges
        ([1, 2, 13.333, 4], "[0.025, 0.100, 0.358, 0.300]"),
        ([-2, 0, 10, 10], None),
        ([0, 0, 42, 20], None),
        ([0, 12, 10, 10], None),
        ([5, 5, 0, 10], None),
        ([5, 5, 10, -1], None),
        ([5, 5, 0.001, 10], None),
    ],
)
def test_a_box_in_pixels_becomes_two_corners_in_fractions_of_the_sides(box: list[float], written: str | None) -> None:
    assert fractions(box, WIDE) == written


def test_boxes_are_answers_to_write_and_rows_whose_box_is_not_on_the_picture_are_counted(tmp_path: Path) -> None:
    boxes: list[Any] = [[10, 5, 20, 10], [30, 5, 20, 10], [1, 2, 3], None, [0, 0, 4, 2], [0, 0, float("nan"), 2]]
    source = read(tmp_path, [{"question": f"find {i}", "bbox": box} for i, box in enumerate(boxes)])
    assert source.classes == ("bbox",)
    assert source.train.texts == ["find 0", "find 4"]
    assert source.train.answers == ["[0.250, 0.250, 0.750, 0.750]", "[0.000, 0.000, 0.100, 0.100]"]
    notes = '"bbox" are boxes, which are written as fractions of the sides of the picture'
    assert any(notes in note for note in source.notes)
    assert source.notes[-2:] == (
        "set.jsonl: left out 3 of 6 train rows whose box is none, or not inside the picture, first row 1.",
        "set.jsonl: dropped 1 of 3 train rows without a picture, question or a label in use.",
    )


def test_four_numbers_of_several_people_are_no_box(tmp_path: Path) -> None:
    assert read(tmp_path, [{"question": "?", "answers": [2, 2, 3, 2]}] * 2, wanted="answers").train.answers == ["2", "2"]


def test_one_box_answers_each_text_of_a_list(tmp_path: Path) -> None:
    given = [{"said": ["the left one", "the red one"], "box": [0, 0, 20, 20]}, {"said": ["it"], "box": [0, 0, 20, 10]}]
    rows = read(tmp_path, given, wanted="answers", image="image", text="said", label="box").train
    assert rows.texts == ["the left one", "the red one", "it"]
    assert [box_of(answer) for answer in rows.answers or ()] == [(0, 0, 0.5, 1.0)] * 2 + [(0, 0, 0.5, 0.5)]


@pytest.mark.parametrize("turned", [None, 3, 6, 8])
def test_the_size_of_a_picture_is_that_of_the_way_up_that_is_shown(tmp_path: Path, turned: int | None) -> None:
    (tmp_path / "a.png").write_bytes(encoded(1, turned=turned))
    items = [tmp_path / "a.png", encoded(1, turned=turned), lambda: encoded(1, turned=turned), np.zeros((20, 40, 3), np.uint8)]
    shown = Images(items)
    assert [shown.size(i) for i in range(4)] == [shown[i].size for i in range(4)]
    assert (shown.size(0) == WIDE) == (turned in (None, 3))


def test_a_broken_picture_is_one_sentence_where_its_size_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(UserError, match=r"a\.png can't be read as a picture"):
        Images([tmp_path / "a.png"]).size(0)


# the hub ------------------------------------------------------------------------------------------------------------------


def refcoco(n: int, start: int = 0) -> datasets.Dataset:
    columns = {
        "question_id": [str(i) for i in range(n)],
        "image": [{"bytes": encoded(start + i), "path": None} for i in range(n)],
        "question": ["Write a caption of the area."] * n,
        "answer": [[f"letter {i}", f"the {i} one"] for i in range(n)],
        "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * n,
        "bbox": [[4.0 * (i % 5), 5.0, 20.0, 10.0] for i in range(n)],
        "iscrowd": [0] * n,
        "file_name": [f"COCO_train2014_{start + i:012d}.jpg" for i in range(n)],
    }
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def scienceqa(n: int, start: int = 0) -> datasets.Dataset:
    columns = {
        "image": [None if i % 4 == 3 else {"bytes": encoded(start + i), "path": None} for i in range(n)],
        "question": [f"what is it {start + i}?" for i in range(n)],
        "choices": [["red", "blue", "a square"][: 2 + i % 2] for i in range(n)],
        "answer": [i % 2 for i in range(n)],
        "hint": ["" if i % 3 else "see the picture." for i in range(n)],
        "task": ["closed choice"] * n,
        "grade": ["grade 2"] * n,
        "subject": [("natural science", "social science")[i % 2] for i in range(n)],
    }
    columns |= {name: ["x"] * n for name in ("topic", "category", "skill", "lecture", "solution")}
    features = datasets.Features(
        {name: datasets.Value("string") for name in columns}
        | {"image": datasets.Image(), "choices": datasets.List(datasets.Value("string")), "answer": datasets.Value("int8")}
    )
    return datasets.Dataset.from_dict(columns, features)


def ocr_vqa(n: int, start: int = 0) -> datasets.Dataset:
    word = {"word": "red", "bounding_box": {"top_left_x": 0.1, "top_left_y": 0.1, "width": 0.2, "height": 0.1}}
    columns = {
        "image": [{"bytes": encoded(start + i), "path": None} for i in range(n)],
        "image_id": [str(start + i) for i in range(n)],
        "questions": [["what colour is it?", "is it a square?"] for _ in range(n)],
        "answers": [[("red", "blue")[i % 2], "Yes"] for i in range(n)],
        "ocr_tokens": [["red", "book"]] * n,
        "ocr_info": [[word]] * n,
        "title": ["red"] * n,
        "authorName": ["Ann"] * n,
        "genre": [("Law", "Travel")[i % 2] for i in range(n)],
        "image_url": ["http://x"] * n,
        "set_name": ["train"] * n,
    }
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


HELD = {
    "lmms-lab/RefCOCO": lambda: {split: refcoco(12, 20 * i) for i, split in enumerate(("val", "test", "testA", "testB"))},
    "derek-thomas/ScienceQA": lambda: {s: scienceqa(16, 20 * i) for i, s in enumerate(("train", "validation", "test"))},
    "howard-hou/OCR-VQA": lambda: {s: ocr_vqa(12, 20 * i) for i, s in enumerate(("train", "validation", "test"))},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, name: str | None = None) -> datasets.DatasetDict:
        assert name is None
        return datasets.DatasetDict(HELD[path]())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.usefixtures("hub")
def test_refcoco_is_trained_on_its_val_rows_and_has_a_row_for_each_expression() -> None:
    source = load("refcoco")
    assert source.train.texts == [text for i in range(12) for text in (f"letter {i}", f"the {i} one")]
    assert source.train.answers is not None
    assert source.train.answers[:4] == ["[0.000, 0.250, 0.500, 0.750]"] * 2 + ["[0.100, 0.250, 0.600, 0.750]"] * 2
    assert shades(source)[:4] == [0, 0, 1, 1]
    assert source.validation is None
    assert source.test is not None
    assert source.test.images is not None
    assert np.asarray(source.test.images[0])[0, 0, 0] == 40, "the rows of testA"
    assert any("it has no training rows, so that those of its val split are trained on" in note for note in source.notes)
    assert not any("guessed" in note for note in source.notes)


@pytest.mark.usefixtures("hub")
def test_scienceqa_is_choices_of_rows_with_a_picture_and_its_subjects_are_clients() -> None:
    source = load("scienceqa")
    assert source.train.answers == ["A", "B", "A"] * 4
    assert source.train.texts is not None
    assert source.train.texts[:2] == [
        f"see the picture.\nwhat is it 0?\nA. red\nB. blue\n{ASKS}",
        f"what is it 1?\nA. red\nB. blue\nC. a square\n{ASKS}",
    ]
    assert source.key_name == "subject"
    assert set(source.train.keys or ()) == {"natural science", "social science"}
    assert any("dropped 4 of 16 train rows without a picture" in note for note in source.notes)
    assert not any("guessed" in note for note in source.notes)
    assert source.validation is not None
    assert source.test is not None


@pytest.mark.usefixtures("hub")
def test_ocr_vqa_has_a_row_for_each_question_and_its_genres_are_clients() -> None:
    source = load("ocr-vqa")
    assert source.classes == ("blue", "red", "yes")
    assert len(source.train) == 24
    assert source.train.votes is None
    assert (source.key_name, set(source.train.keys or ())) == ("genre", {"Law", "Travel"})
    assert load("ocr-vqa", wanted="answers").train.answers[:4] == ["red", "yes", "blue", "yes"]  # type: ignore[index]
    assert not any("guessed" in note for note in source.notes)


def test_their_backbones_are_chosen_by_themselves() -> None:
    models = {name: resolve({"data": name}).experiment.model for name in ("refcoco", "scienceqa", "ocr-vqa")}
    assert models == {"refcoco": "glyph-llava", "scienceqa": "glyph-llava", "ocr-vqa": "glyph-vilt"}
    assert {entry.name for entry in catalogue()} >= models.keys()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "metric", "more", "rows"),
    [
        ("refcoco", "box_accuracy", {}, 24),
        ("scienceqa", "choice_accuracy", {"max_length": 96}, 12),
        ("ocr-vqa", "exact_match", {"task": "generation"}, 24),
        ("ocr-vqa", "vqa_accuracy", {}, 24),
    ],
)
def test_a_tiny_run_trains_and_is_scored(name: str, metric: str, more: dict[str, Any], rows: int, tmp_path: Path) -> None:
    run = weft.run(
        data=name, method="fedit", clients=2, rounds=1, device="cpu", precision="float32", samples=4, new_tokens=4, baselines=[],
        quiet=True, runs=tmp_path, **more,
    )  # fmt: skip
    assert 0 <= run.metrics[metric] <= 1
    assert next(iter(run.metrics)) == metric, "the headline"
    assert np.isfinite(run.metrics["loss"])
    (played,) = [line for line in run.rounds if line["kind"] == "train"]
    assert played["drift"] > 0
    # of RefCOCO, which has no rows for validation, some are taken from those to train on
    assert (rows // 2 if name == "refcoco" else rows) <= played["work"]["examples"] <= rows
