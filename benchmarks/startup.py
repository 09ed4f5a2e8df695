"""How long a person waits before anything happens: `import weft`, `weft --help`, `weft methods`.

    python benchmarks/startup.py [--repeats 7]

Each is timed as a whole process, interpreter start included, in turn with an empty interpreter; medians with spread.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CASES = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "import weft": ([sys.executable, "-c", "import weft"], 0.3),
    "weft --help": ([sys.executable, "-m", "weft", "--help"], 0.5),
    "weft methods": ([sys.executable, "-m", "weft", "methods"], 0.5),
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for repeat in range((1 if args.quick else args.repeats) + 1):
        for name, (command, _) in CASES.items():
            took = seconds(command)
            if repeat:  # the first fills the disk cache
                times[name].append(took)
    empty = statistics.median(times["python -c pass"])
    print("| command | seconds, median (min-max) | times an empty interpreter | aim |")
    print("|---|---|---|---|")
    for name, (_, aim) in CASES.items():
        m = statistics.median(times[name])
        state = "" if aim is None else f"< {aim} s: {'met' if m < aim else 'MISSED'}"
        print(f"| {name} | {m:.2f} ({min(times[name]):.2f}-{max(times[name]):.2f}) | {m / empty:.1f}x | {state} |")


if __name__ == "__main__":
    main()
