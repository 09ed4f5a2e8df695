"""What methods of a comparison have otherwise than each other, beside what they are: optimizer, work, weights of the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.comparison.cell_grid import Grid
from weft.errors import UserError
from weft.experiment import resolve
from weft.words import shown

TERMS = ("method.optim.", "method.epochs", "method.steps", "method.batch", "method.weighting")
"""Names, or their beginnings, of settings that a fair comparison would have alike."""


def differing(grid: Grid) -> list[str]:
    """A sentence for each such setting that not all methods have alike, before any is tuned."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in grid.methods:
        try:
            settings = resolve(dict(grid.cell(row, grid.places()[0], grid.seeds[0]).settings)).experiment.flat()
        except UserError:  # its cells stand there with that reason
            continue
        for name, value in settings.items():
            if name.startswith(TERMS) and _counts(name.removeprefix("method.optim."), settings):
                found.setdefault(name, {}).setdefault(shown(value), []).append(row)
    sentences = []
    for name, values in found.items():
        if len(values) > 1:
            told = "; ".join(f"{value} for {', '.join(rows)}" for value, rows in values.items())
            sentences.append(f"{name} differs: {told}.")
    return sentences


def _counts(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a setting of an optimizer has a say beside the others."""
    optim = {n.removeprefix("method.optim."): v for n, v in settings.items()}
    needed = {
        **dict.fromkeys(("betas", "eps"), optim.get("kind") != "sgd"),
        "momentum": optim.get("kind") == "sgd",
        "warmup": optim.get("schedule") != "constant",
        "decay_biases": bool(optim.get("weight_decay")),
    }
    return needed.get(name, True)
