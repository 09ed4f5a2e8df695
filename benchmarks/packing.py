"""Client steps per second: packs against a plain PyTorch + PEFT loop that trains the same clients one after another.

    python benchmarks/packing.py [--repeats 5] [--steps 3] [--quick] [--device cuda --model llama-1b --clients 1,8,32]

Both sides run the same backbone, clients, rows, LoRA (rank 16 on all linear layers) and AdamW; before any time is printed, every
client's losses of both sides are compared. Column "same precision": both in float32, the loop with the faster of the two
attention kernels. Column "everything on": Weft as it is by default on this processor (bfloat16 where it computes in it,
length-aware batches, pack chosen from memory) against the loop's float32 default. A missed aim is printed as missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.nn.functional as F

from _rounds import Losses, one_by_one, packed, peft_model, ratios, states, timed, verdict, words_of, worst_gap
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.backbones.freeze import describe_model
from weft.backbones.hardware import pick_device
from weft.backbones.load import load
from weft.backbones.token_table import Tokens
from weft.engines.packing import paying
from weft.federation.bench import Bench
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.classification import Classification

CLASSES = 12
LR = 2e-3
RANK = 16


def table(clients: int, steps: int, batch: int, length: int, vocabulary: int, seed: int = 0) -> Tokens:
    """Synthetic rows of one length: what is timed is arithmetic, not padding."""
    rng = np.random.default_rng(seed)
    n = clients * steps * batch
    return Tokens(
        ids=rng.integers(min(1000, vocabulary // 2), vocabulary, n * length).astype(np.int32),
        offsets=np.arange(n + 1, dtype=np.int64) * length,
        types=None,
        labels=rng.integers(0, CLASSES, n),
        row_ids=np.arange(n),
        pad=0,
    )


def method(batch: int) -> FedIT:
    return FedIT(rank=RANK, alpha=RANK, sites="all", epochs=1.0, batch=batch, optim=Optim("adamw", lr=LR))


def bench_of(backbone: Backbone, rows: Tokens) -> Bench:
    return Bench(backbone, Classification(tuple(map(str, range(CLASSES)))), rows, 0)


def peft_side(model: Any, backbone: Backbone, rows: Tokens, clients: int, batch: int) -> Callable[[], Losses]:
    def loss(plain: Any, inputs: dict[str, torch.Tensor], index: np.ndarray) -> torch.Tensor:
        logits = plain(**inputs).logits.float()
        return F.cross_entropy(logits, torch.from_numpy(rows.labels[index]).to(logits.device))

    return one_by_one(model, method(batch), bench_of(backbone, rows), states(clients, len(rows) // clients), loss)


def weft_side(backbone: Backbone, rows: Tokens, clients: int, batch: int, pack: int) -> Callable[[], Losses]:
    return packed(method(batch), bench_of(backbone, rows), states(clients, len(rows) // clients), pack)


def on_cpu(args: argparse.Namespace) -> None:
    base32 = load("minilm", classes=CLASSES, device="cpu", precision="float32")
    quick = load("minilm", classes=CLASSES, device="cpu", precision="auto")
    loops = {}
    for kernel in ("sdpa", "eager"):
        plain = load("minilm", classes=CLASSES, device="cpu", precision="float32", attention=kernel)
        loops[kernel] = peft_model(plain.model, [s.name for s in plain.sites("all")], RANK, RANK, "SEQ_CLS")
    print(f"threads {torch.get_num_threads()}, default precision here: {quick.dtype}, median of {args.repeats} (min-max)\n")
    print("| batch x tokens | clients | loss gap f32 | loss gap all on | same precision | everything on | steps/s all on |")
    print("|---|---|---|---|---|---|---|")
    same_at_4, lowest, on_all = [], [], []
    for batch, length in args.shapes:
        for clients in args.clients:
            rows = table(clients, args.steps, batch, length, 30000)
            k32, k = (min(clients, paying(batch, length, b.device, b.dtype)) for b in (base32, quick))
            weft32 = weft_side(base32, rows, clients, batch, k32)
            weft = weft_side(quick, rows, clients, batch, k)
            loop = {n: peft_side(m, base32, rows, clients, batch) for n, m in loops.items()}
            expected = loop["sdpa"]()
            gap32, gap = worst_gap(weft32(), expected), worst_gap(weft(), expected)
            if gap32 > 1e-4:
                raise SystemExit(f"losses differ by {gap32:.1e} in float32: there is nothing to time")
            took = timed({"weft32": weft32, "weft": weft, **loop}, args.repeats, torch.device("cpu"))
            best = min(loop, key=lambda n: statistics.median(took[n]))
            same, everything = ratios(took[best], took["weft32"]), ratios(took["sdpa"], took["weft"])
            rate = clients * args.steps / statistics.median(took["weft"])
            print(
                f"| {batch} x {length} | {clients} | {gap32:.0e} | {gap:.0e} | {same[1]} (loop: {best}) | {everything[1]} "
                f"| {rate:.1f} |",
                flush=True,
            )
            lowest.append(same[0])
            on_all.append(everything[0])
            if (batch, length) == (4, 32):
                same_at_4.append(same[0])
    print()
    verdict("same precision at 4 x 32: at least 1.3x", min(same_at_4, default=float("nan")), 1.3)
    verdict("same precision anywhere: never below 0.95x", min(lowest), 0.95)
    verdict("everything on against the float32 default: at least 2.5x", min(on_all), 2.5)


def on_gpu(args: argparse.Namespace) -> None:
    """A randomly initialised LLaMA of 1 B parameters in bfloat16: no weights are needed to time it."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    device = pick_device(args.device)

    def fresh() -> Any:
        config = AutoConfig.for_model(
            "llama", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
            num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, num_labels=CLASSES, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(device):
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)

    backbone = describe_model(
        fresh(), words_of(32000), {"score.weight"}, name="llama-1b", device=device, dtype=torch.bfloat16, digest="random"
    )
    plain = peft_model(fresh().eval(), [s.name for s in backbone.sites("all")], RANK, RANK, "SEQ_CLS")
    print(
        f"{torch.cuda.get_device_name(device)}, {backbone.parameters / 1e9:.2f} B parameters, bfloat16, "
        f"median of {args.repeats}\n"
    )
    print("| batch x tokens | clients in a pack | loss gap | packed against loop | steps/s |")
    print("|---|---|---|---|---|")
    found = []
    for batch in (1, 2, 4):
        for clients in args.clients:
            rows = table(clients, args.steps, batch, 64, 32000)
            weft = weft_side(backbone, rows, clients, batch, clients)
            loop = peft_side(plain, backbone, rows, clients, batch)
            gap = worst_gap(weft(), loop())
            took = timed({"weft": weft, "loop": loop}, args.repeats, device)
            middle, r = ratios(took["loop"], took["weft"])
            if clients == max(args.clients):
                found.append(middle)
            print(
                f"| {batch} x 64 | {clients} | {gap:.0e} | {r} | {clients * args.steps / statistics.median(took['weft']):.1f} |",
                flush=True,
            )
    print()
    verdict(f"packs of {max(args.clients)} at batch 1 to 4: at least 5x", min(found), 5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each client")
    parser.add_argument("--clients", default="", help="numbers of clients, by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one small case, one repeat")
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    args.clients = [int(c) for c in args.clients.split(",")] if args.clients else ([1, 8, 32] if gpu else [8, 32])
    args.shapes = [(4, 32), (8, 64), (16, 64)]
    if args.quick:
        args.shapes, args.clients, args.repeats, args.steps = [(4, 32)], [2], 1, 1
    on_gpu(args) if gpu else on_cpu(args)


if __name__ == "__main__":
    main()
