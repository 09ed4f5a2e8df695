"""Tables whose cells are runs in folders of their own: one that is finished is never run again, one that was stopped goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from weft import experiment, start
from weft.comparison.cells import finished, resumed
from weft.runs.shelf import Shelf


class Cells:
    """Runs cells, or finds them finished.

    Args:
        run: whether what is not finished may be run.
    """

    def __init__(self, run: bool) -> None:
        self.run = run
        self.shelf = Shelf()
        self.began = time.perf_counter()

    def play(self, place: Path, method: str, **settings: Any) -> dict[str, Any] | None:
        """The summary of a cell in this folder; None if it is not there and nothing is to be run."""
        found = finished(place)
        if found is None and self.run:
            self.say(f"{place.name} …")
            began = time.perf_counter()
            if not resumed(place, None, None):
                shutil.rmtree(place, ignore_errors=True)
                chosen = {"method": method, "runs": str(place.parent), "name": place.name} | settings
                start.start(experiment.resolve(chosen), shelf=self.shelf)
            found = finished(place)
            assert found is not None
            self.say(f"{place.name}: {found['headline']['value']:.3f} after {time.perf_counter() - began:.0f} s")
        return found

    def say(self, text: str) -> None:
        print(f"[{(time.perf_counter() - self.began) / 60:5.1f} min] {text}", flush=True)


def value(summary: dict[str, Any], view: str, metric: str, people: str = "global test", pooling: str = "pooled") -> float:
    """One number of the last round."""
    wanted = (view, people, metric, pooling)
    found = [e["value"] for e in summary["evaluations"] if (e["view"], e["people"], e["metric"], e["pooling"]) == wanted]
    return float("nan") if not found or found[0] is None else float(found[0])


def spread(values: Sequence[float], sign: bool = False) -> str:
    """Mean ± standard deviation, in points of a hundred."""
    told = f"{100 * mean(values):{'+' if sign else ''}.1f}"
    return f"{told} ± {100 * stdev(values):.1f}" if len(values) > 1 else told
