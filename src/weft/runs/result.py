"""What a run has found: its numbers, its adapter, and predictions with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.engines.evaluation import pick
from weft.errors import UserError
from weft.runs import directory as directories
from weft.runs.checkpoint import Checkpoint
from weft.runs.directory import RunDirectory
from weft.words import count


class Run:
    """A run on disk; everything is read from its folder.

    Attributes:
        folder: see :mod:`weft.runs.directory`.
        summary: contents of ``summary.json``. rounds: the lines of ``rounds.jsonl`` so far.
    """

    def __init__(self, directory: RunDirectory):
        self.folder: Path = directory.root
        self.summary: dict[str, Any] = directories.read_summary(directory)
        saved = Checkpoint(directory.root / "checkpoint").load()
        self.rounds: list[dict[str, Any]] = directories.read_rounds(directory.rounds, saved.length if saved else 0)

    @property
    def finished(self) -> bool:
        return bool(self.summary["finished"])

    @property
    def metrics(self) -> dict[str, float]:
        """The headline numbers, all of the last round and the method's first view.

        The task's metrics (``accuracy``, ``macro_f1`` …) and ``loss``, pooled over the test rows; of its first metric also
        ``mean_client``, ``worst_client`` (on clients' own test rows) and ``new_clients`` (on clients never trained), each if the
        data have such rows.
        """
        return metrics(self.rounds)

    def records(self) -> list[dict[str, Any]]:
        """The rounds as flat rows, one for each round and view; one without a view for a round that was not scored.

        Each has ``round`` (from 1, as printed), ``view``, the names of :attr:`metrics`, ``low`` and ``high`` of the accuracy's
        95 % interval, ``validation``, ``training_loss``, ``seconds``, and ``bytes_down`` and ``bytes_up`` of all clients; None
        where there is no such number.
        """
        return [row for line in self.rounds for row in _flat(line)]

    def table(self) -> Any:
        """:meth:`records` as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("run.table() needs pandas; run.records() gives the same rows as a list.") from None
        return pandas.DataFrame(self.records())

    @property
    def adapter(self) -> Path | None:
        """The exported adapter's folder; None if the run has none (yet)."""
        path = RunDirectory(self.folder).adapter
        return path if path.is_dir() else None

    def predict(self, items: Sequence[Any]) -> Any:
        """Classes of new texts (or pairs of texts), or of pictures, by the run's model; see :func:`weft.export.predict`."""
        from weft.export import predict

        return predict(self.folder, items)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{n} {v:.4f}" for n, v in self.metrics.items())
        return f"<Run {self.folder}: {count(len(self.rounds), 'round')}{'' if self.finished else ', unfinished'}; {numbers}>"


def load_run(folder: str | Path) -> Run:
    """A run, finished or not, from its folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    return Run(directories.find(folder))


# scores -------------------------------------------------------------------------------------------------------------------


def headline(line: dict[str, Any]) -> dict[str, Any] | None:
    """The number that stands for a round: the task's first metric of the method's first view, on the global test set if that view
    is scored there, else on clients' own test rows pooled.
    """
    evaluations = line.get("evaluations", [])
    if not evaluations:
        return None
    view, metric = evaluations[0]["view"], evaluations[0]["metric"]
    for people in ("global test", "own test"):
        for e in evaluations:
            if (e["view"], e["people"], e["metric"]) == (view, people, metric):
                return {"round": line["round"]} | e
    return None


def metrics(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """See :attr:`Run.metrics`."""
    line = next((n for n in reversed(lines) if n.get("evaluations")), None)
    top = headline(line) if line else None
    if line is None or top is None:
        return {}
    common = {"view": top["view"], "people": top["people"], "pooling": top["pooling"]}
    own = {"view": top["view"], "people": "own test", "metric": top["metric"]}
    mine = [e["metric"] for e in line["evaluations"] if all(e[name] == value for name, value in common.items())]
    wanted: dict[str, dict[str, str]] = {name: common | {"metric": name} for name in mine} | {
        "mean_client": own | {"pooling": "mean over clients"},
        "worst_client": own | {"pooling": "worst client"},
        "new_clients": common | {"people": "new clients", "metric": top["metric"]},
    }
    found = {name: pick(line["evaluations"], **kind) for name, kind in wanted.items()}
    return {name: e["value"] for name, e in found.items() if e is not None and e["value"] is not None}


def _flat(line: dict[str, Any]) -> list[dict[str, Any]]:
    """See :meth:`Run.records`."""
    evaluations = line.get("evaluations", [])
    phases = line.get("bytes", {})
    rows = []
    for view in dict.fromkeys(e["view"] for e in evaluations) or [None]:
        mine = line | {"evaluations": [e for e in evaluations if e["view"] == view]}
        top, numbers = headline(mine) or {}, metrics([mine])
        val = {"view": view, "people": "validation", "metric": top.get("metric", ""), "pooling": top.get("pooling", "")}
        validation = pick(mine["evaluations"], **val)
        rows.append(
            {"round": line["round"] + 1, "view": view}
            | {name: numbers.get(name) for name in dict.fromkeys((*METRICS, *numbers))}
            | {"low": top.get("low"), "high": top.get("high"), "validation": validation["value"] if validation else None}
            | {"training_loss": line.get("loss"), "seconds": line.get("seconds", {}).get("training")}
            | {f"bytes_{way}": sum(p[way]["wire"] for p in phases.values()) if phases else None for way in ("down", "up")}
        )
    return rows


METRICS = ("accuracy", "macro_f1", "loss", "mean_client", "worst_client", "new_clients")
"""Names of :attr:`Run.metrics` where nothing else is scored."""


def best_by_validation(lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The headline of the round with the best validation score (the earliest of equals). Test rows have no say in it."""
    best: tuple[float, dict[str, Any]] | None = None
    for line in lines:
        top = headline(line)
        if top is None:
            continue
        kind = {"view": top["view"], "people": "validation", "metric": top["metric"], "pooling": top["pooling"]}
        score = pick(line["evaluations"], **kind)
        if score is not None and score["value"] is not None and (best is None or score["value"] > best[0]):
            best = score["value"], top | {"validation": score["value"]}
    return best[1] if best else None


def scores(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What ``summary.json`` says of a federation's numbers.

    Raises:
        UserError: no round was played.
    """
    if not lines:
        raise UserError("no round was played, so there is nothing to score: the method's plan ends before it begins.")
    last = lines[-1]  # always scored, unless there are no test rows at all
    return {
        "rounds": len(lines),
        "headline": headline(last),
        "best_by_validation": best_by_validation(lines),
        "metrics": metrics(lines),
        "evaluations": last.get("evaluations", []),
        "seconds": {
            "training": sum(line["seconds"]["training"] for line in lines),
            "evaluation": sum(line["seconds"].get("evaluation", 0.0) for line in lines),
        },
    }
