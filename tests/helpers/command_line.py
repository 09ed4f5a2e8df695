"""The command line as people type it, without a process of its own."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from weft.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit code, and what was printed."""

    code: int
    out: str
    err: str


def weft(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """``weft ARGUMENTS`` in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return Outcome(int(left.value.code or 0), said.out, said.err)


def flowing(text: str) -> str:
    """A text without its line breaks and frames."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def refused(got: Outcome, *fragments: str) -> str:
    """The one sentence of an error that people can cause, which must hold all ``fragments``."""
    assert (got.code, got.out) == (2, "")
    (line,) = got.err.splitlines()[-1:]
    assert line.startswith("Error: ")
    assert line[-1] in ".?"
    assert "Traceback" not in got.err
    assert [f for f in fragments if f not in line] == []
    return line


def table(path: Path, n: int = 60, label: str = "label", seed: int = 0) -> Path:
    """A csv file of n rows in three classes."""
    rows = tiny.rows(n, 3, seed)
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["text", label])
        writer.writerows(zip(rows.texts, (f"class {y}" for y in rows.labels), strict=True))
    return path


def small(where: Path, *more: object) -> list[object]:
    """Arguments of a run that takes a second: two rounds of three clients on a tiny backbone. What ``more`` says goes before."""
    data = where / "rows.csv"
    if not data.exists():
        table(data)
    usual: dict[str, object] = {
        "--model": tiny.folder("bert"),
        "--data": data,
        "--partition": "iid",
        "--clients": 3,
        "--rounds": 2,
        "--runs": where / "runs",
        "--device": "cpu",
        "--precision": "float32",
        "--max-length": 16,
    }
    return ["run", *(word for name, value in usual.items() if name not in more for word in (name, value)), *more]
