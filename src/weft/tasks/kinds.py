"""The tasks by name."""

from __future__ import annotations

from collections.abc import Sequence

from weft.tasks.classification import Classification
from weft.tasks.tagging import Tagging
from weft.tasks.task import Task

KINDS: dict[str, type[Classification] | type[Tagging]] = {kind.kind: kind for kind in (Classification, Tagging)}
CLASSES = Classification.kind
TOKENS = Tagging.kind


def make(classes: Sequence[str], kind: str = CLASSES, metrics: Sequence[str] = ()) -> Task:
    """A task.

    Args:
        classes: names of the labels, in index order. metrics: what is scored, the headline first; none = what is usual.

    Raises:
        UserError: a metric that it does not have.
    """
    return KINDS[kind](tuple(classes), tuple(metrics)) if metrics else KINDS[kind](tuple(classes))
