"""CLIP and SigLIP as classifiers: an image belongs to the class whose name its embedding is most similar to.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv 2103.00020.
X. Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv 2303.15343.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, SiglipModel
from transformers.modeling_outputs import ImageClassifierOutput

from weft.backbones.common_start import CommonStart, arranged
from weft.backbones.options import sentence
from weft.errors import UserError


class Similarity:
    """Logits exp(s)·cos(image, text of class c) + b, with s and b frozen, of a model of two towers; b is 0 but in a SigLIP.

    Both sides may begin half way: an image at its embedding, classes at theirs. To be put before a model's own class, whose
    tensors keep their names.

    Attributes:
        padded: texts are read at their last place, and their padding with them, so that each fills the tower.
        whole: its tower of pictures is taken as a whole, in which no part can sit.
        plain: the class of transformers for which people can write what this one does in a few lines, if there is one.
    """

    padded = False
    whole = False
    plain: str | None = None
    vision_model: Any
    text_model: Any
    logit_scale: Any

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        self.image_embedding = nn.Identity()  # where parts on the embedding sit

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        image_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        classes: int = 0,
        common: CommonStart | None = None,
        **_: Any,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: [n, 3, H, W], or image_embeds: [n, e], not normalised.
            input_ids: token rows of the class names, r copies of all ``classes``: [r·C, T], or text_embeds: [r·C, e], of unit
                length. Copy i is compared with the i-th of r equal shares of the images.
            classes: C, if there are several copies. common: how the names stand in the token rows, if not one in each.
        """
        if image_embeds is None:
            assert pixel_values is not None
            image_embeds = self.embed_images(pixel_values)
        image_embeds = self.image_embedding(image_embeds)
        if text_embeds is None:
            assert input_ids is not None
            text_embeds = self.embed_texts(input_ids, common)
        dtype = torch.promote_types(image_embeds.dtype, torch.float32)  # a scale of 100 leaves little of bfloat16
        names = text_embeds.to(dtype).view(-1, classes or len(text_embeds), text_embeds.shape[-1])
        images = F.normalize(image_embeds.to(dtype), dim=-1).view(len(names), -1, image_embeds.shape[-1])
        logits = self.logit_scale.to(dtype).exp() * images @ names.mT
        if (bias := getattr(self, "logit_bias", None)) is not None:
            logits = logits + bias.to(dtype)
        return ImageClassifierOutput(logits=logits.flatten(0, 1))

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """[n, e], not normalised."""
        raise NotImplementedError

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """[n, V, e], not normalised."""
        raise NotImplementedError

    def embed_texts(self, input_ids: Tensor, common: CommonStart | None = None) -> Tensor:
        """[n, e], of unit length; float32 at least.

        Args:
            input_ids: [n, T], or copies of the rows of what texts have in ``common``.
        """
        found = self.text_features(input_ids, common)
        return F.normalize(found.to(torch.promote_types(found.dtype, torch.float32)), dim=-1)

    def text_features(self, input_ids: Tensor, common: CommonStart | None = None) -> Tensor:
        """[n, e], not normalised."""
        raise NotImplementedError

    def last_states(self, input_ids: Tensor, common: CommonStart | None) -> Tensor:
        """[n, d] what a text tower makes of the last token of each text."""
        found: Tensor
        if common is None:
            found = self.text_model(input_ids).pooler_output
        else:
            beside = common.beside(len(input_ids) // len(common.ids), self.text_model.dtype)
            found = common.last(self.text_model(input_ids, **beside).last_hidden_state)
        return found


class SimilarityCLIP(Similarity, CLIPModel):
    plain = "CLIPModel"

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self.visual_projection(self.vision_model(pixel_values).pooler_output)
        return found

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Every patch as the class token is, through the last norm and the projection."""
        patches = self.vision_model(pixel_values).last_hidden_state[:, 1:]
        found: Tensor = self.visual_projection(self.vision_model.post_layernorm(patches))
        return found

    def text_features(self, input_ids: Tensor, common: CommonStart | None = None) -> Tensor:
        found: Tensor = self.text_projection(self.last_states(input_ids, common))
        return found


class SimilaritySigLIP(Similarity, SiglipModel):
    padded = True

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self.vision_model(pixel_values).pooler_output
        return found

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """What the attention that pools the patches would make of each, if it looked at no other."""
        patches = self.vision_model(pixel_values).last_hidden_state
        found: Tensor = self.vision_model.head(patches.flatten(0, 1).unsqueeze(1))
        return found.view(*patches.shape[:2], -1)

    def text_features(self, input_ids: Tensor, common: CommonStart | None = None) -> Tensor:
        return self.last_states(input_ids, common)


TOWERS = {"clip": SimilarityCLIP, "siglip": SimilaritySigLIP}
"""By the type of a configuration."""


@dataclass(frozen=True)
class ClassNames:
    """The class names as token rows for the text tower.

    Attributes:
        names: in index order, as a data set spells them. template: a sentence with ``{}`` for the name. limit: longest row.
        padded: every row is as long as the longest that the tower takes, and has no start token (SigLIP).
    """

    tokenizer: Any
    names: tuple[str, ...]
    template: str
    limit: int
    padded: bool = False

    def ids(self) -> Tensor:
        """[C, T] int64: every name in the template, with start and end token, padded to the longest."""
        return self.rows([self.words(sentence(self.template, name)) for name in self.names])

    def words(self, text: str) -> list[int]:
        """Token ids of a text without start and end."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def rows(self, inner: list[list[int]], words: Sequence[str] = ()) -> Tensor:
        """[n, T]: rows of token ids between start and end token, or, if they are ``padded``, before an end token.

        Args:
            words: what each row is of, if not of the name of a class.

        Raises:
            UserError: a row longer than the text tower takes.
        """
        start = [] if self.padded else [self.tokenizer.bos_token_id]
        end, padding = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        width = max(map(len, inner)) + len(start) + 1
        if width > self.limit:
            longest = max(range(len(inner)), key=lambda i: len(inner[i]))
            takes = f"a text of {width} tokens, but the text tower takes {self.limit}"
            if words:
                raise UserError(f'"{words[longest]}" with its prompt makes {takes}: shorten one of the two.')
            raise UserError(f'class "{self.names[longest]}" makes {takes}: shorten the name, the template or the prompt.')
        # unless rows are padded, what follows the end token is not looked at: attention is causal, and the end token is read
        filler = end if padding is None or padding < 0 else padding
        rows = [[*start, *row, end] for row in inner]
        width = self.limit if self.padded else width
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])

    def common(self, rows: Tensor) -> CommonStart | None:
        """The same texts in fewer rows, where they begin alike and the tower takes them so."""
        return None if self.padded else arranged(rows, self.tokenizer.eos_token_id, self.limit)
