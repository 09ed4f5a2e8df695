"""The runs under a folder: what each is, how far it came, and why it stands. One that is broken is listed like any other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from weft.errors import UserError, nearest
from weft.runs import directory as directories
from weft.runs.directory import RunDirectory
from weft.runs.glance import Glance, glance
from weft.runs.result import headline
from weft.storage import files, remedy
from weft.tasks.task import goodness

State = Literal["finished", "running", "unfinished", "damaged", "other format"]
DEEPEST = 4
"""Folders within folders that are looked through."""


@dataclass(frozen=True)
class Listed:
    """A run as a list has it. What can't be known of a broken one is None.

    Attributes:
        name: path from the folder that was listed. model, data, method, seed: settings; ``baseline``: what was run instead of
            the method. rounds, planned: done, and asked for. metric, value: the headline of the last round that was scored.
        bytes_up: of all clients so far. started: in UTC. seconds: of a finished run. state: and why, in a sentence, if the run
            neither is finished nor goes on.
    """

    name: str
    folder: str
    method: str | None = None
    baseline: str | None = None
    data: str | None = None
    model: str | None = None
    seed: int | None = None
    rounds: int | None = None
    planned: int | None = None
    metric: str | None = None
    value: float | None = None
    bytes_up: int | None = None
    started: str | None = None
    seconds: float | None = None
    state: State = "damaged"
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def folders(root: Path) -> Iterator[Path]:
    """The folders of runs under ``root``, in the order of their names; what lies within a run is the run's own.

    Raises:
        UserError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: give the one that runs are in, as in weft runs FOLDER.")
    yield from _within(root, DEEPEST)


def _within(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        inner = sorted((e.name, e.is_symlink()) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError:  # a folder that nobody may look into hides no other
        return
    for name, link in inner:
        if not link or is_run(folder / name):  # a link to what is no run may lead anywhere, and back
            yield from _within(folder / name, depth - 1)


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    directory = RunDirectory(folder)
    try:
        return directory.experiment.is_file() or directory.summary.is_file()
    except OSError:  # which nobody may look into
        return False


def listed(folder: Path, root: Path) -> Listed:
    """One run; never raises what is wrong with it."""
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    try:
        if not RunDirectory(folder).summary.is_file():
            return Listed(name, str(folder), why=f"{folder} holds no summary.json: nothing of the run was saved.")
        return _of(glance(folder), name)
    except files.OtherFormat as e:
        return Listed(name, str(folder), state="other format", why=str(e))
    except (UserError, OSError) as e:
        return Listed(name, str(folder), why=str(e))
    except (AttributeError, LookupError, TypeError, ValueError) as e:  # JSON of another shape than ours
        return Listed(name, str(folder), why=f"{folder} is damaged ({type(e).__name__}: {e}).")


def _of(now: Glance, name: str) -> Listed:
    summary = now.summary
    top = next((found for line in reversed(now.rounds) if (found := headline(line))), None)
    state: State = "finished" if now.finished else "running" if directories.in_use(RunDirectory(now.folder)) else "unfinished"
    done, planned = len(now.rounds), now.planned
    why = ""
    if state == "unfinished":
        why = f"stopped after {done} of {planned} rounds: {remedy.go_on(now.folder)}."
    value = None if top is None or top["value"] is None else float(top["value"])
    return Listed(
        name,
        str(now.folder),
        method=str(summary["method"]["slug"]),
        baseline=_text(now.setting("baseline")),
        data=str(summary["data"]["name"]),
        model=_text(now.setting("model")),
        seed=now.setting("seed"),
        rounds=done,
        planned=planned,
        metric=None if top is None else str(top["metric"]),
        value=value,
        bytes_up=now.bytes("up"),
        started=_text(summary.get("started")),
        seconds=summary["seconds"].get("all"),
        state=state,
        why=why,
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


# which, and in which order --------------------------------------------------------------------------------------------

Order = Literal["name", "when", "accuracy"]


def chosen(
    runs: Iterable[Listed], *, method: str | None = None, data: str | None = None, finished: bool | None = None
) -> list[Listed]:
    """Those of a method, of data (by the beginning of a name), that are finished or are not; None = all."""
    return [
        run
        for run in runs
        if (method is None or method in (run.method, run.baseline))
        and (data is None or (run.data or "").casefold().startswith(data.casefold()))
        and (finished is None or (run.state == "finished") is finished)
    ]


def in_order(runs: Sequence[Listed], by: Order) -> list[Listed]:
    """By name, the newest first, or the best headline first, metric by metric; runs without one come last."""
    if by == "name":
        return sorted(runs, key=lambda run: run.name)
    if by == "when":
        return sorted(runs, key=lambda run: run.started or "", reverse=True)
    return sorted(runs, key=lambda run: (run.metric is None, run.metric or "", -goodness(run.metric or "", run.value)))


# removing -------------------------------------------------------------------------------------------------------------


def to_remove(root: Path, names: Iterable[str]) -> list[Path]:
    """The folders of runs with these names, all of them good to remove.

    Raises:
        UserError: a name is no run's, leads out of ``root``, or the run is being worked on.
    """
    there = {str(path.relative_to(root)): path for path in folders(root) if path != root}
    found = []
    for name in dict.fromkeys(name.rstrip("/") for name in names):
        path = root / name
        if root.resolve() not in path.resolve().parents:
            raise UserError(f"{name} lies outside {root}: give the name of a run in there, as weft runs {root} shows it.")
        if name not in there:
            what = "is no run" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}, so nothing was removed.{nearest(name, there)}")
        if directories.in_use(RunDirectory(path)):
            raise UserError(f"another process is working on {path}, so nothing was removed: stop it first.")
        found.append(path)
    return found


def remove(paths: Sequence[Path]) -> None:
    """Remove whole runs, none of them if one is being worked on.

    Raises:
        UserError: one is, or the disk won't have it.
    """
    with ExitStack() as held:
        for path in paths:
            held.enter_context(directories.locked(RunDirectory(path)))
        for path in paths:
            try:
                shutil.rmtree(path)
            except OSError as e:
                raise UserError(f"can't remove all of {path} ({(e.strerror or str(e)).lower()}): put that right first.") from e
