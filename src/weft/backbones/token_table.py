"""Ragged token tables: a data set tokenised once, batches padded to their own longest row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.backbones.spaces import Spaces
from weft.checks import tagged_rows as checks
from weft.checks.tokenizers import Reading
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.data.rows import Rows


@dataclass(frozen=True)
class Tokens:
    """Token ids of n rows.

    Attributes:
        ids: int32 [total], all rows one after another. offsets: int64 [n + 1]. types: int8 [total] segment ids or None.
        labels: int64 [n]. row_ids: int64 [n], stable keys of the rows within their source.
        pairs: rows are pairs of texts. reading: how much of the texts the tokenizer knew.
        tags: int32 [total], of the first token of each tagged word, -1 of others; None where words are not tagged.
        allowed: bool [n, C], the classes that each row may have; None = all. numbers: float64 [n], of a regression.
        notes: on words that have no token.
        before, behind: of each row, tokens in front of its text, and behind it int64 [n]: special ones and those of a template.
            None = none.
        groups: int64 [n]; rows of different ones share no batch, as those of different tasks. None = all are of one.
    """

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None
    labels: np.ndarray
    row_ids: np.ndarray
    pad: int
    pairs: bool = False
    reading: Reading = Reading()
    tags: np.ndarray | None = None
    allowed: np.ndarray | Spaces | None = None
    numbers: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    before: int = 0
    behind: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def widths(self) -> np.ndarray:
        """Tokens of each row [n]."""
        return np.diff(self.offsets)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """What each row costs a model [n], in tokens."""
        return self.widths

    @functools.cached_property
    def spans(self) -> np.ndarray:
        """Tokens of the q sequences that each row is [n, q, 2], for an encoder or decoder alone, and for a decoder behind one."""
        return np.stack([self.widths, np.zeros_like(self.widths)], -1)[:, None]

    def row_of(self, index: np.ndarray) -> np.ndarray:
        """As of :meth:`weft.backbones.pixels.Pixels.row_of`: texts have no views."""
        return index

    def beside(self, index: np.ndarray) -> torch.Tensor | None:
        """Numbers of the rows ``index`` ([k, b]; -1 = padding) that a loss is made of beside labels, [k, b, …]; None = none."""
        return None

    def tags_of(self, index: np.ndarray) -> np.ndarray:
        """Tags [m, T] of the rows ``index`` ([m]; -1 = padding) as wide as :meth:`collate` makes them, -1 where there is none."""
        assert self.tags is not None
        lengths = np.where(index >= 0, self.widths[index], 1)
        found = np.full((len(index), int(lengths.max(initial=1))), -1, dtype=np.int64)
        for row, i in enumerate(index):
            if i >= 0:
                found[row, : lengths[row]] = self.tags[self.offsets[i] : self.offsets[i + 1]]
        return found

    def collate(self, index: np.ndarray, width: int | None = None, most: int | None = None) -> dict[str, torch.Tensor]:
        """Right-padded model inputs for the rows ``index`` ([m]; -1 = an empty padding row): tensors [m, T].

        Args:
            most: tokens of the longest row, beyond which texts are cut at their end; None = rows stay as they are.

        Raises:
            UserError: a row would lose all of its text, or a word with its tag.
        """
        lengths = np.where(index >= 0, self.widths[index], 1) if len(self) else np.ones(len(index), dtype=np.int64)
        if most is not None:
            self._check_cut(index[index >= 0], most)
            lengths = np.minimum(lengths, most)
        width = int(max(lengths.max(initial=1), width or 1))
        ids = np.full((len(index), width), self.pad, dtype=np.int64)
        mask = np.zeros((len(index), width), dtype=np.int64)
        types = np.zeros((len(index), width), dtype=np.int64) if self.types is not None else None
        for row, i in enumerate(index):
            if i < 0:
                mask[row, 0] = 1  # attention over nothing is not defined: a padding row sees one padding token
                continue
            n = int(lengths[row])
            own = self._kept(i, n)
            ids[row, :n] = self.ids[own]
            mask[row, :n] = 1
            if types is not None and self.types is not None:
                types[row, :n] = self.types[own]
        out = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if types is not None:
            out["token_type_ids"] = torch.from_numpy(types)
        return out

    def _kept(self, i: int, n: int) -> slice | np.ndarray:
        """Where the n tokens lie that are kept of a row: its text is cut at the end."""
        a, b = self.offsets[i], self.offsets[i + 1]
        if n == b - a:
            return slice(a, b)
        end = b - (0 if self.behind is None else self.behind[i])
        return np.r_[a : end - (b - a - n), end:b]

    def _check_cut(self, rows: np.ndarray, most: int) -> None:
        longer = rows[self.widths[rows] > most]
        if not len(longer):
            return
        if self.tags is not None:
            raise UserError(
                f"a row has {int(self.widths[longer].max())} tokens, and trained ones leave room for {most}, so that words would "
                f"be cut off with their tags: give --max-length {most}."
            )
        frame = self.before + (0 if self.behind is None else int(self.behind[longer].max()))
        if most <= frame:
            raise UserError(
                f"trained tokens leave room for {max(most, 0)} tokens of a row, of which {frame} are no text: train fewer of "
                "them."
            )


def frame(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens a tokenizer puts in front of a text, and behind it."""
    whole, bare = (tokenizer("a photo", add_special_tokens=special)["input_ids"] for special in (True, False))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return start, len(whole) - start - len(bare)
    return 0, 0


