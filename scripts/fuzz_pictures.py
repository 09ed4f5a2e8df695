"""Damaged pictures, folders, indexes and zips: shown, said or refused, never a traceback and never fewer rows without a word.

A part of ``fuzz_inputs.py``.
"""

from __future__ import annotations

import io
import random
import re
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from weft.data import Images, Source, load
from weft.data.decoding import formats
from weft.errors import UserError

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB")
KINDS = (
    "PNG",
    "JPEG",
    "GIF",
    "TIFF",
    "BMP",
    "WEBP",
    "PPM",
    "TGA",
    "ICO",
    "JPEG2000",
    "PCX",
    "SGI",
    "DDS",
    "ICNS",
    "AVIF",
    "QOI",
)
SUFFIXES = (".png", ".jpg", ".jfif", ".ppm", ".tif", ".bmp", ".webp", ".gif", ".tga", ".jp2")
OTHERS = (".heic", ".txt", ".svg", "", ".dcm")
NAMES = ("cat", "dog", "guinea pig", "é", "01", "train-set", "黑")


def one(rng: random.Random, folder: Path) -> str:
    """Make one damaged input in an empty folder, and read it; raises for a finding."""
    kind: Callable[[random.Random, Path], str] = rng.choice((picture, picture, layout, index, archive))
    return f"{kind.__name__} {kind(rng, folder)}"


# one picture ------------------------------------------------------------------------------------------------------------


def picture(rng: random.Random, folder: Path) -> str:
    """A picture of any format and mode with a few bytes changed, as a file or as bytes."""
    data = damaged(rng, encoded(rng, rng.choice(KINDS), rng.choice(MODES)))
    file = folder / f"a{rng.choice(SUFFIXES)}"
    file.write_bytes(data)
    try:
        shown = Images([file if rng.random() < 0.5 else data])[0]
    except UserError as error:
        if "\n" in str(error):
            raise ValueError(f"two lines: {error}") from error
        return "refused"
    if shown.mode != "RGB" or not all(shown.size):
        raise ValueError(f"shown as {shown.mode} of {shown.size}")
    np.asarray(shown)
    return "shown"


