"""Seconds of FedAdapter's own cost model until a model is good: adapters that grow, against adapters that are all there at once.

    python benchmarks/fedadapter_time.py --data FOLDER           # one seed, a quarter of an hour on one core
    python benchmarks/fedadapter_time.py --data FOLDER --quick   # a few rounds, to see that it runs; its numbers mean nothing

The data have the columns text and label_name; the server's rows are others of the same. The rivals are federated averaging of the
head alone, and of stacks of two shapes, with the optimizer and the clients of a round of the three groups together.
Each is played until its seconds are up. How good is good is said by the best accuracy that the stacks in all blocks have had by
then: shares of it, on the common test rows. Seconds are those of BERT on a Jetson TX2, reckoned and not measured.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")

import weft
from weft.runs.checkpoint import Checkpoint

CLIENTS, ROWS, OWN = 12, 480, 200
"""OWN: rows of the server."""
PER_GROUP, BATCH, BLOCKS = 2, 8, 6
SHARES = (0.8, 0.9, 0.95)
COMMON: dict[str, Any] = {"batch": BATCH, "optim.kind": "adamw", "optim.lr": 2e-3, "optim.clip": 1.0}
GROWING: dict[str, Any] = {"trial": 3.0, "per_group": PER_GROUP, "score_every": 5}
RIVALS: dict[str, dict[str, Any]] = {
    "fedadapter": GROWING,
    "head alone": {"depth": 0, "deeper": 0, "wider": 0},
    "two blocks, width 16": {"depth": 2, "width": 16, "deeper": 0, "wider": 0},
    "all blocks, width 64": {"depth": BLOCKS, "width": 64, "deeper": 0, "wider": 0},
}


class Enough(weft.Observer):
    """Stops a run once the seconds of its own schedule are up."""

    def __init__(self, folder: Path, seconds: float):
        super().__init__()
        self.folder, self.seconds = folder, seconds

    def round_done(self, line: dict[str, Any]) -> bool:
        return schedule(self.folder)[-1][2] >= self.seconds if (self.folder / "checkpoint").exists() else False


def schedule(folder: Path) -> list[list[Any]]:
    """(depth, width, seconds) of what the server held after each round."""
    saved = Checkpoint(folder / "checkpoint").load()
    assert saved is not None
    found: list[list[Any]] = saved.servers[0][1]["memo"]["schedule"]
    return found


def played(name: str, data: str, seed: int, seconds: float, runs: Path) -> list[tuple[list[Any], float | None, float]]:
    """Of each round what was held, its accuracy where it was scored, and the megabytes both ways so far."""
    own = RIVALS[name]
    called = f"{name.replace(' ', '-').replace(',', '')}-s{seed}"
    run = weft.run(
        "fedadapter",
        parameters=COMMON | own,
        model="minilm",
        data=data,
        text="text",
        label="label_name",
        limit=ROWS,
        max_length=32,
        clients=CLIENTS,
        participation=3 * PER_GROUP / CLIENTS,
        partition="iid",
        start_head="random",
        public=data if name == "fedadapter" else None,
        public_rows=OWN if name == "fedadapter" else None,
        seed=seed,
        rounds=400,
        eval_every=1 if name == "all blocks, width 64" else 4,
        baselines=[],
        report=False,
        observer=Enough(runs / called, seconds),
        runs=runs,
        name=called,
    )
    sent, found = 0.0, []
    for line, held in zip(run.rounds, schedule(runs / called), strict=False):
        sent += sum(way["wire"] for phase in line["bytes"].values() for way in phase.values()) / 1e6
        found.append((held, accuracy(line), sent))
    return found


def accuracy(line: dict[str, Any]) -> float | None:
    for one in line.get("evaluations", []):
        if (one["people"], one["metric"], one["pooling"]) == ("global test", "accuracy", "pooled"):
            return float(one["value"])
    return None


def cells(lines: list[tuple[list[Any], float | None, float]], targets: list[float]) -> list[str]:
    found = []
    for target in targets:
        at = next((f"{held[2]:.0f} ({sent:.0f} MB)" for held, value, sent in lines if (value or 0.0) >= target), "never")
        found.append(at)
    scores = [value for _, value, _ in lines if value is not None]
    depth, width, seconds = lines[-1][0]
    return [*found, f"{max(scores):.3f}", f"{len(lines)}", f"{seconds:.0f}", f"{depth}, {width}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=100.0, help="of the cost model, that each is played for")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    print("| seed, good | | " + " | ".join(f"seconds to {share:.0%}" for share in SHARES) + " | best | rounds | seconds | δ, ω |")
    print("|---" * (6 + len(SHARES)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for seed in asked.seeds:
            seconds = 8.0 if asked.quick else asked.seconds
            lines = {name: played(name, asked.data, seed, seconds, Path(folder)) for name in reversed(RIVALS)}
            good = max(value for _, value, _ in lines["all blocks, width 64"] if value is not None)
            for name in RIVALS:
                row = cells(lines[name], [share * good for share in SHARES])
                print(f"| {seed}, {good:.3f} | {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
