"""Token tables of rows with two answers, of which one was preferred: each row is two sequences, prompt and answer."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weft.backbones.reply_table import Made, Replies, sequences, table_of

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.data.rows import Rows


@dataclass(frozen=True)
class Preferences(Replies):
    """n rows of two sequences each. What is inherited is of rows, but for ``ids``, ``offsets`` and ``answer``, of all sequences.

    Attributes:
        sequences: 2n of them: that of row i with the chosen answer is 2i, that with the rejected one 2i + 1.
        backbone: the frozen model, which is the reference.
        known: float64 [n, 2], what :meth:`beside` has found so far; NaN = not yet.
    """

    sequences: Replies = field(kw_only=True)
    backbone: Backbone = field(kw_only=True, repr=False)
    known: np.ndarray = field(kw_only=True, repr=False)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Both sequences of a row are padded to the longer one."""
        longest: np.ndarray = self.sequences.lengths.reshape(-1, 2).max(1)
        return 2 * longest

    @functools.cached_property
    def spans(self) -> np.ndarray:
        found: np.ndarray = self.sequences.spans.reshape(-1, 2, 2)
        return found

    @functools.cached_property
    def widths(self) -> np.ndarray:
        return self.sequences.widths[::2]

    def targets(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Labels and mask [2m, p] of the rows ``index`` ([m]; -1 = padding), the two sequences of a row next to each other."""
        return self.sequences.targets(_both(index))

    def places(self, index: np.ndarray) -> Tensor:
        return self.sequences.places(_both(index))

    def collate(self, index: np.ndarray, width: int | None = None, most: int | None = None) -> dict[str, Tensor]:
        """Inputs [2m, T]."""
        return self.sequences.collate(_both(index), width, most)

    def prompts(self, index: np.ndarray) -> dict[str, Tensor]:
        return self.sequences.prompts(np.where(index >= 0, 2 * index, -1))

    def beside(self, index: np.ndarray) -> Tensor:
        """log π_ref of the chosen and of the rejected answer, float64 [k, b, 2], by the frozen backbone alone; 0 of padding.

        A row is read when it is first asked for, in a pass of its own. So the numbers depend on the row alone: a simulation, a
        site and a run that goes on have the same, bit for bit.
        """
        for i in np.unique(index[index >= 0]).tolist():
            if np.isnan(self.known[i, 0]):
                self.known[i] = self._read(i)
        return torch.from_numpy(np.where((index >= 0)[..., None], self.known[index], 0.0))

    @torch.no_grad()
    def _read(self, i: int) -> np.ndarray:
        """The summed log-probabilities of the tokens of both answers, [2]."""
        model, vocabulary, rows = self.backbone.model, self.backbone.vocabulary, _both(np.array([i]))
        assert vocabulary is not None
        labels, mask = self.sequences.targets(rows)
        with vocabulary.at(model, self.sequences.places(rows)) as read:
            logits = model(**self.backbone.to_model(self.sequences.collate(rows))).logits
        hidden, layer = vocabulary.finish(read, logits)
        each = layer.cross_entropy(hidden, labels[mask].to(hidden.device)).cpu().double()
        first = int(mask[0].sum())
        return -np.array([each[:first].sum(), each[first:].sum()])


def _both(index: np.ndarray) -> np.ndarray:
    """The two sequences of each row."""
    return np.where(index >= 0, 2 * index, -1).repeat(2) + np.tile([0, 1], len(index)) * (index >= 0).repeat(2)


def preferences(backbone: Backbone, rows: Rows, max_length: int) -> Preferences:
    """Tokenise prompts with both of their answers, as :func:`weft.backbones.reply_table.replies` does with one.

    Both answers of a row follow the same prompt, shortened for the longer of them. Earlier answers of a chat are part of the
    prompt, and nothing of it is to be predicted.

    Raises:
        UserError: most answers do not fit, or the template does not suit the rows.
    """
    assert rows.answers is not None and rows.rejected is not None
    answers = [answer for two in zip(rows.answers, rows.rejected, strict=True) for answer in two]
    twice = replace(rows.take(np.arange(len(rows)).repeat(2)), answers=answers, rejected=None)
    made, notes = sequences(backbone, twice, max_length)
    alike = [one for two in zip(made[::2], made[1::2], strict=True) for one in _alike(*two)]
    found = table_of(backbone, twice, alike, notes)
    return Preferences(
        ids=found.ids,
        offsets=found.offsets,
        types=None,
        pad=found.pad,
        reading=found.reading,
        notes=found.notes,
        answer=found.answer,
        labels=found.labels[::2],
        row_ids=found.row_ids[::2],
        pairs=found.pairs,
        wanted=found.wanted[::2],
        asked=found.asked[::2],
        begins=found.begins[::2],
        sequences=found,
        backbone=backbone,
        known=np.full((len(rows), 2), np.nan),
    )


def _alike(one: Made, other: Made) -> tuple[Made, Made]:
    """Two sequences with the shorter one's prompt, of which nothing is to be predicted."""
    short = min(one, other, key=lambda made: made.begins)
    prompt = short.ids[: short.begins]

    def after(made: Made) -> Made:
        if not len(made.answer):  # an encoder reads the prompt, alone and of any length
            return made
        ids = np.concatenate([prompt, made.ids[made.begins :]])
        flags = np.concatenate([np.zeros(len(prompt), bool), made.answer[made.begins :]])
        return Made(ids, flags, len(prompt), made.target)

    return after(one), after(other)
