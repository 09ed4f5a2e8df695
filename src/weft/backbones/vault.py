"""VAuLT: a ViLT that reads what a frozen language model makes of a question, in the place of its own word embeddings.

G. Chochlakis et al., "VAuLT: Augmenting the Vision-and-Language Transformer with the Propagation of Deep Language
Representations", arXiv 2208.09021. A question is tokenised by the language model, whose last hidden states [n, T, d] stand where
ViLT looks up words; ViLT adds its positions, norms them and puts a picture's patches behind. Neither transformers nor the hub has
such a model: it is made of two checkpoints, ``vilt-b32+bert-base``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from weft.backbones import describe
from weft.backbones.backbone import Piece
from weft.backbones.finding import checked_hash, find, stored
from weft.backbones.options import MASKED
from weft.backbones.reading import Read, transformers_model
from weft.backbones.vilt import KIND, ViltClassifier
from weft.checks import checkpoints
from weft.errors import UserError

LANGUAGE = "language"


class VaultClassifier(ViltClassifier):
    """
    Attributes:
        language: the language model without its head; nothing in it is trained. in_front: its path.
    """

    in_front: ClassVar[str] = LANGUAGE
    language: Any

    def get_input_embeddings(self) -> nn.Module:
        """What tokens go to: the embedding of the language model."""
        found: nn.Module = self.language.get_input_embeddings()
        return found

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_ids, attention_mask: [n, T] of the language model's tokenizer, and so are token_type_ids. pixel_values:
                [n, 3, H, W].
        """
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        words = self.language(input_ids=input_ids, attention_mask=attention_mask, **kinds).last_hidden_state
        return super().forward(inputs_embeds=words, attention_mask=attention_mask, pixel_values=pixel_values)


def meant(several: Sequence[str]) -> bool:
    """Whether these names, joined by plus signs, are a VAuLT: the first is a ViLT.

    Raises:
        UserError: another one is, or there is no single language model behind it.
    """
    vilts = [one for one in several if _is_vilt(one)]
    if not vilts:
        return False
    if several[0] != vilts[0] or len(several) > 2 or len(vilts) > 1:
        raise UserError(
            f'backbone "{"+".join(several)}" has a ViLT among several: name the ViLT first and behind it one language model, '
            "which reads the questions for it, as in vilt-b32+bert-base."
        )
    return True


def _is_vilt(name: str) -> bool:
    where, known, _ = find(name)
    if known is not None:
        return known.kind == "questions"
    try:
        found: bool = PretrainedConfig.get_config_dict(where)[0].get("model_type") == KIND
    except OSError:  # whoever loads it says what it lacks
        return False
    return found


def read(
    several: Sequence[str], name: str, classes: int, task: str, say: Callable[[str], None] | None
) -> tuple[Read, tuple[Piece, ...], list[str]]:
    """A ViLT and a language model as one: what is read of them, what they are, and notes.

    Args:
        several: their names. name: of both, joined. say: is told what takes long.

    Raises:
        UserError: one of them can't be had, is damaged, or is another kind of model; or their widths differ.
    """
    (vilt, at), (writer, where) = ((one, find(one, say)) for one in several)
    whole = transformers_model(at[0], vilt, classes, task, False)
    own = transformers_model(where[0], writer, classes, MASKED, False)
    prefix, language = own.model.base_model_prefix, own.model.base_model
    width, wanted = int(language.config.hidden_size), int(whole.model.config.hidden_size)
    if width != wanted:
        raise UserError(
            f'the hidden states of "{writer}" have {width} numbers for a token, and the ViLT "{vilt}" reads {wanted}: choose a '
            f"language model of hidden size {wanted}."
        )
    inside = {n for n in {*own.missing, *own.resized} if n.startswith(f"{prefix}.")}
    checkpoints.whole(writer, inside & set(own.missing), {n: s for n, s in own.resized.items() if n in inside})
    blocks = describe.find_blocks(language, prefix, int(getattr(language.config, "num_hidden_layers", 0) or 0))
    pieces = []
    for one, (place, known, hub_id), checkpoint in ((vilt, at, whole.model), (writer, where, own.model)):
        checkpoints.numbers(one, stored(place), quantised=False)
        pieces.append(Piece(one, hub_id or None, place, checked_hash(place, known, checkpoint)))
    model: Any = whole.model
    model.__class__ = VaultClassifier
    model.language = language
    model.vilt.embeddings.text_embeddings.word_embeddings = None
    model.config.vocab_size, model.config.pad_token_id = language.config.vocab_size, language.config.pad_token_id
    notes = [
        f'questions are read by "{writer}", whose last hidden states stand in the place of words; nothing in it is trained.',
        *checkpoints.unread(describe.stack(blocks), len(blocks), own.unread),
    ]
    unread = [n for n in whole.unread if "word_embeddings" not in n]
    return Read(model, own.tokenizer, whole.processor, whole.missing, whole.resized, unread), tuple(pieces), notes
