"""Every federated LoRA method beside the others, on real texts: accuracy, bytes, seconds and aggregation error.

    python benchmarks/lora_family.py --data FOLDER [--runs lora-family] [--methods …] [--regimes short,long] [--tables] [--quick]

The folder holds a folder for each set, with ``train.jsonl.gz`` of texts and labels. Sets are named ``NAME:ALPHA``, dealt out to
10 clients by labels (Dirichlet), or ``NAME:COLUMN``, a client for each value of that column. A share of each client's rows is its
test; all of these together are the global test.

Methods are those of the family ``reparameterized`` that train a LoRA, whatever there is of them; fedit gives the baselines: a
model for each client alone (local), all rows in one place (central), the head alone (probe). Rank, α, layers and the optimizer
are the same for all, everything else is a method's own. Two regimes, since they turn the order of some methods round:

- short: many rounds of 2 steps of plain SGD;
- long: few rounds of 10 steps of AdamW.

Half of the clients take part in a round. Rates are those at which fedit did best on one seed of 20 Newsgroups at α 0.1, of 0.1
and 0.3 for SGD and of 1e-3 and 3e-3 for AdamW; all methods have them, and none was tuned. Every cell is a run in a folder under
``--runs``. One that is finished is never run again, and one that was interrupted goes on, so that the same command finishes what
was stopped. ``--tables`` prints what there is.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from _cells import Cells, spread, value
from weft.errors import UserError
from weft.federation.info import common
from weft.methods import registry

BASELINES = ("local", "central", "probe")
SAME: dict[str, Any] = {
    "rank": 8, "alpha": 16.0, "scale": 2.0, "sites": "q,v", "mix": "none",
    "tune.kind": "lora", "tune.rank": 8, "tune.alpha": 16.0, "tune.at": "q,v",
}  # fmt: skip
"""Of each method those that it has."""
STEPS: dict[str, Any] = {
    "optim.clip": 1.0, "optim.weight_decay": 0.0, "optim.momentum": 0.0, "optim.schedule": "linear", "optim.warmup": 0.0,
}  # fmt: skip
"""Of all, so that they differ in nothing but the method."""


@dataclass(frozen=True)
class Regime:
    rounds: int
    steps: int
    optim: dict[str, Any]


REGIMES = {
    "short": Regime(12, 2, {"optim.kind": "sgd", "optim.lr": 0.1}),
    "long": Regime(4, 10, {"optim.kind": "adamw", "optim.lr": 1e-3}),
}


def methods() -> list[str]:
    """Those that train a LoRA; which, a method's settings say: its rank, that of its first block, or what is tuned."""
    family = [slug for slug, info in registry.infos().items() if info.family == "reparameterized" and "images" not in info.needs]
    return [slug for slug in family if {"rank", "first", "tune"} & set(registry.load(slug).__dataclass_fields__)]


def parameters(slug: str, regime: Regime, batch: int) -> dict[str, Any]:
    """The same for all, as far as a method has it."""
    fields = set(registry.load(slug).__dataclass_fields__)
    own = {n: v for n, v in SAME.items() if n.partition(".")[0] in fields}
    return own | STEPS | {"steps": regime.steps, "batch": batch} | regime.optim


