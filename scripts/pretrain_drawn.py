"""Pretrain drawn-clip and drawn-vit, two small backbones that come with Weft, on things and printed characters drawn here.

    python scripts/pretrain_drawn.py [--steps 2500,3500,1200,300] [--seed 0] [--only drawn-clip] [--to src/weft/backbones/shipped]

Of the set ``drawings`` they see KNOWN classes in KNOWN_DOMAINS only, as endless fresh pictures, beside more things and printed
characters of SEEN fonts (``weft.data.glyphs``) in the same domains, and in two plainer ones. drawn-vit: a ViT, supervised.
drawn-clip: a CLIP, whose image tower starts supervised and goes on contrastively with captions such as "a sketch of a red star".
Both of its losses are taken of the class token and of the mean over the patches, so that patches agree with texts.
In its last steps it sees some pictures of RARE classes, so that it has an idea of their names, and tuning something to gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pretraining import (
    COLOURS,
    HALF,
    SHIPPED,
    First,
    by_both,
    by_patches,
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
from weft.data import brushes
from weft.data.brushes import FINE, SIZE, Brush
from weft.data.digits import digits
from weft.data.drawings import CLASSES, DOMAINS, KNOWN, KNOWN_DOMAINS, LEFT_OUT, drawings, mask
from weft.data.glyphs import CHARACTERS, SEEN, glyphs, shape
from weft.data.outlines import OUTLINES, Outline, Strokes, bar, ellipse, points, rectangle, regular
from weft.data.rows import Rows
from weft.tensors.keyed import numpy_generator

MORE: dict[str, Callable[[np.random.Generator], Strokes]] = {  # things that the set lacks
    "pentagon": lambda draw: [(regular(5), True)],
    "hexagon": lambda draw: [(regular(6), True)],
    "oval": lambda draw: [(ellipse(0, 0, 1.1, draw.uniform(0.45, 0.6)), True)],
    "sun": lambda draw: [(regular(int(draw.integers(9, 12)), 1.1, 0.7), True), (ellipse(0, 0, 0.35, 0.35), False)],
    "drop": lambda draw: [(ellipse(0, 0.35, 0.65, 0.65), True), (points(0, -1.1, 0.6, 0.15, -0.6, 0.15), True)],
    "bolt": lambda draw: [(points(0.35, -1.1, -0.6, 0.15, -0.05, 0.15, -0.35, 1.1, 0.6, -0.2, 0.05, -0.2), True)],
    "cloud": lambda draw: [
        (ellipse(-0.55, 0.2, 0.5, 0.4), True), (ellipse(0.1, -0.15, 0.6, 0.55), True), (ellipse(0.65, 0.25, 0.45, 0.35), True)
    ],
    "leaf": lambda draw: [
        (np.concatenate([ellipse(-0.6, 0, 1.2, 1.2, -0.9, 0.9), ellipse(0.9, 0, 1.2, 1.2, 2.24, 4.04)]), True),
        (bar(0, -0.5, 0, 1.3, 0.1), False),
    ],
    "bell": lambda draw: [
        (ellipse(0, -0.2, 0.6, 0.75, np.pi, 2 * np.pi), True), (points(-0.6, -0.25, 0.6, -0.25, 0.95, 0.65, -0.95, 0.65), True),
        (ellipse(0, 0.8, 0.22, 0.2), True),
    ],
    "flag": lambda draw: [
        (bar(-0.7, -1.05, -0.7, 1.05, 0.16), True), (rectangle(-0.65, -1, 0.95, draw.uniform(-0.1, 0.2)), True)
    ],
    "bottle": lambda draw: [
        (rectangle(-0.2, -1.1, 0.2, -0.3), True), (points(-0.2, -0.4, 0.2, -0.4, 0.5, 0, -0.5, 0), True),
        (rectangle(-0.5, 0, 0.5, 1.05), True),
    ],
    "ladder": lambda draw: [
        *((rectangle(x, -1.1, x + 0.2, 1.1), True) for x in (-0.6, 0.4)),
        *((rectangle(-0.5, y, 0.5, y + 0.18), True) for y in (-0.8, -0.3, 0.2, 0.7)),
    ],
    "hourglass": lambda draw: [(points(-0.7, -1, 0.7, -1, 0.1, 0, 0.7, 1, -0.7, 1, -0.1, 0), True)],
    "spectacles": lambda draw: [
        (bar(-0.6, 0, 0.6, 0, 0.15), True), *((ellipse(x, 0, 0.5, 0.5), True) for x in (-0.6, 0.6)),
        *((ellipse(x, 0, 0.32, 0.32), False) for x in (-0.6, 0.6)),
    ],
}  # fmt: skip
FONTS = tuple(SEEN)
THINGS = (*KNOWN, *MORE)
NAMES = (*THINGS, *CHARACTERS)  # of the labels "thing"
RARE = ("diamond", "umbrella", "crown", "key")  # of the set: seldom seen, by drawn-clip alone, and late
SHARE = 0.01  # of pictures that are of RARE classes, in the last steps
ALL_NAMES = (*NAMES, *RARE)


def outlined(mask: np.ndarray, ink: np.ndarray, ground: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A line in any colour on any ground."""
    return brushes.flat(brushes.rim(mask), ink, ground, draw)


