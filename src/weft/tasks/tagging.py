"""Token classification: a tag for each word of a sentence, scored by the entities that tags make up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from weft.data.bio import OUTSIDE, Span, spans, type_of
from weft.errors import UserError, nearest
from weft.tasks import entities
from weft.tasks.entities import Entities
from weft.tasks.observed import Observed
from weft.tasks.of_words import Tagged
from weft.tasks.outputs import Output
from weft.tasks.task import Score, pooled

METRICS = ("entity_f1", "precision", "recall", "token_accuracy", "macro_f1", "f1")
MANY = ("macro_f1", "f1")  # metrics that need counts of each type


@dataclass(frozen=True)
class Tagging(Tagged):
    """One tag for each word, read off its first token (Devlin et al., 2019).

    An entity counts as found if its type and all its words are (CoNLL-2003; ``seqeval``). ``precision``, ``recall`` and
    ``entity_f1`` are over all entities of all rows, ``macro_f1`` is the mean F1 of the types that occur.

    Attributes:
        classes: the tags, ``O``, ``B-X`` and ``I-X`` of entity types X, in index order.
        metrics: what is scored, the headline first: those above, ``token_accuracy``, and ``f1:X``, of one type alone.
    """

    kind: ClassVar[str] = "tokens"
    known: ClassVar[tuple[str, ...]] = METRICS

    classes: tuple[str, ...]
    metrics: tuple[str, ...] = ("entity_f1", "precision", "recall", "token_accuracy")

    def __post_init__(self) -> None:
        strange = [tag for tag in self.classes if tag != OUTSIDE and not (tag.startswith(("B-", "I-")) and type_of(tag))]
        if OUTSIDE not in self.classes or not self.types or strange:
            raise UserError("the classes of tokens are tags: O, and B-X and I-X for each type X of entities.")
        for metric in self.metrics:
            name, _, of = metric.partition(":")
            if name not in METRICS or (name == "f1") != bool(of):
                raise UserError(f'unknown metric "{metric}": use {", ".join(METRICS[:-1])} or f1:TYPE.{nearest(name, METRICS)}')
            if of and of not in self.types:
                raise UserError(f'metric "{metric}" is of entities "{of}", which the data do not have.{nearest(of, self.types)}')

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The types of entities, in the order of the classes."""
        return tuple(dict.fromkeys(kind for kind in map(type_of, self.classes) if kind))

    # scores -----------------------------------------------------------------------------------------------------------

    def observe(self, out: Output, labels: Tensor, mask: Tensor, beside: Tensor | None = None) -> Observed:
        logits = out.logits
        each = F.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none").view_as(mask)
        guesses = logits.argmax(-1)
        counts = np.zeros((len(logits), len(self.types), 3), dtype=np.int64)
        for row, (guess, label, valid) in enumerate(zip(guesses, labels, mask, strict=True)):
            found, true = (set(spans([self.classes[t] for t in tags[valid].tolist()])) for tags in (guess, label))
            for column, some in enumerate((found & true, found, true)):
                counts[row, :, column] = self._by_type(some)
        return Observed(
            {
                "entities": counts,
                "words": mask.sum(1).numpy(),
                "right": ((guesses == labels) & mask).sum(1).numpy(),
                "loss": each.masked_fill(~mask, 0.0).sum(1).numpy(),
                "finite": (logits.isfinite().all(-1) | ~mask).all(1).numpy(),
            }
        )

    def _by_type(self, some: Iterable[Span]) -> np.ndarray:
        return np.bincount([self.types.index(kind) for kind, _, _ in some], minlength=len(self.types))

    def score(self, observed: Observed) -> list[Score]:
        return self.pool([self._told(observed)]) if len(observed) else []

    def headline(self, observed: Observed) -> Score:
        told = self._told(observed)
        return Score(self.metrics[0], math.nan if not told.n or told.blank else told.score(self.metrics[0], self.types))

    def tell(self, observed: Observed, by_class: bool) -> dict[str, Any]:
        return self._told(observed).as_json(by_class)

    def told(self, metric: str, by_class: bool) -> bool:
        return by_class or metric.partition(":")[0] not in MANY

    def read(self, told: Mapping[str, Any], by_class: bool) -> Entities:
        return entities.read(told, len(self.types) if by_class else 0)

    def pool(self, told: Sequence[Entities]) -> list[Score]:
        return pooled(told, (*self.metrics, "loss"), self._pool)

    def _pool(self, told: Sequence[Entities]) -> list[Score]:
        whole = entities.summed(told)
        told_of = [metric for metric in self.metrics if self.told(metric, whole.types is not None)]
        return [*(Score(metric, whole.score(metric, self.types)) for metric in told_of), Score("loss", whole.mean_loss)]

    def _told(self, observed: Observed) -> Entities:
        counts = observed["entities"].sum(0)
        finite = bool(observed["finite"].all())
        return Entities(
            n=len(observed),
            words=int(observed["words"].sum()),
            right=int(observed["right"].sum()),
            loss=float(observed["loss"].sum()) if finite else math.nan,
            all=tuple(counts.sum(0).tolist()),
            types=tuple(map(tuple, counts.tolist())),
        )
