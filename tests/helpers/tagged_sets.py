"""Sentences with names that a tiny model learns in seconds, and models that read bytes, for tests of tagged words."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import tiny

NAMES = ("O", "B-NAME", "I-NAME")
Row = dict[str, Any]


def sentences(n: int, seed: int = 0, **more: str) -> list[Row]:
    """Names begin with "w16" to "w19", and half of them go on with "w20" to "w23"; what else there is, is no name."""
    draw = np.random.default_rng((seed, n))
    found: list[Row] = []
    for _ in range(n):
        words, tags = [], []
        for _ in range(int(draw.integers(2, 7))):
            if draw.random() < 0.3:
                parts = [draw.integers(16, 20), *([draw.integers(20, 24)] if draw.random() < 0.5 else [])]
                tags += NAMES[1 : 1 + len(parts)]
            else:
                parts = [draw.integers(16)]
                tags.append("O")
            words += [f"w{i}" for i in parts]
        found.append({"tokens": words, "ner_tags": tags} | more)
    return found


def written(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def folder(to: Path, train: int = 240, test: int = 30) -> Path:
    """A data set with a test split."""
    written(to / "train.jsonl", sentences(train, 1))
    written(to / "test.jsonl", sentences(test, 2))
    return to


@functools.cache
def byte_level(kind: str) -> str:
    """Folder of a tiny model that reads pairs of bytes, as GPT-2 and RoBERTa do: a word is split, and begins with its space."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    special = tiny.tokenizer(kind).special_tokens_map
    inner = ByteLevelBPETokenizer()
    texts = [f"w{i} ab{i % 7}cd photo" for i in range(100)]
    inner.train_from_iterator(texts, vocab_size=290, special_tokens=list(special.values()))
    path = tiny.root() / f"byte-level-{kind}"
    shutil.copytree(tiny.folder(kind, vocab_size=inner.get_vocab_size()), path)
    PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, model_max_length=64, **special).save_pretrained(path)
    return str(path)
