"""What a run has found: its numbers, its adapter, and predictions with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.errors import UserError
from weft.runs import audit_file
from weft.runs import directory as directories
from weft.runs.checkpoint import Checkpoint
from weft.runs.directory import RunDirectory
from weft.runs.result import flat, metrics
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

        Each has ``round`` (from 1, as printed), ``view``, the names of :attr:`metrics`, ``low`` and ``high`` of the accuracy's 95
        % interval, ``validation``, ``training_loss``, ``aggregation_error``, ``drift``, ``effective_rank``, ``density``,
        ``memory``, ``seconds``, ``bytes_down`` and ``bytes_up`` of all clients, and ``energy_kwh`` and ``energy_co2_kg`` with
        their ``energy_source``; None where there is no such number. Runs on simulated devices have ``clock_now``,
        ``clock_joules`` and ``clock_grams``.
        """
        return [row for line in self.rounds for row in flat(line)]

    def table(self) -> Any:
        """:meth:`records` as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        return framed(self.records(), "run.table()", "run.records()")

    def attacks(self) -> list[dict[str, Any]]:
        """What ``weft audit`` has found of the run, a row for each target of each attack, see :mod:`weft.runs.audit_file`.

        Raises:
            UserError: the file is damaged.
        """
        return [dict(vars(one)) for some in audit_file.read(self.folder).results.values() for one in some]

    @property
    def adapter(self) -> Path | None:
        """The exported adapter's folder; None if the run has none (yet)."""
        path = RunDirectory(self.folder).adapter
        return path if path.is_dir() else None

    def predict(self, items: Sequence[Any]) -> Any:
        """Classes of new texts (or pairs of texts), or of pictures, by the run's model; see :func:`weft.export.predict`."""
        from weft.export import predict

        return predict(self.folder, items)

    def generate(self, prompts: Sequence[Any], **how: Any) -> list[str]:
        """Answers to prompts by the run's model, if that writes text; see :meth:`weft.export.Predictor.generate`."""
        from weft.export import generate

        return generate(self.folder, prompts, **how)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{n} {v:.4f}" for n, v in self.metrics.items())
        return f"<Run {self.folder}: {count(len(self.rounds), 'round')}{'' if self.finished else ', unfinished'}; {numbers}>"


def framed(rows: list[dict[str, Any]], called: str, plain: str) -> Any:
    """Rows as a pandas DataFrame.

    Args:
        called: what was asked for. plain: what gives the rows without pandas.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError(f"{called} needs pandas; {plain} gives the same rows as a list.") from None
    return pandas.DataFrame(rows)


def load_run(folder: str | Path) -> Run:
    """A run, finished or not, from its folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    return Run(directories.find(folder))
