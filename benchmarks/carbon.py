"""What carbon-aware cohorts save, and what they cost in accuracy, against random ones of the same number and size.

    python benchmarks/carbon.py [--data digits] [--model glyph-vit] [--seeds 3] [--rounds 48] [--quick]

24 clients with labels by Dirichlet(0.3), six to a round, on one kind of phone, half of them on each of the two stylised grids
that come with Weft. A round takes half an hour on the clock (nearly all of it latency, as phones answer when they like), so
that 48 rounds are a day. The data are dealt once; a seed draws start values, batches and cohorts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from weft.engines.observer import Observer
from weft.experiment import Resolved, resolve
from weft.playing.execute import play
from weft.runs.directory import RunDirectory
from weft.runs.prepare import Material, prepare
from weft.runs.result import scores

PHONE = "[phone]\nspeed = 1\nmemory = 8\nbandwidth = 11\ndownlink = 55\nlatency = 1800\nwatts = 4\njoules_per_byte = 2e-6\n"
POLICIES: dict[str, dict[str, Any]] = {
    "random": {"cohorts": "random"},
    "carbon, fairness 0.8": {"cohorts": "carbon", "carbon_fairness": 0.8},
    "carbon, fairness 0.5": {"cohorts": "carbon", "carbon_fairness": 0.5},
    "carbon, fairness 0": {"cohorts": "carbon", "carbon_fairness": 0.0},
}


def played(resolved: Resolved, material: Material, seed: int, policy: dict[str, Any]) -> dict[str, float]:
    """Accuracy of the common model after the last round, grams, joules, and clients that ever took part."""
    x = resolved.experiment.model_copy(update={"seed": seed, **policy})
    with tempfile.TemporaryDirectory() as folder:
        mine = replace(material.fresh(), bench=replace(material.bench, seed=seed))
        run, _ = play(RunDirectory(Path(folder)), x, resolved.method, mine, Observer())
    found = scores(run.lines)
    clients = {c for line in run.lines for c in line["cohort"]}
    return {
        "accuracy": 100 * found["metrics"]["accuracy"],
        "grams": found["clock"]["grams"],
        "joules": found["clock"]["joules"],
        "clients": len(clients),
    }


def spread(values: list[float], form: str) -> str:
    """Mean ± sample standard deviation."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form.lstrip('+')}}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="glyph-vit")
    parser.add_argument("--method", default="fedit")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.rounds = 1, 2
    with tempfile.TemporaryDirectory() as folder:
        devices = Path(folder) / "phone.toml"
        devices.write_text(PHONE)
        settings = {
            "method": args.method,
            "data": args.data,
            "model": args.model,
            "rounds": args.rounds,
            "eval_every": 0,
            "clients": 24,
            "participation": 0.25,
            "partition": "dirichlet",
            "alpha": 0.3,
            "baselines": [],
            "devices": str(devices),
            "grids": "solar,coal-wind",
            "method.optim.lr": args.lr,
        }
        resolved = resolve(settings)
        material = prepare(resolved.experiment, None, Observer(), resolved.method.info.needs)
        table = {
            name: [played(resolved, material, seed, policy) for seed in range(args.seeds)] for name, policy in POLICIES.items()
        }
    print(f"\n{args.method} on {args.data}, {args.model}, {args.rounds} rounds, {args.seeds} seeds\n")
    print("| cohorts | accuracy, % | CO₂, mg | energy, J | clients drawn | CO₂ saved, % | accuracy lost, points |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in table.items():
        pairs = list(zip(runs, table["random"], strict=True))
        saved = [100 * (1 - mine["grams"] / other["grams"]) for mine, other in pairs]
        lost = [other["accuracy"] - mine["accuracy"] for mine, other in pairs]
        cells = (
            spread([run["accuracy"] for run in runs], ".1f"),
            spread([1000 * run["grams"] for run in runs], ".2f"),
            spread([run["joules"] for run in runs], ".1f"),
            spread([run["clients"] for run in runs], ".1f"),
            *(("", "") if name == "random" else (spread(saved, ".1f"), spread(lost, "+.1f"))),
        )
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