class Table:
    """The cells of a set and a regime."""

    def __init__(self, args: argparse.Namespace, cells: Cells, of: str, regime: str) -> None:
        self.args, self.cells, self.of, self.regime = args, cells, of, regime

    def fill(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Row -> seed -> summary."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for seed in range(self.args.seeds):
            for row in [*BASELINES, *self.args.methods]:
                done = self.cell(row, seed)
                if done is not None:
                    found.setdefault(row, {})[seed] = done
        return found

    def cell(self, row: str, seed: int) -> dict[str, Any] | None:
        args, regime = self.args, REGIMES[self.regime]
        name, _, deal = self.of.partition(":")
        slug = "fedit" if row in BASELINES else row
        by_labels = deal.replace(".", "", 1).isdigit()
        dealt = {"partition": "dirichlet", "alpha": float(deal), "clients": 10} if by_labels else {
            "partition": "natural", "key": deal, "clients": args.clients,
        }  # fmt: skip
        settings: dict[str, Any] = dealt | {
            "model": args.model, "limit": args.limit, "max_length": args.max_length, "participation": 0.5, "recipes": False,
            "rounds": 1 if args.quick else regime.rounds, "start_head": "probe", "eval_every": 0, "val_fraction": 0.0,
        }  # fmt: skip
        if row in BASELINES:
            settings |= {"baseline": row}
        if row == "probe":
            settings.pop("start_head")
        given = parameters(slug, regime, args.batch)
        sizes = f"{args.model}-{args.limit}x{args.max_length}-b{args.batch}"
        folder = Path(args.runs) / sizes / f"{name}-{deal}-{self.regime}"
        place = folder / f"{row}-r{settings['rounds']}-{regime.steps}x{given['optim.lr']:g}-s{seed}"
        data = Path(args.data) / name / "train.jsonl.gz"
        try:
            return self.cells.play(place, slug, data=str(data), seed=seed, parameters=given, **settings)
        except UserError as e:
            self.cells.say(f"{row} does not run: {e}")
            return None


def tell(of: str, regime: str, found: dict[str, dict[int, dict[str, Any]]]) -> None:
    """A table in Markdown; a line for what was measured."""
    if not found:
        return
    how = REGIMES[regime]
    print(f"\n{of}, {regime}: {how.steps} steps of {how.optim['optim.kind']} at {how.optim['optim.lr']:g} a round\n")
    print(
        "| method | global accuracy | personal accuracy | seeds | up, kB a client | down, kB a client | s | aggregation error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row, seeds in found.items():
        some = list(seeds.values())
        whole, own = ([read(s) for s in some] for read in (global_accuracy, personal_accuracy))
        error = [s["aggregation_error"]["mean"] for s in some if s.get("aggregation_error")]
        cells = [
            row,
            *("" if any(v != v for v in values) else spread(values) for values in (whole, own)),
            str(len(some)),
            *(f"{mean(bytes_of(s, way) for s in some) / 1e3:.1f}" if bytes_of(some[0], way) else "" for way in ("up", "down")),
            f"{mean(s['seconds']['training'] for s in some):.1f}",
            f"{mean(error):.2g}" if error else "",
        ]
        print(f"| {' | '.join(cells)} |")


def views(summary: dict[str, Any], wanted: bool) -> list[str]:
    """Of the method's, those with one model for all, or those with one for each client."""
    return [v for v in summary["method"]["views"] if common(v) is wanted]


def global_accuracy(summary: dict[str, Any]) -> float:
    """Of the one model on all test rows; NaN if there is none."""
    pooling = "pooled over clients' models" if summary["settings"]["baseline"]["value"] == "local" else "pooled"
    return value(summary, next(iter(views(summary, True)), ""), "accuracy", pooling=pooling)


def personal_accuracy(summary: dict[str, Any]) -> float:
    """Of each client's own model on its own test rows, in the mean over clients; of the one model, if clients have none."""
    view = next(iter(views(summary, False) or views(summary, True)))
    return value(summary, view, "accuracy", "own test", "mean over clients")


def bytes_of(summary: dict[str, Any], way: str) -> float:
    """Of a client that takes part in a round, with headers."""
    sent = summary["bytes"].get("train", {}).get(way)
    return sent["wire"] / sent["messages"] if sent and sent["messages"] else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with a folder for each set")
    parser.add_argument("--runs", default="lora-family", help="folder for the runs")
    parser.add_argument("--sets", default="newsgroups20:0.5,newsgroups20:0.1,fdu_mtl:domain", help="NAME:ALPHA, or NAME:COLUMN")
    parser.add_argument("--clients", type=int, default=16, help="of a set that is dealt out by a column")
    parser.add_argument("--regimes", default=",".join(REGIMES))
    parser.add_argument("--methods", default="", help="some of them; all, if left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--limit", type=int, default=2000, help="rows of a set")
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tables", action="store_true", help="run nothing, and print tables of what is finished")
    parser.add_argument("--quick", action="store_true", help="one round of few rows, one seed")
    args = parser.parse_args()
    args.methods = args.methods.split(",") if args.methods else methods()
    if args.data is None:
        print("no --data FOLDER with folders of texts: nothing to measure")
        return
    if args.quick:
        args.seeds, args.limit, args.max_length, args.batch = 1, 200, 16, 8
    cells = Cells(run=not args.tables)
    for of in args.sets.split(","):
        for regime in args.regimes.split(","):
            tell(of, regime, Table(args, cells, of, regime).fill())


if __name__ == "__main__":
    main()
