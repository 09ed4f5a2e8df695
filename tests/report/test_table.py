"""One table as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io

import pytest

from weft.errors import WeftError
from weft.report.table import Table

ROWS = (("a|b", "71.2 ± 0.3", "50 % & more"), ("c_d", "", 'say "x", y'))
TABLE = Table("t", ("method", "accuracy, %", "why"), ROWS, frozenset({(0, 1)}), ("a note",))


def test_markdown_keeps_bars_and_marks_what_stands_out() -> None:
    assert TABLE.markdown() == (
        "| method | accuracy, % | why |\n"
        "| --- | ---: | --- |\n"
        "| a\\|b | **71.2 ± 0.3** | 50 % & more |\n"
        '| c_d |  | say "x", y |\n'
        "\n"
        "- a note\n"
    )


def test_latex_has_no_sign_of_its_own_in_a_cell() -> None:
    assert TABLE.latex() == (
        "% a note\n"
        "\\begin{tabular}{lrl}\n"
        "\\toprule\n"
        "method & accuracy, \\% & why \\\\\n"
        "\\midrule\n"
        "a|b & \\textbf{71.2 $\\pm$ 0.3} & 50 \\% \\& more \\\\\n"
        'c\\_d &  & say "x", y \\\\\n'
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_csv_is_read_back() -> None:
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [list(TABLE.columns), *map(list, TABLE.rows)]


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(WeftError, match="has 1 cells for 2 columns"):
        Table("t", ("a", "b"), (("1",),))
