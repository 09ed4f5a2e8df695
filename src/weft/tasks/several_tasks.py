"""Several tasks in one federation, each of which tags words or tells sentences apart: their mean is scored, and each alone.

Their classes lie one after another in one head. A row's logits are cut to those of its own task, and rows of different tasks
share no batch. The class of a whole sentence is read off its first token, as a tag is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.communication.strict import Refused, is_number
from weft.data.bio import OUTSIDE
from weft.data.several import SEPARATOR, tasks_of
from weft.errors import UserError, nearest
from weft.tasks.classification import Classification
from weft.tasks.observed import Observed
from weft.tasks.of_words import Tagged
from weft.tasks.outputs import Output
from weft.tasks.tagging import Tagging
from weft.tasks.task import Score, Told

MEAN = "mean"


@dataclass(frozen=True)
class Tellings:
    """What a site says of the tests of its tasks.

    Attributes:
        n: rows of all of them. tasks: what it says of each that it has, by name.
    """

    n: int
    tasks: Mapping[str, Told]

    @property
    def blank(self) -> bool:
        return any(told.blank for told in self.tasks.values())


@dataclass(frozen=True)
class Several(Tagged):
    """Tasks whose classes are called ``TASK/CLASS``; one whose classes are O, B-X and I-X tags words.

    Attributes:
        classes: of all tasks, in index order.
        metrics: what is scored, the headline first: ``mean``, over the tasks, of the first metric of each; and ``TASK:METRIC``,
            any metric of one of them. None = the mean, then the metrics of each task.

    Raises:
        UserError: there is no such task or metric.
    """

    kind: ClassVar[str] = "several"
    known: ClassVar[tuple[str, ...]] = (MEAN,)

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        every = (MEAN, *(f"{name}:{metric}" for name, task in self.parts.items() for metric in task.metrics))
        if not self.metrics:
            object.__setattr__(self, "metrics", every)
        for metric in self.metrics:
            name, sign, own = metric.partition(":")
            if metric != MEAN and (not sign or name not in self.parts):
                raise UserError(
                    f'unknown metric "{metric}": use {MEAN} or TASK:METRIC, such as {every[1]}.{nearest(metric, every)}'
                )
            if metric != MEAN:
                type(self.parts[name])(self.parts[name].classes, (own,))  # refuses what it does not know

    @cached_property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Task -> where its classes begin and end."""
        return tasks_of(self.classes)

    @cached_property
    def parts(self) -> dict[str, Classification | Tagging]:
        """The tasks by name, each with its own classes."""
        found: dict[str, Classification | Tagging] = {}
        for name, (first, end) in self.spans.items():
            own = tuple(label.partition(SEPARATOR)[2] for label in self.classes[first:end])
            tags = OUTSIDE in own and len(own) > 1 and all(c == OUTSIDE or c.startswith(("B-", "I-")) for c in own)
            found[name] = Tagging(own) if tags else Classification(own)
        return found

    @cached_property
    def scored(self) -> dict[str, Classification | Tagging]:
        """The tasks with the metrics that are asked for of each, its usual headline where none is."""
        asked = {n: tuple(m.partition(":")[2] for m in self.metrics if m.partition(":")[0] == n) for n in self.parts}
        return {n: type(task)(task.classes, asked[n] or task.metrics[:1]) for n, task in self.parts.items()}

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        first = labels.gather(1, mask.long().argmax(1, keepdim=True))[:, 0]
        ends = torch.tensor([end for _, end in self.spans.values()])
        which = torch.bucketize(first, ends, right=True).masked_fill(~mask.any(1), -1)
        columns: dict[str, np.ndarray] = {"task": which.numpy()}
        for i, (name, task) in enumerate(self.scored.items()):
            a, b = self.spans[name]
            rows = which == i
            logits, own, there = out.logits[rows][..., a:b], (labels[rows] - a).clamp(0, b - a - 1), mask[rows]
            if isinstance(task, Classification):
                logits, own, there = logits[:, :1], own[:, :1], there[:, :1]
            for column, values in task.observe(Output(logits), own, there).columns.items():
                full = np.zeros((len(which), *values.shape[1:]), dtype=values.dtype)
                full[rows.numpy()] = values
                columns[f"{name}{SEPARATOR}{column}"] = full
        return Observed(columns)

    def _of_task(self, observed: Observed, name: str) -> Observed:
        rows = observed["task"] == list(self.parts).index(name)
        before = f"{name}{SEPARATOR}"
        return Observed({n.removeprefix(before): c[rows] for n, c in observed.columns.items() if n.startswith(before)})

    def _some(self, observed: Observed) -> dict[str, Observed]:
        each = {name: self._of_task(observed, name) for name in self.parts}
        return {name: own for name, own in each.items() if len(own)}

    def score(self, observed: Observed) -> list[Score]:
        some = self._some(observed)
        return self._scores({n: self.scored[n].score(own) for n, own in some.items()}, {n: len(own) for n, own in some.items()})

    def _scores(self, each: Mapping[str, Sequence[Score]], rows: Mapping[str, int]) -> list[Score]:
        """Those asked for, of the tasks that have any, and the mean loss of their rows."""
        if not each:
            return []
        by = {name: {score.metric: score for score in scores} for name, scores in each.items()}
        found = []
        for metric in self.metrics:
            name, _, own = metric.partition(":")
            if metric == MEAN:
                firsts = {n: self.scored[n].metrics[0] for n in by}
                if all(first in by[n] for n, first in firsts.items()):  # else it would be the mean of some of them
                    found.append(Score(MEAN, math.fsum(by[n][first].value for n, first in firsts.items()) / len(firsts)))
            elif own in by.get(name, {}):
                one = by[name][own]
                found.append(Score(metric, one.value, one.low, one.high, rows[name]))
        loss = math.fsum(by[n]["loss"].value * rows[n] for n in by) / sum(rows.values())
        return [*found, Score("loss", loss)]

    def headline(self, observed: Observed) -> Score:
        found = self.score(observed)
        return Score(found[0].metric, found[0].value) if found else Score(self.metrics[0], math.nan)

    def tell(self, observed: Observed, by_class: bool) -> dict[str, Any]:
        some = self._some(observed)
        return {"n": len(observed), "tasks": {n: self.scored[n].tell(own, by_class) for n, own in some.items()}}

    def told(self, metric: str, by_class: bool) -> bool:
        name, _, own = metric.partition(":")
        asked = {n: t.metrics[0] for n, t in self.scored.items()} if metric == MEAN else {name: own}
        return all(self.scored[n].told(m, by_class) for n, m in asked.items())

    def read(self, told: Mapping[str, Any], by_class: bool) -> Tellings:
        n, tasks = told.get("n"), told.get("tasks")
        if not is_number(n, int) or not isinstance(tasks, dict) or not tasks:
            raise Refused("The counts are not those of tests of several tasks.")
        if strange := sorted(str(name) for name in tasks if name not in self.parts):
            raise Refused(f'The task "{strange[0]:.40}" is none of this federation.')
        if not all(isinstance(one, dict) for one in tasks.values()):
            raise Refused("The counts are not those of tests of several tasks.")
        found = {name: self.scored[name].read(one, by_class) for name, one in tasks.items()}
        if sum(one.n for one in found.values()) > int(n):  # type: ignore[arg-type]
            raise Refused("The counts of the tasks are of more rows than there are.")
        return Tellings(int(n), found)  # type: ignore[arg-type]

    def pool(self, told: Sequence[Tellings]) -> list[Score]:
        each = {name: [one.tasks[name] for one in told if name in one.tasks] for name in self.parts}
        each = {name: some for name, some in each.items() if some}
        scores = {name: self.scored[name].pool(some) for name, some in each.items()}  # type: ignore[arg-type]  # its own, by read
        return self._scores(scores, {n: sum(one.n for one in some if not one.blank) or 1 for n, some in each.items()})
