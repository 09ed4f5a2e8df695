"""Pretrain glyph-llava, a small LLaVA, on pictures of coloured letters: nothing is downloaded.

    python scripts/pretrain_llava.py [--steps 600,3200] [--seed 0] [--to src/weft/backbones/shipped]

The patches of its tower first learn to tell what is in their quadrant of a picture of one to four letters. Then a language model
behind them writes all that is on the picture, such as "top left is the red b and the cyan x is bottom right", on pictures and in
fonts of ``scripts/pretrain_vilt.py``. It reads no question. Writes transformers' own format in float16, with a model card and
measured accuracies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import decoders
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pretrain_vilt import ASKING, BLOCKS, PATCH, SAID, WIDTH, Quadrants, Scenes, checked, describe, split
from pretraining import HALF, PIECES, SHIPPED, adamw, rate, save, word_pieces
from weft.backbones.llava import LlavaReader
from weft.data.glyph_questions import COLOURS, LETTERS, NUMBERS, PLACES, SIDE

PLACES_OF_ONE = (SIDE // PATCH) ** 2
"""Tokens of a picture."""
ASKED = "say what is seen"
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}{% else %}"
    "{{ bos_token }}{{ m['content'] }} :{% endif %}{% endfor %}"
)


class Described(Scenes):
    """Pictures with all that is on them in words, so that each line teaches what stands where."""

    def captions(self, what: dict[str, Tensor]) -> list[str]:
        n = len(what["letter"])
        order, ways = torch.rand(n, 4, generator=self.random).argsort(1), torch.rand(n, 4, generator=self.random)
        found = []
        for letters, colours, own, how in zip(
            what["letter"].tolist(), what["colour"].tolist(), order.tolist(), ways.tolist(), strict=True
        ):
            said = []
            for at in own:
                if letters[at] < 0:
                    continue
                letter, colour, place = LETTERS[letters[at]], list(COLOURS)[colours[at]], PLACES[at]
                said.append(
                    (
                        f"the {colour} {letter} is {place}",
                        f"{place} is the {colour} {letter}",
                        f"the {letter} is {colour}",
                        f"{place} is the {letter}",
                        f"the {letter} is {place}",
                    )[int(5 * how[at])]
                )
            found.append(" and ".join(said))
        return found


class Captions:
    """Prompts with a picture's places, and what is to be written behind them, as tokens."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        image = tokenizer.convert_tokens_to_ids("<image>")
        asked = tokenizer(f"{ASKED} :", add_special_tokens=False)["input_ids"]
        self.prompt = [tokenizer.bos_token_id, *[image] * PLACES_OF_ONE, *asked]

    def batch(self, lines: Sequence[str], end: bool = True) -> tuple[dict[str, Tensor], Tensor]:
        """What the model takes, [n, T], and the labels of what it is to write (-100 elsewhere)."""
        more = [self.tokenizer.eos_token_id] if end else []
        rows = [[*self.prompt, *ids, *more] for ids in self.tokenizer(list(lines), add_special_tokens=False)["input_ids"]]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.tokenizer.pad_token_id] * (width - len(row))] for row in rows])
        mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
        labels = ids.masked_fill(~mask, -100)
        labels[:, : len(self.prompt)] = -100
        return {"input_ids": ids, "attention_mask": mask.long()}, labels


def train(model: LlavaForConditionalGeneration, captions: Captions, blind: int, steps: int, seed: int, batch: int = 96) -> None:
    """``steps`` in all, the first ``blind`` of them of the tower alone."""
    drawn, quadrants = Described(seed + 1), Quadrants()
    optimizer = adamw(model, quadrants)
    began = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, 1.5e-3)
        pictures, what = drawn.draw(batch)
        with torch.autocast("cpu", torch.bfloat16):
            patches = model.model.vision_tower(pictures).last_hidden_state[:, 1:]
            losses = quadrants.losses(patches, what)
            if step >= blind:
                inputs, labels = captions.batch(drawn.captions(what))
                logits = LlavaReader.forward(model, **inputs, image_features=patches).logits[:, PLACES_OF_ONE:-1]
                wanted = labels[:, PLACES_OF_ONE + 1 :]
                losses["caption"] = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            said = ", ".join(f"{n} {float(loss.detach()):.3f}" for n, loss in losses.items())
            print(f"{step + 1}/{steps}: {said}, {time.time() - began:.0f} s", flush=True)


