"""The side of flower_simulation.py that is Flower's: PEFT in a ClientApp, Flower's own FedAvg, Flower's simulation engine (Ray).

It stands in a module of its own because Ray's workers import it by name: what a module keeps lives as long as its worker, which
what is sent along with a message does not.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Flower and Ray report to their makers unless told otherwise; Flower reads its switches when it is imported
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import numpy as np
import torch
import transformers
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

app = ClientApp()


@dataclass(frozen=True)
class Job:
    """One simulation.

    Attributes:
        folder: holds ``rows.json`` ([text, label] of all clients, one after another), ``order.npy`` (which of its rows a client
            takes: [rounds, clients, steps, batch]) and ``start.safetensors`` (the adapter as PEFT names it).
        model: folder of the weights. sites: names of the linear layers that get LoRA, by commas. attention: kernel.
        precision: of the backbone: float32, or bfloat16 with autocast and trainable values in float32.
        workers, threads: of Ray, and of PyTorch in each.
        cached: each worker keeps model and tokenised rows; else they are made anew for every message.
    """

    folder: str
    model: str
    classes: int
    clients: int
    rounds: int
    rank: int
    sites: str
    lr: float
    attention: str
    precision: str
    workers: int
    threads: int
    cached: bool


@dataclass(frozen=True)
class Outcome:
    """``first``: seconds from the call to the end of round 1. ``seconds``, ``losses``: of each round, those [clients]."""

    first: float
    seconds: list[float]
    losses: list[list[float]]


# the client -----------------------------------------------------------------------------------------------------------


def build(path: str, classes: int, rank: int, sites: str, attention: str, precision: str) -> Any:
    """Backbone and LoRA, which stays in float32; dropout off (by eval) as on the other side."""
    base = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=classes, dtype=getattr(torch, precision), attn_implementation=attention
    )
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=sites.split(","), bias="none"
    )
    model = get_peft_model(base, config).eval()
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return model


def tokenise(path: str, folder: str, first: int, stop: int | None) -> dict[str, Tensor]:
    """Model inputs of the rows from ``first`` to ``stop``: tensors [n, T] and labels [n]."""
    rows = json.loads((Path(folder) / "rows.json").read_text())[first:stop]
    inputs = AutoTokenizer.from_pretrained(path)([text for text, _ in rows], return_tensors="pt")
    return {**inputs, "labels": torch.tensor([label for _, label in rows])}


kept_model = functools.cache(build)
kept_rows = functools.cache(tokenise)
kept_order = functools.cache(np.load)


@app.train()
def train(message: Message, context: Context) -> Message:
    settings = dict(message.content["config"])
    t = settings.pop("server-round") - 1
    job = Job(**settings)
    client = int(context.node_config["partition-id"])
    torch.set_num_threads(job.threads)
    transformers.logging.set_verbosity_error()
    order = kept_order(f"{job.folder}/order.npy")[t, client]
    each = order.size  # rows of a client: it sees each of them once
    wanted = (job.model, job.classes, job.rank, job.sites, job.attention, job.precision)
    if job.cached:
        model = kept_model(*wanted)
        # those of all clients: which worker a client comes to differs from round to round
        rows = {k: v[client * each : (client + 1) * each] for k, v in kept_rows(job.model, job.folder, 0, None).items()}
    else:
        model, rows = build(*wanted), tokenise(job.model, job.folder, client * each, (client + 1) * each)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=job.lr, weight_decay=0.0)
    losses = []
    for pick in order:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bfloat16"):
            loss = model(**{k: v[pick] for k, v in rows.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    metrics = {"num-examples": each, "loss": float(torch.stack(losses).mean()), "client": client}
    content = RecordDict({"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


# the server -----------------------------------------------------------------------------------------------------------


class TimedFedAvg(FedAvg):
    """Flower's FedAvg with a clock around each round, from before it picks the clients until it has averaged their answers."""

    def __init__(self, clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.began = 0.0
        self.ends: list[float] = []
        self.seconds: list[float] = []
        self.losses: list[list[float]] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self.began = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        came = list(replies)
        for reply in came:
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
        found = super().aggregate_train(server_round, came)
        self.ends.append(time.perf_counter())
        self.seconds.append(self.ends[-1] - self.began)
        by_client = {int(r.content["metrics"]["client"]): float(r.content["metrics"]["loss"]) for r in came}
        self.losses.append([loss for _, loss in sorted(by_client.items())])
        return found


def simulate(job: Job) -> Outcome:
    """Run ``job`` in Flower's simulation engine. To be called in a process of its own, where Ray finds nothing of ours."""
    began = time.perf_counter()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    strategy = TimedFedAvg(job.clients)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        start = ArrayRecord(load_file(f"{job.folder}/start.safetensors"))
        strategy.start(grid, start, num_rounds=job.rounds, train_config=ConfigRecord(asdict(job)))

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=job.clients,
        backend_config={
            "client_resources": {"num_cpus": job.threads, "num_gpus": 0.0},
            "init_args": {"num_cpus": job.workers * job.threads, "logging_level": logging.ERROR, "log_to_driver": False},
        },
    )
    return Outcome(strategy.ends[0] - began, strategy.seconds, strategy.losses)
