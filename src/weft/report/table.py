"""A table once, written as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from weft.errors import WeftError

_LATEX = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "₂": "$_2$", "−": "-", "α": r"$\alpha$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "×": r"$\times$"}
)

DARKEST = 3
"""Shades that a page has for cells."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, numbers are right-aligned.

    Attributes:
        title: what it shows, in a few words. columns: heads. rows: cells, as many as columns. bold: (row, column) of cells that
            stand out. notes: sentences below it. shades: (row, column, how dark from 1 to :data:`DARKEST`) of cells on a page.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()
    shades: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise WeftError(f'a row of "{self.title}" has {len(row)} cells for {len(self.columns)} columns: {row}')

    def numeric(self, column: int) -> bool:
        """Whether a column is of numbers, or is empty."""
        return column > 0 and all(not row[column] or row[column][0] in "+-−0123456789<" for row in self.rows)

    def shade(self, row: int, column: int) -> int:
        """How dark a cell is; 0 where it is as others are."""
        return next((dark for r, c, dark in self.shades if (r, c) == (row, column)), 0)

    def markdown(self) -> str:
        """A table of GitHub's Markdown, and its notes as a list."""
        heads = [c.replace("|", "\\|") for c in self.columns]
        lines = [_line(heads), _line(["---:" if self.numeric(i) else "---" for i in range(len(heads))])]
        for i, row in enumerate(self.rows):
            cells = [c.replace("|", "\\|") for c in row]
            lines.append(_line([f"**{c}**" if (i, j) in self.bold and c else c for j, c in enumerate(cells)]))
        return "\n".join(lines + ([""] if self.notes else []) + [f"- {note}" for note in self.notes]) + "\n"

    def latex(self) -> str:
        """A ``tabular`` with rules of booktabs."""
        form = "".join("r" if self.numeric(i) else "l" for i in range(len(self.columns)))
        lines = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", _latex(self.columns), r"\midrule"]
        for i, row in enumerate(self.rows):
            lines.append(_latex(row, {j for k, j in self.bold if k == i}))
        notes = [f"% {note}" for note in self.notes]
        return "\n".join([*notes, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Comma-separated, with a line of heads and without notes."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(cells: Sequence[str], bold: set[int] | None = None) -> str:
    texts = [c.translate(_LATEX) for c in cells]
    return " & ".join(rf"\textbf{{{c}}}" if j in (bold or ()) and c else c for j, c in enumerate(texts)) + r" \\"
