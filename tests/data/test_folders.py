"""Folders of pictures: every layout, an index beside them, tables that name them, and one sentence for what is wrong."""

from __future__ import annotations

import csv
import itertools
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from picture_folders import CLASSES, DOMAINS, colour, draw, refusal, shown, two_domains
from weft.data import Source, load, partition
from weft.data.images import Images
from weft.errors import UserError

SPLITS = ("train", "test", "val")


# layouts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["c", "sc", "dc", "sdc", "dsc"])
def test_every_layout_gives_the_rows_that_its_folders_say(where: str, tmp_path: Path) -> None:
    """Of s(plit), d(omain) and c(lass), those in the name of the layout become folders, in that order."""
    expected: dict[str, list[tuple[str, str | None, str]]] = {}
    pictures = list(itertools.product(DOMAINS, CLASSES, SPLITS, range(2)))
    random.Random(0).shuffle(pictures)
    for domain, name, split, i in pictures:
        folders = [{"s": split, "d": domain, "c": name}[level] for level in where]
        file = f"{i}.png" if len(where) == 3 else f"{domain}-{split}-{i}.png"
        draw(tmp_path.joinpath(*folders, file), (domain, name, split, i))
    for domain, name, split, i in sorted(pictures):
        own = {"train": "train", "test": "test", "val": "validation"}[split] if "s" in where else "train"
        expected.setdefault(own, []).append((name, domain if "d" in where else None, str(colour((domain, name, split, i)))))
    source = load(str(tmp_path))
    splits = {"train": source.train, "test": source.test, "validation": source.validation}
    assert {split for split, rows in splits.items() if rows is not None} == set(expected)
    for split, told in expected.items():
        rows = splits[split]
        assert rows is not None
        keys = rows.keys or [None] * len(rows)
        found = [(source.classes[y], key, str(c)) for y, key, c in zip(rows.labels, keys, shown(rows), strict=True)]
        assert sorted(found, key=str) == sorted(told, key=str)
    assert source.classes == CLASSES
    assert source.key_name == ("domain" if "d" in where else None)
    ids = [i for rows in splits.values() if rows is not None for i in rows.ids.tolist()]
    assert sorted(ids) == list(range(len(pictures)))


def test_what_was_recognised_is_said(tmp_path: Path) -> None:
    (note,) = two_domains(tmp_path / "art").notes
    assert note == "art: 18 pictures, 2 domains (photo, sketch) × 3 classes, domain is the natural key."
    for name, split in itertools.product(CLASSES, ("Train", "Validation")):
        draw(tmp_path / "plain" / split / name / "0.png")
    first, second = load(str(tmp_path / "plain")).notes
    assert first == "plain: 6 pictures, 3 classes; split by folders into 3 train, 3 validation."
    assert "its validation split is the test set" in second
    for domain, name in (("tame", "cat"), ("wild", "lynx"), ("wild", "lion")):
        draw(tmp_path / "apart" / domain / name / "0.png")
    assert "(no class is in two of them)" in load(str(tmp_path / "apart")).notes[0]


def test_rows_ids_and_fingerprint_do_not_depend_on_where_or_in_which_order_files_were_written(tmp_path: Path) -> None:
    one = two_domains(tmp_path / "one")
    other = two_domains(tmp_path / "other" / "inside", reversed(CLASSES))
    around = load(str(tmp_path / "other"))  # a folder that holds nothing but the folder
    assert one.train.ids.tolist() == list(range(18))
    assert one.train.keys == ["photo"] * 9 + ["sketch"] * 9
    for same in (other, around):
        assert same.train.ids.tolist() == one.train.ids.tolist()
        assert same.train.labels.tolist() == one.train.labels.tolist()
        assert same.fingerprint == one.fingerprint
        assert shown(same.train) == shown(one.train)
    draw(tmp_path / "other" / "inside" / "photo" / "cat" / "0.png", "another picture under an old name")
    assert load(str(tmp_path / "other")).fingerprint != one.fingerprint


def test_classes_are_in_the_order_of_their_names_numbers_by_size_and_keep_their_spelling(tmp_path: Path) -> None:
    for name in ("10", "9", "0"):
        draw(tmp_path / "numbers" / name / "0.png")
    assert load(str(tmp_path / "numbers")).classes == ("0", "9", "10")
    for name in ("010", "001", "polka-dotted", "back_pack"):
        draw(tmp_path / "names" / name / "0.png")
    assert load(str(tmp_path / "names")).classes == ("001", "010", "back_pack", "polka-dotted")


