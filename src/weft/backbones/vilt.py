"""ViLT as a classifier of answers: patches in their own order, and pictures of one size.

W. Kim, B. Son, I. Kim, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", ICML 2021, arXiv
2102.03334. transformers draws the order of a picture's patches from the global stream, even where it keeps all of them, so that
no two passes would agree to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViltForQuestionAnswering
from transformers.models.vilt.modeling_vilt import ViltEmbeddings

from weft.backbones.pixels import squared

KIND = "vilt"


class Embeddings(ViltEmbeddings):
    """Those of transformers, where all patches of a picture are kept."""

    def visual_embed(self, pixel_values: Tensor, pixel_mask: Tensor, max_image_length: int = -1) -> tuple[Tensor, Tensor, Any]:
        """What transformers gives, but for the order: [n, 1 + P, d], a token of the whole before the patches, and ones."""
        x = self.patch_embeddings(pixel_values)
        n, _d, height, width = x.shape
        side = self.config.image_size // self.config.patch_size
        places = self.position_embeddings[:, 1:].mT.unflatten(2, (side, side))
        if (height, width) != (side, side):
            places = F.interpolate(places, size=(height, width), mode="bilinear", align_corners=True)
        whole = (self.cls_token + self.position_embeddings[:, :1]).expand(n, -1, -1)
        x = torch.cat([whole, (x + places).flatten(2).mT], 1)
        return x, torch.ones(n, x.shape[1], dtype=torch.long, device=x.device), None


class ViltClassifier(ViltForQuestionAnswering):
    """It reads a question and a picture, and gives logits of answers."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.vilt.embeddings.__class__ = Embeddings


def processor(where: str, config: Any, trust: bool) -> Any:
    """Its own image processor, made to bring pictures to the square of the configuration.

    ViLT's own keeps the proportions of a picture, so that each has another number of patches, and a batch would be padded.
    """
    return squared(where, trust, lambda _own: int(config.image_size))
