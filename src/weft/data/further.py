"""Names of test sets beside a federation's own."""

from __future__ import annotations

NOVEL = "novel classes"
"""Of classes that nobody trained on, see :mod:`weft.data.protocols`."""
