"""How to go on with what was stopped, and how to begin it anew: decided here alone, by whose folder a file lies in.

A run of this machine is resumed, a federation of sites is served again, and a site is asked again.
"""

from __future__ import annotations

import json
from pathlib import Path

from weft.errors import UserError

EXPERIMENT, SUMMARY, EXPORT = "experiment.toml", "summary.json", "weft.json"
BEFORE = ("start.safetensors", SUMMARY)
"""What is written in the folder of a run before its settings are."""
AT_SITES = ("site.json", "admitted.json", "agreed.json", "asked.json")


def command(path: Path) -> str:
    """What goes on with the run that ``path`` is in, or is; empty if it is in none that has begun."""
    root = _run(path)
    if root is None or _of_site(path):
        return ""
    return "weft serve with the same experiment file" if _served(root) else f"weft resume {root}"


def check_begun(folder: Path) -> None:
    """
    Raises:
        UserError: it is what a run leaves that was killed before it had written down what it is: empty, or without its settings.
    """
    if not folder.is_dir() or (folder / EXPERIMENT).is_file() or _of_site(folder):
        return
    if all(one.name.removesuffix(".tmp") in (*BEFORE, EXPERIMENT) for one in folder.iterdir()):
        raise UserError(
            f"nothing of a run was saved in {folder}: start the one that was stopped there again, with the same weft run, or "
            "give the folder of another."
        )


def go_on(path: Path) -> str:
    """What becomes of the folder that ``path`` is in once the trouble is over: the second half of a sentence."""
    if _of_site(path):
        return "the next message finds this site as it was"
    found = command(path)
    return f"{found} goes on" if found else "type the same command again"


def anew(path: Path) -> str:
    """What to do where ``path`` can't be trusted any more."""
    if (path.parent / EXPORT).is_file():
        return "it is not what was exported, so export the model again with weft export"
    if _of_site(path):
        return (
            "put a copy of that folder back, or remove the folder, and this site joins anew without what it had learnt for itself"
        )
    root = _run(path)
    if root is not None and _served(root):
        return "this run can't be continued from it, so serve the same experiment anew with another --name"
    file = EXPERIMENT if root is None else root / EXPERIMENT
    return f"this run can't be continued from it, so start it anew with weft run {file}"


def _of_site(path: Path) -> bool:
    """Whether the nearest folder that tells whose it is tells that of a site."""
    for folder in (path, *path.parents):
        if any((folder / name).is_file() for name in AT_SITES):
            return True
        if (folder / SUMMARY).is_file():
            return False
    return False


def _run(path: Path) -> Path | None:
    """The folder of the run, not that of a baseline or a set-up within it."""
    return next((f for f in (path, *path.parents) if (f / SUMMARY).is_file() and (f / EXPERIMENT).is_file()), None)


def _served(root: Path) -> bool:
    try:
        return "served" in json.loads((root / SUMMARY).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False
