"""What attacks learn of runs, by method and mechanism, and what the mechanisms cost in accuracy.

    python benchmarks/leak.py [--methods fedit,ffa-lora,fedbf] [--model glyph-vit] [--data digits] [--clients 10] [--limit 400]
                              [--alpha 0.3] [--rounds 5] [--epochs 4] [--seeds 2] [--runs leak-runs] [--tables] [--quick]

Every cell is a run that keeps its updates, where its mechanism lets it, and is attacked by all that it allows: updates of the
first round, and the finished model. Where updates are summed up before anybody sees one, none is kept, and the table says so
instead of a number. Optimizer, rate and batch are the same for all, and tuned for none; noise is found for ε over the rounds.

A cell that is finished is never played again, and one that was attacked is not attacked again. ``--tables`` prints what there is.
The tables of attacks are those of ``weft report``, given the folders of the cells.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from _cells import Cells, spread
from weft.audits import attacks
from weft.methods import registry
from weft.playing.run import Run, load_run
from weft.report.page.learnt import learnt
from weft.report.page.shown import shown

METHODS = ("fedit", "ffa-lora", "fedbf")
SAME: dict[str, Any] = {"rank": 8, "alpha": 16.0, "sites": "q,v"}
"""Of each method those that it has."""
STEPS: dict[str, Any] = {"optim.kind": "adamw", "optim.lr": 5e-3, "optim.schedule": "constant", "optim.warmup": 0.0, "batch": 8}
MECHANISMS: dict[str, dict[str, Any]] = {
    "none": {},
    "dp-sgd-e8": {"privacy": "dp-sgd:accountant=rdp", "epsilon": 8.0},
    "dp-sgd-e1": {"privacy": "dp-sgd:accountant=rdp", "epsilon": 1.0},
    "ldp-e8": {"privacy": "ldp", "epsilon": 8.0},
    "dp-fedavg-e8": {"privacy": "dp-fedavg:accountant=rdp", "epsilon": 8.0},
    "secagg": {"privacy": "secagg"},
}


def parameters(slug: str, epochs: float) -> dict[str, Any]:
    """The same for all, as far as a method has it."""
    fields = set(registry.load(slug).__dataclass_fields__)
    return {n: v for n, v in SAME.items() if n in fields} | STEPS | {"epochs": epochs}


def play(cells: Cells, args: argparse.Namespace, slug: str, mechanism: str, seed: int) -> Run | None:
    """A run that is finished and attacked; None if it is not there and nothing is to be played."""
    chain = MECHANISMS[mechanism]
    settings: dict[str, Any] = {
        "model": args.model, "data": args.data, "clients": args.clients, "limit": args.limit, "partition": "dirichlet",
        "alpha": args.alpha, "min_rows": 12, "rounds": args.rounds, "eval_every": 0, "seed": seed, "recipes": False,
        "device": "cpu", "precision": "float32", "start_head": "random", "keep_updates": mechanism != "secagg",
    }  # fmt: skip
    sizes = f"{args.model}-{Path(args.data).stem}-{args.clients}x{args.rounds}-n{args.limit}-a{args.alpha:g}-e{args.epochs:g}"
    place = Path(args.runs) / sizes / f"{slug}-{mechanism}-s{seed}"
    if cells.play(place, slug, parameters=parameters(slug, args.epochs), **settings, **chain) is None:
        return None
    run = load_run(place)
    if cells.run and not run.attacks():
        found = attacks.audit(place)
        cells.say(f"{place.name}: " + ", ".join(f"{o.attack} {o.score:.3f} ({o.chance:.3f})" for o in found.outcomes))
    return run


def tell(runs: dict[tuple[str, str, int], Run]) -> None:
    """A table in Markdown of each attack, and one of accuracies.

    Args:
        runs: by method, mechanism and seed.
    """
    found = learnt(shown(list(runs.values())))
    print("", *found.key, sep="\n")
    for table in found.tables:
        print(f"\n{table.title}\n\n{table.markdown()}")
    heads = list(dict.fromkeys(mechanism for _, mechanism, _ in runs))
    print(f"\nAccuracy, %\n\n| method | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    for slug in dict.fromkeys(method for method, _, _ in runs):
        row = [[r.metrics["accuracy"] for at, r in runs.items() if at[:2] == (slug, head)] for head in heads]
        print(f"| {slug} | " + " | ".join(spread(some) if some else "" for some in row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--mechanisms", type=lambda text: text.split(","), default=list(MECHANISMS))
    parser.add_argument("--model", default="glyph-vit")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", default="leak-runs")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--quick", action="store_true", help="one round of one method, one seed")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seeds, args.methods = 1, 1, args.methods[:1]
    cells = Cells(run=not args.tables)
    order = [(slug, mechanism) for slug in args.methods for mechanism in args.mechanisms]
    played = {(*one, seed): play(cells, args, *one, seed) for seed in range(args.seeds) for one in order}
    if found := {at: run for at, run in played.items() if run is not None}:
        tell(found)


if __name__ == "__main__":
    main()
