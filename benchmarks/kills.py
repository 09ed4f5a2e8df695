"""kill -9 at random instants of a local run, each continued: is the final adapter that of a run that nobody killed, bit for bit?

    python benchmarks/kills.py [--kills 50] [--seed 0] [--quick] [--method SLUG] [--more "--devices phones ..."]

The run is `weft run` as a process of its own: by default fedsa-lora (whose clients remember factors and heads) on the digits,
with the ViT that comes with Weft and a head that is trained first. Instants are drawn from shortly before the uninterrupted run
saved its first file to its end. A run that was killed before anything of it was saved is begun anew, as a person would; any
other one is continued with `weft resume`. Compared are all tensor files (the adapter's, the server's, the clients'), the rounds
but for their times, and the closing numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SETTINGS = [
    "--model", "glyph-vit", "--data", "digits", "--clients", "4", "--limit", "400", "--rounds", "25",
    "--precision", "float32", "--device", "cpu", "--start-head", "probe", "--set", "probe_rounds=25", "--set", "method.steps=2",
    "--set", "method.batch=8", "--no-recipes", "--quiet",
]  # fmt: skip


def weft(*arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.Popen(
        [sys.executable, "-m", "weft", *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def outcome(folder: Path) -> dict[str, str]:
    """Everything that must be the same, by name."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    found["rounds.jsonl"] = json.dumps([{n: v for n, v in line.items() if n not in ("seconds", "memory")} for line in lines])
    summary = json.loads((folder / "summary.json").read_text())
    found["summary.json"] = json.dumps([summary[n] for n in ("headline", "metrics", "bytes", "finished")])
    return found


def stage(folder: Path) -> str:
    """Where a killed run was, by what it left."""
    if not (folder / "experiment.toml").is_file():
        return "before anything was saved"
    if (folder / "adapter").is_dir() or (folder / "adapter.tmp").is_dir():
        return "while the adapter was written, or later"
    if (folder / "checkpoint" / "state.json").is_file():
        return "in the rounds"
    return "in the training of the head" if (folder / "setup").is_dir() else "in set-up"


def finished(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"weft ended with {process.returncode}:\n{said.decode()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--method", default="fedsa-lora")
    parser.add_argument("--more", default="", help="further words for weft run, in quotes")
    parser.add_argument("--quick", action="store_true", help="three kills")
    args = parser.parse_args()
    draw, settings = random.Random(args.seed), [*SETTINGS, "--method", args.method, *shlex.split(args.more)]
    name = f"{args.method}-digits-glyph-vit-s0"  # as a run of these settings is called where nothing stands in its way
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        began = time.perf_counter()
        process = weft("run", *settings, "--runs", str(root / "whole"))
        while process.poll() is None and not (root / "whole" / name / "experiment.toml").is_file():
            time.sleep(0.01)
        first = time.perf_counter() - began
        finished(process)
        length = time.perf_counter() - began
        whole = outcome(root / "whole" / name)
        adapters = sum(n.startswith("adapter/") for n in whole)
        print(
            f"the uninterrupted run: {length:.1f} s, a first file after {first:.1f}; "
            f"{len(whole)} files and records to compare, {adapters} of them the adapter's"
        )
        where: Counter[str] = Counter()
        same: Counter[str] = Counter()
        late = 0
        number = 0
        while number < (3 if args.quick else args.kills):
            runs = root / f"cut-{number}-{late}"
            instant = draw.uniform(0.9 * first, length)
            process = weft("run", *settings, "--runs", str(runs))
            try:
                process.wait(instant)
                late += 1  # it was faster than the first: nothing was killed
                continue
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            place = stage(runs / name)
            begun = place != "before anything was saved"
            finished(weft("resume", str(runs / name), "--quiet") if begun else weft("run", *settings, "--runs", str(runs)))
            folder = runs / name if begun or not (runs / f"{name}-2").is_dir() else runs / f"{name}-2"
            result = outcome(folder)
            number += 1
            where[place] += 1
            same[place] += result == whole
            print(f"\r{number} killed, {same.total()} continued to the same bits", end="", file=sys.stderr, flush=True)
            if result != whole:
                odd = sorted(n for n in whole.keys() | result.keys() if whole.get(n) != result.get(n))
                print(f"DIFFERENT after {instant:.2f} s ({place}): {', '.join(odd[:5])}", flush=True)
    print(file=sys.stderr)
    print("| killed | times | continued to the same bits |")
    print("|---|---|---|")
    for place, times in where.most_common():
        print(f"| {place} | {times} | {same[place]} |")
    print(f"| all | {where.total()} | {same.total()} |")
    if same.total() != where.total():
        sys.exit(1)


if __name__ == "__main__":
    main()
