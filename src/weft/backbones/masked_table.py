"""Token tables of masked language models: running text in which some tokens are hidden, to be predicted where they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from weft.backbones.reply_table import Replies
from weft.backbones.token_table import reading
from weft.errors import UserError
from weft.tensors.keyed import numpy_generator
from weft.words import count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.data.rows import Rows

SHARE = 0.15
HIDDEN, RANDOM = 0.8, 0.1
"""Of the tokens to be predicted, so many are replaced by the mask token, and so many by any token; the others stay."""


@dataclass(frozen=True)
class Masked(Replies):
    """Rows of an encoder with a masked-language head; ``ids`` are what it sees, ``answer`` marks the tokens to be predicted.

    Attributes:
        originals: int32 [total], what was there.
    """

    ahead: ClassVar[int] = 0

    originals: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def _answers(self, i: int) -> np.ndarray:
        row = self._where(i)
        return self.originals[row][self.answer[row]]


def masked(backbone: Backbone, rows: Rows, max_length: int) -> Masked:
    """Tokenise running text and hide 15 % of its tokens, at least one of each row (Devlin et al., NAACL 2019, section 3.1).

    The draw is a row's own, by its id: the same in every round, at every site and in every run, so that scores are of the same
    tokens.

    Raises:
        UserError: the tokenizer has no mask token.
    """
    assert rows.texts is not None and rows.answers is not None
    tokenizer, limit = backbone.tokenizer, min(max_length, backbone.max_length)
    if tokenizer.mask_token_id is None:
        raise UserError(f'the tokenizer of "{backbone.name}" has no mask token: use --task generation, or another --model.')
    given = rows.pairs or [""] * len(rows)
    asked = ["\n\n".join(filter(None, parts)) for parts in zip(rows.texts, given, strict=True)]
    texts = [f"{before}\n\n{text}" if before else text for before, text in zip(asked, rows.answers, strict=True)]
    read: Any = tokenizer(texts, truncation=True, max_length=limit, return_token_type_ids=False) if texts else {"input_ids": []}
    seen, flags, full = [], [], 0
    for own, row in zip(read["input_ids"], rows.ids.tolist(), strict=True):
        ids = np.asarray(own, dtype=np.int32)
        full += len(ids) == limit
        shown, chosen = hide(ids, row, tokenizer)
        seen.append(shown)
        flags.append(chosen)
    lengths = [len(ids) for ids in seen]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    originals = np.concatenate([np.asarray(r, np.int32) for r in read["input_ids"]]) if lengths else np.zeros(0, np.int32)
    reach = f"{full} of {count(len(lengths), 'text')} reach --max-length {limit}; what goes beyond it is cut."
    return Masked(
        ids=np.concatenate(seen) if seen else np.zeros(0, np.int32),
        offsets=offsets,
        types=None,
        labels=np.zeros(len(rows), np.int64),
        row_ids=np.asarray(rows.ids, dtype=np.int64),
        pad=int(tokenizer.pad_token_id or 0),
        reading=reading(tokenizer, originals, offsets),
        notes=(reach,) if full else (),
        answer=np.concatenate(flags) if flags else np.zeros(0, bool),
        wanted=tuple(rows.answers),
        asked=tuple(asked),
        begins=np.zeros(len(rows), np.int64),
        originals=originals,
    )


def hide(ids: np.ndarray, row: int, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """A row as the model sees it, and which of its tokens are to be predicted.

    Args:
        ids: int32 [T]. row: its id, which keys the draw.
    """
    draw = numpy_generator(0, "mask", row)
    own = np.flatnonzero(~np.isin(ids, tokenizer.all_special_ids))
    own = own if len(own) else np.arange(len(ids))
    chosen = np.sort(draw.choice(own, max(round(SHARE * len(own)), 1), replace=False))
    how = draw.random(len(chosen))
    other = draw.integers(0, len(tokenizer), len(chosen))
    shown, flags = ids.copy(), np.zeros(len(ids), dtype=bool)
    flags[chosen] = True
    shown[chosen] = np.where(how < HIDDEN, tokenizer.mask_token_id, np.where(how < HIDDEN + RANDOM, other, ids[chosen]))
    return shown, flags
