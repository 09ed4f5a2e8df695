"""Texts that language models wrote in the last evaluation, beside what was wanted and what the untrained model wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 3
LONGEST = 240
"""Characters of a text that are shown."""


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``samples.jsonl`` in the folder of a run; none where it wrote no texts."""
    path = folder / "samples.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def show(out: Console, folder: Path) -> None:
    """A few rows that were written by the run, and before it where ``zero-shot`` is among its baselines."""
    after = read(folder)
    before = {(s["view"], s["row"]): s["text"] for s in read(folder / "baselines" / "zero-shot")}
    views = list(dict.fromkeys(s["view"] for s in after))
    mine = [s for s in after if s["view"] == views[0]] if views else []
    both = [s for s in mine if ("global", s["row"]) in before] or mine
    for sample in both[:SHOWN]:
        out.print()
        lines = {"prompt": sample["prompt"], "wanted": sample["wanted"]}
        if ("global", sample["row"]) in before:
            lines["before"] = before["global", sample["row"]]
        for name, text in (lines | {"after": sample["text"]}).items():
            style = "dim" if name in ("prompt", "before") else ""
            out.print(Text(f"{name:>7}  ", style="cyan").append(short(text) or "(nothing)", style=style), soft_wrap=False)
    if len(mine) > SHOWN:
        out.print()
        out.print(Text(f"{len(mine)} such texts: {folder / 'samples.jsonl'}", style="dim"), soft_wrap=True)


def short(text: str) -> str:
    """One line of at most :data:`LONGEST` characters: of a longer text its begin and its end."""
    line = " ".join(text.split())
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half].rstrip()} … {line[-half:].lstrip()}"
