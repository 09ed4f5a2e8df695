"""Token tables of language models: prompts and the answers to be generated after them, by a decoder or an encoder-decoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.backbones.prompts import Template, template
from weft.backbones.token_table import Tokens, reading
from weft.backbones.translators import Translator, marks, shifting
from weft.errors import UserError
from weft.words import count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.data.rows import Rows

LEAST_PROMPT = 4
"""An answer may take all but a fourth of a row: a prompt cut to less says nothing."""


@dataclass(frozen=True)
class Replies(Tokens):
    """Rows of a decoder: prompt and answer in one.

    Attributes:
        answer: bool [total], tokens that are to be predicted.
        wanted: answers as texts [n]. asked: prompts as texts [n].
        begins: int64 [n], where the last answer of a row begins: what comes before is the prompt that text is generated for.
    """

    ahead: ClassVar[int] = 1
    """How far before a token the output stands that predicts it."""

    answer: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    wanted: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    begins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def targets(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Labels and mask [m, p] of the tokens to be predicted in the rows ``index`` ([m]; -1 = padding)."""
        return _ragged([self._answers(i) for i in index])

    def _answers(self, i: int) -> np.ndarray:
        row = self._where(i)
        return self.ids[row][self.answer[row]]

    def _where(self, i: int) -> slice:
        """Where the tokens of a row lie; -1 = padding."""
        return slice(self.offsets[i], self.offsets[i + 1]) if i >= 0 else slice(0, 0)

    def places(self, index: np.ndarray) -> Tensor:
        """bool [m, T], the positions of collated rows whose output predicts these tokens."""
        width = max(int(np.where(index >= 0, self.widths[index], 1).max(initial=1)), 1)
        found = np.zeros((len(index), width), dtype=bool)
        for row, i in zip(found, index, strict=True):
            own = self.answer[self._where(i)][self.ahead :]
            row[: len(own)] = own
        return torch.from_numpy(found)

    def prompts(self, index: np.ndarray) -> dict[str, Tensor]:
        """Left-padded prompts of the rows ``index``, [m, T], so that what is generated follows at once."""
        rows = [self.ids[self.offsets[i] : self.offsets[i] + max(self.begins[i], 1)] if i >= 0 else self.ids[:1] for i in index]
        ids = np.full((len(rows), max(map(len, rows))), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for r, own in enumerate(rows):
            ids[r, ids.shape[1] - len(own) :], mask[r, ids.shape[1] - len(own) :] = own, 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


@dataclass(frozen=True)
class Pairs(Replies):
    """Rows of an encoder-decoder: ``ids`` are what the encoder reads, ``targets`` what the decoder is to write.

    Attributes:
        target_ids, target_offsets: as ``ids`` and ``offsets``, of the answers.
        shifted: the model's own way from labels [m, p] (-100 = padding) to the decoder's inputs.
        marks: tokens of a translator that say which language an answer is in. end: token behind an answer.
    """

    target_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    target_offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    shifted: Callable[[Tensor], Tensor] = lambda labels: labels
    marks: frozenset[int] = frozenset()
    end: int = 0

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens that go through the model for a row, on either side."""
        return self.widths + np.diff(self.target_offsets)

    @functools.cached_property
    def spans(self) -> np.ndarray:
        return np.stack([self.widths, np.diff(self.target_offsets)], -1)[:, None]

    def _answers(self, i: int) -> np.ndarray:
        return self.target_ids[self.target_offsets[i] : self.target_offsets[i + 1]] if i >= 0 else self.target_ids[:0]

    def places(self, index: np.ndarray) -> Tensor:
        return self.targets(index)[1]

    def collate(self, index: np.ndarray, width: int | None = None, most: int | None = None) -> dict[str, Tensor]:
        labels, mask = self.targets(index)
        mask[:, 0] |= ~mask.any(1)  # a padding row writes one token, which weighs nothing
        return super().collate(index, width, most) | {"decoder_input_ids": self.shifted(labels.masked_fill(~mask, -100))}

    def prompts(self, index: np.ndarray) -> dict[str, Tensor]:
        return super().collate(index)

    def beginnings(self, index: np.ndarray) -> Tensor | None:
        """What the decoder of a translator goes on from, [m, p]; None where languages have no marks.

        mBART-50 and NLLB begin an answer with the mark of its language; of mBART, which ends it with the mark, the way from
        labels to inputs puts that in front.
        """
        if not self.marks:
            return None
        labels, mask = self.targets(np.where(index >= 0, index, 0))
        first = labels[:, 0]
        if all(token in self.marks for token in first.tolist()):
            start = self.shifted(torch.tensor([[first[0], self.end]]))[0, 0]
            return torch.stack([start.expand_as(first), first], 1)
        return self.shifted(labels.masked_fill(~mask, -100))[:, :1]


def _ragged(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as [m, p] int64, and which places are in use."""
    width = max(max(map(len, rows), default=1), 1)
    found = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for r, own in enumerate(rows):
        found[r, : len(own)], mask[r, : len(own)] = own, True
    return torch.from_numpy(found), torch.from_numpy(mask)


@dataclass(frozen=True)
class Made:
    """One prompt with its answer.

    Attributes:
        ids: of both, or of what the encoder reads. answer: bool, which of them are to be predicted.
        begins: where the last answer begins. target: what the decoder of an encoder-decoder is to write.
    """

    ids: np.ndarray
    answer: np.ndarray
    begins: int
    target: np.ndarray


@dataclass
class _Counts:
    """Of what was cut."""

    shortened: int = 0
    cut: int = 0
    refused: int = 0  # answers to something, that is
    bare: int = 0  # prompts of which not even the template fits


def replies(backbone: Backbone, rows: Rows, max_length: int) -> Replies:
    """Tokenise prompts and answers, together no longer than ``max_length`` tokens; prompts are shortened before answers are.

    Raises:
        UserError: most answers do not fit, or the template does not suit the rows.
    """
    return table_of(backbone, rows, *sequences(backbone, rows, max_length))


def sequences(backbone: Backbone, rows: Rows, max_length: int, beside: int = 0) -> tuple[list[Made], list[str]]:
    """Each row as tokens, and notes on what was cut.

    Args:
        beside: of ``max_length`` tokens, those that are kept free for what is put in later.

    Raises:
        UserError: as :func:`replies`.
    """
    assert rows.answers is not None and rows.texts is not None
    tokenizer, most = backbone.tokenizer, min(max_length, backbone.max_length)
    limit = most - beside
    apart = backbone.encoder_decoder
    if limit < 2 and not apart:
        raise UserError(f"--max-length {max_length} leaves no token to predict from another one: give a larger one.")
    frame = template(backbone.options.prompt, tokenizer, apart)
    translator = Translator(tokenizer, frame, rows.languages)
    counts = _Counts()
    history = rows.history or [()] * len(rows)
    given = rows.pairs or [""] * len(rows)
    made = []
    for i, (text, more, turns, answer) in enumerate(zip(rows.texts, given, history, rows.answers, strict=True)):
        own, asked = translator.prepared(i, text, more)
        made.append(_row(tokenizer, own, *asked, turns, answer, limit, apart, counts))
    if 2 * counts.refused > len(made):
        raise UserError(
            f"{counts.refused} of {count(len(made), 'answer')} are longer than --max-length {max_length} leaves room for: give a "
            "larger one."
        )
    notes = translator.restored()
    if counts.shortened:
        notes.append(f"{counts.shortened} of {count(len(made), 'prompt')} are shortened to --max-length {most}.")
    if counts.bare:
        notes.append(
            f"--max-length {most} leaves no room for what is asked in {counts.bare} of {count(len(made), 'row')}, as the "
            "template alone is longer: give a larger one."
        )
    if counts.cut:
        notes.append(f"{counts.cut} of {count(len(made), 'answer')} are cut to --max-length {most}, without an end.")
    return made, notes


def table_of(backbone: Backbone, rows: Rows, made: Sequence[Made], notes: Sequence[str]) -> Replies:
    """The table of rows that lie ready as tokens."""
    assert rows.answers is not None and rows.texts is not None
    tokenizer, given = backbone.tokenizer, rows.pairs or [""] * len(rows)
    first = [one.ids for one in made]
    common: dict[str, Any] = {
        "ids": np.concatenate(first) if first else np.zeros(0, np.int32),
        "offsets": np.concatenate([[0], np.cumsum([len(r) for r in first])]).astype(np.int64),
        "types": None,
        "labels": np.zeros(len(rows), np.int64),
        "row_ids": np.asarray(rows.ids, dtype=np.int64),
        "pad": int(tokenizer.pad_token_id or 0),
        "pairs": rows.pairs is not None,
        "wanted": tuple(rows.answers),
        "asked": tuple(
            f"{text}\n\n{more}" if more and text else text or more for text, more in zip(rows.texts, given, strict=True)
        ),
        "begins": np.array([one.begins for one in made], dtype=np.int64),
        "notes": tuple(notes),
    }
    common["reading"] = reading(tokenizer, common["ids"], common["offsets"])
    if not backbone.encoder_decoder:
        flags = [one.answer for one in made]
        return Replies(answer=np.concatenate(flags) if flags else np.zeros(0, bool), **common)
    targets = [one.target for one in made]
    return Pairs(
        target_ids=np.concatenate(targets) if targets else np.zeros(0, np.int32),
        target_offsets=np.concatenate([[0], np.cumsum([len(r) for r in targets])]).astype(np.int64),
        shifted=shifting(backbone.model),
        marks=frozenset(marks(tokenizer).values()),
        end=int(tokenizer.eos_token_id),
        **common,
    )


def _row(
    tokenizer: Any,
    frame: Template,
    text: str,
    given: str,
    history: Sequence[tuple[str, str]],
    answer: str,
    limit: int,
    apart: bool,
    counts: _Counts,
) -> Made:
    wanted, asked = _answer(tokenizer, frame, answer, apart), bool(text or given or history)
    most = limit if apart else limit - (max(limit // LEAST_PROMPT, 1) if asked else 1)
    if len(wanted) > most:
        wanted = wanted[:most]
        counts.cut += 1
        counts.refused += asked
    room = limit if apart else limit - len(wanted)
    ids, learnt = _fitted(tokenizer, frame, text, given, history, room, apart, counts)
    if apart:
        return Made(_int(ids or [tokenizer.pad_token_id]), np.zeros(0, bool), len(ids), _int(wanted))
    flags = [*learnt, *[True] * len(wanted)]
    whole = [*ids, *wanted][:limit]
    flags = flags[:limit]
    if flags:
        flags[0] = False  # nothing stands before a first token that could predict it
    if len(whole) == 1:  # a text of one token: its end follows it
        whole, flags = [*whole, tokenizer.eos_token_id], [False, True]
    return Made(_int(whole), np.array(flags, dtype=bool), len(ids), _int([]))


def _int(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def _answer(tokenizer: Any, frame: Template, answer: str, apart: bool) -> list[int]:
    """Tokens of an answer with what ends it."""
    if apart:
        found: list[int] = tokenizer(text_target=answer)["input_ids"]
        return found
    end = str(tokenizer.eos_token)
    ids: list[int] = tokenizer(answer + frame.ending(end), add_special_tokens=False)["input_ids"]
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def _fitted(
    tokenizer: Any,
    frame: Template,
    text: str,
    given: str,
    history: Sequence[tuple[str, str]],
    room: int,
    apart: bool,
    counts: _Counts,
) -> tuple[list[int], list[bool]]:
    """Tokens of a prompt of at most ``room``, and which of them are to be learnt.

    Oldest turns go first, then the end of the input or the instruction, whichever is longer: the template stays whole.
    """
    if not (text or given or history):  # the answer is a text by itself
        alone: list[int] = tokenizer("")["input_ids"]
        start = [i for i in alone if i != tokenizer.eos_token_id or tokenizer.bos_token_id == i]
        return start[:room], [False] * len(start[:room])
    ids, learnt = _prompt(tokenizer, frame, text, given, history, apart)
    shortened = False
    while len(ids) > room and any(role != "system" for role, _ in history):
        first = next(i for i, (role, _) in enumerate(history) if role != "system")
        later = next((i for i in range(first + 1, len(history)) if history[i][0] == "user"), len(history))
        history, shortened = [*history[:first], *history[later:]], True
        ids, learnt = _prompt(tokenizer, frame, text, given, history, apart)
    for _ in range(12):
        content = max(text, given, key=len)
        if len(ids) <= room or len(content) < 2:
            break
        own = max(len(tokenizer(content, add_special_tokens=False)["input_ids"]), 1)
        keep = max(int(len(content) * max(own - (len(ids) - room) - 1, 0) / own), 1)
        keep = min(keep, len(content) - 1)
        text, given = (text[:keep], given) if content is text else (text, given[:keep])
        shortened = True
        ids, learnt = _prompt(tokenizer, frame, text, given, history, apart)
    if len(ids) > room:  # the template alone is too long: its end says where the answer begins
        counts.bare += 1
        ids, learnt, shortened = ids[-room:], learnt[-room:], True
    counts.shortened += shortened
    return ids, learnt


def _prompt(
    tokenizer: Any, frame: Template, text: str, given: str, history: Sequence[tuple[str, str]], apart: bool
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    learnt: list[bool] = []
    for i, piece in enumerate(frame.prompt(text, given, history)):
        special = not frame.framed and i == 0
        own: list[int] = tokenizer(piece.text, add_special_tokens=special)["input_ids"]
        if special and not apart and len(own) > 1 and own[-1] == tokenizer.eos_token_id:
            own = own[:-1]  # an end token in front of the answer
        ids += own
        ends = own.index(tokenizer.eos_token_id) + 1 if piece.answer and tokenizer.eos_token_id in own else len(own)
        learnt += [piece.answer and place < ends for place in range(len(own))]
    return ids, learnt
