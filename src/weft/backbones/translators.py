"""How a backbone is told the languages of a translation: by marks of its tokenizer, by its template, or in words.

The tokenizers of translators (mBART, NLLB, M2M100) have a token for each language, and put it around a text and around an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from weft.backbones.prompts import PLAIN, Template, Written
from weft.data.languages import mark_of, name_of
from weft.errors import UserError, nearest

ASKS = "Translate from {source} to {target}:"
"""What is asked of a model whose tokenizer has no marks, in a template without places for languages; the text is its input."""


SENTENCE = Written("{instruction}\n\n{input}", "{instruction}")
"""What a translator reads: a sentence between marks, and no empty line behind it."""


def shifting(model: Any) -> Callable[[Tensor], Tensor]:
    """An encoder-decoder's own way from labels [m, p] (-100 = padding) to its decoder's inputs, which of M2M100 is no method."""
    own: Callable[[Tensor], Tensor] | None = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own
    shift, config = sys.modules[type(model).__module__].shift_tokens_right, model.config
    return lambda labels: shift(labels, config.pad_token_id, config.decoder_start_token_id)


def marks(tokenizer: Any) -> dict[str, int]:
    """The token of each language, by what the tokenizer calls it; none where it has no marks."""
    if not hasattr(tokenizer, "tgt_lang"):
        return {}
    tokens = getattr(tokenizer, "lang_code_to_token", None)  # of M2M100
    if tokens is None:
        found = getattr(tokenizer, "lang_code_to_id", None)
        own = {tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token, tokenizer.mask_token}
        tokens = {name: name for name in found or tokenizer.all_special_tokens if name not in own}
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in tokens.items()}


class Translator:
    """Prepares row after row, and leaves the tokenizer as it was.

    Args:
        languages: of each row; None = the tokenizer is set to those of all rows.

    Raises:
        UserError: the tokenizer marks languages, and nobody says which; or it has no mark for one; or the template names the
            languages of rows that do not tell theirs.
    """

    def __init__(self, tokenizer: Any, frame: Template, languages: Sequence[tuple[str, str]] | None) -> None:
        self.tokenizer, self.languages = tokenizer, languages
        self.marks, self.marked = marks(tokenizer), hasattr(tokenizer, "tgt_lang")
        self.frame = SENTENCE if self.marked and frame is PLAIN else frame
        self.named = isinstance(frame, Written) and frame.names_languages
        self.before = (tokenizer.src_lang, tokenizer.tgt_lang) if self.marked else (None, None)
        self.now = self.before
        if languages is None and self.marked and not all(self.before):
            raise UserError(
                "the tokenizer of this backbone marks the languages of texts, and is not told which: set its src_lang and "
                "tgt_lang, and save it beside the backbone, or give rows that tell theirs."
            )
        if languages is None and self.named:
            raise UserError("the template names the languages of a translation, and the rows do not tell theirs: leave them out.")
        self.called = {} if not self.marked else {name: self._mark(name) for pair in set(languages or ()) for name in pair}

    def _mark(self, language: str) -> str:
        found = mark_of(language, self.marks)
        if found is None:
            near = nearest(language, self.marks)
            raise UserError(
                f'the tokenizer of this backbone marks no language "{language}", or several: call it as the tokenizer does.{near}'
            )
        return found

    def prepared(self, i: int, text: str, given: str) -> tuple[Template, tuple[str, str]]:
        """The template of a row, what it asks and the input to that; the tokenizer then marks it as is right."""
        if self.languages is None:
            return self.frame, (text, given)
        source, target = self.languages[i]
        if self.marked:
            self._set(self.called[source], self.called[target])
            return self.frame, (text, given)
        source, target = name_of(source), name_of(target)
        if isinstance(self.frame, Written) and self.named:
            return self.frame.between(source, target), (text, given)
        return self.frame, (ASKS.format(source=source, target=target), f"{text}\n\n{given}" if given else text)

    def _set(self, source: str | None, target: str | None) -> None:
        if self.now != (source, target):
            self.tokenizer.src_lang, self.tokenizer.tgt_lang = self.now = source, target

    def restored(self) -> list[str]:
        """Leave the tokenizer as it was; a note on what was told to the backbone."""
        if not self.marked:
            return []
        if self.languages is None:
            source, target = self.before
            return [f"all rows are marked as {source}, and what is to be written as {target}, which the tokenizer is set to."]
        self._set(*self.before)
        return []