@torch.no_grad()
def named(model: Any, captions: Captions, pictures: Tensor, rows: list[tuple[str, str]], among: Sequence[str]) -> float:
    """Share of words that it goes on with, ``among`` some; of each row (what it has written, the word)."""
    right, some = 0, torch.tensor(captions.tokenizer.convert_tokens_to_ids(list(among)))
    for at in range(0, len(rows), 200):
        lines, truth = map(list, zip(*rows[at : at + 200], strict=True))
        inputs, _ = captions.batch(lines, end=False)
        logits = model(**inputs, pixel_values=pictures[at : at + 200]).logits
        last = inputs["attention_mask"].sum(1) - 1
        found = some[logits[torch.arange(len(last)), last][:, some].argmax(1)]
        right += int((found == torch.tensor(captions.tokenizer.convert_tokens_to_ids(truth))).sum())
    return right / len(rows)


def measured(model: Any, captions: Captions, seed: int) -> dict[str, dict[str, float]]:
    """Of letters where a place is named, and of colours where a letter is, on fresh pictures and on those of the set."""
    found = {}
    for on, (pictures, rows) in checked(seed).items():
        letters = [(f"{place} is the", letter) for letter, _, place in rows]
        colours = [(f"the {letter} is", colour) for letter, colour, _ in rows]
        found[on] = {
            "letters": named(model, captions, pictures, letters, LETTERS),
            "colours": named(model, captions, pictures, colours, tuple(COLOURS)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="600,3200", help="of the tower alone, and with captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=SHIPPED)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    own = sorted({w for w in (*ASKING, *SAID, *ASKED.split(), "find", "one", "box", *COLOURS, *NUMBERS) if len(w) > 1})
    pieces = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *PIECES, *".,?-':[]", *own, "<image>"]
    special: dict[str, Any] = {"bos_token": "[BOS]", "eos_token": "[EOS]", "additional_special_tokens": ["<image>"]}
    tokenizer = word_pieces(pieces, "[BOS]", "", most=96, **special)
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    tokenizer.chat_template = CHAT
    tower = CLIPVisionConfig(
        hidden_size=WIDTH, num_hidden_layers=BLOCKS - 1, num_attention_heads=4, intermediate_size=2 * WIDTH,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    writer = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=BLOCKS - 1, num_attention_heads=4,
        intermediate_size=2 * WIDTH, max_position_embeddings=96, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=writer, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PLACES_OF_ONE, vision_feature_layer=-1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    for table in (model.get_input_embeddings(), model.model.vision_tower.embeddings.position_embedding):
        nn.init.normal_(table.weight, std=0.2)  # words that are never said stay apart, and so do places
    captions = Captions(tokenizer)
    blind, writing = split(args.steps)
    train(model, captions, blind, blind + writing, args.seed)
    model.eval()
    scores = measured(model, captions, args.seed)
    folder = args.to / "glyph-llava"
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **HALF)
    digest = save(model, folder, [tokenizer, processor])
    about = (
        f"A small LLaVA: a CLIP tower of {BLOCKS - 1} blocks ({SIDE}×{SIDE} pixels, {PLACES_OF_ONE} patches), a connector, and a "
        f"Llama of {BLOCKS - 1} blocks, all of width\n{WIDTH}, with a word vocabulary of its own. It was trained to write "
        'captions such as "top left is the red b and the cyan x is bottom right".'
    )
    command = f"python scripts/pretrain_llava.py --steps {args.steps} --seed {args.seed}"
    describe(folder, model, digest, about, command, "words that it goes on with", scores)


if __name__ == "__main__":
    main()
