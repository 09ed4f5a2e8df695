"""One page of one or several runs, self-contained: curves, tables and what each run was made with.

Importing it imports Altair, so that whoever writes a page does it in a function.
"""

from __future__ import annotations

from weft.report.page.document import write

NAME = "report.html"
"""Of the file, in the folder of a run."""

__all__ = ["NAME", "write"]