def test_every_picture_format_is_read_and_nothing_else(tmp_path: Path) -> None:
    formats = ("png", "jpg", "jpeg", "jfif", "bmp", "webp", "gif", "tif", "ppm", "pgm", "tga", "jp2", "ico", "PNG", "JPeG")
    for name, suffix in itertools.product(("a", "b"), formats):
        draw(tmp_path / name / f"{suffix}-.{suffix}")
    for stray in (
        "a/notes.txt",
        "a/.hidden.png",
        ".cache/x/0.png",
        "__MACOSX/a/0.png",
        "splits/photo_train.txt",
        "Thumbs.db",
        "a/._b.jpg",
    ):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_text("not a picture")
    source = load(str(tmp_path))
    assert source.train.labels.tolist() == [0] * len(formats) + [1] * len(formats)
    assert len(shown(source.train)) == 2 * len(formats)
    assert source.notes[1].endswith("2 files that are no pictures that Weft reads are left out (2 .txt).")


def test_one_domain_is_no_natural_key(tmp_path: Path) -> None:
    for name, split in itertools.product(CLASSES, ("train", "test")):
        draw(tmp_path / split / "photo" / name / "0.png")
    source = load(str(tmp_path))
    assert source.key_name is None
    assert source.train.keys is None
    assert source.test is not None
    assert len(source.test) == 3


def test_pictures_stay_files_until_they_are_looked_at(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "broken.png").write_bytes(b"no picture")
    source = load(str(tmp_path))
    assert source.train.labels.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"broken\.png can't be read as a picture"):
        shown(source.train)


def test_a_limit_reads_no_picture_that_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = two_domains(tmp_path)
    read = []
    digest = Images.digest

    def counted(self: Images, index: int) -> str:
        read.append(index)
        return digest(self, index)

    monkeypatch.setattr(Images, "digest", counted)
    some = load(str(tmp_path), limit=5, seed=1)
    assert len(some.train) == len(read) == 5
    assert shown(some.train) == [shown(whole.train)[i] for i in some.train.ids.tolist()]
    assert some.fingerprint not in ("", whole.fingerprint)


def test_domains_are_dealt_as_clients(tmp_path: Path) -> None:
    fed = partition(two_domains(tmp_path), clients=2)
    assert sorted(client.facts["domain"] for client in fed.clients) == ["photo", "sketch"]
    assert len(fed.fingerprint) == 64


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["0.png", "1.png"], "holds pictures without folders"),
        (["cat/0.png", "cat/1.png"], "has pictures of one class only (cat)"),
        (["train/cat/0.png", "test/cat/1.png"], "has pictures of one class only (cat)"),
        (["cat/0.png", "dog/0.png", "0.png"], "mixes layouts (0.png, cat/0.png)"),
        (["train/cat/0.png", "train/dog/0.png", "test/0.png"], "mixes layouts (test/0.png, train/cat/0.png)"),
        (["train/0.png", "test/0.png"], "lie right below test, train: give each class a folder there"),
        (["cat/train/0.png", "dog/train/0.png"], "lie right below train"),
        (["test/cat/0.png", "val/dog/0.png"], "has folders for test and validation but none called train"),
        (["train/cat/0.png", "full/dog/0.png"], "mixes folders for splits (train) with others (full)"),
        (["a/train/x/0.png", "a/full/y/0.png", "b/train/x/0.png"], "they are called a, b and full, train"),
        (["a/b/c/d/0.png", "e/b/c/f/0.png"], "has 4 levels of folders above its pictures"),
        (["readme.txt"], "holds no data file that Weft reads"),
    ],
)
def test_a_folder_of_another_layout_is_one_sentence(files: list[str], sentence: str, tmp_path: Path) -> None:
    for file in files:
        draw(tmp_path / "set" / file) if file.endswith("png") else (tmp_path / "set").mkdir()
    said = refusal(tmp_path / "set")
    assert sentence in said
    assert "set" in said


def test_columns_of_a_folder_cannot_be_named(tmp_path: Path) -> None:
    two_domains(tmp_path)
    assert "leave --label out" in refusal(tmp_path, label="label")
    assert "leave --image out" in refusal(tmp_path, image="image")


# an index beside the pictures, and tables that name pictures --------------------------------------------------------------


