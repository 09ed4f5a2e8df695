"""Pretrain the two small backbones that come with Weft, on letters and digits drawn from fonts: nothing is downloaded.

    python scripts/pretrain_glyphs.py [--steps 4000,2500,1500] [--seed 0] [--only glyph-clip] [--to src/weft/backbones/shipped]

glyph-vit: a ViT, supervised. glyph-clip: a CLIP, whose image tower starts supervised (contrastive training alone does not move
within minutes) and goes on contrastively with captions such as "a bold red letter k on blue". Both see SEEN fonts only
(``weft.data.glyphs``). Writes transformers' own formats in float16, with a model card and measured zero-shot accuracies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTConfig, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from weft.data.digits import digits
from weft.data.glyphs import CHARACTERS, FINE, SEEN, SIZE, glyphs, shape
from weft.data.rows import Rows

COLOURS = {
    "red": (0.85, 0.1, 0.1), "green": (0.1, 0.65, 0.15), "blue": (0.1, 0.2, 0.85), "yellow": (0.95, 0.9, 0.15),
    "orange": (0.95, 0.55, 0.1), "purple": (0.55, 0.1, 0.65), "cyan": (0.15, 0.8, 0.85), "pink": (0.95, 0.6, 0.75),
    "brown": (0.45, 0.27, 0.1), "black": (0.05, 0.05, 0.05), "white": (0.97, 0.97, 0.97), "grey": (0.5, 0.5, 0.5),
}  # fmt: skip
TEMPLATES = (
    "a photo of a {}.", "a picture of a {}.", "a photo of the {}.", "an image of a {}.", "{}", "the character {}.",
    "a small photo of a {}.", "a drawing of a {}.", "a {}.", "a printed {}.",
)  # fmt: skip
MORE_WORDS = (
    "handwritten", "digit", "type", "pet", "flower", "food", "texture", "person", "doing", "sketch", "painting", "cartoon",
    "art", "of", "an", "the", "with", "in", "and",
)  # fmt: skip
FONTS = tuple(SEEN)
BATCH = 256


def words() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer: the words of the captions, and every letter and digit, so that any class name has ids of its own."""
    known = {w.strip(".,") for t in TEMPLATES for w in t.split()} | set(MORE_WORDS) | set(COLOURS) | {"on", "letter", "digit"}
    known |= {w for looks in SEEN.values() for w in looks}
    known = {w for w in known if w and "{" not in w and len(w) > 1}
    pieces = [
        "[PAD]",
        "[UNK]",
        "[X]",
        *CHARACTERS,
        *(f"##{c}" for c in CHARACTERS),
        ".",
        ",",
        "-",
        "'",
        *sorted(known),
        "[SOS]",
        "[EOS]",
    ]
    ids = {w: i for i, w in enumerate(pieces)}
    inner = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[SOS] $A [EOS]", special_tokens=[("[SOS]", ids["[SOS]"]), ("[EOS]", ids["[EOS]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=40,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[SOS]",
        eos_token="[EOS]",
        additional_special_tokens=["[X]"],
        model_input_names=["input_ids", "attention_mask"],
    )


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

        def uniform(low: float, high: float, *size: int) -> Tensor:
            return low + (high - low) * torch.rand(*size, generator=g)

        font = torch.randint(len(FONTS), (n,), generator=g)
        character = torch.randint(len(CHARACTERS), (n,), generator=g)
        ink = torch.randint(len(COLOURS), (n,), generator=g)
        ground = (ink + torch.randint(1, len(COLOURS), (n,), generator=g)) % len(COLOURS)
        angle, scale, shear = uniform(-0.12, 0.12, n), uniform(0.85, 1.2, n), uniform(-0.1, 0.1, n)
        rows = torch.stack(
            [
                torch.stack([scale * angle.cos(), -angle.sin() + shear, uniform(-0.22, 0.22, n)], 1),
                torch.stack([angle.sin(), scale * angle.cos(), uniform(-0.22, 0.22, n)], 1),
            ],
            1,
        )
        grid = F.affine_grid(rows, [n, 1, FINE // 2, FINE // 2], align_corners=False)
        mask = F.grid_sample(self.masks[font, character].unsqueeze(1), grid, align_corners=False)
        mask = F.adaptive_avg_pool2d(mask, SIZE)
        a, b = (self.palette[c] + 0.06 * torch.randn(n, 3, generator=g) for c in (ink, ground))
        # a pair of like colours can't be read: the ground is moved away
        near = (a - b).abs().amax(1, keepdim=True) < 0.3
        b = torch.where(near, 1 - a, b)
        picture = b[..., None, None] * (1 - mask) + a[..., None, None] * mask
        picture = picture + uniform(0.0, 0.08, n, 1, 1, 1) * torch.randn(n, 3, SIZE, SIZE, generator=g)
        what = {"character": character, "ink": ink, "ground": ground} | dict(
            zip(("family", "weight", "slant"), self.looks[font].T, strict=True)
        )
        return picture.clamp(0, 1) * 2 - 1, what

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


def rate(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def supervised(tower: Any, width: int, steps: int, seed: int, log: str) -> None:
    """Train a tower to name what is on a picture, with heads that are thrown away."""
    pictures = Drawings(seed)
    sizes = {"character": len(CHARACTERS), "ink": len(COLOURS), "ground": len(COLOURS), "family": 3, "weight": 2, "slant": 2}
    heads = nn.ModuleDict({n: nn.Linear(width, c) for n, c in sizes.items()})
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.05)
    began = time.time()
    for step in range(steps):
        x, what = pictures.draw(BATCH)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 2e-3)
        features = tower(x)
        loss = sum(
            (F.cross_entropy(heads[n](features), what[n]) * (1.0 if n == "character" else 0.2) for n in sizes), torch.zeros(())
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 249:
            right = (heads["character"](features).argmax(1) == what["character"]).float().mean()
            print(
                f"{log} {step + 1}/{steps}: loss {float(loss):.3f}, characters {float(right):.3f}, {time.time() - began:.0f} s",
                flush=True,
            )


class Tower(nn.Module):
    """A transformers model as a function from pictures to one vector each."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        pooled: Tensor = out.pooler_output if out.pooler_output is not None else out.last_hidden_state[:, 0]
        return pooled


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def contrastive(clip: CLIPModel, tokenizer: Any, steps: int, seed: int) -> None:
    """In turn: captions against pictures, symmetric, with shared targets where captions are the same; and the names of all
    characters in one template.
    """
    pictures = Drawings(seed)
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, weight_decay=0.05)
    began = time.time()

    def texts(lines: list[str]) -> Tensor:
        ids = tokenizer(lines, padding=True, return_tensors="pt")["input_ids"]
        return unit(clip.text_projection(clip.text_model(ids).pooler_output))

    for step in range(steps):
        x, what = pictures.draw(BATCH)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1e-3)
        z = unit(clip.visual_projection(clip.vision_model(x).pooler_output))
        scale = clip.logit_scale.exp()
        if step % 2:
            template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=g))]
            loss = F.cross_entropy(scale * z @ texts([template.format(c) for c in CHARACTERS]).T, what["character"])
        else:
            lines = pictures.captions(what)
            same = torch.tensor([[a == b for b in lines] for a in lines], dtype=torch.float32)
            target = same / same.sum(1, keepdim=True)
            logits = scale * z @ texts(lines).T
            loss = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        if step % 250 >= 248:
            print(
                f"clip {step + 1}/{steps}: loss {float(loss.detach()):.3f}, scale {float(scale):.1f}, "
                f"{time.time() - began:.0f} s",
                flush=True,
            )


@torch.no_grad()
def zero_shot(folder: Path, pictures: Tensor, labels: Tensor, names: tuple[str, ...]) -> float:
    """Accuracy of the saved model by "a photo of a NAME."."""
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer([f"a photo of a {n}." for n in names], padding=True, return_tensors="pt")["input_ids"]
    text = unit(clip.get_text_features(ids).pooler_output)
    image = torch.cat([unit(clip.get_image_features(p).pooler_output) for p in pictures.split(256)])
    return float(((image @ text.T).argmax(1) == labels).float().mean())


def tensors(rows: Rows, processor: Any) -> tuple[Tensor, Tensor]:
    assert rows.images is not None
    done = processor(images=[rows.images[i] for i in range(len(rows))], return_tensors="pt")["pixel_values"]
    return done, torch.from_numpy(rows.labels.copy())


def save(model: Any, folder: Path, extras: list[Any]) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    for extra in extras:
        extra.save_pretrained(folder)
    preprocessor = folder / "preprocessor_config.json"  # the names that every release of transformers knows
    preprocessor.write_text(preprocessor.read_text().replace("ImageProcessorPil", "ImageProcessor"))
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def card(name: str, what: str, digest: str, parameters: int, lines: list[str], command: str) -> str:
    return "\n".join(
        [
            "---", "license: apache-2.0", "library_name: transformers", "tags: [weft, federated-learning]", "---",
            f"# {name}", "", what, "", f"- {parameters:,} parameters, float16; sha256 of `model.safetensors`: `{digest}`",
            f"- Written by `{command}` from the fonts {', '.join(FONTS)}, which come with matplotlib; nothing was downloaded.",
            *[f"- {line}" for line in lines], "",
            "For trying out federated fine-tuning without a network, and for tests. It knows printed characters of 16×16",
            "pixels and nothing else of the world.", "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="4000,2500,1500", help="of glyph-vit, of the CLIP's image tower alone, of the CLIP")
    parser.add_argument("--only", choices=("glyph-vit", "glyph-clip"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "src" / "weft" / "backbones" / "shipped")
    args = parser.parse_args()
    args.command = f"python scripts/pretrain_glyphs.py --steps {args.steps} --seed {args.seed}"
    args.counts = [int(n) for n in args.steps.split(",")]
    if args.only != "glyph-clip":
        make_vit(args)
    if args.only != "glyph-vit":
        make_clip(args)


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def make_vit(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vit = ViTModel(
        ViTConfig(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=SIZE,
                  patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        add_pooling_layer=False,
    )  # fmt: skip

    class First(Tower):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.model(x).last_hidden_state[:, 0]
            return found

    supervised(First(vit), 96, args.counts[0], args.seed + 1, "vit")
    vit_processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, **HALF)
    folder = args.to / "glyph-vit"
    digest = save(vit, folder, [vit_processor])
    size = sum(p.numel() for p in vit.parameters())
    about = "A small ViT (16×16 pixels, 16 patches, 3 blocks of width 96), trained to name printed characters, colours and faces."
    (folder / "README.md").write_text(card("glyph-vit", about, digest, size, [], args.command))
    print(f"glyph-vit {digest} {size:,} parameters")


def make_clip(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed + 10)
    tokenizer = words()
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    tower = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "projection_dim": 64}
    clip = CLIPModel(
        CLIPConfig(
            projection_dim=64,
            text_config=tower | special | {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "max_position_embeddings": 40},
            vision_config=tower | {"num_hidden_layers": 4, "image_size": SIZE, "patch_size": 4},
        )
    )
    supervised(Tower(clip.vision_model), 128, args.counts[1], args.seed + 2, "image tower")
    contrastive(clip, tokenizer, args.counts[2], args.seed + 3)
    folder = args.to / "glyph-clip"
    clip_processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, **HALF)
    digest = save(clip, folder, [tokenizer, clip_processor])
    size = sum(p.numel() for p in clip.parameters())
    x, what = Drawings(args.seed + 1000).draw(3600)
    whole, hand = glyphs(), digits()
    scores = {
        "fresh pictures of the fonts it was trained on": zero_shot(folder, x, what["character"], CHARACTERS),
        "`glyphs` (unseen fonts and styles)": zero_shot(folder, *tensors(whole.train, clip_processor), whole.classes),
        "`digits` (handwriting, 10 classes)": zero_shot(folder, *tensors(hand.train, clip_processor), hand.classes),
    }
    about = (
        "A small CLIP (16×16 pixels, 16 patches; image tower of 4 blocks of width 128, text tower of 3; joint width 64; a word\n"
        'vocabulary of its own), trained on captions such as "a bold red letter k on blue".'
    )
    measured = [f'zero-shot ("a photo of a NAME.") on {on}: {score:.3f}' for on, score in scores.items()]
    (folder / "README.md").write_text(card("glyph-clip", about, digest, size, measured, args.command))
    print(f"glyph-clip {digest} {size:,} parameters", json.dumps(scores))


if __name__ == "__main__":
    main()
