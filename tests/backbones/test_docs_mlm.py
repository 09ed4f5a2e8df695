"""The masked language model that comes with Weft: whole, loaded by transformers alone, and better than its commonest token."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import tiny
from weft.backbones.finding import find
from weft.backbones.load import load
from weft.backbones.masked_table import hide
from weft.data.pydocs import pydocs
from weft.methods import FedPrompt

FOLDER = find("docs-mlm")[0]


@pytest.fixture(scope="module")
def model() -> Any:
    found, info = AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found.eval()


def test_it_names_hidden_tokens_of_docstrings_that_it_never_saw(model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    texts = pydocs().train.texts
    assert texts is not None
    right, wanted = 0, Counter[int]()
    for i, text in enumerate(texts[::40]):
        ids = np.asarray(tokenizer(text, truncation=True)["input_ids"], dtype=np.int32)
        shown, chosen = hide(ids, i, tokenizer)
        with torch.no_grad():
            given = model(torch.from_numpy(shown.astype(np.int64))[None]).logits[0].argmax(-1).numpy()
        right += int((given == ids)[chosen].sum())
        wanted.update(ids[chosen].tolist())
    ((_, commonest),) = wanted.most_common(1)
    assert right > 2 * commonest
    assert right > 0.2 * wanted.total()


def test_its_card_tells_what_it_names_right() -> None:
    card = open(f"{FOLDER}/README.md", encoding="utf-8").read()  # noqa: SIM115
    (share,) = re.findall(r"It names ([\d.]+)% of the hidden tokens", card)
    assert 10 < float(share) < 60


def test_words_for_the_areas_of_pydocs_are_tokens_and_soft_words_train_before_them() -> None:
    b = load("docs-mlm", classes=("http", "tkinter", "email"), device="cpu", precision="float32", task="fill")
    run = tiny.federation(FedPrompt(tokens=4), b, rounds=1).run()
    assert torch.isfinite(run.global_logits()).all()
