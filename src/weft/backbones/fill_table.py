"""Token tables of masked language models that tell classes apart: each text in a template with a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.backbones.token_table import Tokens, reading
from weft.errors import UserError

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.data.rows import Rows


def of_nothing(backbone: Backbone) -> Tokens:
    """One row, of an empty text."""
    from weft.data.rows import Rows

    pairs = [""] if "{pair}" in backbone.options.filled else None
    rows = Rows(texts=[""], pairs=pairs, labels=np.zeros(1, np.int64), ids=np.zeros(1, np.int64))
    return filled(backbone, rows, backbone.max_length)


def filled(backbone: Backbone, rows: Rows, max_length: int) -> Tokens:
    """Tokenise texts in the backbone's template, cut to ``max_length`` tokens: texts are, the template never is.

    Raises:
        UserError: the tokenizer does not tell where its tokens come from, the template has no place for the second text of a
            pair, or it leaves no room.
    """
    assert rows.texts is not None
    limit = min(max_length, backbone.max_length)
    tokenizer = backbone.tokenizer
    if not tokenizer.is_fast:
        raise UserError(
            f'the tokenizer of "{backbone.name}" does not tell which token belongs to which letters, as one with a '
            "tokenizer.json does: choose another --model for --task fill."
        )
    template = backbone.options.filled
    if (rows.pairs is None) != ("{pair}" not in template):
        what = "has a {pair}, and the rows are single texts" if rows.pairs is None else "has no {pair} for the second text"
        raise UserError(f'the template "{template}" {what}: give another, as in --template "{{}}? {{mask}}, {{pair}}" for pairs.')
    made: list[_Row] = []
    for start in range(0, len(rows), 2048):
        stop = min(start + 2048, len(rows))
        texts = [_plain(str(t), tokenizer) for t in rows.texts[start:stop]]
        pairs = [""] * len(texts) if rows.pairs is None else [_plain(str(t), tokenizer) for t in rows.pairs[start:stop]]
        put = [_written(template, text, pair, tokenizer.mask_token) for text, pair in zip(texts, pairs, strict=True)]
        out = tokenizer([text for text, _ in put], return_offsets_mapping=True, return_token_type_ids=False, verbose=False)
        made += [
            _cut(np.asarray(ids, dtype=np.int32), np.asarray(at), spans, limit, template)
            for ids, at, (_, spans) in zip(out["input_ids"], out["offset_mapping"], put, strict=True)
        ]
    ids = [row.ids for row in made]
    flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in ids])]).astype(np.int64)
    return Tokens(
        ids=flat,
        offsets=offsets,
        types=None,
        labels=np.asarray(rows.labels, dtype=np.int64),
        row_ids=np.asarray(rows.ids, dtype=np.int64),
        pad=int(tokenizer.pad_token_id or 0),
        pairs=rows.pairs is not None,
        reading=reading(tokenizer, flat, offsets),
        allowed=rows.allowed,
        before=max((row.before for row in made), default=0),
        behind=np.array([row.behind for row in made], dtype=np.int64),
    )


@dataclass(frozen=True)
class _Row:
    ids: np.ndarray
    before: int
    behind: int


Span = tuple[int, int]


def _plain(text: str, tokenizer: Any) -> str:
    """A text that holds no mask of its own."""
    return text.replace(tokenizer.mask_token, " ")


def _written(template: str, text: str, pair: str, mask: str) -> tuple[str, list[Span]]:
    """A row as one text, and where in it the one or two texts stand, the first one first."""
    places = {"{}": text, "{pair}": pair, "{mask}": mask}
    whole, spans, rest = "", dict[str, Span](), template
    while rest:
        place = min((p for p in places if p in rest), key=rest.index, default="")
        before, _, rest = rest.partition(place) if place else (rest, "", "")
        whole += before
        if place:
            spans[place] = len(whole), len(whole) + len(places[place])
            whole += places[place]
    return whole, [spans[p] for p in ("{}", "{pair}") if p in spans]


def _cut(ids: np.ndarray, at: np.ndarray, spans: list[Span], limit: int, template: str) -> _Row:
    """A row of at most ``limit`` tokens: the longer text loses its last ones first.

    Args:
        at: [T, 2], from which letter to which a token stands for; nothing = a special one.
    """
    own = [np.flatnonzero((at[:, 0] >= a) & (at[:, 1] <= b) & (at[:, 1] > at[:, 0])) for a, b in spans]
    kept = np.ones(len(ids), dtype=bool)
    fixed = len(ids) - sum(map(len, own))
    if fixed >= limit:
        raise UserError(
            f'the template "{template}" alone has {fixed} tokens, and --max-length {limit} leaves no room for a text: give a '
            "larger one, or a shorter --template."
        )
    lengths = [len(o) for o in own]
    while fixed + sum(lengths) > limit:
        lengths[lengths.index(max(lengths))] -= 1
    for places, n in zip(own, lengths, strict=True):
        kept[places[n:]] = False
    before = int(own[0][0]) if len(own[0]) else 0
    before = int(kept[:before].sum())  # the second of two texts may stand in front
    return _Row(ids[kept], before, int(kept.sum()) - before - lengths[0])