def encoded(rng: random.Random, kind: str, mode: str) -> bytes:
    """A small picture as bytes; in another mode where the format knows no such."""
    width, height = rng.randint(1, 40), rng.randint(1, 40)
    pixels = np.frombuffer(rng.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    drawn = Image.fromarray(pixels)
    if mode == "I;16":
        drawn = Image.fromarray(pixels[..., 0].astype(np.uint16) * rng.choice((1, 16, 257)))
    elif mode != "LAB":
        drawn = drawn.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = rng.randint(0, 9)
    for form, more in ((drawn, {"exif": exif}), (drawn, {}), (Image.fromarray(pixels), {})):
        buffer = io.BytesIO()
        try:
            form.save(buffer, kind, **more)
        except Exception:  # Pillow has no such form of it
            continue
        return buffer.getvalue()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in; now and then none."""
    found = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        at, to = sorted((rng.randrange(len(found) + 1), min(rng.randrange(len(found) + 1), len(found))))
        how = rng.randrange(6)
        if how == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << rng.randrange(8)
        elif how == 1 and found:
            found[min(at, len(found) - 1)] = rng.choice((0, 1, 127, 128, 255))
        elif how == 2:
            del found[at:]
        elif how == 3:
            del found[at : min(to, at + 8)]
        elif how == 4:
            found[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            found[at:at] = found[at : min(to, at + 16)]
    return bytes(found)


# folders ----------------------------------------------------------------------------------------------------------------


def made(rng: random.Random, folder: Path) -> list[Path]:
    """A folder of domain/class/picture or class/picture, with the like of what people have in it."""
    files = []
    domains = rng.choice(([()], [("photo",), ("sketch",)], [("train",), ("test",)]))
    for domain in domains:
        for name in rng.sample(NAMES, rng.randint(2, 4)):
            inside = folder.joinpath(*domain, name)
            inside.mkdir(parents=True, exist_ok=True)
            suffixes = SUFFIXES if rng.random() < 0.8 else OTHERS
            for i in range(rng.randint(0, 4)):
                file = inside / f"{i}{rng.choice(suffixes)}"
                Image.new("RGB", (2, 2), (rng.randrange(256), rng.randrange(256), 0)).save(file, "PNG")
                files.append(file)
            for junk in rng.sample((".DS_Store", "._0.png", "Thumbs.db", "notes.txt"), rng.choice((0, 0, 1))):
                (inside / junk).write_bytes(b"?")
                files.append(inside / junk)
    return files


def visible(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Those that Weft should take as pictures, and those that it should say it leaves out."""
    seen = [f for f in files if not f.name.startswith(".") and f.name != "Thumbs.db"]
    pictures = [f for f in seen if f.suffix.lower() in formats()]
    return pictures, [f for f in seen if f not in pictures]


def rows_of(source: Source) -> int:
    return sum(len(rows) for rows in (source.train, source.test, source.validation) if rows is not None)


def read(path: Path) -> Source | None:
    """The source, every picture of it decoded; None if it was refused."""
    try:
        source = load(str(path))
        for rows in (source.train, source.test, source.validation):
            if rows is not None and rows.images is not None:
                for i in range(len(rows)):
                    rows.images[i].getpixel((0, 0))
    except UserError as error:
        if "\n" in str(error):
            raise ValueError(f"two lines: {error}") from error
        return None
    return source


def counted(source: Source, pictures: list[Path], others: list[Path]) -> None:
    """Raises:
    ValueError: a row or a class is missing, and nothing says so.
    """
    said = " ".join(source.notes)
    if rows_of(source) != len(pictures):
        raise ValueError(f"{rows_of(source)} rows of {len(pictures)} pictures: {said}")
    if set(source.classes) != {f.parent.name for f in pictures}:
        raise ValueError(f"classes {source.classes}: {said}")
    left = re.search(r": (\d+) files? that (?:is|are) no picture", said)
    if (int(left[1]) if left else 0) != len(others):
        raise ValueError(f"{len(others)} files are no pictures: {said}")


def layout(rng: random.Random, folder: Path) -> str:
    """A folder of classes with files that are no pictures, empty classes and stray files."""
    root = folder / "set"
    files = made(rng, root)
    if rng.random() < 0.3 and files:
        file = rng.choice(files)
        file.write_bytes(damaged(rng, file.read_bytes()))
    source = read(root)
    if source is None:
        return "refused"
    counted(source, *visible(files))
    return "read"


def index(rng: random.Random, folder: Path) -> str:
    """Pictures with an index whose names are written in odd ways; some don't exist."""
    root = folder / "set"
    pictures, _ = visible(made(rng, root))
    names = [str(file.relative_to(root)) for file in pictures]
    if rng.random() < 0.3:
        names = [name.replace("/", "\\") for name in names]
    if rng.random() < 0.3:
        names = [unicodedata.normalize(rng.choice(("NFC", "NFD")), name) for name in names]
    missing = rng.random() < 0.3 and len(names) > 2
    if missing:
        names[rng.randrange(len(names))] = "nowhere.png"
    column = rng.choice(("file_name", "image", "path", "scan"))
    lines = [f'"{name}",{"ab"[i % 2]}' for i, name in enumerate(names)]
    table = root / rng.choice(("index.csv", "metadata.csv", "labels.csv"))
    table.write_text("\n".join([f"{column},label", *lines]) + "\n", encoding="utf-8")
    source = read(root)
    if source is None:
        return "refused"
    said = " ".join(source.notes)
    if set(source.classes) <= {"a", "b"}:  # by the index
        if missing or rows_of(source) != len(names):
            raise ValueError(f"{rows_of(source)} rows of {len(names)} in the index: {said}")
        return "read"
    if f"{table.name} is not used" not in said:
        raise ValueError(f"classes {source.classes} in spite of the index: {said}")
    return "said"


def archive(rng: random.Random, folder: Path) -> str:
    """A zip of a folder with a few bytes changed."""
    root = folder / "set"
    files = made(rng, root)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made_of:
        for file in files:
            made_of.write(file, file.relative_to(root.parent if rng.random() < 0.9 else root))
    whole = rng.random() < 0.3
    packed = folder / "set.zip"
    packed.write_bytes(buffer.getvalue() if whole else damaged(rng, buffer.getvalue()))
    source = read(packed)
    if source is None:
        return "refused"
    try:
        with zipfile.ZipFile(packed) as there:
            kept = [folder / name for name in there.namelist()]
    except Exception as error:
        raise ValueError("a zip was read that is none") from error
    counted(source, *visible(kept))
    return "read"
