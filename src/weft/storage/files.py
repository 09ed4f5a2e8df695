"""Durable files: written to a temporary name, flushed to the disk, renamed. A kill at any point leaves old or new, whole.

Tensors are only ever safetensors, and every file of them says its format version.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import UserError, WeftError
from weft.storage import remedy

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Of every file of a run. A reader refuses any other."""


class OtherFormat(UserError):
    """A file of another version of Weft."""


TEMPORARY = ".tmp"
PRIVATE, OTHERS = 0o700, 0o077


def point(operation: str, path: Path) -> None:
    """Called before each write, fsync, rename and removal; tests replace it to fail there."""


def write(path: Path, data: bytes, settle: bool = True) -> None:
    """Replace the file at ``path`` by ``data``, durably.

    Args:
        settle: False leaves the new name to a later :func:`sync_folder`, one for many files.

    Raises:
        UserError: the disk is full, or the place can't be written; the old file is still there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with said(path):
        try:
            point("write", temporary)
            with open(temporary, "wb", opener=_opener(path)) as f:
                f.write(data)
                f.flush()
                point("fsync", temporary)
                os.fsync(f.fileno())
            point("rename", path)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if settle:
            sync_folder(path.parent)


def append(path: Path, data: bytes, at: int) -> int:
    """Write ``data`` from byte ``at`` on, which becomes the end of the file, durably; returns the new length.

    What stood there was written after the last checkpoint, and does not count.
    """
    with said(path):
        point("write", path)
        with open(path, "r+b" if path.exists() else "w+b", opener=_opener(path)) as f:
            f.truncate(at)
            f.seek(at)
            f.write(data)
            f.flush()
            point("fsync", path)
            os.fsync(f.fileno())
        if not at:
            sync_folder(path.parent)
    return at + len(data)


def spool(path: Path, data: bytes) -> None:
    """Write a file that need not survive the process."""
    with said(path):
        point("write", path)
        with open(path, "wb", opener=_opener(path)) as f:
            f.write(data)


def _opener(path: Path) -> Callable[[str, int], int]:
    """A file takes after its folder: what others may not enter, they may not read, wherever it is copied to."""
    hidden = os.name == "posix" and not path.parent.stat().st_mode & OTHERS
    return lambda name, flags: os.open(name, flags, 0o600 if hidden else 0o666)


def rename(old: Path, new: Path) -> None:
    """Give a finished folder its name; the name must be free."""
    with said(new):
        point("rename", new)
        os.replace(old, new)
        sync_folder(new.parent)


def remove(path: Path) -> None:
    """Drop a file that no longer counts."""
    with said(path):
        point("remove", path)
        path.unlink(missing_ok=True)


def make_folder(path: Path, exist_ok: bool = True, private: bool = False) -> None:
    """Make a folder and those above it.

    Args:
        private: nobody else on this machine may enter it, nor read a file that is written into it (700 and 600).
    """
    with said(path):
        path.mkdir(PRIVATE if private else 0o777, parents=True, exist_ok=exist_ok)
        if private and path.stat().st_mode & OTHERS:  # it was there before
            path.chmod(PRIVATE)


def read(path: Path) -> bytes:
    with said(path, "read"):
        return path.read_bytes()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    if os.name == "nt":  # Windows can't open a folder, and needs none of this
        return
    with said(folder):
        point("fsync", folder)
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def said(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an error of the operating system into a sentence."""
    try:
        yield
    except OSError as e:
        if isinstance(e, FileExistsError):
            raise
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk is full; what was saved before is intact: free some space, and {remedy.go_on(path)}"
        else:
            why = f"{(e.strerror or str(e)).lower()}; choose another folder with --runs, or put that right"
        raise UserError(f"can't {verb} {path}: {why}.") from e


# tensors and JSON ---------------------------------------------------------------------------------------------------


def tensor_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> bytes:
    """Tensors and a JSON object as one safetensors file."""
    import safetensors.torch as st  # brings torch along, which whoever only lists runs need not wait for

    stored: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().to("cpu").contiguous()
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in stored else value  # the format knows no shared memory
        stored.add(place)
    # one entry: the library writes several in an order that changes from call to call, and equal states shall be equal bytes
    return st.save(found, {"weft": exact_json({"format": FORMAT, "facts": dict(facts or {})})})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_whole(path: Path, wanted: str | None) -> bytes:
    """A file that another one vouches for by its hash: a byte changed on the disk must not become a number that nobody trained.

    Args:
        wanted: the hash.

    Raises:
        UserError: it has gone, or has another hash.
    """
    if not path.exists() or sha256(data := read(path)) != wanted:
        raise UserError(f"{path} is missing or damaged: {remedy.anew(path)}.")
    return data


def tensors_in(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Undo :func:`tensor_bytes`.

    Args:
        path: where they were read, for the sentence.

    Raises:
        UserError: they are damaged, or of another format.
    """
    import safetensors
    import safetensors.torch as st

    try:
        tensors = st.load(data)
        length = int.from_bytes(data[:8], "little")
        about = parsed(parsed(data[8 : 8 + length])["__metadata__"]["weft"])
        found, facts = about["format"], about["facts"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}): {remedy.anew(path)}.") from e
    check_format(path, found)
    return tensors, facts


def parsed(text: bytes | str) -> Any:
    """The value that JSON stands for.

    Raises:
        ValueError: it is no JSON; a nesting too deep to be read is none either.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_sealed(path: Path, state: Mapping[str, Any]) -> None:
    """Write a JSON object under a hash of its own, durably."""
    body = json.dumps(state, sort_keys=True)
    write(path, json.dumps({"format": FORMAT, "sha256": sha256(body.encode()), "state": body}).encode())


def read_sealed(path: Path, advice: str = "") -> dict[str, Any]:
    """Undo :func:`write_sealed`.

    Args:
        advice: what to do where it is not the file that was written, if that is not what its folder tells.

    Raises:
        UserError: it is damaged, or of another format.
    """
    try:
        outer = parsed(read(path))
        check_format(path, outer["format"])
        if sha256(outer["state"].encode()) != outer["sha256"]:
            raise ValueError("its hash differs")
        state: dict[str, Any] = parsed(outer["state"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged ({e}): {advice or remedy.anew(path)}.") from None
    return state


def check_format(path: Path, found: Any) -> None:
    if found != FORMAT:
        raise OtherFormat(
            f"{path} has format {found}, and this version of Weft reads format {FORMAT}: use the version that wrote it."
        )


def exact_json(value: Any) -> str:
    """JSON that gives back an equal value, or an error: a tuple or an integer key would come back as something else.

    Raises:
        WeftError: a state holds what JSON does not.
    """
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise WeftError(f"a state that is to be saved holds what JSON does not ({e})") from e
    if json.loads(text) != value:
        raise WeftError("a state that is to be saved holds what JSON does not (tuples, or keys that are not text)")
    return text
