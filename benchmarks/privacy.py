"""What noise on rows costs methods that train other things, each at its own best rate, and what makes LoRA train under it.

    python benchmarks/privacy.py [--model glyph-clip] [--data digits] [--clients 4] [--rounds 20] [--batch 32] [--seeds 3]
                                 [--runs privacy-runs] [--methods fedit,…] [--epsilons 1,3,8,inf] [--rates 0.5,1.5,4.5]
                                 [--at 1] [--tables] [--page docs/privacy.md] [--quick]

Every client takes a step of SGD a round under ``dp-sgd``, all with the same clip; noise is found for each ε over the planned
rounds, by Rényi divergences. inf is the same without noise. Three questions, each a table:

- Accuracy and points lost of every method at every ε.
- Both factors (fedit) against one (ffa-lora) at the same rate, whatever it is: validation accuracy.
- What makes LoRA train at one ε (``--at``): rank, batch and steps of both factors, and of one.

In the first and the last each method has, for each ε and size, the rate that validation rows like best under two seeds of which
nothing else is told (``TUNING``): ``--rates``, and up to three more where the best is at an edge. What is more than 15 points
behind under the first seed is not tried with the second. A rate that is still at an edge has a star. Accuracy is that of a
method's headline: on the common test rows of one model for all, on clients' own of personal ones.
The digits are no secret: noise is as much as ε takes, but made of the seed, so that a table can be repeated.

fedprompt needs a masked language model that fills in the class. On a CLIP, promptfl stands for it: soft words, averaged.

Every cell is a run in a folder under ``--runs``. One that is finished is never run again, and one that was interrupted goes on.
``--tables`` prints what there is; ``--page`` writes it between the marks of a page, too.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from safetensors.torch import load_file

from _cells import Cells, spread, value
from _rates import Choice, choose
from weft.methods import registry

METHODS = ("fedit", "ffa-lora", "fedsa-lora", "fedbf", "promptfl")
BOTH, ONE = "fedit", "ffa-lora"
SAME: dict[str, Any] = {"alpha_over_rank": 2.0, "sites": "q,v", "tokens": 4}
"""Of each method those that it has."""
STEPS: dict[str, Any] = {
    "steps": 1, "optim.kind": "sgd", "optim.clip": "none", "optim.weight_decay": 0.0, "optim.momentum": 0.0,
    "optim.schedule": "constant", "optim.warmup": 0.0,
}  # fmt: skip
TUNING = (100, 101)
"""Seeds by which rates are chosen; those that are told begin at 0."""
MARKS = "<!-- noise on rows: written by benchmarks/privacy.py -->", "<!-- end of noise on rows -->"


@dataclass(frozen=True)
class Size:
    """What is varied around the usual: rounds of a step each, expected rows of a batch, rank of LoRA."""

    rounds: int
    batch: int
    rank: int


@dataclass(frozen=True)
class Cell:
    slug: str
    epsilon: float
    size: Size


@dataclass(frozen=True)
class Found:
    """
    Attributes:
        choice: of the rate. done: summaries of the seeds that are there, in their order.
    """

    choice: Choice
    done: list[dict[str, Any]]

    @property
    def scores(self) -> list[float]:
        return [headline(s) for s in self.done]

    @property
    def told(self) -> str:
        """Accuracy and rate."""
        return f"{spread(self.scores)} ({self.choice.rate:.3g}{'*' if self.choice.edge else ''})" if self.done else ""


def parameters(slug: str, size: Size, rate: float) -> dict[str, Any]:
    """The same for all, as far as a method has it."""
    fields = set(registry.load(slug).__dataclass_fields__)
    wanted = {"rank": size.rank, "alpha": SAME["alpha_over_rank"] * size.rank} | SAME
    return {n: v for n, v in wanted.items() if n in fields} | STEPS | {"batch": size.batch, "optim.lr": rate}


def headline(summary: dict[str, Any]) -> float:
    return float(summary["headline"]["value"])


def validation(summary: dict[str, Any]) -> float:
    return value(summary, summary["headline"]["view"], "accuracy", "validation")


class Study:
    """The runs of the tables."""

    def __init__(self, args: argparse.Namespace, cells: Cells) -> None:
        self.args, self.cells = args, cells
        self.usual = Size(args.rounds, args.batch, args.rank)

    def place(self, cell: Cell, rate: float, seed: int) -> Path:
        args, size = self.args, cell.size
        common = f"{args.model}-{Path(args.data).stem}-{args.clients}-c{args.clip:g}-d{args.delta:g}"
        sizes = f"{size.rounds}x{size.batch}-r{size.rank}"
        return Path(args.runs) / common / sizes / f"{cell.slug}-e{cell.epsilon:g}-lr{rate:g}-s{seed}"

    def play(self, cell: Cell, rate: float, seed: int) -> dict[str, Any] | None:
        args = self.args
        settings: dict[str, Any] = {
            "model": args.model, "data": args.data, "clients": args.clients, "partition": "iid", "rounds": cell.size.rounds,
            "eval_every": 0, "seed": seed, "recipes": False, "device": "cpu", "precision": "float32", "insecure_noise": True,
        }  # fmt: skip
        chain = f"dp-sgd:clip={args.clip:g},accountant=rdp"
        if math.isfinite(cell.epsilon):
            settings |= {"privacy": chain, "epsilon": cell.epsilon, "delta": args.delta}
        else:
            settings |= {"privacy": f"{chain},noise=0"}
        given = parameters(cell.slug, cell.size, rate)
        return self.cells.play(self.place(cell, rate, seed), cell.slug, parameters=given, **settings)

    def tuned(self, cell: Cell) -> Choice | None:
        """By validation rows of seeds of their own; test rows have no say in it."""

        def score(rate: float, seed: int) -> float | None:
            done = self.play(cell, rate, seed)
            return None if done is None else validation(done)

        return choose(score, self.args.rates, TUNING, most=self.args.beyond)

    def seeds(self, cell: Cell, rate: float) -> list[dict[str, Any]]:
        """Summaries of the seeds that are there, up to the first that is not."""
        found = []
        for seed in range(self.args.seeds):
            done = self.play(cell, rate, seed)
            if done is None:
                break
            found.append(done)
        return found

    def fill(self, cells: Sequence[Cell]) -> dict[Cell, Found]:
        """Those of which the rate is known."""
        found = {}
        for cell in cells:
            choice = self.tuned(cell)
            if choice is not None:
                found[cell] = Found(choice, self.seeds(cell, choice.rate))
        return found

    def stretch(self, cell: Cell, rate: float) -> float:
        """How large the factors A have become: their root mean square in that of their start, which is uniform within
        1/√d_in; in the mean over seeds and sites. √(s² - 1) is how large a change of A stands beside its start, and so the
        product of the noise in both factors beside that of the noise in B and the start of A."""
        sizes = []
        for seed in range(self.args.seeds):
            tensors = load_file(self.place(cell, rate, seed) / "adapter" / "adapter_model.safetensors")
            factors = [v.double() for n, v in tensors.items() if n.endswith("lora_A.weight")]
            sizes += [math.sqrt(3 * v.shape[1] * float(v.square().mean())) for v in factors]
        return mean(sizes)


# tables -------------------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in line) + "|" for line in lines)


def gap(first: Found | None, second: Found | None) -> str:
    """Points of the first against the second, seed by seed."""
    pairs = [(a, b) for a, b in zip(first.scores, second.scores, strict=False)] if first and second else []
    return spread([a - b for a, b in pairs], sign=True) if pairs else ""


def by_epsilon(study: Study) -> list[str]:
    """Accuracies with their rates, and what is lost against the same seed without noise."""
    args = study.args
    found = study.fill([Cell(slug, e, study.usual) for e in args.epsilons for slug in args.methods])

    def at(slug: str, epsilon: float) -> Found | None:
        return found.get(Cell(slug, epsilon, study.usual))

    heads = [told(e) for e in args.epsilons]
    finite = [e for e in args.epsilons if math.isfinite(e)]
    rows = [[slug, *(one.told if (one := at(slug, e)) else "" for e in args.epsilons)] for slug in args.methods]
    lost = [[slug, *(gap(at(slug, e), at(slug, math.inf)) for e in finite)] for slug in args.methods]
    return [
        table(["accuracy, % (rate)", *heads], rows),
        table(["points against no noise", *(told(e) for e in finite)], lost),
    ]


def by_size(study: Study) -> str:
    """At one ε: rank, batch and steps of both factors and of one."""
    usual, epsilon = study.usual, study.args.at
    sizes = {
        f"{usual.rounds} steps, batch {usual.batch}, rank {usual.rank}": usual,
        f"rank {usual.rank // 2}": replace(usual, rank=usual.rank // 2),
        f"rank {usual.rank * 2}": replace(usual, rank=usual.rank * 2),
        f"batch {usual.batch // 4}": replace(usual, batch=usual.batch // 4),
        f"batch {usual.batch // 4}, {usual.rounds * 4} steps": replace(usual, batch=usual.batch // 4, rounds=usual.rounds * 4),
        f"batch {usual.batch * 4}, {usual.rounds // 4} steps": replace(usual, batch=usual.batch * 4, rounds=usual.rounds // 4),
    }
    found = study.fill([Cell(slug, epsilon, size) for size in sizes.values() for slug in (BOTH, ONE)])
    rows = []
    for name, size in sizes.items():
        both, one = (found.get(Cell(slug, epsilon, size)) for slug in (BOTH, ONE))
        whole = both is not None and len(both.done) == study.args.seeds
        grown = f"{study.stretch(Cell(BOTH, epsilon, size), both.choice.rate):.1f}" if both is not None and whole else ""
        rows.append([name, *(f.told if f else "" for f in (both, one)), gap(one, both), grown])
    heads = [f"at {told(epsilon)}, % (rate)", f"both factors ({BOTH})", f"one ({ONE})", "one against both", f"A of {BOTH}"]
    return table(heads, rows)


def by_rate(study: Study) -> str:
    """Both factors and one of them at the same rate: validation accuracy of the seeds by which rates are chosen."""
    cells = [Cell(slug, e, study.usual) for slug in (BOTH, ONE) for e in study.args.epsilons]
    tried = {c: choice.tried for c in cells if (choice := study.tuned(c)) is not None}
    rates = sorted({rate for row in tried.values() for rate in row})
    rows = [[named(c), *(f"{100 * row[r]:.1f}" if r in row else "" for r in rates)] for c, row in tried.items()]
    return table(["validation, % at a rate of", *(f"{rate:.3g}" for rate in rates)], rows)


def named(cell: Cell) -> str:
    return f"{cell.slug}, {told(cell.epsilon)}"


def told(epsilon: float) -> str:
    return f"ε = {epsilon:g}" if math.isfinite(epsilon) else "no noise"


def written(page: str, text: str) -> str:
    """A page with this text between its marks.

    Raises:
        ValueError: the marks are missing, or there more than once.
    """
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="glyph-clip")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="privacy-runs")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--epsilons", type=lambda text: [float(e) for e in text.split(",")], default=[1.0, 3.0, 8.0, math.inf])
    parser.add_argument("--rates", type=lambda text: [float(r) for r in text.split(",")], default=[0.5, 1.5, 4.5])
    parser.add_argument("--beyond", type=int, default=3, help="rates that are tried beyond those, where the best is at an edge")
    parser.add_argument("--at", type=float, default=1.0, help="the ε at which sizes and rates are compared")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--page", type=Path, help="write the tables between the marks of this page, too")
    parser.add_argument("--quick", action="store_true", help="two rounds, one rate, one seed, two ε, the first table alone")
    return parser


def main() -> None:
    args = options().parse_args()
    if args.quick:
        args.rounds, args.rates, args.beyond, args.seeds, args.epsilons = 2, [1.0], 0, 1, [8.0, math.inf]
    study = Study(args, Cells(run=not args.tables))
    tables = by_epsilon(study)
    if not args.quick:
        tables += [by_rate(study), by_size(study)]
    text = "\n\n".join(tables)
    print(f"\n{text}")
    if args.page is not None:
        args.page.write_text(written(args.page.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
