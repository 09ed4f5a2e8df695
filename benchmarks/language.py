"""Tokens per second of a federated round on a language model: packs against a plain PyTorch + PEFT loop over the same clients.

    python benchmarks/language.py [--model smollm2] [--repeats 3] [--packs 1,4,8] [--rows 2] [--tokens 256] [--memory]

Both sides train the same clients on the same rows with the same LoRA (rank 8 on q and v) and AdamW in the same precision, from
the same start; before any time is printed, every client's losses of both sides are compared. Half of each row is an answer. The
loop takes its loss from transformers, as its users do. ``--memory`` prints instead the peak memory of a round of 1 and of 8
clients, each in a process of its own. A missed aim is printed as missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.backbones.load import load
from weft.backbones.reply_table import Replies
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.message import ClientInfo
from weft.federation.pack import Pack
from weft.federation.plans import turn
from weft.federation.round import Round
from weft.federation.rounds import begin
from weft.federation.turn import Turn
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.generation import Generation

LR = 1e-3
RANK = 8


def table(n: int, length: int, vocabulary: int) -> Replies:
    """Rows of one length, of which the second half is the answer."""
    rng = np.random.default_rng(0)
    return Replies(
        ids=rng.integers(100, vocabulary, n * length).astype(np.int32),
        offsets=np.arange(n + 1, dtype=np.int64) * length,
        types=None,
        labels=np.zeros(n, np.int64),
        row_ids=np.arange(n),
        pad=0,
        answer=np.tile(np.arange(length) >= length // 2, n),
        wanted=("",) * n,
        asked=("",) * n,
        begins=np.full(n, length // 2),
    )


def states(clients: int, rows_each: int) -> list[ClientState]:
    empty = np.zeros(0, np.int64)
    each = [np.arange(i * rows_each, (i + 1) * rows_each) for i in range(clients)]
    return [ClientState(f"c{i:03d}", rows_each, data=Splits(own, empty, empty)) for i, own in enumerate(each)]


def method(batch: int) -> FedIT:
    return FedIT(rank=RANK, alpha=2.0 * RANK, sites="q,v", epochs=1.0, batch=batch, optim=Optim("adamw", lr=LR))


def packs(backbone: Backbone, rows: Replies, clients: int, batch: int, pack: int) -> Callable[[], list[list[float]]]:
    """A round in packs of so many clients: each client's losses."""
    bench, everyone = Bench(backbone, Generation(("answer",)), rows, 0), states(clients, len(rows) // clients)
    server = begin(method(batch), bench, [ClientInfo(c.id, c.n) for c in everyone], 1)

    def run() -> list[list[float]]:
        losses: dict[str, list[float]] = {c.id: [] for c in everyone}

        def listen(p: Pack, b: Any, loss: torch.Tensor) -> None:
            who = range(len(p.clients)) if b.clients is None else b.clients.tolist()
            for i, value in zip(who, loss.detach().tolist(), strict=True):
                losses[p.clients[i].id].append(value)

        for start in range(0, clients, pack):
            p = Pack(bench, [Turn(c, server.adaptation, dict(server.shared)) for c in everyone[start : start + pack]], Round(0))
            p.listener = listen
            for _ in method(batch).train(p):
                pass
        return list(losses.values())

    return run


def loop(backbone: Backbone, rows: Replies, clients: int, batch: int) -> Callable[[], list[list[float]]]:
    """What a researcher writes today: load the adapter's start, train with a fresh AdamW, read the adapter; next client."""
    bench, everyone = Bench(backbone, Generation(("answer",)), rows, 0), states(clients, len(rows) // clients)
    server = begin(method(batch), bench, [ClientInfo(c.id, c.n) for c in everyone], 1)
    sites = [s.name for s in backbone.sites("q,v")]
    import copy

    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=sites, bias="none")
    model = get_peft_model(copy.deepcopy(backbone.model), config).eval()
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {}
    for name, value in server.shared.items():
        _, site, role = name.split("/")
        start[next(n for n in names if n.endswith(f"{site}.lora_{role}.default.weight"))] = value
    steps = len(rows) // clients // batch

    def run() -> list[list[float]]:
        found = []
        for client in everyone:
            with torch.no_grad():
                for n, p in names.items():
                    p.copy_(start[n])
            optimizer = torch.optim.AdamW(names.values(), lr=LR, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / steps))
            losses = []
            plan = turn(rows.lengths[client.data.train], size=batch, seed=0, client=client.id, turn=0, epochs=1.0, steps=None)
            for pick in plan.batches:
                inputs = rows.collate(client.data.train[pick])
                labels = inputs["input_ids"].clone()
                labels[:, : labels.shape[1] // 2] = -100
                loss = model(**inputs, labels=labels).loss
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
            {n: p.detach().clone() for n, p in names.items()}  # the update that would be sent
            found.append(losses)
        return found

    return run


def ratio(slow: list[float], fast: list[float]) -> str:
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(each):.2f}x ({each[0]:.2f}-{each[-1]:.2f})"


def timing(args: argparse.Namespace) -> None:
    backbone = load(args.model, classes=("answer",), device="cpu", precision="float32", task="generation")
    clients = max(args.packs)
    rows = table(clients * args.steps * args.rows, args.tokens, backbone.vocabulary.size)  # type: ignore[union-attr]
    plain = loop(backbone, rows, clients, args.rows)
    sides = {k: packs(backbone, rows, clients, args.rows, k) for k in args.packs}
    expected = plain()
    for k, run in sides.items():
        gap = max(abs(a - b) for r, s in zip(run(), expected, strict=True) for a, b in zip(r, s, strict=True))
        if gap > 1e-3:
            raise SystemExit(f"losses of packs of {k} differ by {gap:.1e} from the loop's: there is nothing to time")
        print(f"packs of {k}: losses agree to {gap:.1e}")
    seconds: dict[Any, list[float]] = {"loop": [], **{k: [] for k in sides}}
    for _ in range(args.repeats):
        for name, run in (("loop", plain), *sides.items()):
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    total = clients * args.steps * args.rows * args.tokens
    print(
        f"\n{args.model}, float32, {torch.get_num_threads()} threads, {clients} clients, "
        f"{args.rows} x {args.tokens} tokens a step\n"
    )
    print("| | tokens/s | against the loop |\n|---|---|---|")
    print(f"| PyTorch + PEFT, one by one | {total / statistics.median(seconds['loop']):.0f} | |")
    for k in args.packs:
        print(f"| packs of {k} | {total / statistics.median(seconds[k]):.0f} | {ratio(seconds['loop'], seconds[k])} |")
    best = max(statistics.median(a / b for a, b in zip(seconds["loop"], seconds[k], strict=True)) for k in args.packs)
    worst = min(statistics.median(a / b for a, b in zip(seconds["loop"], seconds[k], strict=True)) for k in args.packs)
    print(f"\naim: >= 1.2x at equal precision, never < 0.95x: {'met' if best >= 1.2 and worst >= 0.95 else 'missed'} ")


def peak(args: argparse.Namespace) -> None:
    """Of this process, after a round of one pack."""
    backbone = load(args.model, classes=("answer",), device="cpu", precision="float32", task="generation")
    rows = table(args.alone * args.rows, args.tokens, backbone.vocabulary.size)  # type: ignore[union-attr]
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
    parser.add_argument("--alone", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    peak(args) if args.alone else memory(args) if args.memory else timing(args)


if __name__ == "__main__":
    main()
