"""Pretrain the two small backbones that come with Weft, on letters and digits drawn from fonts: nothing is downloaded.

    python scripts/pretrain_glyphs.py [--steps 4000,2500,1500] [--seed 0] [--only glyph-clip] [--to src/weft/backbones/shipped]

glyph-vit: a ViT, supervised. glyph-clip: a CLIP, whose image tower starts supervised (contrastive training alone does not move
within minutes) and goes on contrastively with captions such as "a bold red letter k on blue". Both see SEEN fonts only
(``weft.data.glyphs``). Writes transformers' own formats in float16, with a model card and measured zero-shot accuracies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pretraining import (
    COLOURS,
    HALF,
    SHIPPED,
    First,
    card,
    clip_processor,
    contrastive,
    save,
    small_clip,
    supervised,
    tensors,
    words,
    zero_shot,
)  # fmt: skip
from weft.data.digits import digits
from weft.data.glyphs import CHARACTERS, FINE, SEEN, SIZE, glyphs, shape

FONTS = tuple(SEEN)
SIZES = {"character": len(CHARACTERS), "ink": len(COLOURS), "ground": len(COLOURS), "family": 3, "weight": 2, "slant": 2}


class Drawings:
    """Endless fresh pictures of SEEN fonts."""

    def __init__(self, seed: int):
        self.random = torch.Generator().manual_seed(seed)
        masks = np.stack([[shape(c, f) for c in CHARACTERS] for f in FONTS])
        self.masks = F.avg_pool2d(torch.from_numpy(masks).flatten(0, 1).unsqueeze(1), 2).view(
            len(FONTS), len(CHARACTERS), FINE // 2, -1
        )
        self.palette = torch.tensor(list(COLOURS.values()))
        looks = [(family, weight, slant) for family, weight, slant in SEEN.values()]
        self.values = [sorted({look[i] for look in looks}) for i in range(3)]
        self.looks = torch.tensor([[self.values[i].index(look[i]) for i in range(3)] for look in looks])

    def draw(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures [n, 3, SIZE, SIZE] in -1 … 1, and what is on them."""
        g = self.random

        font = torch.randint(len(FONTS), (n,), generator=g)
        character = torch.randint(len(CHARACTERS), (n,), generator=g)
        ink = torch.randint(len(COLOURS), (n,), generator=g)
        ground = (ink + torch.randint(1, len(COLOURS), (n,), generator=g)) % len(COLOURS)
        mask = self.shapes(font, character)
        a, b = (self.palette[c] + 0.06 * torch.randn(n, 3, generator=g) for c in (ink, ground))
        # a pair of like colours can't be read: the ground is moved away
        near = (a - b).abs().amax(1, keepdim=True) < 0.3
        b = torch.where(near, 1 - a, b)
        picture = b[..., None, None] * (1 - mask) + a[..., None, None] * mask
        picture = picture + self.uniform(0.0, 0.08, n, 1, 1, 1) * torch.randn(n, 3, SIZE, SIZE, generator=g)
        what = {"character": character, "ink": ink, "ground": ground} | dict(
            zip(("family", "weight", "slant"), self.looks[font].T, strict=True)
        )
        return picture.clamp(0, 1) * 2 - 1, what

    def uniform(self, low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(*size, generator=self.random)

    def shapes(self, font: Tensor, character: Tensor) -> Tensor:
        """[n, 1, SIZE, SIZE], 1 where there is ink: turned, stretched and moved at random."""
        n = len(font)
        angle, scale, shear = self.uniform(-0.12, 0.12, n), self.uniform(0.85, 1.2, n), self.uniform(-0.1, 0.1, n)
        rows = torch.stack(
            [
                torch.stack([scale * angle.cos(), -angle.sin() + shear, self.uniform(-0.22, 0.22, n)], 1),
                torch.stack([angle.sin(), scale * angle.cos(), self.uniform(-0.22, 0.22, n)], 1),
            ],
            1,
        )
        grid = F.affine_grid(rows, [n, 1, FINE // 2, FINE // 2], align_corners=False)
        mask = F.grid_sample(self.masks[font, character].unsqueeze(1), grid, align_corners=False)
        return F.adaptive_avg_pool2d(mask, SIZE)

    def captions(self, what: dict[str, Tensor]) -> list[str]:
        """ "a bold red letter k on blue", with parts left out at random."""
        n = len(what["character"])
        said = torch.rand(n, 5, generator=self.random) < 0.5
        names = list(COLOURS)
        found = []
        for i in range(n):
            c = CHARACTERS[what["character"][i]]
            look = [self.values[j][int(what[k][i])] for j, k in enumerate(("family", "weight", "slant"))]
            parts = ["a", *(w for w, keep in zip(look, said[i, :3], strict=True) if keep and w not in ("plain", "upright"))]
            parts += [names[what["ink"][i]]] if said[i, 3] else []
            parts += ["letter" if c.isalpha() else "digit", c]
            parts += ["on", names[what["ground"][i]]] if said[i, 4] else []
            found.append(" ".join(parts))
        return found


class Pooled(nn.Module):
    """The image tower of a CLIP as a tower: its pooled class token, and its patches."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(x)
        return out.pooler_output, out.last_hidden_state[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="4000,2500,1500", help="of glyph-vit, of the CLIP's image tower alone, of the CLIP")
    parser.add_argument("--only", choices=("glyph-vit", "glyph-clip"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=SHIPPED)
    args = parser.parse_args()
    args.command = f"python scripts/pretrain_glyphs.py --steps {args.steps} --seed {args.seed}"
    args.counts = [int(n) for n in args.steps.split(",")]
    if args.only != "glyph-clip":
        make_vit(args)
    if args.only != "glyph-vit":
        make_clip(args)


FROM = f"the fonts {', '.join(FONTS)}, which come with matplotlib"
KNOWS = "It knows printed characters of 16×16\npixels and nothing else of the world."


def make_vit(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vit = ViTModel(
        ViTConfig(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=SIZE,
                  patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        add_pooling_layer=False,
    )  # fmt: skip

    supervised(First(vit), 96, args.counts[0], Drawings(args.seed + 1), SIZES, log="vit")
    vit_processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, **HALF)
    folder = args.to / "glyph-vit"
    digest = save(vit, folder, [vit_processor])
    about = "A small ViT (16×16 pixels, 16 patches, 3 blocks of width 96), trained to name printed characters, colours and faces."
    card(folder, vit, digest, about, f"`{args.command}` from {FROM}", [], KNOWS)


def make_clip(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed + 10)
    tokenizer = words({w for looks in SEEN.values() for w in looks})
    clip = small_clip(tokenizer, SIZE, 4, width=128)
    supervised(Pooled(clip.vision_model), 128, args.counts[1], Drawings(args.seed + 2), SIZES, log="image tower")
    contrastive(clip, tokenizer, args.counts[2], args.seed + 3, Drawings(args.seed + 3), CHARACTERS, "character")
    folder = args.to / "glyph-clip"
    processor = clip_processor(SIZE)
    digest = save(clip, folder, [tokenizer, processor])
    x, what = Drawings(args.seed + 1000).draw(3600)
    whole, hand = glyphs(), digits()
    scores = {
        "fresh pictures of the fonts it was trained on": zero_shot(folder, x, what["character"], CHARACTERS),
        "`glyphs` (unseen fonts and styles)": zero_shot(folder, *tensors(whole.train, processor), whole.classes),
        "`digits` (handwriting, 10 classes)": zero_shot(folder, *tensors(hand.train, processor), hand.classes),
    }
    about = (
        "A small CLIP (16×16 pixels, 16 patches; image tower of 4 blocks of width 128, text tower of 3; joint width 64; a word\n"
        'vocabulary of its own), trained on captions such as "a bold red letter k on blue".'
    )
    measured = [f'zero-shot ("a photo of a NAME.") on {on}: {score:.3f}' for on, score in scores.items()]
    card(folder, clip, digest, about, f"`{args.command}` from {FROM}", measured, KNOWS)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