def indexed(folder: Path, file: str, **renamed: str) -> Source:
    """Two domains with an index, whose columns may be called otherwise."""
    two_domains(folder)
    rows = [
        {renamed.get("image", "file_name"): f"{d}/{c}/{i}.png", renamed.get("label", "label"): c, "domain": d}
        for d, c, i in itertools.product(DOMAINS, CLASSES, range(3))
    ]
    if file.endswith("csv"):
        with open(folder / file, "w", newline="") as f:
            writer = csv.DictWriter(f, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(str(folder))


@pytest.mark.parametrize(
    ("file", "renamed"),
    [
        ("index.csv", {}),
        ("metadata.csv", {}),
        ("metadata.jsonl", {}),
        ("index.csv", {"image": "path", "label": "class"}),
        ("index.csv", {"image": "image", "label": "category"}),
    ],
)
def test_an_index_says_the_same_as_folders(file: str, renamed: dict[str, str], tmp_path: Path) -> None:
    by_index, by_folders = indexed(tmp_path / "a", file, **renamed), two_domains(tmp_path / "b")
    assert by_index.fingerprint == by_folders.fingerprint
    assert by_index.key_name == "domain"
    (note,) = by_index.notes
    assert f'"{renamed.get("image", "file_name")}" is the picture (--image)' in note


def test_an_index_may_tell_split_numbers_and_names(tmp_path: Path) -> None:
    lines = ["file,label,label_name,split,domain"]
    for i in range(12):
        draw(tmp_path / f"{i}.png", i)
        lines.append(f"{i}.png,{i % 2},{('yes', 'no')[i % 2]},{('train', 'train', 'test', 'val')[i % 4]},d{i % 3}")
    (tmp_path / "index.csv").write_text("\n".join(lines) + "\n")
    source = load(str(tmp_path))
    assert source.classes == ("yes", "no")
    assert shown(source.train) == [colour(i) for i in range(12) if i % 4 < 2]
    assert shown(source.test) == [colour(i) for i in range(12) if i % 4 == 2]
    assert shown(source.validation) == [colour(i) for i in range(12) if i % 4 == 3]
    assert any("tells the split of a row (test, train, validation)" in note for note in source.notes)
    (tmp_path / "index.csv").write_text("\n".join(line.replace("train", "test") for line in lines) + "\n")
    assert "names no row train" in refusal(tmp_path)


def test_split_folders_may_each_have_an_index(tmp_path: Path) -> None:
    for split, n in (("train", 4), ("test", 2)):
        for i in range(n):
            draw(tmp_path / split / f"{i}.png", (split, i))
        lines = "".join(f"{i}.png,{'xy'[i % 2]}\n" for i in range(n))
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n" + lines)
    source = load(str(tmp_path))
    assert shown(source.train) == [colour(("train", i)) for i in range(4)]
    assert shown(source.test) == [colour(("test", i)) for i in range(2)]


def test_pictures_that_an_index_names_and_that_do_not_exist_are_one_sentence(tmp_path: Path) -> None:
    draw(tmp_path / "0.png")
    (tmp_path / "index.csv").write_text("file_name,label\n0.png,a\n1.png,b\n2.png,b\n")
    assert "names 2 of 3 pictures that do not exist, first " in (said := refusal(tmp_path))
    assert "1.png" in said


def test_a_table_may_name_pictures_or_hold_them(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / "all" / f"{i}.png", i)
    (tmp_path / "rows.csv").write_text("img,caption,label\n" + "".join(f"all/{i}.png,two words {i},{i % 2}\n" for i in range(4)))
    stored = [{"bytes": (tmp_path / "all" / f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    table = pyarrow.table({"shot": stored, "label": [i % 2 for i in range(4)]})
    (tmp_path / "shards" / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(table, tmp_path / "shards" / "data" / "train-00000-of-00001.parquet")
    for name in ("rows.csv", "shards"):
        source = load(str(tmp_path / name))
        assert shown(source.train) == [colour(i) for i in range(4)]
        assert source.train.labels.tolist() == [0, 1, 0, 1]
    captions = load(str(tmp_path / "rows.csv"), text="caption").train
    assert captions.images is None
    assert captions.texts == [f"two words {i}" for i in range(4)]


def test_a_column_of_pictures_can_be_named(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / "all" / f"{i}.png", i)
    lines = "".join(f"all/{i}.png,all/{3 - i}.png,{i % 2}\n" for i in range(4))
    (tmp_path / "rows.csv").write_text("left,right,label\n" + lines)
    source = load(str(tmp_path / "rows.csv"), image="right")
    assert shown(source.train) == [colour(3 - i) for i in range(4)]
    assert "asked for by --image" in refusal(tmp_path / "rows.csv", image="middle")
    assert "pictures that do not exist" in refusal(tmp_path / "rows.csv", image="label")


def test_texts_beside_a_picture_are_still_texts(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label,file\ngood,1,a.png\nbad,0,b.png\n")
    draw(tmp_path / "plot.png")
    for path in (tmp_path, tmp_path / "rows.csv"):
        assert load(str(path)).train.texts == ["good", "bad"]
