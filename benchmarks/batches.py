"""What it does to a run that rows of like length share a batch: accuracy with ``by_length`` on and off.

    python benchmarks/batches.py [--method fedit] [--seeds 3] [--rounds 4] [--limit 2000] [--quick]

minilm on pydocs with the recipe; the data are dealt once, and a seed draws start values and batches. Both runs of a seed start
from the same head. It also prints how often two rows of one batch share a batch again in the next epoch, and how much of a
padded batch is padding, for clients of ``--rows`` rows whose lengths are drawn from those of the data.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from weft.engines.observer import Observer
from weft.experiment import Resolved, resolve
from weft.federation import plans
from weft.playing.execute import play
from weft.runs.directory import RunDirectory
from weft.runs.prepare import Material, prepare
from weft.runs.result import scores


def pairs(batches: list[np.ndarray]) -> set[tuple[int, int]]:
    """All pairs of rows that share a batch."""
    return {(int(a), int(b)) for batch in batches for a in batch for b in batch if a < b}


def grouping(lengths: np.ndarray, rows: int, size: int, by_length: bool, draws: int = 10) -> tuple[float, float]:
    """Chance that two rows of a batch meet again in the next epoch; share of padding in the batches."""
    again, padding = [], []
    for seed in range(draws):
        own = np.random.default_rng(seed).choice(lengths, rows)
        first, second = (plans.epoch_batches(own, size, seed, "c", epoch, by_length=by_length) for epoch in (0, 1))
        before = pairs(first)
        again.append(len(before & pairs(second)) / len(before))
        padding.append(1 - own.sum() / sum(int(own[b].max()) * len(b) for b in first))
    return mean(again), mean(padding)


def accuracy(resolved: Resolved, material: Material, seed: int, by_length: bool) -> float:
    """Of the common model after the last round."""
    x = resolved.experiment.model_copy(update={"seed": seed, "by_length": by_length})
    with tempfile.TemporaryDirectory() as folder:
        mine = replace(material, bench=replace(material.bench, seed=seed, by_length=by_length))
        played, _ = play(RunDirectory(Path(folder)), x, resolved.method, mine, Observer())
    return float(scores(played.lines)["metrics"]["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="fedit")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--limit", type=int, default=2000, help="rows of the data")
    parser.add_argument("--rows", type=int, default=250, help="of a client, for the chance to meet again")
    parser.add_argument("--quick", action="store_true", help="one seed, one round, 200 rows")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.rounds, args.limit = 1, 1, 200
    resolved = resolve({"method": args.method, "rounds": args.rounds, "limit": args.limit, "eval_every": 0, "baselines": []})
    material = prepare(resolved.experiment, None, Observer(), resolved.method.info.needs)
    for by_length in (True, False):
        again, padding = grouping(material.bench.table.lengths, args.rows, resolved.method.batch, by_length)
        print(f"by_length={by_length}: two rows of a batch meet again with probability {again:.2f}; {padding:.0%} padding")
    print("\n| seed | by length | at random |\n|---|---|---|", flush=True)
    gaps = []
    for seed in range(args.seeds):
        sorted_, random = (accuracy(resolved, material, seed, by_length) for by_length in (True, False))
        gaps.append(sorted_ - random)
        print(f"| {seed} | {sorted_:.3f} | {random:.3f} |", flush=True)
    spread = f" (standard deviation {stdev(gaps):.3f})" if len(gaps) > 1 else ""
    print(f"\nby length - at random: {mean(gaps):+.3f}{spread}, {material.data['rows']['test']} test rows")


if __name__ == "__main__":
    main()
