"""Memory of a round in which whole weights are trained, by moment, against the estimate that a run is refused by.

    python benchmarks/weights_memory.py [--model minilm] [--precision float32] [--quick]

Each optimizer runs in a process of its own, for two rounds of three clients on a CPU; the second is shown, in copies of all that
a client trains (float32). Peaks are of the resident set, beyond what the process held with its backbone loaded, looked at every
two milliseconds. The numbers of copies in `weft.engines.packing` come from here.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
LANGUAGE = ("smollm2",)
MOMENTS = ("download", "train", "upload", "close")


class Watch:
    """The largest resident set of each moment, in bytes."""

    def __init__(self) -> None:
        self.moment, self.peaks = "", dict[str, int]()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.peaks[self.moment] = max(self.peaks.get(self.moment, 0), resident())
            time.sleep(0.002)

    def during(self, moment: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, as a moment of its own inside the one in progress."""

        def watched(*given: Any, **named: Any) -> Any:
            before, self.moment = self.moment, moment
            try:
                return call(*given, **named)
            finally:
                self.moment = before

        return watched


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one(model: str, precision: str, optimizer: str) -> dict[str, float]:
    """Peaks of the second round, in copies, and the estimate."""
    from weft.adaptation.optim import Optim
    from weft.backbones.load import load
    from weft.engines import packing
    from weft.methods import FedAvg
    from weft.testing.federation import federation

    task = "generation" if model in LANGUAGE else "auto"
    backbone = load(model, classes=("a", "b", "c"), device="cpu", precision=precision, task=task)
    gc.collect()
    base, watch = resident(), Watch()
    method = FedAvg(optim=Optim(optimizer, lr=1e-3, schedule="constant"), batch=2, steps=2)
    run = federation(method, backbone, sizes=(4, 4, 4), rounds=2, precision=precision, task=task)
    exchange, turns, intake = run.simulation.setup.exchange, run.simulation.turns, run.simulation.intake
    for owner, name, moment in (
        (exchange, "broadcast", "download"),
        (turns, "_pack", "train"),
        (exchange, "pack_update", "upload"),
        (intake, "close", "close"),
    ):
        setattr(owner, name, watch.during(moment, getattr(owner, name)))
    run.simulation.round(0)
    watch.peaks.clear()
    run.simulation.round(1)
    guess = packing.of_adaptation(run.bench, method, run.server.adaptation)
    peaks = {moment: watch.peaks.get(moment, base) - base for moment in MOMENTS}
    found = peaks | {"worst": max(peaks.values()), "estimate": guess.total(1) - guess.fixed}
    return {name: size / guess.trained for name, size in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--quick", action="store_true", help="one optimizer")
    parser.add_argument("--optimizer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.optimizer:
        print(json.dumps(one(args.model, args.precision, args.optimizer)))
        return
    columns = (*MOMENTS, "worst", "estimate")
    print(f"copies of what a client of {args.model} trains, {args.precision}")
    print("optimizer  " + "  ".join(f"{name:>8}" for name in columns))
    for optimizer in ("sgd", "adamw")[: 1 if args.quick else 2]:
        command = [sys.executable, __file__, "--model", args.model, "--precision", args.precision, "--optimizer", optimizer]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])
        print(f"{optimizer:<9}  " + "  ".join(f"{found[name]:8.1f}" for name in columns))


if __name__ == "__main__":
    main()
