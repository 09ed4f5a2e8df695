"""Nothing of a folder of pictures vanishes: what is no class, no picture or no index is said or refused; zips are folders too."""

from __future__ import annotations

import pickle
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from picture_folders import CLASSES, colour, draw, refusal, shown, two_domains
from weft.data import Source, load
from weft.errors import UserError


def flat(folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    """Pictures without folders, each of a colour of its own."""
    for name in names:
        draw(folder / f"{name}.png", name)
    return folder


# files ------------------------------------------------------------------------------------------------------------------


def test_classes_do_not_vanish_by_their_suffix(tmp_path: Path) -> None:
    """Ten pictures of each of four classes, two of them in formats that few expect."""
    for name, suffix in (("cat", "jpg"), ("dog", "jpg"), ("owl", "jfif"), ("yak", "ppm")):
        for i in range(10):
            draw(tmp_path / name / f"{i}.{suffix}", (name, i))
    source = load(str(tmp_path))
    assert source.classes == ("cat", "dog", "owl", "yak")
    assert len(shown(source.train)) == 40
    assert source.notes == (f"{tmp_path.name}: 40 pictures, 4 classes.",)


def test_what_is_left_out_is_counted_and_a_class_without_pictures_is_named(tmp_path: Path) -> None:
    two_domains(tmp_path / "art")
    for file in ("photo/owl/0.heic", "photo/owl/1.heic", "sketch/cat/note.txt", "LICENSE", "drawings/yak/0.svg"):
        (tmp_path / "art" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "art" / file).write_bytes(b"?")
    (tmp_path / "art" / "photo" / "empty").mkdir()
    _, files, folders = load(str(tmp_path / "art")).notes
    assert files == (
        "art: 5 files that are no pictures that Weft reads are left out (2 .heic, 1 without suffix, 1 .svg, 1 .txt)."
    )
    assert folders == "art: the folders drawings, photo/empty, photo/owl hold no picture that Weft reads, and are left out."


def test_a_folder_of_files_that_are_no_pictures_says_what_they_are(tmp_path: Path) -> None:
    for name in ("cat/0.heic", "dog/0.heic", "dog/1.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    assert "holds no data file that Weft reads and no pictures, but 2 .heic, 1 .svg: save pictures as png" in refusal(tmp_path)


# an index -----------------------------------------------------------------------------------------------------------------


def hospitals(folder: Path) -> Path:
    for site in ("hospA", "hospB"):
        for i in range(4):
            draw(folder / site / f"{i}.png", (site, i))
    return folder


@pytest.mark.parametrize("name", ["index.csv", "metadata.csv", "labels.csv"])
def test_an_index_from_windows_is_read(name: str, tmp_path: Path) -> None:
    lines = [f"{site}\\{i}.png,{'ab'[i % 2]},{site}" for site in ("hospA", "hospB") for i in range(4)]
    (hospitals(tmp_path) / name).write_text("\n".join(["file_name,label,hospital", *lines]))
    source = load(str(tmp_path))
    assert source.classes == ("a", "b")
    assert source.key_name == "hospital"
    assert shown(source.train) == [colour((site, i)) for site in ("hospA", "hospB") for i in range(4)]


def test_an_index_in_a_folder_that_is_all_there_is_counts(tmp_path: Path) -> None:
    lines = [f"{site}/{i}.png,{'ab'[i % 2]}" for site in ("hospA", "hospB") for i in range(4)]
    (hospitals(tmp_path / "set" / "inside") / "index.csv").write_text("\n".join(["file_name,label", *lines]))
    assert load(str(tmp_path / "set")).classes == ("a", "b")


@pytest.mark.parametrize(("written", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_however_their_accents_are_made(written: str, there: Any, tmp_path: Path) -> None:
    flat(tmp_path, tuple(unicodedata.normalize(there, f"é{i}") for i in range(2)))
    lines = [unicodedata.normalize(written, f"é{i}.png,{i}\n") for i in range(2)]  # type: ignore[arg-type]
    (tmp_path / "index.csv").write_text("file,label\n" + "".join(lines))
    assert len(shown(load(str(tmp_path)).train)) == 2


def test_an_index_of_labels_that_names_no_pictures_is_refused(tmp_path: Path) -> None:
    (hospitals(tmp_path) / "index.csv").write_text("scan,label\n1,a\n2,b\n")
    said = refusal(tmp_path)
    assert "index.csv of" in said
    assert 'has the label column "label", but none that names pictures of the folder (its columns are scan, label)' in said


def test_an_index_whose_pictures_do_not_exist_is_refused_even_if_it_is_the_first(tmp_path: Path) -> None:
    (hospitals(tmp_path) / "index.csv").write_text("file_name,label\nnowhere.png,a\nhospA/0.png,b\n")
    assert 'column "file_name" names 1 of 2 pictures that do not exist, first nowhere.png' in refusal(tmp_path)


def test_tables_that_are_not_used_are_said_with_the_reason(tmp_path: Path) -> None:
    two_domains(tmp_path / "art")
    (tmp_path / "art" / "metadata.csv").write_text("model,score\nresnet,1\nvit,2\n")
    source = load(str(tmp_path / "art"))
    assert source.classes == CLASSES
    assert source.notes[1] == (
        "art: metadata.csv is not used, since no column of it names pictures of the folder (its columns are model, score)."
    )
    (tmp_path / "art" / "metadata.csv").rename(tmp_path / "art" / "results.csv")
    (tmp_path / "art" / "odd.csv").write_text("a,b\n1\n")
    odd, results = load(str(tmp_path / "art")).notes[1:]
    assert results == "art: results.csv is not used: no column of it names pictures of the folder beside one of labels."
    assert odd.startswith("art: odd.csv is not used: ")
    assert "1 field" in odd


def test_two_tables_of_pictures_are_refused_and_one_beside_the_index_is_said(tmp_path: Path) -> None:
    table = "file,label\n" + "".join(f"{site}/{i}.png,{i}\n" for site in ("hospA", "hospB") for i in range(2))
    for name in ("one.csv", "two.csv"):
        (hospitals(tmp_path) / name).write_text(table)
    assert "several tables of its pictures (one.csv, two.csv): leave one, or call it index" in refusal(tmp_path)
    (tmp_path / "one.csv").rename(tmp_path / "index.csv")
    notes = load(str(tmp_path)).notes
    assert any("two.csv is not used: index.csv is." in note for note in notes)


def test_pictures_that_an_index_does_not_name_are_said(tmp_path: Path) -> None:
    flat(tmp_path / "set")
    (tmp_path / "set" / "index.csv").write_text("file,label\na.png,0\n./b.png,1\n")
    assert "set: 2 of 4 pictures are not in index.csv and are left out (c.png, d.png)." in load(str(tmp_path / "set")).notes


def test_a_table_whose_first_picture_is_gone_is_still_one_of_pictures(tmp_path: Path) -> None:
    flat(tmp_path / "all")
    (tmp_path / "rows.csv").write_text("file,caption,label\nall/z.png,two words,0\nall/b.png,two words,1\n")
    assert "names 1 of 2 pictures that do not exist, first all/z.png" in refusal(tmp_path / "rows.csv")


# zips -----------------------------------------------------------------------------------------------------------------------


def zipped(folder: Path, to: Path, **how: Any) -> Path:
    with zipfile.ZipFile(to, "w", **how) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
            if file.is_file():
                archive.writestr(f"__MACOSX/{file.relative_to(folder.parent).with_name('._' + file.name)}", b"?")
    return to


def same(one: Source, other: Source) -> None:
    assert one.fingerprint == other.fingerprint
    assert shown(one.train) == shown(other.train)
    assert one.train.ids.tolist() == other.train.ids.tolist()


def test_a_zip_of_a_folder_is_that_folder(tmp_path: Path) -> None:
    folders = two_domains(tmp_path / "art")
    packed = load(str(zipped(tmp_path / "art", tmp_path / "art.zip", compression=zipfile.ZIP_DEFLATED)))
    same(packed, folders)
    assert packed.notes == ("art.zip: 18 pictures, 2 domains (photo, sketch) × 3 classes, domain is the natural key.",)
    assert len(pickle.loads(pickle.dumps(packed.train.images))) == 18  # it goes to other processes
    lines = [f"{d}\\{c}\\{i}.png,{c},{d}" for d in ("photo", "sketch") for c in CLASSES for i in range(3)]
    (tmp_path / "art" / "index.csv").write_text("\n".join(["file_name,label,domain", *lines]))
    same(load(str(zipped(tmp_path / "art", tmp_path / "art2.zip"))), load(str(tmp_path / "art")))


def test_a_zip_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    two_domains(tmp_path / "art")
    whole = zipped(tmp_path / "art", tmp_path / "art.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    assert "half.zip can't be read (File is not a zip file): make the zip anew" in refusal(tmp_path / "half.zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("rows.csv", "text,label\na,1\n")
    assert "none.zip holds no pictures that Weft reads: unpack it" in refusal(tmp_path / "none.zip")
    damaged = bytearray(whole)
    at = whole.index(b"\x89PNG") + 20
    damaged[at] ^= 255
    (tmp_path / "bad.zip").write_bytes(damaged)
    with pytest.raises(UserError, match=r"bad\.zip/art/photo/cat/0\.png can't be read \(Bad CRC-32"):
        load(str(tmp_path / "bad.zip"))


def test_a_broken_picture_in_a_zip_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "set/x/a.png")
        archive.writestr("set/y/b.png", b"no picture")
    with pytest.raises(UserError, match=r"set\.zip/set/y/b\.png can't be read as a picture"):
        shown(load(str(tmp_path / "set.zip")).train)
