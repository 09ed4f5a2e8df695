"""What a comparison costs: the cells of a grid against as many single runs with the same settings.

    python benchmarks/compare.py [--quick]

Three ways, each on folders of its own, after a first run that warms the disk up: ``weft compare``; the same cells one after the
other in one process that shares nothing; and a ``weft run`` of its own for each, as people do by hand. Their numbers are compared
first: where a cell's rounds differ from those of its single run, nothing is told. Aim: 1.3x faster than single runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from weft import start
from weft.comparison import cells as on_disk
from weft.comparison.cell_grid import Grid
from weft.comparison.play import compare
from weft.experiment import resolve, to_toml

METHODS = ("fedit", "ffa-lora", "flora", "fedsa-lora", "fedbf", "fedavg")
AIM = 1.3


def grid(quick: bool) -> Grid:
    common = {"clients": 4, "limit": 200 if quick else 1000, "max_length": 32, "rounds": 1 if quick else 4, "start_head": "probe"}
    return Grid(
        METHODS[:2] if quick else METHODS, seeds=(0,) if quick else (0, 1), common=common | {"method.steps": 2, "method.batch": 8}
    )


def numbers(folder: Path) -> list[str]:
    """Losses and scores of a run's rounds."""
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [json.dumps([line["loss"], line.get("evaluations")]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small cells: its ratios mean nothing")
    args = parser.parse_args()
    wanted = grid(args.quick)
    with tempfile.TemporaryDirectory() as root:
        plans = [on_disk.planned(cell, Path(root) / "apart", None) for cell in wanted.cells()]

        def together() -> None:
            compare(wanted, Path(root) / "together")

        def apart() -> None:
            for plan in plans:
                about = dict(plan.cell.settings) | {"runs": str(plan.place.parent), "name": plan.place.name}
                start.start(resolve(about))

        def by_hand() -> None:
            for plan in plans:
                assert plan.resolved is not None
                file = Path(root) / f"{plan.place.name}.toml"
                file.write_text(to_toml(plan.resolved.experiment, {}))
                command = [sys.executable, "-m", "weft", "run", str(file), "--quiet", "--runs", str(Path(root) / "by-hand")]
                subprocess.run([*command, "--name", plan.place.name], check=True)

        start.start(resolve(dict(plans[0].cell.settings) | {"runs": str(Path(root) / "warm")}))
        seconds = {name: timed(play) for name, play in (("together", together), ("apart", apart), ("by hand", by_hand))}
        for plan in plans:
            one = numbers(Path(root) / "together" / "cells" / plan.place.name)
            for other in ("apart", "by-hand"):
                assert numbers(Path(root) / other / plan.place.name) == one, f"{plan.cell.label} has other numbers {other}"
    n = len(plans)
    print(f"{n} cells with the same numbers each way, to the last bit")
    for name, words in (("apart", "one process that shares nothing"), ("by hand", "a weft run for each")):
        ratio = seconds[name] / seconds["together"]
        met = "" if name == "apart" else f"; aim {AIM}x: {'met' if ratio >= AIM else 'missed'}"
        print(
            f"  {seconds['together'] / n:.1f} s a cell together, {seconds[name] / n:.1f} s by {words}: {ratio:.2f}x faster{met}"
        )


def timed(play: Callable[[], None]) -> float:
    began = time.perf_counter()
    play()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
