"""ResNets for pictures of 32 × 32, as for CIFAR-10, with weights from a file of NumPy arrays.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, section 4.2: three
stages of n blocks with 16, 32 and 64 features, of 6n + 2 layers, whose shortcuts between stages take every second place and pad
features with zeros (option A). Tensors are called as in Y. Idelbayev's pytorch_resnet_cifar10, and as in torchvision's ResNets:
``conv1``, ``bn1``, ``layer1.0.conv1`` …, ``linear``. transformers' ResNet has another stem, and projections in its shortcuts.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from weft.backbones.reading import Read, reason
from weft.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pictures in training, by the code."""
STAGES = 3


class CifarResNetConfig(PretrainedConfig):
    """
    Attributes:
        depth: n, the blocks of a stage. width: features of the first one.
    """

    model_type = "cifar_resnet"

    def __init__(self, depth: int = 3, width: int = 16, image_size: int = 32, **more: Any):
        self.depth, self.width, self.image_size = depth, width, image_size
        self.num_hidden_layers = STAGES * depth
        super().__init__(**more)


class Block(nn.Module):
    def __init__(self, d_in: int, d_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(d_out)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(d_out)
        self.stride, self.padding = stride, (d_out - d_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + shortcut)


class CifarResNet(PreTrainedModel):
    config_class = CifarResNetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        widths = [config.width * 2**stage for stage in range(STAGES)]
        self.conv1 = nn.Conv2d(3, config.width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.blocks = nn.ModuleList(
            Block(d if i else max(d // 2, config.width), d, 1 if i or d == config.width else 2)
            for d in widths
            for i in range(config.depth)
        )
        self.linear = nn.Linear(widths[-1], int(config.num_labels or 0))
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        for block in self.blocks:
            x = block(x)
        return ImageClassifierOutput(logits=self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def read(where: Path, name: str, classes: int) -> Read:
    """The network that the tensors of a file make up, and what makes pictures of 32 × 32 for it.

    Raises:
        UserError: the file is damaged, holds more than arrays, or is of another network.
    """
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    try:
        with np.load(where, allow_pickle=False) as content:
            found = {n: torch.from_numpy(content[n]) for n in content.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as e:
        why = reason(e)
        raise UserError(f'the weights of backbone "{name}" can\'t be read ({why}): give a .npz file of NumPy arrays.') from e
    places = [m.groups() for m in (re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", n) for n in found) if m]
    depth = max((int(i) for _, i in places), default=-1) + 1
    stem = found.get("conv1.weight")
    if not depth or len(places) != STAGES * depth or stem is None or stem.dim() != 4:
        raise other(name, "three stages of as many blocks each")
    config = CifarResNetConfig(depth, int(stem.shape[0]), num_labels=classes)
    with torch.random.fork_rng(devices=[]):  # of a head that is drawn anew
        torch.default_generator.manual_seed(0)
        model = CifarResNet(config)
    tensors = {_renamed(n, depth): t.float() if t.is_floating_point() else t for n, t in found.items()}
    own = model.state_dict()
    counted = {n for n in own if n.endswith("num_batches_tracked")}  # of which nothing depends
    resized = {
        n: (tuple(t.shape), tuple(own[n].shape))
        for n, t in tensors.items()
        if n.startswith("linear.") and n in own and t.shape != own[n].shape
    }
    if odd := sorted((own.keys() ^ tensors.keys()) - counted):
        raise other(name, f"{odd[0]}, which {'is lacking' if odd[0] in own else 'it does not have'}")
    if odd := sorted(n for n, t in tensors.items() if n not in counted and n not in resized and t.shape != own[n].shape):
        raise other(name, f"{odd[0]} of shape {list(own[odd[0]].shape)}")
    model.load_state_dict(own | {n: t for n, t in tensors.items() if n not in resized})
    side = {"height": config.image_size, "width": config.image_size}
    return Read(model, None, ViTImageProcessorPil(size=side, image_mean=MEAN, image_std=STD), resized=resized)


def _renamed(name: str, depth: int) -> str:
    """``layer2.0.conv1.weight`` -> ``blocks.3.conv1.weight``, of three blocks a stage."""
    found = re.match(r"layer(\d+)\.(\d+)\.(.+)$", name)
    return name if found is None else f"blocks.{(int(found[1]) - 1) * depth + int(found[2])}.{found[3]}"


def other(name: str, what: str) -> UserError:
    return UserError(
        f'the file of backbone "{name}" holds no ResNet for CIFAR-10, which has {what}: give one such as resnet20.npz, or a '
        "folder that save_pretrained wrote."
    )
