"""How well a language model remembers one secret of its training rows: its exposure.

N. Carlini, C. Liu, Ú. Erlingsson, J. Kos, D. Song, "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural
Networks", USENIX Security 2019, arXiv 1802.08232: the secret is ranked by its loss among others that might have stood there.
Exposure is log₂ of how many there are, less log₂ of its rank; of a secret that is not remembered it is 1.44 bits in the mean.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from weft.audits.membership import losses
from weft.audits.outcome import CONFIDENCE, Outcome
from weft.backbones.masked_table import Masked
from weft.backbones.reply_table import Pairs, Replies
from weft.errors import UserError
from weft.export.trained import pack_of
from weft.federation.info import common
from weft.tensors.keyed import numpy_generator

if TYPE_CHECKING:
    from weft.audits.audited import Audited

NAME = "canary"
OTHERS = 1000
"""Secrets that might have stood in its place, drawn."""
BLIND = 1 / math.log(2)
"""Bits, the mean exposure of a rank that is drawn."""
LUCK = math.log2(1 / (1 - CONFIDENCE)) - BLIND
"""Bits above that mean which a drawn rank exceeds in one of twenty cases."""


def attack(run: Audited) -> list[Outcome]:
    """Rank the secret that people name among others, by the finished model's loss on the row that holds it.

    Raises:
        UserError: no training row's answer holds it, or nothing else could stand in its place.
    """
    text = run.asked.canary
    table = run.server.bench.table
    assert isinstance(table, Replies) and text is not None
    row, at = found(run, table, text)
    candidates = drawn(run, table, row, at)
    loss = losses_of(run, row, _copies(table, row, at, candidates))
    rank = 1 + int((loss[1:] <= loss[0]).sum())
    most = math.log2(len(loss))
    exposure = most - math.log2(rank)
    low = exposure - LUCK
    whether = "remembers" if low > BLIND else "is not seen to remember"
    sentence = (
        f"The model {whether} the secret: it ranks {rank:,} of {len(loss):,} that might stand there (exposure {exposure:.1f} of "
        f"at most {most:.1f} bits)."
    )
    about = {"rank": rank, "row": int(table.row_ids[row])}
    return [Outcome(NAME, "the finished model", "exposure in bits", exposure, BLIND, len(loss), low, sentence, about, most)]


def missing(run: Audited) -> str | None:
    """What the attack lacks; None if nothing."""
    table = run.server.bench.table
    if not isinstance(table, Replies) or isinstance(table, Masked | Pairs):
        return "the model is none that writes answers behind their prompts"
    return "nobody has named a secret of the training rows with --canary" if run.asked.canary is None else None


def found(run: Audited, table: Replies, text: str) -> tuple[int, slice]:
    """The first training row whose answer holds a text, and where its tokens lie among those of the table.

    Raises:
        UserError: none does.
    """
    tokenizer = run.server.bench.backbone.tokenizer
    ways = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in (text, f" {text}")]
    for client in run.clients:
        for row in client.data.train.tolist():
            begin, end = int(table.offsets[row]), int(table.offsets[row + 1])
            for ids in filter(None, ways):
                for start in range(begin, end - len(ids) + 1):
                    at = slice(start, start + len(ids))
                    if table.ids[at].tolist() == ids and table.answer[at].all():
                        return row, at
    raise UserError(f'no answer that clients train on holds the words "{text}": name a text that stands in one, word for word.')


def drawn(run: Audited, table: Replies, row: int, at: slice) -> np.ndarray:
    """[1 + OTHERS, n] tokens of the secret, and of others that have a token of the same shape at each place.

    Raises:
        UserError: there is no other.
    """
    tokenizer, own = run.server.bench.backbone.tokenizer, table.ids[at]
    special = set(tokenizer.all_special_ids)
    by_shape: dict[str, list[int]] = {}
    for word, token in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        if token not in special:
            by_shape.setdefault(shape(word), []).append(token)
    places = [by_shape.get(shape(tokenizer.convert_ids_to_tokens(int(token))), [int(token)]) for token in own]
    if math.prod(map(len, places)) < 2:
        raise UserError("nothing else could stand in the place of that canary: name one of digits or letters.")
    stream = numpy_generator(run.server.seed, "audit", NAME, int(table.row_ids[row]))
    others = np.stack([stream.choice(tokens, OTHERS) for tokens in places], axis=1)
    others = others[(others != own).any(1)]
    return np.concatenate([own[None], others]).astype(table.ids.dtype)


def shape(word: str) -> str:
    """What kinds of characters a token has: two with the same may stand for each other."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "9", word))


def losses_of(run: Audited, row: int, candidates: Replies) -> np.ndarray:
    """[n] of rows in a table of their own, by the finished model; of personal ones by that of whoever trains on ``row``."""
    changed = copy.copy(run.server)
    changed.bench = replace(run.server.bench, table=candidates, prefix=None)
    view = run.method.views[0]
    owner = next(c for c in run.clients if row in c.data.train)
    pack = pack_of(run.method, changed, view, None if common(view) else owner)
    (seen,) = pack.observe(lambda p, b: run.method.forward(p, b, view), [np.arange(len(candidates))])
    assert seen is not None
    loss = losses(seen)
    assert loss is not None
    return loss


def _copies(table: Replies, row: int, at: slice, candidates: np.ndarray) -> Replies:
    """A table of one row over and over, each time with other tokens at a place."""
    n, begin, end = len(candidates), int(table.offsets[row]), int(table.offsets[row + 1])
    ids = np.tile(table.ids[begin:end], (n, 1))
    ids[:, at.start - begin : at.stop - begin] = candidates

    def tiled(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else np.tile(column[begin:end], n)

    def each(column: Sequence[str]) -> tuple[str, ...]:
        return (column[row],) * n if len(column) else ()

    answer = tiled(table.answer)
    assert answer is not None
    return replace(
        table,
        ids=ids.reshape(-1),
        offsets=np.arange(n + 1, dtype=np.int64) * (end - begin),
        types=tiled(table.types),
        answer=answer,
        labels=np.repeat(table.labels[row], n),
        row_ids=np.arange(n),
        behind=None if table.behind is None else np.repeat(table.behind[row], n),
        wanted=each(table.wanted),
        asked=each(table.asked),
        begins=np.repeat(table.begins[row], n),
    )
