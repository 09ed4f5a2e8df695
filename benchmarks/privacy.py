"""What noise on rows costs methods that train other things: accuracy at several ε, and what is lost against none.

    python benchmarks/privacy.py [--model glyph-clip] [--data digits] [--clients 4] [--rounds 20] [--seeds 3]
                                 [--runs privacy-runs] [--methods fedit,…] [--epsilons 1,3,8,inf] [--rates 0.5,1.5,4.5]
                                 [--tune-at 8] [--tables] [--quick]

Every client takes a step of SGD a round under ``dp-sgd``, all with the same clip; noise is found for each ε over the planned
rounds, by Rényi divergences. inf is the same without noise. The rate of each method at each ε is the one of ``--rates`` that
validation rows like best on the first seed; the same rates for all, and an edge is marked. Accuracy is that of a method's
headline: on the common test rows of one model for all, on clients' own test rows of personal ones.

fedprompt needs a masked language model that fills in the class. On a CLIP, promptfl stands for it: soft words, averaged.

Every cell is a run in a folder under ``--runs``. One that is finished is never run again, and one that was interrupted goes on.
``--tables`` prints what there is.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from _cells import Cells, spread, value
from weft.methods import registry

METHODS = ("fedit", "ffa-lora", "fedsa-lora", "fedbf", "promptfl")
SAME: dict[str, Any] = {"rank": 8, "alpha": 16.0, "sites": "q,v"}
"""Of each method those that it has."""
STEPS: dict[str, Any] = {
    "steps": 1, "optim.kind": "sgd", "optim.clip": "none", "optim.weight_decay": 0.0, "optim.momentum": 0.0,
    "optim.schedule": "constant", "optim.warmup": 0.0,
}  # fmt: skip

Accuracies = dict[str, dict[float, list[float]]]
"""Method -> ε -> one for each seed."""


def parameters(slug: str, batch: int, rate: float) -> dict[str, Any]:
    """The same for all, as far as a method has it."""
    fields = set(registry.load(slug).__dataclass_fields__)
    return {n: v for n, v in SAME.items() if n in fields} | STEPS | {"batch": batch, "optim.lr": rate}


class Study:
    """The runs of the table.

    Attributes:
        chosen: rate by method and ε.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.cells = args, Cells(run=not args.tables)
        self.chosen: dict[tuple[str, float], float] = {}

    def play(self, slug: str, epsilon: float, rate: float, seed: int) -> dict[str, Any] | None:
        args = self.args
        settings: dict[str, Any] = {
            "model": args.model, "data": args.data, "clients": args.clients, "partition": "iid", "rounds": args.rounds,
            "eval_every": 0, "seed": seed, "recipes": False, "device": "cpu", "precision": "float32",
        }  # fmt: skip
        chain = f"dp-sgd:clip={args.clip:g},accountant=rdp"
        if math.isfinite(epsilon):
            settings |= {"privacy": chain, "epsilon": epsilon, "delta": args.delta}
        else:
            settings |= {"privacy": f"{chain},noise=0"}
        sizes = f"{args.model}-{Path(args.data).stem}-{args.clients}x{args.rounds}-b{args.batch}-c{args.clip:g}-d{args.delta:g}"
        place = Path(args.runs) / sizes / f"{slug}-e{epsilon:g}-lr{rate:g}-s{seed}"
        return self.cells.play(place, slug, parameters=parameters(slug, args.batch, rate), **settings)

    def choose(self, slug: str, epsilon: float) -> float | None:
        """The rate that validation rows like best; test rows have no say in it."""
        tried = {rate: self.play(slug, epsilon, rate, 0) for rate in self.args.rates}
        scores = {rate: validation(s) for rate, s in tried.items() if s is not None}
        return max(scores, key=lambda rate: scores[rate]) if len(scores) == len(tried) else None

    def fill(self) -> Accuracies:
        """All methods of one seed come before the next, so that what was stopped is a table of fewer seeds."""
        args = self.args
        for slug in args.methods:
            for epsilon in args.epsilons:
                if (rate := self.choose(slug, epsilon if args.tune_at is None else args.tune_at)) is not None:
                    self.chosen[slug, epsilon] = rate
        found: Accuracies = {slug: {} for slug in args.methods}
        for seed in range(args.seeds):
            for (slug, epsilon), rate in self.chosen.items():
                done = self.play(slug, epsilon, rate, seed)
                if done is not None:
                    found[slug].setdefault(epsilon, []).append(float(done["headline"]["value"]))
        return found


def validation(summary: dict[str, Any]) -> float:
    return value(summary, summary["headline"]["view"], "accuracy", "validation")


def tell(study: Study, found: Accuracies) -> None:
    """Two tables in Markdown: accuracies with their rates, and what is lost against the same seed without noise."""
    args = study.args
    edges = {min(args.rates), max(args.rates)} if len(args.rates) > 1 else set()
    print("\nAccuracy, % (in brackets the rate; * = at an edge of those tried)\n")
    heads = [f"ε = {epsilon:g}" if math.isfinite(epsilon) else "no noise" for epsilon in args.epsilons]
    print(f"| method | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    for slug, row in found.items():
        rates = {e: f"{study.chosen[slug, e]:g}{'*' if study.chosen[slug, e] in edges else ''}" for e in row}
        print(f"| {slug} | " + " | ".join(f"{spread(row[e])} ({rates[e]})" if e in row else "" for e in args.epsilons) + " |")
    finite = [e for e in args.epsilons if math.isfinite(e)]
    whole = {slug: row[math.inf] for slug, row in found.items() if math.inf in row}
    print("\nPoints against the same seed without noise\n")
    print(f"| method | {' | '.join(f'ε = {e:g}' for e in finite)} |\n|---|{'---:|' * len(finite)}")
    for slug, best in whole.items():
        row = found[slug]
        gaps = {e: [a - b for a, b in zip(row[e], best, strict=False)] for e in finite if e in row}
        print(f"| {slug} | " + " | ".join(spread(gaps[e], sign=True) if e in gaps else "" for e in finite) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="glyph-clip")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="privacy-runs")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--epsilons", type=lambda text: [float(e) for e in text.split(",")], default=[1.0, 3.0, 8.0, math.inf])
    parser.add_argument("--rates", type=lambda text: [float(r) for r in text.split(",")], default=[0.5, 1.5, 4.5])
    parser.add_argument("--tune-at", type=float, help="the only ε at which rates are chosen, for all of them; default: at each")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--quick", action="store_true", help="two rounds, one rate, one seed, two ε")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.rates, args.seeds, args.epsilons = 2, [1.0], 1, [8.0, math.inf]
    study = Study(args)
    tell(study, study.fill())


if __name__ == "__main__":
    main()
