"""Qwen2-VL and Qwen2.5-VL as readers of what their frozen towers make of pictures.

P. Wang et al., "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution", 2024, arXiv 2409.12191;
S. Bai et al., "Qwen2.5-VL Technical Report", 2025, arXiv 2502.13923. The connector is the MLP that ends the tower, over squares
of merged patches. A token of a picture has three positions: where the picture begins, that and its row, that and its column; what
follows counts on from the largest.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

from weft.backbones.picture_reader import PictureReader, counted
from weft.backbones.pixels import squared
from weft.backbones.trace import hooked
from weft.errors import UserError

SIDE = 448
"""Pixels of the square that pictures are brought to where a processor allows it, as of the first Qwen-VL (arXiv 2308.12966)."""


class QwenVLReader(PictureReader):
    """The checkpoint's own tensors, and pictures of one size: the models take any, but then each has another number of tokens."""

    TOWER = ("model.visual.patch_embed", "model.visual.blocks", "model.visual.merger.ln_q")
    CONNECTOR = "model.visual.merger.mlp"

    @staticmethod
    def processor(where: str, config: Any, trust: bool) -> Any:
        """A square whose area lies between the bounds of the checkpoint's own, in whole tokens."""
        step = config.vision_config.patch_size * config.vision_config.spatial_merge_size

        def side(own: Any) -> int:
            least, most = (math.isqrt(int(own.size[bound])) for bound in ("shortest_edge", "longest_edge"))
            return max(min(max(SIDE, least), most) // step, 1) * step

        return squared(where, trust, side)

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        own, (n, _c, height, width) = self.config.vision_config, pixel_values.shape
        side, merged = own.patch_size, own.spatial_merge_size
        x = pixel_values.unflatten(3, (-1, merged, side)).unflatten(2, (-1, merged, side))
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)  # [patches, 3, side, side], those of a token next to each other
        frames = x.unsqueeze(2).expand(-1, -1, own.temporal_patch_size, -1, -1).flatten(1)
        grid = torch.tensor([[1, height // side, width // side]], device=x.device).expand(n, -1)
        # what the connector reads instead of what it makes, in the order of the latter: towers with windows have another inside
        with hooked({self.get_submodule(self.CONNECTOR): lambda _m, args, _out: args[0]}):
            found: Tensor = self.model.visual(frames, grid_thw=grid).pooler_output
        return found.view(n, -1, found.shape[-1])

    def asked(self, tokenizer: Any, mark: str, text: str) -> str:
        """
        Raises:
            UserError: the tokenizer lacks the tokens around a picture.
        """
        first, last = tokenizer.convert_ids_to_tokens([self.config.vision_start_token_id, self.config.vision_end_token_id])
        if first is None or last is None:
            raise UserError(
                "the tokenizer of this Qwen-VL has no tokens that begin and end a picture: add them, and save it anew."
            )
        return f"{first}{mark}{last}{text}"

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        index, seen = counted(input_ids, attention_mask), input_ids == self.config.image_token_id
        number = seen.cumsum(-1)  # of a picture's tokens so far
        side = math.isqrt(int(number.max()))
        begins, place = index - number + 1, (number - 1).clamp(min=0)
        inside = torch.stack([begins, begins + place // max(side, 1), begins + place % max(side, 1)])
        return torch.where(seen, inside, index - number + side * (number > 0))


class Qwen2VLReader(QwenVLReader, Qwen2VLForConditionalGeneration):  # type: ignore[misc]  # it takes other inputs
    """Qwen2-VL."""


class Qwen25VLReader(QwenVLReader, Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]  # it takes other inputs
    """Qwen2.5-VL."""
