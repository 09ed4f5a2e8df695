"""PaliGemma as a reader of what its frozen tower makes of pictures.

L. Beyer et al., "PaliGemma: A versatile 3B VLM for transfer", 2024, arXiv 2407.07726. A picture's tokens come first, then the one
that begins a text, the question and a line break; all of these see each other both ways, and an answer sees what is before it.
The connector is one linear layer. PaliGemma 2 (arXiv 2412.03555) is of the same class, on another language model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration

from weft.backbones.picture_reader import PictureReader, counted


class PaliGemmaReader(PictureReader, PaliGemmaForConditionalGeneration):  # type: ignore[misc]  # it takes other inputs
    """The checkpoint's own tensors."""

    TOWER = ("model.vision_tower",)
    CONNECTOR = "model.multi_modal_projector"
    TEMPLATE = "{instruction}\n{output}"
    IN_FRONT = True
    TWO_WAY = True

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = self.model.vision_tower(pixel_values).last_hidden_state
        return found

    def connected(self, image_features: Tensor) -> Tensor:
        found = super().connected(image_features)
        if hasattr(self.get_input_embeddings(), "embed_scale"):
            return found
        # in this release of transformers the language model multiplies all that enters it, and not the words alone
        return found / self.config.text_config.hidden_size**0.5

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return counted(input_ids, attention_mask) + 1
