"""A round of FedIT in packs, and the same clients in a plain PyTorch + PEFT loop: what two benchmarks time against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper

from weft.backbones.reply_table import Replies
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.plans import turn
from weft.federation.round import Round
from weft.federation.rounds import begin
from weft.federation.turn import Turn

NONE = np.zeros(0, np.int64)
Losses = list[list[float]]  # of each client, step by step


def name(client: int) -> str:
    return f"c{client:03d}"


def states(clients: int, rows_each: int) -> list[ClientState]:
    """Clients that train on equal shares of a table, the first share the first client's."""
    each = [np.arange(i * rows_each, (i + 1) * rows_each) for i in range(clients)]
    return [ClientState(name(i), rows_each, data=Splits(own, NONE, NONE)) for i, own in enumerate(each)]


def replies(rows: int, width: int, vocabulary: int, answers: float = 0.5) -> Replies:
    """Rows of one length, of whose tokens the last share is the answer."""
    begins = width - round(width * answers)
    return Replies(
        ids=np.random.default_rng(0).integers(100, vocabulary, rows * width).astype(np.int32),
        offsets=np.arange(rows + 1, dtype=np.int64) * width,
        types=None,
        labels=np.zeros(rows, np.int64),
        row_ids=np.arange(rows),
        pad=0,
        answer=np.tile(np.arange(width) >= max(begins, 1), rows),  # nothing predicts the first token
        wanted=("",) * rows,
        begins=np.full(rows, begins),
    )


def words_of(size: int) -> Any:
    """A tokenizer of so many words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "</s>", *(f"w{i}" for i in range(size - 2))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def packed(method: Method, bench: Bench, everyone: Sequence[ClientState], pack: int) -> Callable[[], Losses]:
    """Weft's side: a round in packs of so many clients."""
    server = begin(method, bench, [c.info(()) for c in everyone], 1)

    def run() -> Losses:
        losses: dict[str, list[torch.Tensor]] = {c.id: [] for c in everyone}

        def listen(p: Pack, b: Any, loss: torch.Tensor) -> None:
            who = range(len(p.clients)) if b.clients is None else b.clients.tolist()
            for i, value in zip(who, loss.detach(), strict=True):
                losses[p.clients[i].id].append(value)

        for start in range(0, len(everyone), pack):
            part = everyone[start : start + pack]
            p = Pack(bench, [Turn(c, server.adaptation, dict(server.shared)) for c in part], Round(0))
            p.listener = listen
            for _ in method.train(p):
                pass
        return [[float(v) for v in losses[c.id]] for c in everyone]

    return run


def peft_model(base: Any, sites: list[str], rank: int, alpha: float, kind: str | None, heads: list[str] | None = None) -> Any:
    """The same sites by name (PEFT's own "all-linear" would take a pooler too), the adapter in float32, dropout off.

    Args:
        kind: of the task, whose head PEFT knows; None = it is to train ``heads``.
    """
    own = {"lora_dropout": 0.0, "target_modules": sites, "modules_to_save": heads, "bias": "none"}
    config = LoraConfig(task_type=kind, r=rank, lora_alpha=alpha, **own)
    model = get_peft_model(base, config).eval()
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    for module in model.modules():  # a head of its own gets what a model in bfloat16 hands it
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(lambda _m, args: (args[0].float(), *args[1:]))
    return model


def one_by_one(
    model: Any,
    method: Any,
    bench: Bench,
    everyone: Sequence[ClientState],
    loss: Callable[[Any, dict[str, torch.Tensor], np.ndarray], torch.Tensor],
) -> Callable[[], Losses]:
    """What a researcher writes today: load the adapter's start, train with a fresh AdamW, read the adapter; next client.

    Args:
        loss: of a model, a collated batch on its device, and the batch's rows of the table.
    """
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start: dict[str, torch.Tensor] = {}
    for name, value in begin(method, bench, [], 1).shared.items():
        part, site, role = name.split("/")
        ours = f"{site}.lora_{role}.default.weight" if part == "lora" else f"{site}.modules_to_save.default.{role}"
        start[next(n for n in names if n.endswith(ours))] = value  # type: ignore[assignment]
    assert start.keys() == names.keys()
    device, rows = next(model.parameters()).device, bench.table

    def run() -> Losses:
        found = []
        for client in everyone:
            with torch.no_grad():
                for n, p in names.items():
                    p.copy_(start[n])
            size, own = method.batch, client.data.train
            plan = turn(rows.lengths[own], size=size, seed=0, client=client.id, turn=0, epochs=1.0, steps=None)
            steps = len(plan.batches)
            optimizer = torch.optim.AdamW(names.values(), lr=method.optim.lr, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s, steps=steps: max(0.0, 1 - s / steps))
            losses = []
            for pick in plan.batches:
                inputs = {k: v.to(device) for k, v in rows.collate(own[pick]).items()}
                value = loss(model, inputs, own[pick])
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                schedule.step()
                losses.append(value.detach())
            {n: p.detach().cpu().clone() for n, p in names.items()}  # the update that would be sent
            found.append([float(v) for v in losses])
        return found

    return run


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


def ratios(slow: list[float], fast: list[float]) -> tuple[float, str]:
    """Median of the ratios of neighbours in time, and that in words with the least and the largest."""
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    middle = statistics.median(each)
    return middle, f"{middle:.2f}x ({each[0]:.2f}-{each[-1]:.2f})"


def worst_gap(a: Losses, b: Losses) -> float:
    return max(abs(x - y) for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True))


def verdict(aim: str, value: float, least: float) -> None:
    print(f"{'met   ' if value >= least else 'MISSED'} {aim} (worst {value:.2f}x)")
