"""Tokens per second of a federated round on a language model: packs against a plain PyTorch + PEFT loop over the same clients.

    python benchmarks/language.py [--model smollm2] [--repeats 3] [--packs 1,4,8] [--rows 2] [--tokens 256] [--memory]

Both sides train the same clients on the same rows with the same LoRA (rank 8 on q and v) and AdamW in the same precision, from
the same start; before any time is printed, every client's losses of both sides are compared. Half of each row is an answer. The
loop takes its loss from transformers, as its users do. ``--memory`` prints instead the peak memory of a round of 1 and of 8
clients, each in a process of its own. A missed aim is printed as missed.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from _rounds import Losses, one_by_one, packed, peft_model, ratios, replies, states, timed, verdict, worst_gap
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.reply_table import Replies
from weft.federation.bench import Bench
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.generation import Generation

LR = 1e-3
RANK = 8


def method(batch: int) -> FedIT:
    return FedIT(rank=RANK, alpha=2.0 * RANK, sites="q,v", epochs=1.0, batch=batch, optim=Optim("adamw", lr=LR))


def packs(backbone: Backbone, rows: Replies, clients: int, batch: int, pack: int) -> Callable[[], Losses]:
    bench = Bench(backbone, Generation(("answer",)), rows, 0)
    return packed(method(batch), bench, states(clients, len(rows) // clients), pack)


def loop(backbone: Backbone, rows: Replies, clients: int, batch: int) -> Callable[[], Losses]:
    """Its loss is transformers' own, as its users take it."""
    model = peft_model(copy.deepcopy(backbone.model), [s.name for s in backbone.sites("q,v")], RANK, 2.0 * RANK, "CAUSAL_LM")

    def loss(plain: Any, inputs: dict[str, torch.Tensor], index: np.ndarray) -> torch.Tensor:
        labels = inputs["input_ids"].clone()
        labels[:, : labels.shape[1] // 2] = -100
        return plain(**inputs, labels=labels).loss

    bench = Bench(backbone, Generation(("answer",)), rows, 0)
    return one_by_one(model, method(batch), bench, states(clients, len(rows) // clients), loss)


def timing(args: argparse.Namespace) -> None:
    backbone = load(args.model, classes=("answer",), device="cpu", precision="float32", task="generation")
    clients = max(args.packs)
    rows = replies(clients * args.steps * args.rows, args.tokens, backbone.vocabulary.size)  # type: ignore[union-attr]
    plain = loop(backbone, rows, clients, args.rows)
    sides = {k: packs(backbone, rows, clients, args.rows, k) for k in args.packs}
    expected = plain()
    for k, run in sides.items():
        gap = worst_gap(run(), expected)
        if gap > 1e-3:
            raise SystemExit(f"losses of packs of {k} differ by {gap:.1e} from the loop's: there is nothing to time")
        print(f"packs of {k}: losses agree to {gap:.1e}")
    seconds = timed({"loop": plain, **{f"{k}": run for k, run in sides.items()}}, args.repeats, torch.device("cpu"))
    total = clients * args.steps * args.rows * args.tokens
    print(
        f"\n{args.model}, float32, {torch.get_num_threads()} threads, {clients} clients, "
        f"{args.rows} x {args.tokens} tokens a step\n"
    )
    print("| | tokens/s | against the loop |\n|---|---|---|")
    print(f"| PyTorch + PEFT, one by one | {total / statistics.median(seconds['loop']):.0f} | |")
    found = []
    for k in args.packs:
        middle, words = ratios(seconds["loop"], seconds[f"{k}"])
        found.append(middle)
        print(f"| packs of {k} | {total / statistics.median(seconds[f'{k}']):.0f} | {words} |")
    print()
    verdict("the best pack at equal precision: at least 1.2x", max(found), 1.2)
    verdict("every pack: never below 0.95x", min(found), 0.95)


def peak(args: argparse.Namespace) -> None:
    """Of this process, after a round of one pack."""
    backbone = load(args.model, classes=("answer",), device="cpu", precision="float32", task="generation")
    rows = replies(args.alone * args.rows, args.tokens, backbone.vocabulary.size)  # type: ignore[union-attr]
    packs(backbone, rows, args.alone, args.rows, args.pack)()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def memory(args: argparse.Namespace) -> None:
    def measured(clients: int, pack: int) -> float:
        line = [sys.executable, __file__, "--alone", str(clients), "--pack", str(pack), "--model", args.model]
        line += ["--rows", str(args.rows), "--tokens", str(args.tokens)]
        return float(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()[-1])

    one, many, packed = measured(1, 1), measured(8, 1), measured(8, 8)
    print("| clients | pack | peak GB |\n|---|---|---|")
    print(f"| 1 | 1 | {one:.2f} |\n| 8 | 1 | {many:.2f} |\n| 8 | 8 | {packed:.2f} |")
    print(
        f"\naim: memory of 8 clients <= 1.5x that of 1: {'met' if many <= 1.5 * one else 'missed'} ({many / one:.2f}x one by one)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--packs", type=lambda text: [int(k) for k in text.split(",")], default=[1, 4, 8])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one small case, one repeat")
    parser.add_argument("--alone", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.packs, args.repeats, args.steps, args.rows, args.tokens = [1, 2], 1, 1, 1, 32
    peak(args) if args.alone else memory(args) if args.memory else timing(args)


if __name__ == "__main__":
    main()
