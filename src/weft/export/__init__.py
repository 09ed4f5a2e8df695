"""A trained model out of a run: as a PEFT adapter where PEFT predicts the same, else in Weft's own files; and back in.

:func:`export` writes one, re-loads it and compares the logits before it says that it is done. :func:`load` gives a
:class:`Predictor`. :func:`export_run`, :func:`predict`, :func:`generate` and :func:`evaluate_run` do the same from a run's
folder. :func:`merge` adds up adapters, whoever wrote them.
"""

from __future__ import annotations

from weft.export.again import export_run
from weft.export.combined import MergeReport, merge
from weft.export.evaluate import evaluate_run
from weft.export.predictor import Predictor, generate, load, predict
from weft.export.write import ExportReport, export

__all__ = [
    "ExportReport",
    "MergeReport",
    "Predictor",
    "evaluate_run",
    "export",
    "export_run",
    "generate",
    "load",
    "merge",
    "predict",
]
