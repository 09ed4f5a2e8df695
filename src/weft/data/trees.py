"""Where the files of a set lie: in a folder, or in a zip of one, which is never unpacked."""

from __future__ import annotations

import functools
import os
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from weft.data.images import Item
from weft.errors import UserError

DEEPEST = 8  # folders; deeper than any layout, so that a link to a folder above ends somewhere
LARGEST = 1 << 30  # bytes of one file of a zip: a picture of more would fill the memory
JUNK = ("thumbs.db", "desktop.ini", "icon\r")  # what Windows and macOS leave in folders of pictures
T = TypeVar("T")
Parts = tuple[str, ...]  # the path of a file or folder below the tree's root


def spellings(name: str) -> Iterable[str]:
    """How a table may have meant the name of a file: with backslashes from Windows, composed or decomposed as macOS does."""
    for path in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
        yield from dict.fromkeys((path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)))


def hidden(parts: Parts) -> bool:
    """Whether a file or a folder above it is hidden, such as ``._1.png`` and ``__MACOSX`` of macOS, or nobody's own."""
    return any(p.startswith((".", "__")) for p in parts[:-1]) or parts[-1].startswith(".") or parts[-1].lower() in JUNK


class Folder:
    """A folder.

    Attributes:
        path, name: of the folder.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, path.resolve().name

    @functools.cached_property
    def _walked(self) -> tuple[list[Parts], list[Parts]]:
        files: list[Parts] = []
        folders: list[Parts] = []
        for root, inside, names in os.walk(self.path, followlinks=True):
            above = Path(root).relative_to(self.path).parts
            inside[:] = sorted(d for d in inside if not hidden((d, ""))) if len(above) < DEEPEST else []
            folders += [(*above, name) for name in inside]
            files += [(*above, name) for name in names if not hidden((name,))]
        return sorted(files), sorted(folders)

    @property
    def files(self) -> list[Parts]:
        """Every file below, hidden ones left out, in order."""
        return self._walked[0]

    @property
    def folders(self) -> list[Parts]:
        """Every folder below, likewise."""
        return self._walked[1]

    def below(self, *parts: str) -> Folder:
        """A folder of it."""
        return Folder(self.path.joinpath(*parts))

    def item(self, parts: Parts) -> Item:
        """One of its files, as an item of :class:`weft.data.images.Images`."""
        return self.path.joinpath(*parts)

    def find(self, name: str) -> Item | None:
        """The file that a table means by ``name``, None where there is none."""
        for spelling in spellings(name):
            try:
                path = Path(os.path.normpath(self.path / spelling))
                if path.is_file():
                    return path
            except (OSError, ValueError):  # too long for a name, or with a character that no name has
                continue
        return None

    @contextmanager
    def file(self, parts: Parts) -> Iterator[Path]:
        """The path of one of its files."""
        yield self.path.joinpath(*parts)


@dataclass(frozen=True)
class Member:
    """A file in a zip; called, it gives its bytes."""

    archive: Path
    name: str

    @property
    def called(self) -> str:
        """What a sentence calls it."""
        return f"{self.archive}/{self.name}"

    def __call__(self) -> bytes:
        return _stored(self.archive, lambda archive: _bytes(archive, self.name), f"{self.called} can't be read")


class Zip:
    """A zip of a folder, or a folder in one."""

    def __init__(self, path: Path, root: Parts = ()):
        self.path, self.root, self.name = path, root, path.resolve().name

    @functools.cached_property
    def _names(self) -> dict[Parts, str]:
        """The names in the archive of all files, hidden ones left out, by their paths below its root."""
        infos = _stored(self.path, lambda archive: archive.infolist(), f"{self.path} can't be read")
        found = {}
        for info in infos:
            parts = PurePosixPath(info.filename.replace("\\", "/")).parts
            if not info.is_dir() and parts and ".." not in parts and not hidden(parts):
                found[parts] = info.filename
        return found

    @functools.cached_property
    def files(self) -> list[Parts]:
        """Every file below, hidden ones left out, in order."""
        depth = len(self.root)
        return sorted(parts[depth:] for parts in self._names if parts[:depth] == self.root and len(parts) > depth)

    @functools.cached_property
    def folders(self) -> list[Parts]:
        """Every folder below that holds a file."""
        return sorted({parts[:i] for parts in self.files for i in range(1, len(parts))})

    def below(self, *parts: str) -> Zip:
        """A folder of it."""
        return Zip(self.path, (*self.root, *parts))

    def item(self, parts: Parts) -> Item:
        """One of its files, as an item of :class:`weft.data.images.Images`."""
        return Member(self.path, self._names[(*self.root, *parts)])

    def find(self, name: str) -> Item | None:
        """The file that a table means by ``name``, None where there is none."""
        for spelling in spellings(name):
            parts = tuple(p for p in PurePosixPath(os.path.normpath("/".join((*self.root, spelling)))).parts if p != ".")
            if parts in self._names:
                return Member(self.path, self._names[parts])
        return None

    @contextmanager
    def file(self, parts: Parts) -> Iterator[Path]:
        """A copy of one of its files, for as long as it is needed.

        Raises:
            UserError: it can't be read.
        """
        with tempfile.TemporaryDirectory(prefix="weft-zip-") as folder:
            file = Path(folder) / self.name / parts[-1]
            file.parent.mkdir()
            file.write_bytes(self.item(parts)())
            yield file


class Beside(Folder):
    """The folder of a table, and the zips of pictures in it that are the table's own by their names.

    Args:
        table: its file. Of ``train.jsonl`` the zips are ``train.zip``, ``train_images.zip`` and ``images.zip``.
    """

    def __init__(self, table: Path):
        super().__init__(table.parent)
        stem = table.name.split(".")[0]
        names = (f"{stem}.zip", f"{stem}_images.zip", f"{stem}-images.zip", "images.zip")
        self.zips = [Zip(path) for name in names if (path := table.parent / name).is_file()]

    def find(self, name: str) -> Item | None:
        trees = (*self.zips, *(narrowed(each) for each in self.zips))
        return next((item for find in (super().find, *(t.find for t in trees)) if (item := find(name)) is not None), None)


Tree = Folder | Zip


def narrowed(tree: Tree) -> Tree:
    """The tree, or the folder in it that is all it holds, unless pictures alone lie there: then its name may be their class."""
    while not any(len(parts) == 1 for parts in tree.files):
        inside = {parts[0] for parts in tree.files}
        if len(inside) != 1:
            return tree
        inner = tree.below(*inside)
        if not inner.folders:
            return tree
        tree = inner
    return tree


def _bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    if (size := archive.getinfo(name).file_size) > LARGEST:
        raise UserError(f"{archive.filename}/{name} has {size >> 20} MiB, too many for one picture: leave it out.")
    return archive.read(name)


def _stored(path: Path, use: Callable[[zipfile.ZipFile], T], problem: str) -> T:
    try:
        return use(_opened(path, path.stat().st_mtime_ns))
    except UserError:
        raise
    except Exception as error:  # of a broken or encrypted one, in as many ways as there are compressions
        said = str(error).split(", password required")[0].split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{problem} ({said}): make the zip anew, without a password.") from error


@functools.lru_cache(maxsize=4)
def _opened(path: Path, _written: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
