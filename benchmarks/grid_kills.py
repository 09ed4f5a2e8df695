"""kill -9 at random instants of a comparison, each continued: are its tables and cells those of one that nobody killed?

    python benchmarks/grid_kills.py [--data FILE] [--kills 3] [--seed 0] [--folder FOLDER] [--quick]

The comparison is `weft compare` as a process of its own: 6 methods × 2 skews × 3 seeds on the rows of FILE (texts and labels;
the docstrings that come with Weft, if left out). It is played once undisturbed, then once more with as many kills as asked for,
spread over its length but for chance, each followed by the same command. Compared are the servers, clients and rounds of every
cell by their hashes (times and memory left out), every number of every cell, and the tables but for seconds and memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from weft.runs.checkpoint import digest

METHODS = "fedit,ffa-lora,flora,fedsa-lora,fedbf,hetlora"
OF_THE_MACHINE = ("seconds", "memory")
COLUMNS = ("training, s", "memory, MB")
SIZE = [
    "--clients", "10", "--participation", "0.5", "--rounds", "3", "--limit", "800", "--max-length", "32", "--start-head", "probe",
    "--set", "method.steps=4", "--set", "method.batch=8",
]  # fmt: skip


def compare(folder: Path, data: str | None, quick: bool) -> subprocess.Popen[bytes]:
    grid = ["--methods", "fedit,ffa-lora" if quick else METHODS, "--alpha", "0.1,0.5", "--seeds", "1" if quick else "3"]
    command = [sys.executable, "-m", "weft", "compare", *grid, *SIZE, *(["--data", data] if data else []), "--to", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"weft ended with {process.returncode}:\n{said.decode()}")


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be the same, by name."""
    cells = json.loads((folder / "cells.json").read_text())["cells"]
    found: dict[str, Any] = {}
    for cell in cells:
        plain = {n: v for n, v in cell.items() if n not in OF_THE_MACHINE}
        found[cell["run"]] = [plain, digest(folder / "cells" / cell["run"])]
    found["table"] = tables(folder / "table.csv")
    return found


def tables(path: Path) -> list[dict[str, str]]:
    """The rows of all tables of a file, without the columns of the machine."""
    found: list[dict[str, str]] = []
    for part in path.read_text().split("# ")[1:]:
        title, _, lines = part.partition("\n")
        rows = csv.DictReader(lines.splitlines())
        found += [{"table": title} | {n: v for n, v in row.items() if n not in COLUMNS} for row in rows]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--folder", help="keep both comparisons here")
    parser.add_argument("--quick", action="store_true", help="four cells, one kill")
    args = parser.parse_args()
    kills, draw = 1 if args.quick else args.kills, random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.folder or temporary)
        began = time.perf_counter()
        finished(compare(root / "whole", args.data, args.quick))
        length = time.perf_counter() - began
        whole = outcome(root / "whole")
        print(f"undisturbed: {len(whole) - 1} cells in {length:.0f} s", flush=True)
        killed = 0
        while killed < kills:
            process = compare(root / "cut", args.data, args.quick)
            try:
                process.wait(draw.uniform(0.5, 1.0) * length / (kills + 1))
                sys.exit("the comparison was over before it was killed: nothing is shown.")
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            killed += 1
            done = len(list((root / "cut" / "cells").glob("*/summary.json")))
            print(f"killed: {done} cells were begun or finished", flush=True)
        finished(compare(root / "cut", args.data, args.quick))
        result = outcome(root / "cut")
        odd = sorted(n for n in whole.keys() | result.keys() if whole.get(n) != result.get(n))
        print(f"killed {killed} times: {len(whole) - len(odd)} of {len(whole)} cells and tables are the same, bit for bit")
        if odd:
            sys.exit(f"different: {', '.join(odd[:5])}")


if __name__ == "__main__":
    main()
