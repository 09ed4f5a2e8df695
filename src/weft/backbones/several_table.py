"""Rows of several tasks as a tagger reads them: the tag of a whole sentence is that of its first token."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from weft.backbones.token_table import Tokens, reading, tokenize
from weft.data.rows import Rows

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone


def several(backbone: Backbone, rows: Rows, max_length: int = 128) -> Tokens:
    """Tokenise sentences word by word where words are tagged, and as they are elsewhere, alone or in pairs.

    Raises:
        UserError: words are tagged, and the tokenizer can't tell which token belongs to which.
    """
    assert rows.texts is not None and rows.words is not None and rows.tasks is not None
    whole = Rows(texts=rows.texts, pairs=rows.pairs, labels=rows.labels, ids=rows.ids)
    tagged = np.array([len(words) > 0 for words in rows.words], dtype=bool)
    paired = np.array([bool(second) for second in rows.pairs or [""] * len(rows)], dtype=bool) & ~tagged
    alone = ~tagged & ~paired
    parts = [(tagged, replace(rows.take(tagged), pairs=None, tasks=None, allowed=None)), (paired, whole.take(paired))]
    parts.append((alone, replace(whole.take(alone), pairs=None)))
    tables = [(which, tokenize(backbone, own, max_length)) for which, own in parts if which.any()]
    ids, types, tags = ([np.zeros(0, np.int32)] * len(rows) for _ in range(3))
    behind = np.zeros(len(rows), dtype=np.int64)
    typed = any(table.types is not None for _, table in tables)
    for which, table in tables:
        for place, i in enumerate(np.flatnonzero(which).tolist()):
            span = slice(table.offsets[place], table.offsets[place + 1])
            ids[i] = table.ids[span]
            types[i] = np.zeros_like(ids[i]) if table.types is None else table.types[span]
            tags[i] = np.full(len(ids[i]), -1, dtype=np.int32) if table.tags is None else table.tags[span]
            if table.tags is None:
                tags[i][0] = rows.labels[i]
        if table.behind is not None:
            behind[which] = table.behind
    flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in ids])]).astype(np.int64)
    number = {task: i for i, task in enumerate(dict.fromkeys(rows.tasks))}
    return Tokens(
        ids=flat,
        offsets=offsets,
        types=np.concatenate(types).astype(np.int8) if typed else None,
        labels=np.asarray(rows.labels, dtype=np.int64),
        row_ids=np.asarray(rows.ids, dtype=np.int64),
        pad=int(backbone.tokenizer.pad_token_id or 0),
        pairs=bool(paired.any()),
        reading=reading(backbone.tokenizer, flat, offsets),
        tags=np.concatenate(tags) if tags else np.zeros(0, np.int32),
        allowed=rows.allowed,
        notes=tuple(note for _, table in tables for note in table.notes),
        before=tables[0][1].before if tables else 0,
        behind=behind,
        groups=np.array([number[task] for task in rows.tasks], dtype=np.int64),
    )
