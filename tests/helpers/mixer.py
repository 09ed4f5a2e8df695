"""An MLP-Mixer (I. Tolstikhin et al., NeurIPS 2021, arXiv 2105.01601) of a few thousand parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

import tiny
from weft.backbones.backbone import Backbone
from weft.backbones.freeze import describe_model

D, TOKENS = 24, 4  # pictures of 8×8 in patches of 4×4


class Perceptron(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc2(torch.nn.functional.gelu(self.fc1(x)))
        return found


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.tokens, self.features = Perceptron(TOKENS), Perceptron(D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.features(self.norm2(x))


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, D, 4, 4)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.blocks(self.stem(x).flatten(2).mT))
        return found.mean(1)


class Mixer(PreTrainedModel):
    config_class = PretrainedConfig
    base_model_prefix = "mixer"
    main_input_name = "pixel_values"

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.mixer, self.head = Trunk(), nn.Linear(D, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.head(self.mixer(pixel_values)))

    @staticmethod
    def backbone() -> Backbone:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        config = PretrainedConfig(num_labels=3, image_size=8)
        model = Mixer(config)
        tiny.scramble(model)
        processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
        return describe_model(model, None, {"head.weight", "head.bias"}, processor=processor, name="mixer", dtype=torch.float64)
