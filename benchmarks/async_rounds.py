"""Time on simulated phones until a model is good: rounds that wait for their slowest client, FedBuff and FedAsync, as one table.

    python benchmarks/async_rounds.py           # three seeds, some minutes
    python benchmarks/async_rounds.py --quick   # one seed and few turns, to see that it runs; its numbers mean nothing

The same clients, rows and devices each time: digits on a small picture encoder, unlike clients, the fleet ``phones``. Eight
of 24 are at work at any moment, and there are as many turns of clients altogether: 8 a round, 4 an update of FedBuff's, 1 of
FedAsync's. Times are of the simulated clock, and the same on any machine up to rounding of the training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

import weft

CLIENTS, AT_WORK, TURNS = 24, 8, 240
RATE = 0.005
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "synchronous": (AT_WORK, {"participation": AT_WORK / CLIENTS}),
    "FedBuff, K = 4": (4, {"aggregation": "fedbuff", "buffer": 4, "concurrency": AT_WORK}),
    "FedAsync, α = 0.6": (1, {"aggregation": "fedasync", "concurrency": AT_WORK}),
}
"""Turns of an update of the server's, and settings."""


def played(way: str, seed: int, turns: int, runs: str, skew: float) -> list[dict[str, Any]]:
    """The rounds of one run, scored after every eight turns."""
    each, settings = WAYS[way]
    run = weft.run(
        "fedit",
        parameters={"optim.lr": RATE},
        model="glyph-vit",
        data="digits",
        clients=CLIENTS,
        partition="dirichlet",
        alpha=skew,
        devices="phones",
        seed=seed,
        rounds=turns // each,
        eval_every=AT_WORK // each,
        baselines=[],
        report=False,
        observer=weft.Observer(),
        runs=runs,
        **settings,
    )
    return run.rounds


def accuracy(line: dict[str, Any]) -> float | None:
    for one in line.get("evaluations", []):
        if (one["people"], one["metric"], one["pooling"]) == ("global test", "accuracy", "pooled"):
            return float(one["value"])
    return None


def until(lines: list[dict[str, Any]], target: float) -> tuple[float, int, float] | None:
    """Seconds, turns and bytes until a score is first reached; None if it never is."""
    turns, sent = 0, 0.0
    for line in lines:
        turns += len(line["cohort"])
        sent += sum(way["wire"] for way in line["bytes"]["train"].values())
        if (found := accuracy(line)) is not None and found >= target:
            return line["clock"]["now"], turns, sent
    return None


def told(values: list[float], digits: int = 0) -> str:
    """The median, and the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.85])
    parser.add_argument("--skew", type=float, default=0.3, help="α of the Dirichlet deal")
    asked = parser.parse_args()
    seeds, turns = ([0], 16) if asked.quick else ([0, 1, 2], TURNS)
    heads = [f"{target:g}: {what}" for target in asked.targets for what in ("seconds", "turns", "MB")]
    print("| | " + " | ".join([*heads, f"accuracy after {turns} turns", "seconds for them", "staleness: mean, most"]) + " |")
    print("|---" * (len(heads) + 4) + "|")
    with tempfile.TemporaryDirectory() as runs:
        for way in WAYS:
            each = [played(way, seed, turns, runs, asked.skew) for seed in seeds]
            cells = []
            for target in asked.targets:
                found = [until(lines, target) for lines in each]
                reached = [one for one in found if one is not None]
                if len(reached) < len(found):
                    cells += [f"{len(reached)} of {len(found)} reach it", "", ""]
                else:
                    seconds, used, sent = (list(map(float, some)) for some in zip(*reached, strict=True))
                    cells += [told(seconds, 1), told(used), told([b / 1e6 for b in sent])]
            cells.append(told([accuracy(lines[-1]) or 0.0 for lines in each], 3))
            cells.append(told([lines[-1]["clock"]["now"] for lines in each], 1))
            late = [s for lines in each for line in lines for s in line.get("staleness", {}).values()]
            cells.append(f"{statistics.mean(late):.1f}, {max(late)}" if late else "")
            print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
