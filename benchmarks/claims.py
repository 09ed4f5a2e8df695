"""Whether claims of papers hold in Weft: on real texts, with minilm, 10 clients and a skewed deal (Dirichlet, α 0.1).

    python benchmarks/claims.py --data FOLDER [--runs claims] [--sets newsgroups20,ag_news] [--claims …] [--tables] [--quick]

The folder holds a folder for each set, with ``train.jsonl.gz`` and ``test.jsonl.gz`` of texts and labels. The claims:

- modules: adapters and prefixes lose much more than LoRA and biases do where clients differ (FedPETuning, ACL Findings 2023);
- depth: depthfl's ensemble of exits ≥ its best exit ≥ heterofl's model (DepthFL, ICLR 2023);
- bits: 4-bit uploads (QSGD) stay within half a point of exact ones, with less than a seventh of their bytes;
- rules: what SCAFFOLD and FedProx change against the plain mean of LoRA. Either sign is a result.

All train with AdamW, depthfl without FedDyn (its paper's "DepthFL (FedAvg)"). A pilot picks learning rates by the validation rows
of a deal of its own. It reads the training file of the first set alone, and no test row. Every cell is a run in a folder under
``--runs``. One that is finished is never run again, and one that was interrupted goes on, so that the same command finishes what
was stopped. ``--tables`` prints what there is.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from _cells import Cells, spread, value

PILOT_SEED = 100
KINDS = {"lora": "LoRA", "bias": "biases", "bottleneck": "adapters", "prefix": "prefixes"}


@dataclass(frozen=True)
class Cell:
    """A run. tuned: the name under which the pilot picks its rate. scratch: from a random head, and longer."""

    name: str
    method: str
    tuned: str
    parameters: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False


def adamw(*rates: float, **more: Any) -> list[dict[str, Any]]:
    return [{"optim.kind": "adamw", "optim.lr": rate} | more for rate in rates]


TUNE = {kind: Cell(f"fedpetuning-{kind}", "fedpetuning", kind, {"tune.kind": kind}) for kind in KINDS}
LORA = TUNE["lora"]
DEPTH, HETERO = (Cell(name, name, name, scratch=True) for name in ("depthfl", "heterofl"))
CANDIDATES: dict[str, tuple[Cell, list[dict[str, Any]]]] = {
    **{kind: (cell, adamw(3e-3, 1e-2)) for kind, cell in TUNE.items()},
    "depthfl": (DEPTH, adamw(3e-3, 1e-2, dyn=0.0)),
    "heterofl": (HETERO, adamw(3e-3, 1e-2)),
}
PROBE = Cell("probe", "fedit", "lora", settings={"baseline": "probe", "start_head": None})
CELLS: dict[str, list[Cell]] = {
    "modules": [PROBE, *TUNE.values()],
    "depth": [DEPTH, HETERO],
    "bits": [Cell("fedit", "fedit", "lora"), Cell("fedit-qsgd", "fedit", "lora", settings={"codec": "qsgd:levels=7"})],
    "rules": [
        LORA,
        Cell("lora-scaffold", "fedpetuning", "lora", LORA.parameters, {"rule": "scaffold"}),
        Cell("lora-prox", "fedpetuning", "lora", LORA.parameters | {"prox": 0.01}),
    ],
}
EVEN = [replace(c, name=f"{c.name}-iid", settings={"partition": "iid", "alpha": None}) for c in TUNE.values()]
SCRATCH = [replace(c, name=f"{c.name}-scratch", scratch=True) for c in TUNE.values()]


def label(picked: dict[str, Any]) -> str:
    """Of what a pilot may pick."""
    return f"adamw{picked['optim.lr']:g}"


class Desk:
    """Runs cells, or finds them finished, and keeps what they reached."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.data, self.runs = Path(args.data), Path(args.runs)
        self.cells = Cells(run=not args.tables)

    def play(self, name: str, data: Path, seed: int, cell: Cell, picked: dict[str, Any], **more: Any) -> dict[str, Any] | None:
        """The summary of a cell; None if it is not there and only tables are wanted.

        Folders are named after all that two measurings may do otherwise.
        """
        args = self.args
        rounds, head = (args.scratch_rounds, "random") if cell.scratch else (args.rounds, "probe")
        settings: dict[str, Any] = {
            "model": "minilm", "clients": 10, "partition": "dirichlet", "alpha": 0.1, "limit": args.limit, "recipes": False,
            "max_length": args.max_length, "rounds": rounds, "start_head": head, "eval_every": 0, "eval_clients": 1,
        } | cell.settings | more  # fmt: skip
        start = settings["start_head"] or "probe"
        settings = {n: v for n, v in settings.items() if v is not None}
        folder = self.runs / f"{args.limit}x{args.max_length}-b{args.batch}-{start}-r{settings['rounds']}"
        parameters = {"epochs": 1.0, "batch": args.batch} | cell.parameters | picked
        return self.cells.play(folder / name, cell.method, data=str(data), seed=seed, parameters=parameters, **settings)

    def pick(self) -> dict[str, dict[str, Any]]:
        """What the pilot picks, by name: best accuracy on validation rows, then lowest loss."""
        picked = {}
        args, first = self.args, self.args.sets.split(",")[0]
        if args.tables:
            print("\n| pilot | candidate | validation accuracy | loss | picked |\n|---|---|---|---|---|")
        needed = {cell.tuned for claim in args.claims.split(",") for cell in CELLS[claim]}
        for name, (cell, candidates) in CANDIDATES.items():
            if name not in needed:
                continue
            reached = []
            for candidate in candidates[:1] if args.quick else candidates:
                more = {"val_fraction": 0.3, "test_fraction": 0.02, "rounds": args.pilot_rounds}
                data = self.data / first / "train.jsonl.gz"
                done = self.play(f"pilot-{first}-{name}-{label(candidate)}", data, PILOT_SEED, cell, candidate, **more)
                if done is not None:
                    scores = (value(done, "global", "accuracy", "validation"), -value(done, "global", "loss", "validation"))
                    reached.append((scores, candidate))
            if reached:
                best = max(reached, key=lambda found: found[0])
                picked[name] = best[1]
                for (accuracy, loss), candidate in reached if args.tables else ():
                    best_one = "yes" if candidate is best[1] else ""
                    print(f"| {name} | {label(candidate)} | {accuracy:.3f} | {-loss:.3f} | {best_one} |")
        return picked

    def of_set(self, name: str, picked: dict[str, dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
        """Cell -> seed -> summary."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        claims = self.args.claims.split(",")
        cells = list(dict.fromkeys(cell.name for claim in claims for cell in CELLS[claim]))
        every = {cell.name: cell for claim in claims for cell in CELLS[claim]}
        once = [*EVEN, *SCRATCH] if "modules" in claims else []
        for seed, cell in [(s, every[c]) for s in range(self.args.seeds) for c in cells] + [(0, c) for c in once]:
            done = None
            if cell.tuned in picked:
                place = f"{name}-{cell.name}-{label(picked[cell.tuned])}-s{seed}"
                done = self.play(place, self.data / name, seed, cell, picked[cell.tuned])
            if done is not None:
                found.setdefault(cell.name, {})[seed] = done
        return found


Measured = dict[int, dict[str, Any]]
Reading = Callable[[dict[str, Any]], float]


def score(summary: dict[str, Any]) -> float:
    return value(summary, "global", "accuracy")


def exit_scores(summary: dict[str, Any]) -> list[float]:
    return [value(summary, f"global/exit {i + 1}", "accuracy") for i in range(4)]


def uplink(summary: dict[str, Any]) -> float:
    """Bytes of a client and round, without headers."""
    return float(summary["bytes"]["train"]["up"]["payload"]) / (10 * summary["rounds"])


def paired(one: Measured, other: Measured, read: Reading = score, against: Reading = score) -> str:
    """Differences of the same seed: mean ± standard deviation, and each."""
    both = sorted(one.keys() & other.keys())
    gaps = [read(one[s]) - against(other[s]) for s in both]
    return f"{spread(gaps, sign=True)} ({', '.join(f'{100 * g:+.1f}' for g in gaps)})" if gaps else ""


def table(name: str, found: dict[str, Measured]) -> None:
    """The tables of a set; a line for what was measured."""
    if not found:
        return
    chance = next(iter(next(iter(found.values())).values()))["data"]["most_frequent"]["global test"]
    print(f"\n{name}: accuracy in points, mean ± sd over seeds; naming the most frequent class has {100 * chance:.1f} on seed 0")
    if any(f"fedpetuning-{kind}" in found for kind in KINDS):
        print("\n| module | accuracy | against LoRA, by seed | even deal, one seed | lost to the skew | up, kB |")
        print("|---|---|---|---|---|---|")
    for kind, told in KINDS.items():
        skewed, even = found.get(f"fedpetuning-{kind}", {}), found.get(f"fedpetuning-{kind}-iid", {})
        if skewed:
            print(
                f"| {told} | {spread([*map(score, skewed.values())])} "
                f"| {paired(skewed, found.get('fedpetuning-lora', {})) if kind != 'lora' else ''} "
                f"| {spread([*map(score, even.values())]) if even else ''} | {paired(even, skewed) if even else ''} "
                f"| {uplink(next(iter(skewed.values()))) / 1e3:.1f} |"
            )
    for kind, told in KINDS.items():
        fresh = found.get(f"fedpetuning-{kind}-scratch", {})
        if fresh:
            print(f"| {told}, from a random head | {spread([*map(score, fresh.values())])} |  |  |  |  |")
    if "probe" in found:
        print(f"| none: the linear head that all begin with | {spread([*map(score, found['probe'].values())])} |  |  |  |  |")
    depth, hetero = found.get("depthfl", {}), found.get("heterofl", {})
    if depth and hetero:
        lines: list[tuple[str, Measured, Reading]] = [("depthfl, all exits", depth, score)]
        lines += [(f"depthfl, exit {i + 1}", depth, lambda s, i=i: exit_scores(s)[i]) for i in range(4)]  # type: ignore[misc]
        print("\n| model | accuracy | against depthfl's best exit, by seed | against heterofl, by seed |\n|---|---|---|---|")
        for told, cells, read in [*lines, ("heterofl", hetero, score)]:
            best = "" if "exit " in told else paired(cells, depth, read, lambda s: max(exit_scores(s)))
            other = paired(cells, hetero, read) if cells is depth else ""
            print(f"| {told} | {spread([*map(read, cells.values())])} | {best} | {other} |")
    for title, first, others in (
        ("codec", ("fedit", "none"), [("fedit-qsgd", "qsgd:levels=7")]),
        ("rule", ("fedpetuning-lora", "the plain mean"), [("lora-scaffold", "SCAFFOLD"), ("lora-prox", "FedProx, μ 0.01")]),
    ):
        if first[0] not in found:
            continue
        print(f"\n| {title} | accuracy | difference, by seed | up, kB | ratio |\n|---|---|---|---|---|")
        base = uplink(next(iter(found[first[0]].values())))
        for cell, told in [first, *others]:
            if cell in found:
                up = uplink(next(iter(found[cell].values())))
                gap = paired(found[cell], found[first[0]]) if cell != first[0] else ""
                print(f"| {told} | {spread([*map(score, found[cell].values())])} | {gap} | {up / 1e3:.1f} | {base / up:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder with a folder for each set")
    parser.add_argument("--runs", default="claims", help="folder for the runs")
    parser.add_argument("--sets", default="newsgroups20,ag_news", help="folders under --data, the pilot's first")
    parser.add_argument("--claims", default=",".join(CELLS), help="some of these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--scratch-rounds", type=int, default=6, help="of runs that begin with a random head")
    parser.add_argument("--pilot-rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1000, help="rows of a split")
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tables", action="store_true", help="run nothing, and print tables of what is finished")
    parser.add_argument("--quick", action="store_true", help="one round of few rows, one seed, one candidate")
    args = parser.parse_args()
    if args.data is None:
        print("no --data FOLDER with folders of texts: nothing to measure")
        return
    if args.quick:
        args.rounds, args.scratch_rounds, args.pilot_rounds, args.seeds, args.limit, args.max_length = 1, 1, 1, 1, 120, 16
    desk = Desk(args)
    picked = desk.pick()
    found = [(name, desk.of_set(name, picked)) for name in args.sets.split(",")]
    for name, cells in found:
        table(name, cells)


if __name__ == "__main__":
    main()
