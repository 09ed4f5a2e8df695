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
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model

from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.backbones.load import describe_model, load, pick_device
from weft.backbones.token_table import Tokens
from weft.engines.packing import paying
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.message import ClientInfo
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.rounds import begin
from weft.federation.turn import Turn
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.classification import Classification

CLASSES = 12
LR = 2e-3


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


def states(clients: int, rows_each: int) -> list[ClientState]:
    empty = np.zeros(0, np.int64)
    return [
        ClientState(f"c{i:03d}", rows_each, data=Splits(np.arange(i * rows_each, (i + 1) * rows_each), empty, empty))
        for i in range(clients)
    ]


def weft_side(
    backbone: Backbone, rows: Tokens, clients: int, steps: int, batch: int, pack: int
) -> Callable[[], list[list[float]]]:
    method = FedIT(rank=16, alpha=16, sites="all", epochs=1.0, batch=batch, optim=Optim("adamw", lr=LR))
    bench = Bench(backbone, Classification(tuple(map(str, range(CLASSES)))), rows, 0)
    everyone = states(clients, steps * batch)
    server = begin(method, bench, [ClientInfo(c.id, c.n) for c in everyone], 1)

    def run() -> list[list[float]]:
        losses: dict[str, list[torch.Tensor]] = {c.id: [] for c in everyone}

        def listen(p: Pack, b: Any, loss: torch.Tensor) -> None:
            who = range(len(p.clients)) if b.clients is None else b.clients.tolist()
            for i, value in zip(who, loss.detach(), strict=True):
                losses[p.clients[i].id].append(value)

        for start in range(0, clients, pack):
            part = everyone[start : start + pack]
            p = Pack(bench, [Turn(c, server.adaptation, dict(server.shared)) for c in part], Round(0))
            p.listener = listen
            for _ in method.train(p):
                pass
        return [[float(v) for v in losses[c.id]] for c in everyone]

    return run


def peft_side(
    model: Any, backbone: Backbone, rows: Tokens, clients: int, steps: int, batch: int, dtype: torch.dtype
) -> Callable[[], list[list[float]]]:
    """What a researcher writes today: load the adapter's start, train with a fresh AdamW, read the adapter; next client."""
    from weft.federation.plans import turn

    method = FedIT(rank=16, alpha=16, sites="all")
    bench = Bench(backbone, Classification(tuple(map(str, range(CLASSES)))), rows, 0)
    server = begin(method, bench, [], 1)
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start: dict[str, torch.Tensor] = {}
    for name, value in server.shared.items():
        part, site, role = name.split("/")
        ours = f"{site}.lora_{role}.default.weight" if part == "lora" else f"{site}.modules_to_save.default.{role}"
        match = next(n for n in names if n.endswith(ours))
        start[match] = value  # type: ignore[assignment]
    assert start.keys() == names.keys()
    device = next(model.parameters()).device
    everyone = states(clients, steps * batch)

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
                index = client.data.train[pick]
                inputs = {k: v.to(device) for k, v in rows.collate(index).items()}
                logits = model(**inputs).logits.float()
                loss = F.cross_entropy(logits, torch.from_numpy(rows.labels[index]).to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
            {n: p.detach().cpu().clone() for n, p in names.items()}  # the update that would be sent
            found.append([float(v) for v in losses])
        return found

    return run


def peft_model(base: Any, sites: list[str]) -> Any:
    """The same sites by name: PEFT's own "all-linear" would take a pooler too."""
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=16, lora_alpha=16, lora_dropout=0.0, target_modules=sites, bias="none")
    model = get_peft_model(base, config).eval()  # eval: dropout off on both sides
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model


