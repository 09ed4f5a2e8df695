"""LLaVA as a reader of what its frozen tower makes of pictures.

H. Liu, C. Li, Q. Wu, Y. J. Lee, "Visual Instruction Tuning", NeurIPS 2023, arXiv 2304.08485. The connector is a small MLP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from weft.backbones.picture_reader import PictureReader

CONNECTOR = "model.multi_modal_projector"


class LlavaReader(PictureReader, LlavaForConditionalGeneration):  # type: ignore[misc]  # it takes other inputs
    """The checkpoint's own tensors."""

    TOWER = ("model.vision_tower",)
    CONNECTOR = CONNECTOR

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        layers = self.config.vision_feature_layer
        hidden = self.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        chosen = [hidden[i] for i in ([layers] if isinstance(layers, int) else layers)]
        if self.config.vision_feature_select_strategy == "default":
            chosen = [each[:, 1:] for each in chosen]  # without the class token
        return torch.cat(chosen, -1)

    def asked(self, tokenizer: Any, mark: str, text: str) -> str:
        return f"{mark}\n{text}"
