"""Score a trained model on any labelled data set with the same label names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from weft.data import labels, questions
from weft.data.columns import wanted_by
from weft.data.rows import Rows, Source
from weft.data.sources import load as load_data
from weft.engines.evaluation import records
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.export.about import About
from weft.export.predictor import load, model_folder
from weft.tasks.kinds import suits

SPLITS = ("test", "validation", "train")


def evaluate_run(
    folder: str | Path,
    data: Any,
    *,
    split: str | None = None,
    image: str | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    base: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    observer: Observer | None = None,
) -> list[dict[str, Any]]:
    """Scores of a run's model on other data, as its task has them: records as in ``rounds.jsonl``.

    Those are accuracy with interval, macro-F1 and loss of classes; of answers perplexity, and how good some texts are that are
    written as the run was scored.

    Args:
        folder: of a run, or of an exported model.
        data: catalogue name, hub id, file or folder; or a frame, or rows in memory. Labels are matched by name.
        split: ``test``, ``validation`` or ``train``; by default the first of them that there is. A single file is all ``train``.
        image, text, pair, label: columns, where the guess is wrong. limit: at most so many rows, drawn with ``seed``.
        base, device, precision: see :func:`weft.export.load`. observer: is told what was guessed.

    Raises:
        UserError: no such model or data, or labels that the model does not know.
    """
    observer = observer or Observer()
    about = About.read(model_folder(Path(folder).expanduser()))
    if not isinstance(data, Source):
        columns: dict[str, Any] = {"image": image, "text": text, "pair": pair, "label": label}
        source = load_data(data, seed=seed, limit=limit, one_class=True, wanted=wanted_by(about.task), **columns)
    else:
        source = data
    source = questions.within(source, about.predicts.classes)
    for note in source.notes:
        observer.say(note)
    splits = {"test": source.test, "validation": source.validation, "train": source.train}
    chosen = split or next(s for s in SPLITS if splits[s] is not None and len(splits[s] or ()))
    rows = splits.get(chosen)
    if rows is None or not len(rows):
        have = ", ".join(s for s in SPLITS if splits[s] is not None)
        raise UserError(f"{source.name} has no {chosen} rows: it has {have}.")
    suits(about.task, rows)
    if about.label_spaces == "all":
        rows = replace(rows, allowed=None)
    predictor = load(folder, base=base, device=device, precision=precision, observer=observer)
    seen = predictor.observe(matched(rows, source, predictor.classes))
    people = f"{source.name} ({chosen})"
    return [
        e.record() for e in records(predictor.about.predicts.score(seen), len(rows), view=predictor.about.view, people=people)
    ]


def matched(rows: Rows, source: Source, classes: tuple[str, ...]) -> Rows:
    """The rows with labels that are indices of the model's classes, by name.

    Raises:
        UserError: a label that occurs is none of them.
    """
    if rows.numbers is not None or rows.answers is not None:
        return rows
    order = labels.index(source.classes, classes, labels.every_label([rows]), source.name, "the model's classes")
    return labels.relabelled(rows, order, len(classes))
