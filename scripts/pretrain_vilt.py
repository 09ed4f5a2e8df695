"""Pretrain glyph-vilt, a small ViLT that comes with Weft, on pictures of coloured letters: nothing is downloaded.

    python scripts/pretrain_vilt.py [--steps 800,9000] [--seed 0] [--to src/weft/backbones/shipped]

Its patches first learn to tell what is in their quadrant of a picture of one to four letters. Then it reads a caption beside the
picture as well, such as "the red b is top left and there are two glyphs": in three of four rows some words are hidden, and it
names them; in the others it tells whether the caption is of this picture. It sees SEEN fonts only (``weft.data.glyphs``), and
never a question. Writes transformers' own format in float16, with a model card and measured accuracies.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViltConfig, ViltModel
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from pretrain_glyphs import FONTS, FROM, Drawings
from pretraining import HALF, PIECES, SHIPPED, adamw, card, rate, save, word_pieces
from weft.backbones.vilt import Embeddings
from weft.data.glyph_questions import COLOURS, LETTERS, NUMBERS, PLACES, SIDE, scenes
from weft.data.glyphs import CHARACTERS, LEFT_OUT, SIZE

WIDTH, BLOCKS, PATCH = 96, 4, 8
ASKING = ("what", "which", "where", "how", "many", "colour", "color", "shape", "image", "does", "contain", "present", "not", "no",
          "in", "of", "circle", "rectangle", "triangle", "black", "white", "gray", "brown", "teal", "yes")  # fmt: skip
SAID = ("the", "is", "there", "are", "glyphs", "glyph", "and", "top", "bottom", "left", "right")
HIDDEN = 0.15  # of the words that say something, beside the one that always is


class Scenes(Drawings):
    """Endless fresh pictures of one to four letters in SEEN fonts."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.palette = torch.tensor(list(COLOURS.values()))
        self.known = torch.tensor([CHARACTERS.index(c) for c in LETTERS])

    def draw(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures [n, 3, SIDE, SIDE] in -1 … 1; letter and colour in each quadrant [n, 4], -1 where there is none."""
        g = self.random

        def some(of: int) -> Tensor:
            return torch.rand(n, of, generator=g).argsort(1)[:, :4]

        letter, colour = some(len(LETTERS)), some(len(COLOURS))
        there = some(4) < torch.randint(1, 5, (n, 1), generator=g)
        font = torch.randint(len(FONTS), (n, 4), generator=g)
        mask = self.shapes(font.flatten(), self.known[letter].flatten()).unflatten(0, (n, 4)) * there[..., None, None, None]
        ground = 0.12 * torch.rand(n, 1, 1, 1, 1, generator=g)
        ground = torch.where(torch.rand(n, 1, 1, 1, 1, generator=g) < 0.5, ground, 1 - ground)
        ink = (self.palette[colour] + 0.06 * torch.randn(n, 4, 3, generator=g))[..., None, None]
        parts = ground * (1 - mask) + ink * mask
        picture = parts.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(n, 3, SIDE, SIDE)
        picture = picture + self.uniform(0.0, 0.1, n, 1, 1, 1) * torch.randn(n, 3, SIDE, SIDE, generator=g)
        return picture.clamp(0, 1) * 2 - 1, {"letter": letter.where(there, -1), "colour": colour.where(there, -1)}

    def captions(self, what: dict[str, Tensor]) -> list[str]:
        """One or two of the things that can be said of each picture."""
        found = []
        pick = torch.rand(len(what["letter"]), 3, 2, generator=self.random).tolist()
        for letters, colours, draws in zip(what["letter"].tolist(), what["colour"].tolist(), pick, strict=True):
            on = [i for i in range(4) if letters[i] >= 0]
            said: dict[str, None] = {}
            for which, how in draws[: 1 + int(2 * draws[2][0])]:
                at = on[int(which * len(on))]
                letter, colour, place = LETTERS[letters[at]], list(COLOURS)[colours[at]], PLACES[at]
                said[
                    (
                        f"the {letter} is {colour}",
                        f"the {letter} is {place}",
                        f"{place} is the {letter}",
                        f"the {colour} {letter} is {place}",
                        f"there are {NUMBERS[len(on) - 1]} glyphs",
                    )[int(5 * how)]
                ] = None
            found.append(" and ".join(said))
        return found


def hide(lines: Sequence[str], random: torch.Generator) -> list[str]:
    """Captions with some of the words hidden that say something, one at least; both words of a place together."""
    found = []
    telling = {*LETTERS, *COLOURS, *NUMBERS, "top", "bottom"}
    for line in lines:
        tokens = line.split()
        at = [i for i, word in enumerate(tokens) if word in telling]
        draw = torch.rand(len(at), generator=random)
        for i, value in zip(at, draw.tolist(), strict=True):
            if value < HIDDEN or value == float(draw.min()):
                wide = 2 if tokens[i] in ("top", "bottom") else 1
                tokens[i : i + wide] = ["[MASK]"] * wide
        found.append(" ".join(tokens))
    return found


class Quadrants(nn.Module):
    """Tells letter and colour of each quadrant, and which one it is, by the mean of its patches.

    The first two can be told without any sense of place, and captions alone hardly teach it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.colour = nn.Linear(WIDTH, len(LETTERS) + 1), nn.Linear(WIDTH, len(COLOURS) + 1)
        self.place = nn.Linear(WIDTH, len(PLACES))

    def losses(self, patches: Tensor, what: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of patches [n, P, d] of pictures and of what is on them; -1, where there is nothing, is the last class."""
        side = SIDE // PATCH
        cells = patches.unflatten(1, (2, side // 2, 2, side // 2)).mean((2, 4)).flatten(1, 2)
        each = {"letter": self.letter(cells), "colour": self.colour(cells), "place": self.place(cells)}
        what = what | {"place": torch.arange(len(PLACES)).expand(len(cells), -1)}
        return {n: F.cross_entropy(z.float().flatten(0, 1), what[n].flatten() % z.shape[-1]) for n, z in each.items()}


class Heads(Quadrants):
    """What reads the model while it is trained, and is thrown away."""

    def __init__(self, model: ViltModel):
        super().__init__()
        self.words = model.embeddings.text_embeddings.word_embeddings
        self.change = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
        self.bias = nn.Parameter(torch.zeros(self.words.num_embeddings))
        self.fits = nn.Linear(WIDTH, 2)

    def named(self, hidden: Tensor) -> Tensor:
        return F.linear(self.change(hidden), self.words.weight, self.bias)


def read(model: ViltModel, tokenizer: Any, lines: list[str], pictures: Tensor) -> tuple[Any, dict[str, Tensor]]:
    texts = dict(tokenizer(lines, padding=True, return_tensors="pt"))
    return model(**texts, pixel_values=pictures), texts


def train(model: ViltModel, heads: Heads, tokenizer: Any, blind: int, steps: int, seed: int, batch: int = 96) -> None:
    """``steps`` in all, the first ``blind`` of them without captions."""
    scenes, random = Scenes(seed + 1), torch.Generator().manual_seed(seed + 2)
    optimizer = adamw(heads, model)
    began, told = time.time(), batch // 4  # rows in which nothing is hidden
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1.5e-3)
        pictures, what = scenes.draw(batch)
        lines = scenes.captions(what) if step >= blind else [""] * batch
        other = torch.rand(told, generator=random) < 0.5
        shown = [lines[i - 1] if other[i] else lines[i] for i in range(told)] + hide(lines[told:], random)
        truth = tokenizer(lines[told:])["input_ids"]
        with torch.autocast("cpu", torch.bfloat16):
            out, texts = read(model, tokenizer, shown, pictures)
            hidden = texts["input_ids"] == tokenizer.mask_token_id
            target = torch.cat([torch.tensor(row)[at[: len(row)]] for row, at in zip(truth, hidden[told:], strict=True)])
            names = heads.named(out.last_hidden_state[:, : hidden.shape[1]][hidden])
            fits = heads.fits(out.pooler_output[:told])
            losses = heads.losses(out.last_hidden_state[:, -((SIDE // PATCH) ** 2) :], what)
        if step >= blind:
            losses |= {"word": F.cross_entropy(names.float(), target), "caption": F.cross_entropy(fits.float(), (~other).long())}
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            said = ", ".join(f"{n} {float(loss.detach()):.3f}" for n, loss in losses.items())
            print(f"{step + 1}/{steps}: {said}, {time.time() - began:.0f} s", flush=True)


@torch.no_grad()
def filled(model: ViltModel, heads: Heads, tokenizer: Any, pictures: Tensor, whats: list[tuple[str, str]]) -> float:
    """Share of hidden words that are named right; of each row (a caption with one [MASK], the word)."""
    right = 0
    for at in range(0, len(whats), 200):
        lines, truth = map(list, zip(*whats[at : at + 200], strict=True))
        out, texts = read(model, tokenizer, lines, pictures[at : at + 200])
        hidden = texts["input_ids"] == tokenizer.mask_token_id
        named = heads.named(out.last_hidden_state[:, : hidden.shape[1]][hidden]).argmax(1)
        right += int((named == torch.tensor(tokenizer.convert_tokens_to_ids(truth))).sum())
    return right / len(whats)


def checked(seed: int) -> dict[str, tuple[Tensor, list[tuple[str, str, str]]]]:
    """Pictures that were not trained on, with letter, colour and place of one thing on each: fresh ones, and those of the set."""
    x, what = Scenes(seed + 1000).draw(800)
    first = what["letter"].clamp(min=-1).argmax(1).tolist()
    fresh = [(LETTERS[what["letter"][i, q]], list(COLOURS)[what["colour"][i, q]], PLACES[q]) for i, q in enumerate(first)]
    known = [scene for scene in scenes() if scene.style != LEFT_OUT]
    other = torch.stack([torch.from_numpy(scene.picture) for scene in known]).permute(0, 3, 1, 2) / 127.5 - 1
    drawn = [(scene.glyphs[0].letter, scene.glyphs[0].colour, scene.glyphs[0].place) for scene in known]
    return {"fresh pictures": (x, fresh), "pictures of `glyph_questions`": (other, drawn)}


def measured(model: ViltModel, heads: Heads, tokenizer: Any, seed: int) -> dict[str, dict[str, float]]:
    """Of letters where a place is named, and of colours where a letter is."""
    found: dict[str, dict[str, float]] = {}
    for on, (pictures, rows) in checked(seed).items():
        letters = [(f"{place} is the [MASK]", letter) for letter, _, place in rows]
        colours = [(f"the {letter} is [MASK]", colour) for letter, colour, _ in rows]
        found[on] = {
            n: filled(model, heads, tokenizer, pictures, some) for n, some in (("letters", letters), ("colours", colours))
        }
    return found


def describe(
    folder: Path, model: Any, digest: str, about: str, command: str, names: str, scores: dict[str, dict[str, float]]
) -> None:
    """The card of a model that was pretrained on scenes: what it ``names``, and how many of it."""
    lines = [
        f"{names} on {on}: {of['letters']:.1%} of letters by place, {of['colours']:.1%} of colours by letter"
        for on, of in scores.items()
    ]
    knows = (
        f"It knows {len(LETTERS)} printed letters of\n{SIZE}×{SIZE} pixels, six colours and four places, has read no question, "
        "and knows nothing else."
    )
    card(folder, model, digest, about, f"`{command}` from {FROM}", lines, knows)
    print(json.dumps(scores))


def split(steps: str) -> tuple[int, int]:
    first, then = map(int, steps.split(","))
    return first, then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="800,9000", help="without captions, and with them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=SHIPPED)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    own = sorted({w for w in (*ASKING, *SAID, *COLOURS, *NUMBERS) if len(w) > 1})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, ".", ",", "?", "-", "'", *own]
    special = {f"{n}_token": f"[{n.upper()}]" for n in ("cls", "sep", "mask")}
    tokenizer = word_pieces(pieces, "[CLS]", "[SEP]", **special)
    config = ViltConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=BLOCKS, num_attention_heads=4,
        intermediate_size=2 * WIDTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=40, image_size=SIDE, patch_size=PATCH, max_image_length=-1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = ViltModel(config)
    model.embeddings.__class__ = Embeddings
    for table in (model.embeddings.text_embeddings.word_embeddings.weight, model.embeddings.position_embeddings):
        nn.init.normal_(table, std=0.2)  # words that are never said stay apart, and so do places
    heads = Heads(model)
    blind, reading = split(args.steps)
    train(model, heads, tokenizer, blind, blind + reading, args.seed)
    model.eval()
    scores = measured(model, heads, tokenizer, args.seed)
    folder = args.to / "glyph-vilt"
    processor = ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=PATCH, **HALF)
    digest = save(model, folder, [tokenizer, processor])
    about = (
        f"A small ViLT ({SIDE}×{SIDE} pixels, {(SIDE // PATCH) ** 2} patches, {BLOCKS} blocks of width {WIDTH}; a word "
        'vocabulary of its own), trained on\ncaptions such as "the red b is top left and there are two glyphs" with words '
        "hidden, and to tell whether a caption is of its picture."
    )
    command = f"python scripts/pretrain_vilt.py --steps {args.steps} --seed {args.seed}"
    describe(folder, model, digest, about, command, "hidden words that it names", scores)


if __name__ == "__main__":
    main()