def timed(runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each side, taken in turn, so that drift of the machine hits all alike; one warm-up each."""
    seconds: dict[str, list[float]] = {n: [] for n in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> str:
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(each):.2f}x ({each[0]:.2f}-{each[-1]:.2f})"


def worst_gap(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True))


def on_cpu(args: argparse.Namespace) -> None:
    base32 = load("minilm", classes=CLASSES, device="cpu", precision="float32")
    quick = load("minilm", classes=CLASSES, device="cpu", precision="auto")
    loops = {}
    for kernel in ("sdpa", "eager"):
        plain = load("minilm", classes=CLASSES, device="cpu", precision="float32", attention=kernel)
        loops[kernel] = peft_model(plain.model, [s.name for s in plain.sites("all")])
    print(f"threads {torch.get_num_threads()}, default precision here: {quick.dtype}, median of {args.repeats} (min-max)\n")
    print("| batch x tokens | clients | loss gap f32 | loss gap all on | same precision | everything on | steps/s all on |")
    print("|---|---|---|---|---|---|---|")
    same_at_4, lowest, on_all = [], [], []
    for batch, length in args.shapes:
        for clients in args.clients:
            rows = table(clients, args.steps, batch, length, 30000)
            k32, k = (min(clients, paying(batch, length, b.device, b.dtype)) for b in (base32, quick))
            packed32 = weft_side(base32, rows, clients, args.steps, batch, k32)
            packed = weft_side(quick, rows, clients, args.steps, batch, k)
            loop = {n: peft_side(m, base32, rows, clients, args.steps, batch, torch.float32) for n, m in loops.items()}
            expected = loop["sdpa"]()
            gap32, gap = worst_gap(packed32(), expected), worst_gap(packed(), expected)
            if gap32 > 1e-4:
                raise SystemExit(f"losses differ by {gap32:.1e} in float32: there is nothing to time")
            took = timed({"weft32": packed32, "weft": packed, **loop}, args.repeats, torch.device("cpu"))
            best = min(loop, key=lambda n: statistics.median(took[n]))
            same, everything = ratio(took[best], took["weft32"]), ratio(took["sdpa"], took["weft"])
            rate = clients * args.steps / statistics.median(took["weft"])
            print(
                f"| {batch} x {length} | {clients} | {gap32:.0e} | {gap:.0e} | {same} (loop: {best}) | {everything} "
                f"| {rate:.1f} |",
                flush=True,
            )
            value = float(same.split("x")[0])
            lowest.append(value)
            on_all.append(float(everything.split("x")[0]))
            if (batch, length) == (4, 32):
                same_at_4.append(value)
    print()
    verdict("same precision at 4 x 32: at least 1.3x", min(same_at_4, default=float("nan")), 1.3)
    verdict("same precision anywhere: never below 0.95x", min(lowest), 0.95)
    verdict("everything on against the float32 default: at least 2.5x", min(on_all), 2.5)


def verdict(aim: str, value: float, least: float) -> None:
    print(f"{'met   ' if value >= least else 'MISSED'} {aim} (worst {value:.2f}x)")


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

    class Words:
        pad_token_id, model_max_length, model_input_names = 0, 2048, ("input_ids",)

    backbone = describe_model(
        fresh(), Words(), {"score.weight"}, name="llama-1b", device=device, dtype=torch.bfloat16, digest="random"
    )
    plain = peft_model(fresh().eval(), [s.name for s in backbone.sites("all")])
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
            packed = weft_side(backbone, rows, clients, args.steps, batch, clients)
            loop = peft_side(plain, backbone, rows, clients, args.steps, batch, torch.bfloat16)
            gap = worst_gap(packed(), loop())
            took = timed({"weft": packed, "loop": loop}, args.repeats, device)
            r = ratio(took["loop"], took["weft"])
            found.append(float(r.split("x")[0]))
            print(
                f"| {batch} x 64 | {clients} | {gap:.0e} | {r} | {clients * args.steps / statistics.median(took['weft']):.1f} |",
                flush=True,
            )
    print()
    verdict("packs of 32 at batch 1 to 4: at least 5x", max(found), 5.0)


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
