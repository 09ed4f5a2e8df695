"""A masked language model as a classifier: a text belongs to the class whose word the model puts in the place of a mask.

T. Schick, H. Schütze, "Exploiting cloze questions for few shot text classification and natural language inference", EACL 2021,
arXiv 2001.07676. Several words of a class are averaged. Calibration takes the logits of an empty text off (T. Zhao et al.,
"Calibrate Before Use", ICML 2021, arXiv 2102.09690, in logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from weft.backbones.options import spoken
from weft.backbones.vocabulary import Vocabulary
from weft.errors import UserError, nearest


class Fill:
    """On top of any class of transformers with a masked-language head: the same tensors by the same names, logits [n, C].

    Attributes:
        mask: id of the mask token; None until it was :meth:`asked`, up to which the model is transformers' own.
        label_words: [C, w] token ids, -1 where a class has fewer words. reads_out: the output layer.
        base_logits: [C], those of an empty text, that are taken off; None = none are.
    """

    mask: int | None = None
    label_words: Tensor
    reads_out: Vocabulary
    base_logits: Tensor | None = None

    def asked(self, mask: int, label_words: Tensor, reads_out: Vocabulary) -> None:
        self.mask, self.label_words, self.reads_out = mask, label_words, reads_out

    def forward(self, *args: Any, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """Logits at the mask of each row; a row without one is read at its first token."""
        whole = super().forward  # type: ignore[misc]
        if self.mask is None or input_ids is None:
            return whole(*args, input_ids=input_ids, **kwargs)
        slot = (input_ids == self.mask).long().argmax(1)
        places = F.one_hot(slot, input_ids.shape[1]).bool()
        with self.reads_out.at(self, places) as rows:  # type: ignore[arg-type]
            whole_logits = whole(*args, input_ids=input_ids, **kwargs).logits
        hidden, layer = self.reads_out.finish(rows, whole_logits)
        logits = layer(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        words = self.label_words.to(logits.device)
        given = words >= 0
        each = logits[:, words.clamp(min=0)].masked_fill(~given, 0.0)  # [n, C, w]
        found = each.sum(-1) / given.sum(-1)
        return SequenceClassifierOutput(logits=found if self.base_logits is None else found - self.base_logits.to(found))


def filling(cls: type) -> type:
    """A class of transformers that predicts hidden tokens, as one that tells classes apart."""
    return type("Fill" + cls.__name__, (Fill, cls), {"__module__": __name__})


def label_words(spec: str, names: Sequence[str], tokenizer: Any) -> Tensor:
    """[C, w] int64: a token for each word of each class, -1 where it has fewer than others.

    Args:
        spec: see :class:`weft.backbones.options.Options`. names: of the classes.

    Raises:
        UserError: something else than CLASS=WORD pairs, an unknown class, one word of two classes, or a word that is no token.
    """
    told: dict[str, list[str]] = {}
    for pair in filter(None, (p.strip() for p in spec.split(","))):
        name, sign, some = (s.strip() for s in pair.rpartition("="))
        chosen = [w.strip() for w in some.split("+") if w.strip()]
        if not sign or not chosen:
            raise UserError(f'"{pair}" gives no words to a class: write CLASS=WORD, as in --label-words positive=great+good.')
        if name not in names:
            raise UserError(f'--label-words names a class "{name}", which the data do not have.{nearest(name, names)}')
        told[name] = chosen
    owner: dict[int, str] = {}
    found = []
    for name in names:
        ids = [_token(word, name, tokenizer) for word in told.get(name, [spoken(name)])]
        for token in ids:
            if owner.setdefault(token, name) != name:
                raise UserError(
                    f'"{tokenizer.decode([token]).strip()}" stands for the class "{owner[token]}" and for "{name}": give each '
                    "class words of its own with --label-words."
                )
        found.append(ids)
    width = max(map(len, found))
    return torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in found])


def _token(word: str, name: str, tokenizer: Any) -> int:
    """The token of a word inside a sentence, which a byte-level tokenizer writes with the space before it."""
    ids: list[int] = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return ids[0]
    why = "unknown to the tokenizer" if tokenizer.unk_token_id in ids or not ids else f"{len(ids)} tokens to the tokenizer"
    raise UserError(
        f'the word "{word}" for the class "{name}" is {why}: choose one that is a token, with --label-words {name}=WORD.'
    )


def prepared(
    name: str,
    model: Any,
    tokenizer: Any,
    spec: str,
    names: Sequence[str],
    reads_out: Vocabulary | None,
    inputs: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Tell a model what it is asked, and give rows to watch it on: the mask is their second token, and no other.

    Args:
        name: of the backbone. spec, names: of :func:`label_words`. inputs: rows of any tokens.

    Raises:
        UserError: the tokenizer has no mask token, or see :func:`label_words`.
    """
    mask = tokenizer.mask_token_id
    if mask is None:
        raise UserError(f'the tokenizer of "{name}" has no mask token to fill: choose another --model, such as docs-mlm.')
    assert reads_out is not None
    model.asked(mask, label_words(spec, names, tokenizer), reads_out)
    ids = inputs["input_ids"].clone()
    ids[ids == mask] = int(next(i for i in ids[0].tolist() if i != mask))
    ids[:, 1] = mask
    return inputs | {"input_ids": ids}
