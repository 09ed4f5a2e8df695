"""What share of the tokens that go through a language model is real: rows apart, packs by length, rows that share lines.

    python benchmarks/padding.py --data FOLDER [--model smollm2] [--quick]

The folder holds ``train.jsonl.gz`` of rows with instruction, context, response, client and category, such as Dolly by Shepherd's
split. Packs of 4 clients, in batches of rows of like length and in batches at random (``--no-by-length``): clients packed by
numbers of rows alone, by lengths too, and then with ``--sequence-packing``, where a client's rows share lines no longer than the
longest row of all.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from _rounds import NONE
from weft.backbones.lines import lines
from weft.backbones.load import load
from weft.backbones.reply_table import Replies, replies
from weft.data.rows import Rows
from weft.engines import packing
from weft.federation import plans
from weft.federation.client import ClientState, Splits

PACK = 4


def steps(table: Replies, pack: list[ClientState], batch: int, by_length: bool) -> list[np.ndarray]:
    """Rows [k, b] of each step of a pack, -1 = padding."""
    turns = [
        plans.turn(
            table.lengths[c.data.train], size=batch, seed=0, client=c.id, turn=0, epochs=1.0, steps=None, by_length=by_length
        ).batches
        for c in pack
    ]
    found = []
    for j in range(max(map(len, turns))):
        rows = [c.data.train[t[j]] for c, t in zip(pack, turns, strict=True) if j < len(t)]
        index = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
        for line, own in zip(index, rows, strict=True):
            line[: len(own)] = own
        found.append(index)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of rows")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows")
    args = parser.parse_args()
    if args.data is None:
        print("no --data FOLDER with train.jsonl.gz of prompts and answers: nothing to count")
        return
    with gzip.open(Path(args.data) / "train.jsonl.gz", "rt") as f:
        rows = sorted((json.loads(line) for line in f), key=lambda row: row["client"])[:: 8 if args.quick else 1]
    backbone = load(args.model, classes=["answer"], device="cpu", precision="float32", task="generation")
    texts = {"texts": [r["instruction"] for r in rows], "pairs": [r["context"] for r in rows]}
    table = replies(backbone, Rows(**texts, answers=[r["response"] for r in rows], ids=np.arange(len(rows))), 256)
    print(f"Share of real tokens in packs of {PACK}: {len(rows)} rows of at most 256 tokens\n")
    print("| clients | batches | rows of a batch | packed by rows | by lengths too | rows in lines |\n|---|---|---|---|---|---|")
    for by, by_length, batch in itertools.product(("client", "category"), (True, False), (2, 8)):
        owners = np.array([str(r[by]) for r in rows])
        held = {c: np.flatnonzero(owners == c) for c in sorted(set(owners.tolist()))}
        clients = [ClientState(c, len(own), data=Splits(own, NONE, NONE)) for c, own in held.items()]
        shares = []
        for known, lined in ((None, False), (table, False), (table, True)):
            bench: Any = SimpleNamespace(table=known)
            real = padded = 0
            for pack in packing.group(clients, PACK, bench):
                for index in steps(table, pack, batch, by_length):
                    real += int(table.lengths[index[index >= 0]].sum())
                    inputs = lines(table, index)[0] if lined else table.collate(index.reshape(-1))
                    padded += inputs["input_ids"].numel()
            shares.append(f"{real / padded:.2f}")
        print(f"| {len(clients)} by {by} | {'by length' if by_length else 'at random'} | {batch} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
