"""Draw docs/run.svg: what a terminal shows after `weft run`. It trains for real, which takes some minutes.

python scripts/picture.py
"""

from __future__ import annotations

import os
import re
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from weft import experiment, start
from weft.cli import plan
from weft.report.progress import Lines

TARGET = Path(__file__).resolve().parent.parent / "docs" / "run.svg"
WIDTH = 84
THEME = TerminalTheme(
    background=(252, 252, 250),
    foreground=(55, 58, 66),
    normal=[
        *((55, 58, 66), (190, 60, 60), (60, 130, 80), (160, 110, 20)),
        *((50, 90, 180), (140, 70, 150), (15, 110, 140), (225, 225, 225)),
    ],
)


class Shown(Lines):
    """What stays on a terminal once its bars are gone."""

    def begin(self, stage: str, total: int) -> None:
        pass


def main() -> None:
    screen = Console(record=True, width=WIDTH, force_terminal=True, color_system="truecolor", file=StringIO(), highlight=False)
    screen.print(Text.assemble(("$ ", "dim"), ("weft run", "bold")))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that the run's folder is called as a reader's would be
        resolved = experiment.resolve()
        plan.header(screen, resolved)
        done = start.start(resolved, observer=Shown(screen))
        plan.outcome(screen, done)
        plan.farewell(screen, done)
        os.chdir("/")
    svg = screen.export_svg(title="weft", theme=THEME, font_aspect_ratio=0.61)
    # no request to anybody's font server: whatever monospaced font the reader has will do
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace, Menlo, Consolas")
    TARGET.write_text("\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n", encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
