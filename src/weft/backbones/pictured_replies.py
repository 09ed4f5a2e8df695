"""Questions about pictures whose answers are written: prompts with places for a picture, and every picture once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft.backbones.pixels import pixels
from weft.backbones.reply_table import Made, Replies, sequences, table_of
from weft.data.rows import Rows
from weft.errors import UserError
from weft.words import count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone

AT_ONCE = 64
"""Pictures that go through the tower together."""


@dataclass(frozen=True, kw_only=True)
class PicturedReplies(Replies):
    """Rows of a decoder whose prompts have tokens for a picture.

    Attributes:
        features: [P, N, d], what the frozen tower makes of each picture. picture: int64 [n], which of them each row is about.
        types: of a model whose prompts are seen both ways, 0 for these and 1 for tokens of an answer.
    """

    features: Tensor
    picture: np.ndarray

    def collate(self, index: np.ndarray, width: int | None = None, most: int | None = None) -> dict[str, Tensor]:
        """As of :meth:`Tokens.collate`, with ``image_features`` [m, N, d]; those of a padding row are 0."""
        return super().collate(index, width, most) | {"image_features": self.seen(index)}

    def prompts(self, index: np.ndarray) -> dict[str, Tensor]:
        found = super().prompts(index)
        types = {} if self.types is None else {"token_type_ids": torch.zeros_like(found["input_ids"])}
        return found | types | {"image_features": self.seen(index)}

    def seen(self, index: np.ndarray) -> Tensor:
        """[m, N, d] what the tower makes of the pictures of table rows [m]; 0 for a padding row."""
        found = self.features.new_zeros(len(index), *self.features.shape[1:])
        there = torch.from_numpy(index >= 0)
        found[there] = self.features[torch.from_numpy(self.picture[index[index >= 0]])]
        return found


def pictured_replies(backbone: Backbone, rows: Rows, max_length: int) -> PicturedReplies:
    """Tokenise prompts and answers, together with the places of a picture no longer than ``max_length`` tokens.

    Raises:
        UserError: a picture alone has as many tokens, the tokenizer has no token for one, or as :func:`replies`.
    """
    assert rows.images is not None and rows.texts is not None
    model, tokenizer = backbone.model, backbone.tokenizer
    token, n = int(model.config.image_token_id), backbone.picture_tokens
    mark = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(mark, str) or tokenizer(mark, add_special_tokens=False)["input_ids"] != [token]:
        raise UserError(
            f'the tokenizer of backbone "{backbone.name}" has no token {token} for pictures: add it, and save it anew.'
        )
    if max_length <= n + 1:
        raise UserError(
            f"a picture has {n} tokens, so that --max-length {max_length} leaves none for a question: give a larger one."
        )
    asked = Rows(
        texts=[model.asked(tokenizer, mark, text.replace(mark, "")) for text in rows.texts],
        answers=rows.answers,
        ids=rows.ids,
    )
    if model.IN_FRONT:
        made, notes = sequences(backbone, asked, max_length, beside=n)
        made = [_in_front(one, token, n, tokenizer.bos_token_id) for one in made]
    else:
        made, notes = sequences(backbone, asked, max_length, beside=n - 1)
        made = [_with_room(one, token, n) for one in made]
    if blind := sum(token not in one.ids for one in made):
        notes.append(
            f"{blind} of {count(len(made), 'row')} are shortened so far that their pictures are not seen: give a larger "
            "--max-length."
        )
    plain = replace(asked, texts=rows.texts)
    table = table_of(backbone, plain, made, notes)
    known: dict[object, int] = {}
    picture = np.array([known.setdefault(rows.images.key(i), len(known)) for i in range(len(rows))], dtype=np.int64)
    first = np.unique(picture, return_index=True)[1].tolist()
    alone = Rows(images=rows.images.take(first), labels=np.zeros(len(first), np.int64))
    own: dict[str, Any] = {f.name: getattr(table, f.name) for f in fields(table)}
    if model.TWO_WAY:
        flags = [np.zeros(0, bool), *(np.arange(len(one.ids)) >= one.begins for one in made)]
        own["types"] = np.concatenate(flags).astype(np.int8)
    return PicturedReplies(**own, features=_features(backbone, alone), picture=picture)


def _with_room(made: Made, token: int, n: int) -> Made:
    """A row with n tokens for its picture in the place of one."""
    times = np.where(made.ids == token, n, 1)
    begins = int(times[: made.begins].sum())
    return replace(made, ids=np.repeat(made.ids, times), answer=np.repeat(made.answer, times), begins=begins)


def _in_front(made: Made, token: int, n: int, begin: int | None) -> Made:
    """A row with n tokens for its picture before all others, and behind these the one that begins a text."""
    first = [token] * n + ([] if begin is None else [begin])
    kept = made.ids != token
    kept[:1] &= made.ids[:1] != first[-1]
    return replace(
        made,
        ids=np.concatenate([np.array(first, made.ids.dtype), made.ids[kept]]),
        answer=np.concatenate([np.zeros(len(first), bool), made.answer[kept]]),
        begins=len(first) + int(kept[: made.begins].sum()),
    )


def _features(backbone: Backbone, rows: Rows) -> Tensor:
    table = pixels(backbone, rows)
    found = []
    for start in range(0, len(rows), AT_ONCE):
        index = np.arange(start, min(start + AT_ONCE, len(rows)))
        found.append(backbone.model.features(**backbone.to_model(table.collate(index))).cpu())
    return torch.cat(found) if found else torch.zeros(0, backbone.picture_tokens, 1)
