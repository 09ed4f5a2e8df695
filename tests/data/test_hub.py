"""Hub sets: the real code path, with small sets of the documented columns in place of the download."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from weft.data import Rows, catalogue, load, partition
from weft.data.hub_sets import IMAGE, QUESTIONS
from weft.data.rows import BOTH
from weft.errors import UserError

Value, ClassLabel = datasets.Value, datasets.ClassLabel


def split(columns: dict[str, list[Any]], **features: Any) -> datasets.Dataset:
    typed = {name: features.get(name, Value("string")) for name in columns}
    return datasets.Dataset.from_dict(columns, datasets.Features(typed))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Any, ...], Any]:
    """What the hub holds: (id, config) or (id, config, revision) -> splits, or an error to raise."""
    held: dict[tuple[Any, ...], Any] = {}

    def load_dataset(path: str, name: str | None = None, *, revision: str | None = None) -> datasets.DatasetDict:
        found = held.get((path, name) if revision is None else (path, name, revision), FileNotFoundError("absent"))
        if isinstance(found, Exception):
            raise found
        return datasets.DatasetDict(found)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return held


def glue_split(columns: list[str], labels: list[int], names: list[str]) -> datasets.Dataset:
    texts = {name: [f"{name} {i}" for i in range(len(labels))] for name in columns}
    return split(
        {**texts, "label": labels, "idx": list(range(len(labels)))},
        label=ClassLabel(names=names),
        idx=Value("int32"),
    )


@pytest.mark.parametrize(
    ("name", "columns", "classes"),
    [
        ("sst2", ["sentence"], ["negative", "positive"]),
        ("cola", ["sentence"], ["unacceptable", "acceptable"]),
        ("qnli", ["question", "sentence"], ["entailment", "not_entailment"]),
        ("rte", ["sentence1", "sentence2"], ["entailment", "not_entailment"]),
        ("qqp", ["question1", "question2"], ["not_duplicate", "duplicate"]),
        ("mrpc", ["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
        ("wnli", ["sentence1", "sentence2"], ["not_entailment", "entailment"]),
    ],
)
def test_glue_is_tested_on_its_validation_split(
    hub: dict[tuple[Any, ...], Any], name: str, columns: list[str], classes: list[str]
) -> None:
    hub["nyu-mll/glue", name] = {
        "train": glue_split(columns, [0, 1, 1, 0], classes),
        "validation": glue_split(columns, [1, 0], classes),
        "test": glue_split(columns, [-1, -1, -1], classes),
    }
    source = load(name)
    assert source.classes == tuple(classes)
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert source.test is not None
    assert source.test.labels.tolist() == [1, 0]
    assert source.validation is None
    assert source.train.texts[2] == f"{columns[0]} 2"
    assert (source.train.pairs[2] if source.train.pairs else None) == (f"{columns[1]} 2" if columns[1:] else None)
    assert any("not verified against the hub" in note for note in source.notes)


def test_mnli_is_tested_on_the_matched_genres(hub: dict[tuple[Any, ...], Any]) -> None:
    names = ["entailment", "neutral", "contradiction"]
    hub["nyu-mll/glue", "mnli"] = {
        "train": glue_split(["premise", "hypothesis"], [0, 1, 2], names),
        "validation_matched": glue_split(["premise", "hypothesis"], [2, 2], names),
        "validation_mismatched": glue_split(["premise", "hypothesis"], [1], names),
        "test_matched": glue_split(["premise", "hypothesis"], [-1], names),
    }
    source = load("mnli")
    assert source.test is not None
    assert source.test.labels.tolist() == [2, 2]


def test_sentiment140_has_users_as_clients_and_drops_neutral_test_rows(
    hub: dict[tuple[Any, ...], Any],
) -> None:
    def tweets(labels: list[int]) -> datasets.Dataset:
        n = len(labels)
        columns = {
            "text": [f"t {i}" for i in range(n)],
            "date": ["d"] * n,
            "user": [f"u{i % 2}" for i in range(n)],
        }
        return split({**columns, "sentiment": labels, "query": ["q"] * n}, sentiment=Value("int32"))

    hub["stanfordnlp/sentiment140", None] = RuntimeError("Dataset scripts are no longer supported, but found sentiment140.py")
    hub["stanfordnlp/sentiment140", None, "refs/convert/parquet"] = {
        "train": tweets([0, 0, 4, 4]),
        "test": tweets([4, 2, 0]),
    }
    source = load("sentiment140")
    assert source.classes == ("negative", "positive")
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.train.keys == ["u0", "u1", "u0", "u1"]
    assert source.key_name == "user"
    assert source.test is not None
    assert source.test.labels.tolist() == [1, 0]
    assert any("dropped 1 of 3 test rows" in note for note in source.notes)


def test_masakhanews_joins_its_languages_by_class_name(hub: dict[tuple[Any, ...], Any]) -> None:
    """Languages lack some classes, so the same number can mean another class in another language."""
    entry = next(entry for entry in catalogue() if entry.name == "masakhanews")
    for i, lang in enumerate(entry.configs):
        names = ["business", "health", "sports"] if i else ["health", "sports"]
        table = split({"text": [f"{lang} a", f"{lang} b"], "label": [0, 1]}, label=ClassLabel(names=names))
        hub["masakhane/masakhanews", lang] = {"train": table, "validation": table, "test": table}
    source = load("masakhanews")
    called = [source.classes[label] for label in source.train.labels.tolist()]
    assert called == ["health", "sports"] + ["business", "health"] * 15
    assert source.train.keys == [lang for lang in entry.configs for _ in range(2)]
    assert source.validation is not None
    assert len(source.validation) == 32


def test_xnli_trains_on_each_pair_in_one_language_only(hub: dict[tuple[Any, ...], Any]) -> None:
    """Row i is the same pair in every language: with two clients it would leak between their splits."""
    entry = next(entry for entry in catalogue() if entry.name == "xnli")
    n = 40
    for lang in entry.configs:
        columns = {"premise": [f"{lang} {i}" for i in range(n)], "hypothesis": ["h"] * n}
        table = split(
            {**columns, "label": [i % 3 for i in range(n)]},
            label=ClassLabel(names=["entailment", "neutral", "contradiction"]),
        )
        hub["facebook/xnli", lang] = {"train": table, "validation": table.select(range(3)), "test": table}
    source = load("xnli")
    numbers = [int(text.split()[1]) for text in source.train.texts]
    assert sorted(numbers) == list(range(n))
    assert set(source.train.keys or ()) == set(entry.configs)
    assert source.test is not None
    assert len(source.test) == 15 * n


def some_set(names: list[str] | None = None) -> dict[str, datasets.Dataset]:
    label = ClassLabel(names=names) if names else Value("int64")
    return {"train": split({"content": ["a b", "c d", "e f"], "stars": ["x", "y", "x"], "label": [0, 1, 1]}, label=label)}


def test_any_other_hub_set_is_loaded_by_its_id_with_guessed_columns(hub: dict[tuple[Any, ...], Any]) -> None:
    hub["owner/name", None] = some_set(["no", "yes"])
    hub["owner/name", "small"] = some_set()
    source = load("owner/name")
    assert (source.classes, list(source.train.texts)) == (("no", "yes"), ["a b", "c d", "e f"])
    assert source.test is None
    assert any('"content" is the text' in note for note in source.notes)
    assert load("owner/name:small").classes == ("0", "1")
    assert load("owner/name", label="stars").classes == ("x", "y")


def test_a_catalogued_column_that_is_gone_is_guessed_and_can_be_named(
    hub: dict[tuple[Any, ...], Any],
) -> None:
    hub["fancyzhx/ag_news", None] = some_set(["World", "Sports"])
    source = load("ag_news")
    assert any('"content" is the text' in note for note in source.notes)
    assert load("ag_news", text="stars").train.texts[0] == "x"


def test_columns_that_are_not_plain_values_are_left_alone(hub: dict[tuple[Any, ...], Any]) -> None:
    table = datasets.Dataset.from_dict(
        {"text": ["a", "b"], "label": [0, 1], "entities": [[{"start": 1}], []], "vector": [[1.0], [2.0]]}
    )
    hub["owner/name", None] = {"train": table}
    assert load("owner/name").train.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach the Hub\nwith details"),
        ValueError("Config name is missing."),
        datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' is gated"),
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        OSError(),
    ],
)
def test_a_set_that_cannot_be_loaded_is_one_sentence_that_says_what_to_do(
    hub: dict[tuple[Any, ...], Any], error: Exception
) -> None:
    hub["owner/name", None] = error
    with pytest.raises(UserError) as caught:
        load("owner/name")
    assert "\n" not in str(caught.value)
    assert "give --data a local file or folder instead, or use pydocs" in str(caught.value)


def test_offline_a_hub_set_fails_with_the_same_sentence() -> None:
    with pytest.raises(UserError, match=r"nyu-mll/glue \(sst2\) can't be loaded from the Hugging Face hub"):
        load("sst2")


def test_a_set_without_a_train_split_names_its_splits(hub: dict[tuple[Any, ...], Any]) -> None:
    table = some_set()["train"]
    hub["owner/name", None] = {"de": table, "en": table}
    with pytest.raises(UserError, match="has no train split but de, en"):
        load("owner/name")
    hub["owner/one", None] = {"full": table}
    assert len(load("owner/one").train) == 3


def test_the_catalogue_says_what_is_offline_and_what_was_never_checked() -> None:
    entries = catalogue()
    with_weft = ["pydocs", "docstrings", "docstring_preferences", "shops", "glyphs", "glyph_questions"]
    with_weft += ["glyph_boxes", "drawings", "digits"]
    assert [entry.name for entry in entries if entry.offline] == with_weft
    assert all("not verified against the hub" in entry.verified for entry in entries if not entry.offline)
    folders = {"office-caltech10", "vlcs", "rosetta-alpaca", "cocoqa", "gqa"}
    assert {entry.name for entry in entries if entry.hub_id is None and not entry.offline} == folders
    assert all("/" in entry.hub_id for entry in entries if entry.hub_id is not None)
    names = [entry.name for entry in entries]
    assert len(names) == len(set(names))
    wanted = {"ag_news", "20newsgroups", "sst2", "mnli", "qnli", "rte", "qqp", "cola", "sentiment140"}
    wanted |= {"cifar10", "cifar100", "domainnet", "pacs", "officehome", "flowers102", "pets", "food101", "caltech101", "dtd"}
    assert wanted | folders | {"ucf101"} <= set(names)


@pytest.mark.parametrize(
    "name", ["pydocs", "docstrings", "docstring_preferences", "glyphs", "glyph_questions", "drawings", "digits"]
)
def test_the_catalogue_is_right_about_what_comes_with_weft(name: str) -> None:
    entry, source = next(entry for entry in catalogue() if entry.name == name), load(name)
    assert entry.classes == len(source.classes)
    assert entry.client_key == source.key_name
    assert entry.rows["train"] == pytest.approx(len(source.train), rel=0.1)
    assert (entry.kind in (IMAGE, QUESTIONS)) == (source.train.images is not None)


def test_listing_the_catalogue_imports_nothing_heavy() -> None:
    code = (
        "import sys, weft.data; weft.data.catalogue();"
        "print([m for m in ('numpy', 'torch', 'datasets', 'pyarrow', 'matplotlib') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


# pictures -----------------------------------------------------------------------------------------------------------------


def picture(shade: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (shade, shade, shade)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def shades(rows: Rows | None) -> list[int]:
    assert rows is not None
    assert rows.texts is None
    assert rows.images is not None
    return [rows.images[i].getpixel((0, 0))[0] for i in range(len(rows))]


def pictures(names: list[str], labels: list[int], start: int = 0, image: str = "image", **more: list[Any]) -> datasets.Dataset:
    """A picture for each label, of shade ``start`` and upwards; all further columns but ``frame`` are texts."""
    columns = {image: [picture(start + i) for i in range(len(labels))], "label": labels, **more}
    return split(columns, **{image: datasets.Image()}, label=ClassLabel(names=names), frame=Value("int64"))


def test_sets_of_pictures_have_the_columns_of_their_documents(hub: dict[tuple[Any, ...], Any]) -> None:
    names = ["airplane", "automobile"]
    hub["uoft-cs/cifar10", "plain_text"] = {
        "train": pictures(names, [0, 1, 1], image="img"),
        "test": pictures(names, [1, 0], start=10, image="img"),
    }
    source = load("cifar10")
    assert source.classes == tuple(names)
    assert (source.train.labels.tolist(), shades(source.train)) == ([0, 1, 1], [0, 1, 2])
    assert shades(source.test) == [10, 11]
    assert any("not verified against the hub" in note for note in source.notes)
    hub["ethz/food101", None] = {"train": pictures(names, [0, 1]), "validation": pictures(names, [1], start=20)}
    food = load("food101")
    assert (shades(food.test), food.validation) == ([20], None)


def test_cifar100_has_its_fine_labels_and_a_crab(hub: dict[tuple[Any, ...], Any]) -> None:
    columns = {"img": [picture(i) for i in range(4)], "fine_label": [0, 1, 2, 0], "coarse_label": [0, 0, 1, 0]}
    table = split(
        columns,
        img=datasets.Image(),
        fine_label=ClassLabel(names=["couch", "cra", "crocodile"]),
        coarse_label=ClassLabel(names=["one", "two"]),
    )
    hub["uoft-cs/cifar100", "cifar100"] = {"train": table}
    assert load("cifar100").classes == ("couch", "crab", "crocodile")
    assert load("cifar100", label="coarse_label").classes == ("one", "two")


@pytest.mark.parametrize("name", ["domainnet", "officehome", "pacs"])
def test_domains_are_natural_clients(hub: dict[tuple[Any, ...], Any], name: str) -> None:
    entry = next(entry for entry in catalogue() if entry.name == name)
    domains = ["photo", "sketch", "photo", "art", "art"]
    hub[entry.hub_id, None] = {"train": pictures(["dog", "cat"], [0, 1, 0, 1, 0], domain=domains)}
    source = load(name)
    assert source.train.keys == domains
    assert source.key_name == "domain"
    fed = partition(source, clients=2, leave_out="photo")
    assert [sorted(shades(new.test)) for new in fed.unseen] == [[0, 2]]


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vqa-rad", "path-vqa"])
def test_questions_about_pictures_have_the_columns_of_their_documents(hub: dict[tuple[Any, ...], Any], name: str) -> None:
    entry = next(entry for entry in catalogue() if entry.name == name)
    answers: list[Any] = ["a cat", "two", "Two."]
    if entry.label == "answers":
        answers = [[one] * 10 for one in answers]
    if name == "vqav2":
        answers = [[{"answer": one, "answer_id": i} for i, one in enumerate(own)] for own in answers]
    columns = {"question": ["what?", "how many?", "how many?"], str(entry.label): answers}
    columns |= {"image": [picture(i) for i in range(3)], "answer_type": ["other", "number", "number"]}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    hub[entry.hub_id, None] = dict.fromkeys(("train", "validation", "test"), table)
    source = load(name)
    assert source.classes == ("a cat", "two")
    assert (source.train.texts, source.train.read_as) == (columns["question"], BOTH)
    assert (source.train.votes is None) == (entry.label == "answer")
    assert source.test is not None
    assert source.key_name == "answer_type"


def test_a_clip_gives_its_middle_frame_only(hub: dict[tuple[Any, ...], Any]) -> None:
    """Frames of one clip are nearly the same picture, and would leak between training and test rows."""
    clips = [("v1", "c1"), ("v1", "c1"), ("v1", "c2"), ("v1", "c1"), ("v2", "c1"), ("v2", "c1")]
    table = pictures(
        ["Archery", "Biking"],
        [0, 0, 0, 0, 1, 1],
        video_id=[video for video, _ in clips],
        clip_id=[clip for _, clip in clips],
        frame=[0, 1, 0, 2, 0, 1],
    )
    hub["flwrlabs/ucf101", None] = {"train": table, "test": table}
    source = load("ucf101")
    assert shades(source.train) == [1, 2, 5]
    assert shades(source.test) == [1, 2, 5]
    assert source.train.labels.tolist() == [0, 0, 1]


def test_any_other_set_with_pictures_is_one_of_pictures(hub: dict[tuple[Any, ...], Any]) -> None:
    table = pictures(["no", "yes"], [0, 1, 1], image="shot", caption=["a b", "c d", "e f"], style=["x", "y", "x"])
    hub["owner/name", None] = {"train": table}
    source = load("owner/name")
    assert shades(source.train) == [0, 1, 2]
    assert source.train.keys == ["x", "y", "x"]
    assert any('"shot" is the picture (--image)' in note for note in source.notes)
    captions = load("owner/name", text="caption").train
    assert (captions.images, captions.texts) == (None, ["a b", "c d", "e f"])
    assert "holds no pictures" in refusal("owner/name", image="caption")


def test_pictures_are_read_from_the_sets_files_when_they_are_looked_at(hub: dict[tuple[Any, ...], Any], tmp_path: Path) -> None:
    (tmp_path / "2.png").write_bytes(picture(2)["bytes"])
    table = split(
        {"image": [picture(0), None, {"bytes": None, "path": str(tmp_path / "2.png")}], "label": ["a", "b", "b"]},
        image=datasets.Image(),
    )
    hub["owner/name", None] = {"train": table}
    source = load("owner/name")
    assert shades(source.train) == [0, 2]
    assert any("dropped 1 of 3 train rows without a picture" in note for note in source.notes)
    held = source.train.images
    assert held is not None
    assert not any(isinstance(item, bytes) for item in held._items)


def refusal(name: str, **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(name, **columns)
    return str(caught.value)


@pytest.mark.parametrize("name", ["office-caltech10", "vlcs"])
def test_a_set_that_the_hub_does_not_have_is_asked_for_as_a_folder(name: str) -> None:
    assert "laid out as domain/class/picture" in refusal(name)


def test_a_set_of_pictures_that_cannot_be_loaded_names_the_set_of_pictures_that_can() -> None:
    assert "or use glyphs, which needs neither" in refusal("pacs")


@pytest.mark.parametrize("name", ["pydocs", "docstrings", "docstring_preferences", "glyphs", "drawings", "digits"])
def test_columns_of_a_set_that_comes_with_weft_cannot_be_named(name: str) -> None:
    assert refusal(name, text="body") == f"{name} has fixed columns, so leave --text out."