def tokenize(backbone: Backbone, rows: Rows, max_length: int = 128) -> Tokens:
    """Tokenise a table of texts (or text pairs), cut to ``max_length`` tokens; a tagged sentence word by word.

    Raises:
        UserError: words are tagged, and the tokenizer can't tell which token belongs to which.
    """
    assert rows.texts is not None
    limit = min(max_length, backbone.max_length)
    tokenizer = backbone.tokenizer
    uses_types = backbone.segments and rows.pairs is not None
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    for start in range(0, len(rows), 2048):
        stop = min(start + 2048, len(rows))
        first = [str(t) for t in rows.texts[start:stop]]
        second = None if rows.pairs is None else [str(t) for t in rows.pairs[start:stop]]
        if rows.words is not None:
            out = by_word(tokenizer, rows.words[start:stop], limit, backbone.name)
            starts += [first_tokens(out.word_ids(i)) for i in range(stop - start)]
        else:
            out = tokenizer(first, second, truncation=True, max_length=limit, return_token_type_ids=uses_types)
        ids += [np.asarray(r if len(r) else [tokenizer.pad_token_id], dtype=np.int32) for r in out["input_ids"]]
        if uses_types:
            types += [np.asarray(r, dtype=np.int8) for r in out["token_type_ids"]]
    flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in ids])]).astype(np.int64)
    before, behind = frame(tokenizer)
    tags, notes = (None, ()) if rows.tags is None else _placed(rows, starts, [len(r) for r in ids], limit)
    return Tokens(
        ids=flat,
        offsets=offsets,
        types=np.concatenate(types) if types else None,
        labels=np.asarray(rows.labels, dtype=np.int64),
        row_ids=np.asarray(rows.ids, dtype=np.int64),
        pad=int(tokenizer.pad_token_id or 0),
        pairs=rows.pairs is not None,
        reading=reading(tokenizer, flat, offsets),
        tags=tags,
        allowed=rows.allowed,
        numbers=rows.numbers,
        notes=notes,
        before=before,
        behind=np.full(len(rows), behind, dtype=np.int64),
    )


def by_word(tokenizer: Any, words: Sequence[Sequence[str]], limit: int, name: str) -> Any:
    """Token ids of sentences that are given word by word, cut to ``limit`` tokens.

    Args:
        name: of the backbone, for the sentence.

    Raises:
        UserError: the tokenizer can't tell which token belongs to which word.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f'the tokenizer of "{name}" does not tell which token belongs to which word, as one with a tokenizer.json does: '
            "choose another --model to tag words with."
        )
    before = " " if glues(tokenizer) else ""
    given = [[before + word for word in row] for row in words]
    return tokenizer(given, is_split_into_words=True, truncation=True, max_length=limit, return_token_type_ids=False)


def glues(tokenizer: Any) -> bool:
    """Whether words that are given one by one lose the space before them, as those of GPT-2 do if it isn't written."""

    def ids(text: Any, **more: Any) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False, **more)["input_ids"]
        return found

    apart, spaced = (ids(words, is_split_into_words=True) for words in (["a", "photo"], [" a", " photo"]))
    return apart != ids("a photo") and spaced == ids(" a photo")


def first_tokens(words: Sequence[int | None]) -> np.ndarray:
    """int64 [w, 2]: for each word that has tokens its number and the place of the first of them.

    Args:
        words: the number of each token's word, None of special ones.
    """
    first: dict[int, int] = {}
    for place, word in enumerate(words):
        if word is not None:
            first.setdefault(word, place)
    return np.array(list(first.items()), dtype=np.int64).reshape(-1, 2)


def _placed(rows: Rows, starts: list[np.ndarray], lengths: list[int], limit: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Tags of :class:`Tokens`, and notes on words without a token."""
    assert rows.tags is not None
    found = [np.full(n, -1, dtype=np.int32) for n in lengths]
    cut = unseen = 0
    for row, tags, first in zip(found, rows.tags, starts, strict=True):
        row[first[:, 1]] = tags[first[:, 0]]
        seen = int(first[:, 0].max(initial=-1)) + 1 if len(row) == limit else len(tags)  # words up to the last that may be cut
        cut += len(tags) - seen
        unseen += seen - len(first)
    flat = np.concatenate(found) if found else np.zeros(0, np.int32)
    return flat, tuple(checks.places(sum(map(len, rows.tags)), cut, unseen, limit))


def reading(tokenizer: Any, ids: np.ndarray, offsets: np.ndarray) -> Reading:
    """How much of its texts a tokenizer knew.

    Args:
        ids, offsets: of :class:`Tokens`.
    """
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):  # GPT-2 has tokens for everything, and no unknown one
        unknown = None
    frame = [i for i in tokenizer.all_special_ids if i != unknown]
    word = ~np.isin(ids, frame)
    strange = np.zeros_like(word) if unknown is None else ids == unknown
    words, lost = (np.diff(np.append(0, flags.cumsum())[offsets]) for flags in (word, strange))
    empty = words == 0
    return Reading(len(words), int(empty.sum()), int(((words == lost) & ~empty).sum()), int(words.sum()), int(lost.sum()))
