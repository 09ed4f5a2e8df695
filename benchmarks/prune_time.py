"""Simulated time until a model is good: PruneFL against federated averaging, with the same steps and optimizer.

    python benchmarks/prune_time.py           # three seeds on two fleets of devices, half an hour
    python benchmarks/prune_time.py --quick   # one seed and few rounds, to see that it runs; its numbers mean nothing

A small ViT is trained from random weights on the digits of scikit-learn, by eight unlike clients. How good is good is said by
federated averaging: 95 % of what it has after its last round, of each seed and fleet. PruneFL's constants are those of the
clock: t is what an entry takes to go down and up on the slowest link of the fleet, and c what a round of federated averaging
takes beside its entries. Times are of the simulated clock, and the same on any machine up to rounding of the training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")

import weft
from weft.devices.profiles import read

CLIENTS, SKEW, ROUNDS, EVERY = 8, 0.5, 120, 10
GOOD = 0.95
BYTES = 4
"""Of an entry: values travel in float32."""
COMMON: dict[str, Any] = {
    "steps": 5,
    "batch": 20,
    "weighting": "uniform",
    "optim.kind": "adamw",
    "optim.lr": 1e-3,
    "optim.schedule": "constant",
    "tune.weights": "all",
}


def scratch(folder: Path) -> Path:
    """A backbone of glyph-vit's shape with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4
    )
    transformers.ViTModel(shape, add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def played(method: str, model: Path, devices: str, seed: int, rounds: int, **own: Any) -> list[dict[str, Any]]:
    """The rounds of one run, scored after every fifth."""
    run = weft.run(
        method,
        parameters=COMMON | own,
        model=model,
        data="digits",
        clients=CLIENTS,
        partition="dirichlet",
        alpha=SKEW,
        devices=devices,
        seed=seed,
        rounds=rounds,
        eval_every=5,
        baselines=[],
        report=False,
        observer=weft.Observer(),
        runs=model.parent / "runs",
        name=f"{method}-{Path(devices).stem}-s{seed}",
    )
    return run.rounds


def own_time(devices: str, usual: list[dict[str, Any]], entries: int) -> dict[str, float]:
    """PruneFL's constants for these devices.

    Args:
        usual: rounds of federated averaging on them. entries: that may be pruned.
    """
    kinds = [device for device, _ in read(devices)]
    each = max(8e-6 * BYTES * (1 / d.bandwidth + 1 / (d.downlink or d.bandwidth)) for d in kinds)
    whole = statistics.median(line["clock"]["seconds"] for line in usual)
    # no device computes less with single entries missing
    return {"communication": each, "computation": 1e-15, "constant": max(0.0, whole - each * entries)}


def accuracy(line: dict[str, Any]) -> float | None:
    for one in line.get("evaluations", []):
        if (one["people"], one["metric"], one["pooling"]) == ("global test", "accuracy", "pooled"):
            return float(one["value"])
    return None


def sent(lines: list[dict[str, Any]]) -> float:
    """Megabytes both ways."""
    return sum(way["wire"] for line in lines for phase in line["bytes"].values() for way in phase.values()) / 1e6


def cells(lines: list[dict[str, Any]], target: float) -> list[str]:
    reached = next((n for n, line in enumerate(lines, 1) if (accuracy(line) or 0.0) >= target), None)
    until = ["never", "", ""]
    if reached is not None:
        until = [f"{lines[reached - 1]['clock']['now']:.1f}", f"{reached}", f"{sent(lines[:reached]):.0f}"]
    density = f"{lines[-1].get('density', 1.0):.2f}"
    return [*until, f"{accuracy(lines[-1]):.3f}", f"{lines[-1]['clock']['now']:.1f}", f"{sent(lines):.0f}", density]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--devices", nargs="+", default=["phones", "edge-boxes"], help="fleets, or files of devices")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked = parser.parse_args()
    seeds, rounds = ([0], 15) if asked.quick else (asked.seeds, ROUNDS)
    print(f"| devices, seed, target | | seconds | rounds | MB | accuracy after {rounds} | seconds | MB | entries left |")
    print("|---" * 9 + "|")
    with tempfile.TemporaryDirectory() as folder:
        model = scratch(Path(folder) / "scratch")
        entries = matrices(model)
        for devices in asked.devices:
            for seed in seeds:
                usual = played("fedavg", model, devices, seed, rounds)
                target = GOOD * (accuracy(usual[-1]) or 0.0)
                constants = own_time(devices, usual, entries)
                pruned = played("prunefl", model, devices, seed, rounds, initial=0, every=EVERY, **constants)
                told = f"{Path(devices).stem}, {seed}, {target:.3f}"
                for name, lines in (("fedavg", usual), ("prunefl", pruned)):
                    print(f"| {told} | {name} | {' | '.join(cells(lines, target))} |", flush=True)


def matrices(model: Path) -> int:
    """Entries that PruneFL may prune, as the server's masks would count them."""
    from safetensors.torch import load_file

    return sum(v.numel() for v in load_file(model / "model.safetensors").values() if v.dim() > 1)


if __name__ == "__main__":
    main()
