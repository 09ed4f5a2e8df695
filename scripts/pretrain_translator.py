"""Pretrain a small translator of mBART's form on aligned sentences: nothing to ship, but something to adapt where there is none.

    python scripts/pretrain_translator.py --data FOLDER --to FOLDER [--steps 3000] [--seed 0]

FOLDER holds train.jsonl.gz and test.jsonl.gz with a column for each language, as those of Multi30k. Of the training rows the
first 20,000 are for pretraining: half of the examples take noise out of a sentence in its own language, as mBART does (Liu et
al., 2020), and half translate, in all directions, among the first 5,000 rows alone. What is left is written to ``rows`` beside
the model, for clients to train on; no row of it, and none of the test set, is seen here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

CODES = {"en": "en_XX", "de": "de_DE", "fr": "fr_XX", "cs": "cs_CZ"}
SEEN, PAIRED = 20_000, 5_000  # rows to pretrain on, and those of them that are translated
VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH = 6000, 192, 3, 4, 64
BATCH, PEAK = 64, 2e-3
HIDDEN = 0.35  # share of words that mBART hides, in spans of about 3.5 words
HELD_OUT = 50  # test rows to be scored in each direction

Row = dict[str, str]
Example = tuple[list[int], list[int]]


def rows_of(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def tokenizer_of(rows: list[Row]) -> MBart50Tokenizer:
    """mBART-50's own, with a vocabulary of these sentences."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    inner.train_from_iterator((text for row in rows for text in row.values()), trainer)
    pieces = [(piece, score) for piece, score in json.loads(inner.to_str())["model"]["vocab"]]
    return MBart50Tokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="de_DE", model_max_length=LENGTH)


def noisy(text: str, mask: str, draw: random.Random) -> str:
    """A sentence with spans of words replaced by one mask each."""
    words = text.split()
    left, spans = round(HIDDEN * len(words)), 0
    while left > 0 and spans < len(words):
        size = min(max(int(draw.expovariate(1 / 3.5)), 1), left)
        at = draw.randrange(max(len(words) - size, 0) + 1)
        if mask not in words[at : at + size]:
            words[at : at + size] = [mask]
            left -= size
        spans += 1
    return " ".join(words)


class Encoded:
    """Sentences as tokens with their marks, each made once."""

    def __init__(self, tokenizer: MBart50Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.marks = {name: tokenizer.convert_tokens_to_ids(code) for name, code in CODES.items()}

    def __call__(self, text: str, language: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][: LENGTH - 2]
        return [self.marks[language], *ids, self.tokenizer.eos_token_id]


def examples(rows: list[Row], encoded: Encoded, seed: int) -> Iterator[Example]:
    """Without end: what the encoder reads, and what the decoder is to write."""
    draw = random.Random(seed)
    directions = list(permutations(CODES, 2))
    mask = str(encoded.tokenizer.mask_token)
    while True:
        language = draw.choice(list(CODES))
        text = rows[draw.randrange(len(rows))][language]
        yield encoded(noisy(text, mask, draw), language), encoded(text, language)
        row, (source, target) = rows[draw.randrange(PAIRED)], draw.choice(directions)
        yield encoded(row[source], source), encoded(row[target], target)


def padded(rows: list[list[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


def loss_of(model: MBartForConditionalGeneration, some: list[Example]) -> Tensor:
    pad = model.config.pad_token_id
    read, labels = padded([a for a, _ in some], pad), padded([b for _, b in some], -100)
    shifted = model.prepare_decoder_input_ids_from_labels(labels.clone())
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model(input_ids=read, attention_mask=(read != pad).long(), decoder_input_ids=shifted, use_cache=False)
        logits = model.lm_head(out.last_hidden_state[labels != -100])
    return F.cross_entropy(logits.float(), labels[labels != -100])


def train(model: MBartForConditionalGeneration, source: Iterator[Example], steps: int) -> None:
    flat = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    began, mean, waiting = time.time(), 0.0, []
    for step in range(steps):
        if not waiting:  # rows of like length share a step
            pool = sorted((next(source) for _ in range(20 * BATCH)), key=lambda pair: len(pair[1]))
            waiting = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
            random.Random(step).shuffle(waiting)
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(model, waiting.pop())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean += (float(loss.detach()) - mean) / min(step + 1, 100)
        if step % 100 == 99:
            print(f"{step + 1}/{steps}: loss {mean:.3f}, {time.time() - began:.0f} s", flush=True)


@torch.no_grad()
def scored(model: MBartForConditionalGeneration, encoded: Encoded, rows: list[Row]) -> float:
    """The loss of translations, the mean over all directions."""
    each = [float(loss_of(model, [(encoded(row[a], a), encoded(row[b], b)) for row in rows])) for a, b in permutations(CODES, 2)]
    return sum(each) / len(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    every = rows_of(args.data / "train.jsonl.gz")
    tokenizer = tokenizer_of(every[:SEEN])
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH,
        max_position_embeddings=LENGTH, scale_embedding=True, decoder_start_token_id=ids["eos"], forced_eos_token_id=None,
        dropout=0.0, **{f"{name}_token_id": value for name, value in ids.items()},
    )  # fmt: skip
    model = MBartForConditionalGeneration(config)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {len(tokenizer):,} tokens", flush=True)
    encoded = Encoded(tokenizer)
    train(model, examples(every[:SEEN], encoded, args.seed), args.steps)
    model.eval()
    test = args.data / "test.jsonl.gz"
    print(f"loss of translations of the test set: {scored(model, encoded, rows_of(test)[:HELD_OUT]):.3f}")
    shutil.rmtree(args.to, ignore_errors=True)
    model.save_pretrained(args.to)
    tokenizer.save_pretrained(args.to)
    left = args.to / "rows"
    left.mkdir()
    shutil.copyfile(test, left / "test.jsonl.gz")
    with gzip.open(left / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in every[SEEN:])


if __name__ == "__main__":
    main()