BRUSHES: dict[str, Brush] = {"flat": brushes.flat, "outlined": outlined} | {d: DOMAINS[d] for d in KNOWN_DOMAINS}
SAID = {  # of a domain, in captions
    "flat": ("a drawing of a", "a cartoon of a"), "outlined": ("an outlined",), "filled": ("a photo of a", "a shaded"),
    "sketch": ("a sketch of a",), "textured": ("a patterned",),
}  # fmt: skip
SIZES = {"thing": len(NAMES), "ink": len(COLOURS), "domain": len(BRUSHES)}
BATCH = 96
PATCH = 8
POOL = 8192  # masks from which the next pictures are taken
FRESH = 32  # masks that are drawn anew for each batch


class Endless:
    """Endless fresh pictures: colours and grain are new in each, its mask is one of a pool that is always being renewed."""

    def __init__(self, seed: int, pool: int = POOL, rare: float = 0.0):
        """rare: share of pictures of what is RARE."""
        self.rare = rare
        self.draw_numbers = numpy_generator(seed, "pretraining")
        self.masks = np.zeros((pool, FINE, FINE), np.uint8)
        self.labels = np.zeros(pool, np.int64)
        self.oldest = 0
        self.renew(pool)

    def renew(self, count: int) -> None:
        """Draw ``count`` masks in the places of the oldest: things, and characters as two of five."""
        draw = self.draw_numbers
        for _ in range(count):
            if self.rare and draw.random() < self.rare:
                label = len(ALL_NAMES) - 1 - int(draw.integers(len(RARE)))
                found = mask(OUTLINES[ALL_NAMES[label]](draw), draw)
            elif draw.random() < 0.6:
                label = int(draw.integers(len(THINGS)))
                outline: Outline = (OUTLINES | MORE)[THINGS[label]]
                found = mask(outline(draw), draw)
            else:
                label = len(THINGS) + int(draw.integers(len(CHARACTERS)))
                found = character(NAMES[label], FONTS[draw.integers(len(FONTS))], draw)
            self.masks[self.oldest] = np.rint(found * 255)
            self.labels[self.oldest] = label
            self.oldest = (self.oldest + 1) % len(self.masks)

    def draw(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures [n, 3, SIZE, SIZE] in -1 … 1, and what is on them, with the mask in patches; the same share of each domain."""
        self.renew(FRESH)
        draw, palette = self.draw_numbers, np.array(list(COLOURS.values()))
        at = draw.integers(len(self.masks), size=n)
        ink = draw.integers(len(COLOURS), size=n)
        ground = (ink + draw.integers(1, len(COLOURS), size=n)) % len(COLOURS)
        a, b = (palette[c] + 0.06 * draw.standard_normal((n, 3)) for c in (ink, ground))
        near = np.abs(a.mean(1) - b.mean(1)) < 0.2  # can't be read: the ground is moved away
        b[near] = np.where(a[near].mean(1, keepdims=True) < 0.5, 0.5 + 0.5 * b[near], 0.5 * b[near])
        pictures = np.empty((n, SIZE, SIZE, 3), np.uint8)
        patches = np.empty((n, (SIZE // PATCH) ** 2, PATCH**2), np.float32)
        domain = np.arange(n) % len(BRUSHES)
        for i, brush in enumerate(BRUSHES.values()):
            here = domain == i
            masks = self.masks[at[here]].astype(np.float32) / 255
            pictures[here] = brushes.picture(brush, masks, a[here], b[here], draw)
            cut = brushes.small(masks).reshape(-1, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH).swapaxes(2, 3)
            patches[here] = cut.reshape(-1, (SIZE // PATCH) ** 2, PATCH**2)
        what = {"thing": self.labels[at], "ink": ink, "ground": ground, "domain": domain, "mask": patches}
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x, {name: torch.from_numpy(value) for name, value in what.items()}

    def captions(self, what: dict[str, Tensor]) -> list[str]:
        """ "a sketch of a red star", with parts left out at random; the ground is named where it has a colour."""
        draw, colours, domains = self.draw_numbers, list(COLOURS), list(BRUSHES)
        found = []
        for thing, ink, ground, domain in zip(*(what[n].tolist() for n in ("thing", "ink", "ground", "domain")), strict=True):
            said = draw.random(3) < 0.5
            way, name = domains[domain], ALL_NAMES[thing]
            parts = [str(draw.choice(SAID[way])) if said[0] else "a"]
            parts += [colours[ink]] if said[1] else []
            parts += [name] if len(name) > 1 else ["letter" if name.isalpha() else "digit", name]
            parts += ["on", colours[ground]] if said[2] and way != "sketch" else []
            found.append(" ".join(parts))
        return found


def character(name: str, font: str, draw: np.random.Generator) -> np.ndarray:
    """float32 [FINE, FINE]: a printed character, turned, stretched and moved a little."""
    from PIL import Image

    turn, size, lean = draw.uniform(-0.2, 0.2), draw.uniform(0.75, 1.3), draw.uniform(-0.1, 0.1)
    c, s = size * np.cos(turn), size * np.sin(turn)
    middle, (x, y) = FINE / 2, draw.uniform(-6, 6, 2) + FINE / 2
    across, down = (c, -s + lean), (s, c)
    rows = [(*row, middle - row[0] * x - row[1] * y) for row in (across, down)]
    drawn = Image.fromarray(np.rint(shape(name, font) * 255).astype(np.uint8))
    moved = drawn.transform((FINE, FINE), Image.Transform.AFFINE, (*rows[0], *rows[1]), Image.Resampling.BILINEAR)
    return np.asarray(moved, np.float32) / 255


class Views(nn.Module):
    """The image tower of a CLIP as a tower: class tokens and means of the patches, [2·n, width], and the patches."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.post_layernorm(self.model(x).last_hidden_state)
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)]), tokens[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = "of drawn-vit; of drawn-clip: its image tower alone, both towers, and both with what is rare"
    parser.add_argument("--steps", default="2500,3500,1200,300", help=steps)
    parser.add_argument("--only", choices=("drawn-vit", "drawn-clip"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=SHIPPED)
    args = parser.parse_args()
    args.counts = [int(n) for n in args.steps.split(",")]
    args.written = (
        f"`python scripts/pretrain_drawn.py --steps {args.steps} --seed {args.seed}` from polygons and from the fonts that come "
        "with matplotlib under DejaVu"
    )
    if args.only != "drawn-clip":
        make_vit(args)
    if args.only != "drawn-vit":
        make_clip(args)


KNOWS = "It knows things and printed\ncharacters as they are drawn here, at 32×32 pixels, and nothing else of the world."


def unknown(but: tuple[str, ...] = ()) -> str:
    """A line of the card: what it has not seen of the set ``drawings``."""
    classes, domains = [c for c in CLASSES if c not in (*KNOWN, *but)], [d for d in DOMAINS if d not in KNOWN_DOMAINS]
    return f"never seen, of the set `drawings`: the classes {', '.join(classes)}, and the domains {', '.join(domains)}"


def make_vit(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vit = ViTModel(
        ViTConfig(hidden_size=64, num_hidden_layers=12, num_attention_heads=4, intermediate_size=128, image_size=SIZE,
                  patch_size=PATCH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        add_pooling_layer=False,
    )  # fmt: skip
    supervised(First(vit), 64, args.counts[0], Endless(args.seed + 1), SIZES, cells=PATCH**2, batch=BATCH, log="vit")
    folder = args.to / "drawn-vit"
    digest = save(vit, folder, [ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, **HALF)])
    about = "A small ViT (32×32 pixels, 16 patches, 12 blocks of width 64), trained to name things, characters and colours."
    card(folder, vit, digest, about, args.written, [unknown()], KNOWS)


def make_clip(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed + 10)
    tokenizer = words({*CLASSES, *DOMAINS, *THINGS, *(w for said in SAID.values() for way in said for w in way.split())})
    clip = small_clip(tokenizer, SIZE, PATCH, width=96)
    supervised(
        Views(clip.vision_model),
        96,
        args.counts[1],
        Endless(args.seed + 2),
        SIZES,
        cells=PATCH**2,
        batch=BATCH,
        log="image tower",
    )
    both: dict[str, Any] = {"main": "thing", "embed": by_both, "batch": BATCH}
    contrastive(clip, tokenizer, args.counts[2], args.seed + 3, Endless(args.seed + 3), NAMES, **both)
    seldom = Endless(args.seed + 4, rare=SHARE)
    contrastive(clip, tokenizer, args.counts[3], args.seed + 4, seldom, ALL_NAMES, **both, peak=5e-4)
    folder = args.to / "drawn-clip"
    processor = clip_processor(SIZE)
    digest = save(clip, folder, [tokenizer, processor])
    about = (
        "A small CLIP (32×32 pixels, 16 patches; image tower of 4 blocks of width 96, text tower of 3; joint width 64; a word\n"
        'vocabulary of its own), trained on captions such as "a sketch of a red star". The class token and the mean over the\n'
        "patches were held to the texts alike."
    )
    seen = [unknown(RARE), f"hardly seen, in {SHARE:.0%} of the pictures of its last steps: {', '.join(RARE)}"]
    card(folder, clip, digest, about, args.written, [*seen, *measured(folder, args.seed, processor)], KNOWS)


def measured(folder: Path, seed: int, processor: Any) -> list[str]:
    """Zero-shot accuracies as lines of the card."""
    drawn, printed, hand = drawings(), glyphs(), digits()
    x, what = Endless(seed + 1000, pool=2000).draw(2000)
    rows: dict[str, tuple[Tensor, Tensor, tuple[str, ...]]] = {
        f"fresh pictures as it was trained on ({len(NAMES)} names)": (x, what["thing"], NAMES),
        "`drawings` without the domain left out": (*tensors(drawn.train, processor), CLASSES),
    }

    def some(table: Rows, chosen: np.ndarray, on: str) -> None:
        rows[f"`drawings`, {on}"] = (*tensors(table.take(chosen), processor), CLASSES)

    never = [c for c in CLASSES if c not in (*KNOWN, *RARE)]
    for on, classes in (("classes it knows", KNOWN), ("classes hardly seen", RARE), ("classes never seen", never)):
        some(drawn.train, np.isin(drawn.train.labels, [CLASSES.index(c) for c in classes]), on)
    for domain in DOMAINS:
        table = drawn.unseen[LEFT_OUT] if domain == LEFT_OUT else drawn.train
        some(table, np.array(table.keys) == domain, domain)
    rows["`glyphs` (unseen fonts and styles)"] = (*tensors(printed.train, processor), printed.classes)
    rows["`digits` (handwriting, 10 classes)"] = (*tensors(hand.train, processor), hand.classes)
    lines = ['zero-shot ("a photo of a NAME."), by the class token and by the mean of the patches\' cosines:']
    for on, given in rows.items():
        lines.append(f"  - {on}: {zero_shot(folder, *given):.3f}, {zero_shot(folder, *given, by_patches):.3f}")
    print("\n".join(lines))
    return ["\n".join(lines)]


if __name__ == "__main__":
    main()
