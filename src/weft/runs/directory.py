"""The folder of a run: ``experiment.toml``, ``rounds.jsonl``, ``summary.json``, ``checkpoint/``, ``clients/``, ``adapter/``.

``setup/`` holds the federation that trained the start value of the head, ``start.safetensors`` start values from an adapter,
``baselines/NAME/`` a whole run each. Every file says
its format version.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft import experiment as settings
from weft.errors import UserError
from weft.storage import files, remedy


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one run's folder."""

    root: Path

    @property
    def experiment(self) -> Path:
        return self.root / remedy.EXPERIMENT

    @property
    def summary(self) -> Path:
        return self.root / remedy.SUMMARY

    @property
    def rounds(self) -> Path:
        return self.root / "rounds.jsonl"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def start(self) -> Path:
        return self.root / "start.safetensors"

    @property
    def setup(self) -> Path:
        return self.root / "setup"

    def baseline(self, name: str) -> RunDirectory:
        return RunDirectory(self.root / "baselines" / name)


def check_name(name: str | None) -> None:
    """Raises: UserError: no folder of a run can be called so."""
    if name is not None and (name in ("", "..") or name != Path(name).name or not name.isprintable()):
        raise UserError(f"a run can't be called {json.dumps(name)}: give a plain folder name; --runs says where it goes.")


def free(runs: Path, name: str | None) -> None:
    """
    Raises:
        UserError: no folder of a run can be called so, or there is one; an empty one is used.
    """
    check_name(name)
    if name is not None and (runs / name).exists() and not ((runs / name).is_dir() and not any((runs / name).iterdir())):
        found = remedy.command(runs / name)
        way = f", or continue it with {found}" if found else ""
        raise UserError(f"{runs / name} exists already: choose another --name{way}.")


def create(runs: Path, name: str | None, usual: str) -> RunDirectory:
    """A new folder under ``runs``: ``name``, or else ``usual``, ``usual-2`` …; nothing is ever written over, but an
    empty folder called ``name`` is used.

    Raises:
        UserError: ``name`` is taken, or no folder can be made there.
    """
    free(runs, name)
    files.make_folder(runs)
    if name is not None:
        files.make_folder(runs / name)  # which is there and empty after a run that was killed before it had saved anything
        return RunDirectory(runs / name)
    number = 1
    while True:
        folder = runs / (usual if number == 1 else f"{usual}-{number}")
        try:
            files.make_folder(folder, exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return RunDirectory(folder)


def usual_name(experiment: settings.Experiment) -> str:
    """``fedit-pydocs-minilm-s0``."""
    alone = experiment.baseline in ("probe", "zero-shot")  # whatever the method
    words = [experiment.baseline] if alone else [experiment.method, experiment.baseline]
    pieces = [*filter(None, words), plain(experiment.data), plain(experiment.model), f"s{experiment.seed}"]
    return "-".join(pieces)


def find(folder: str | Path) -> RunDirectory:
    """The folder of an existing run.

    Raises:
        UserError: there is none.
    """
    directory = RunDirectory(Path(folder).expanduser())
    remedy.check_begun(directory.root)
    if not directory.experiment.is_file():
        what = "does not exist"
        if directory.root.exists():
            what = "holds no experiment.toml, so nothing of a run was saved there" if directory.root.is_dir() else "is a file"
        raise UserError(f"{directory.root} {what}: give the folder of a run, such as runs/fedit-pydocs-minilm-s0.")
    return directory


@contextmanager
def locked(directory: RunDirectory) -> Iterator[None]:
    """Keep a second process out of the same run; the lock goes with the process, however that ends.

    Raises:
        UserError: another process is at it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(directory.root, os.O_RDONLY)
    try:
        for last in (False, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    sentence = f"another process is working on {directory.root}: wait until it is done, or stop it."
                    raise UserError(sentence) from None
                time.sleep(MOMENT)
        yield
    finally:
        os.close(handle)


MOMENT = 0.05
"""Seconds in which whoever only asked :func:`in_use` has let go again."""


def in_use(directory: RunDirectory) -> bool:
    """Whether a process is at a run."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    handle = os.open(directory.root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def read_rounds(path: Path, length: int | None = None) -> list[dict[str, Any]]:
    """The lines of ``rounds.jsonl``.

    Args:
        length: bytes that a checkpoint vouches for; None = every whole line.

    Raises:
        UserError: the file is shorter than that, or damaged.
    """
    data = files.read(path) if path.exists() else b""
    if length is not None and len(data) < length:
        raise UserError(f"{path} is damaged (shorter than the checkpoint says): {remedy.anew(path)}.")
    whole = data[: data.rfind(b"\n") + 1 if length is None else length]
    try:
        found = [files.parsed(line) for line in whole.splitlines()]
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}): {remedy.anew(path)}.") from None
    for number, line in enumerate(found, 1):
        if not isinstance(line, dict):
            raise UserError(f"{path} is damaged (line {number} is no object): {remedy.anew(path)}.")
        files.check_format(path, line.get("format"))
    return found


def write_summary(directory: RunDirectory, summary: dict[str, Any]) -> None:
    files.write(directory.summary, json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")


def read_summary(directory: RunDirectory) -> dict[str, Any]:
    """Raises:
    UserError: it is missing or damaged.
    """
    if not directory.summary.is_file():
        raise UserError(f"{directory.root} holds no summary.json: the run was stopped before it began; start it again.")
    try:
        summary = files.parsed(files.read(directory.summary))
        if not isinstance(summary, dict):
            raise ValueError("it is no object")
        files.check_format(directory.summary, summary.get("format"))
        if lacking := [n for n, kind in _SUMMARY.items() if not isinstance(summary.get(n), kind)]:
            raise ValueError(f"without {', '.join(lacking)}")
    except ValueError as e:
        raise UserError(f"{directory.summary} is damaged ({e}): {remedy.anew(directory.summary)}.") from None
    return summary


_SUMMARY = {"finished": bool, "settings": dict, "method": dict, "data": dict, "environment": dict, "seconds": dict}
"""What a summary holds from the beginning on."""


def plain(name: str) -> str:
    """What a path or hub id is called, as part of a folder's name."""
    last = Path(name.rstrip("/")).name
    stem = Path(last).stem if Path(last).suffix in (".csv", ".json", ".jsonl", ".parquet") else last
    return re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-.") or "unnamed"
