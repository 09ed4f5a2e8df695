"""What a round of a real federation costs beyond training, with a backbone that stays loaded and one that does not.

    python benchmarks/resident.py [--rounds 12] [--quick]

All processes are real, on loopback. Resident are `weft serve` and `weft join`, whose processes answer Flower's tasks themselves.
The others are a plain flower-superlink, flower-supernode and `flwr run` with the app of `weft serve --write-app`: a process per
message, which loads the backbone anew. Overhead = seconds from one line of rounds.jsonl to the next, less those that the site
spends in its turn and its scores (whose own files are part of them). A site trains one step of 2 texts of 16 tokens, LoRA of rank
16 on queries and values; every other round ends with an evaluation, which is a second message. What happens once is left out:
the first round, and the first with an evaluation if the backbone stays.

Three backbones: a tiny one, whose row is Flower and Weft alone; MiniLM (22 M); a random BERT of 500 M, which takes 2 GB of disk
and, with one site, 8 GB of memory, once more with an adapter as long as MiniLM's: what its rounds cost more must come from the
longer update or from the larger backbone. All in float32, without TLS. A missed aim is printed as missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

import torch
from transformers import AutoModel, BertConfig
from transformers.utils import logging

from weft.backbones.load import load
from weft.cli import app_folder
from weft.communication.ledger import format_bytes
from weft.sites.flower.processes import free_port

AIM = 1.5
CLASSES = ("left", "right")
LOOPBACK = "127.0.0.1"
STOPWATCH = Path(__file__).with_name("_stopwatch.py")
SHAPES = {  # hidden size, layers, heads, intermediate size
    "tiny": (32, 2, 2, 64),
    "500 M": (1536, 16, 16, 6144),
}
RANK = 16
SMALL = 3  # with which the adapter of the large backbone is about as long as MiniLM's
CASES = [("tiny", RANK), ("22 M", RANK), ("500 M", RANK), ("500 M", SMALL)]


@dataclass(frozen=True)
class Round:
    """Seconds of one round: all, at the slowest site, from questions to its beginning, from its end to answers."""

    evaluated: bool
    all: float
    site: float
    there: float
    back: float

    @property
    def overhead(self) -> float:
        return self.all - self.site


def random_bert(folder: Path, shape: tuple[int, int, int, int]) -> int:
    """Save random weights with MiniLM's words; returns how many parameters."""
    words = load("minilm", classes=CLASSES, device="cpu", precision="float32").tokenizer
    hidden, layers, heads, inner = shape
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
    )
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


class Machine:
    """Folders and processes of a federation."""

    def __init__(self, root: Path, backbone: str, rank: int, rounds: int, sites: int, threads: int):
        self.root, self.rounds = root, rounds
        self.sites = [f"site{i}" for i in range(sites)]
        self.running: list[subprocess.Popen[bytes]] = []
        self.server = self._folder("coordinator")
        self.experiment = self.server / "experiment.toml"
        self.experiment.write_text(
            f"model = {json.dumps(backbone)}\nclasses = {json.dumps(CLASSES)}\nclients = {sites}\nrounds = {rounds}\n"
            f'eval_every = 2\nmax_length = 16\nrecipes = false\nprecision = "float32"\ndevice = "cpu"\n'
            f'runs = {json.dumps(str(self.server / "runs"))}\nname = "run"\n'
            f'[method]\nname = "fedit"\nrank = {rank}\nsites = "q,v"\nsteps = 1\nbatch = 2\n'
        )
        for name in self.sites:
            with (self._folder(name) / "rows.csv").open("w", newline="") as file:
                write = csv.writer(file)
                write.writerow(["text", "label"])
                write.writerows((f"{i} " + "turn here " * 16, CLASSES[i % 2]) for i in range(20))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        modules = os.pathsep.join(filter(None, [str(STOPWATCH.parent), os.environ.get("PYTHONPATH")]))
        own = {"PATH": path, "PYTHONPATH": modules, "FLWR_HOME": str(root / "flower"), "OMP_NUM_THREADS": str(threads)}
        self.env = os.environ | own | {"NO_COLOR": "1"}

    def _folder(self, name: str) -> Path:
        (self.root / name).mkdir(parents=True)
        return self.root / name

    def start(self, where: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{where}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.root / where, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.running.append(process)
        return process

    def weft(self, where: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start(where, sys.executable, str(STOPWATCH), *arguments)

    def resident(self) -> subprocess.Popen[bytes]:
        port = str(free_port())
        serve = self.weft("coordinator", "serve", str(self.experiment), "--insecure", "--port", port)
        for name in self.sites:
            where = ("--server", f"{LOOPBACK}:{port}", "--folder", "memory")
            self.weft(name, "join", "--insecure", *where, "--name", name, "--data", "rows.csv", "--device", "cpu")
        return serve

    def plain(self) -> subprocess.Popen[bytes]:
        port = free_port()
        app = self.root / "app"
        app_folder.write(app, self.experiment, LOOPBACK, port, None, 3600.0, {})
        project = app / "pyproject.toml"
        project.write_text(project.read_text().replace("weft.sites.flower_app:", f"{STOPWATCH.stem}:"))
        link = ("flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(port))
        self.start("coordinator", *link)
        self.until("coordinator", "Uvicorn running")
        for name in self.sites:
            about = ("--insecure", "--name", name, "--data", "rows.csv", "--device", "cpu", "--folder", "memory")
            self.done(self.weft(name, "join", *about, "--write", "site.json"))
            node = ("--insecure", "--superlink", f"{LOOPBACK}:{port}", "--port", str(free_port()))
            self.start(name, "flower-supernode", *node, "--node-config", f'site="{self.root / name / "site.json"}"')
        self.env["FLWR_HOME"] = str(app / ".flwr")
        return self.start("coordinator", "flwr", "run", str(app), app_folder.CONNECTION, "--stream")

    def until(self, where: str, words: str) -> None:
        end = time.monotonic() + 120
        while words not in (self.root / f"{where}.log").read_text(errors="replace"):
            if time.monotonic() > end:
                self.fail()
            time.sleep(0.1)

    def done(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait(600):
            self.fail()
        self.running.remove(process)

    def fail(self) -> None:
        said = "\n\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-2000:]}" for log in self.root.glob("*.log"))
        raise SystemExit(f"{said}\n\nA process ended or hung; nothing is timed that does not run.")

    def play(self, resident: bool) -> list[Round]:
        """All rounds but those of which something happens only once."""
        coordinator = self.resident() if resident else self.plain()
        rounds, ends, size = self.server / "runs" / "run" / "rounds.jsonl", [], 0
        while coordinator.poll() is None:
            time.sleep(0.01)
            now = rounds.stat().st_size if rounds.exists() else 0
            if now != size:
                ends.append(time.time())
                size = now
        if coordinator.returncode or len(ends) != self.rounds:
            self.fail()
        lines = [json.loads(line) for line in rounds.read_text().splitlines()]
        asked = _times(self.server, "ask")
        worked = [t for name in self.sites for t in _times(self.root / name, "turn", "scores")]
        found = [
            _round(bool(line.get("evaluations")), interval, asked, worked)
            for line, interval in zip(lines[1:], pairwise(ends), strict=True)
        ]
        return found[1:] if resident else found

    def sent(self) -> str:
        """Length of an update."""
        bytes_ = json.loads((self.server / "runs" / "run" / "summary.json").read_text())["bytes"]
        return format_bytes(bytes_["train"]["up"]["payload"] // (self.rounds * len(self.sites)))


def _times(folder: Path, *names: str) -> list[tuple[float, float]]:
    lines = (json.loads(line) for line in (folder / "seconds.jsonl").read_text().splitlines())
    return [(began, ended) for name, began, ended in lines if name in names]


def _round(
    evaluated: bool, interval: tuple[float, float], asked: list[tuple[float, float]], worked: list[tuple[float, float]]
) -> Round:
    first, last = interval
    site = there = back = 0.0
    for began, ended in asked:
        if first <= began < last:
            at = max(((b, e) for b, e in worked if began <= b and e <= ended), key=lambda t: t[1] - t[0])
            there, site, back = there + at[0] - began, site + at[1] - at[0], back + ended - at[1]
    return Round(evaluated, last - first, site, there, back)


@contextmanager
def machine(*about: Any) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Machine(Path(folder), *about)
        try:
            yield made
        finally:
            for process in reversed(made.running):
                process.terminate()
            for process in made.running:
                process.wait(60)


def middle(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def rows(name: str, sent: str, resident: bool, rounds: list[Round]) -> Iterator[str]:
    how = "resident" if resident else "process a message"
    for evaluated in (False, True):
        some = [r for r in rounds if r.evaluated == evaluated]
        if not some:
            continue
        state = ""
        if resident:
            state = f"< {AIM} s: {'met' if statistics.median(r.overhead for r in some) < AIM else 'MISSED'}"
        columns = [middle([getattr(r, c) for r in some]) for c in ("all", "site", "overhead")]
        parts = [[r.there for r in some], [r.back for r in some], [r.overhead - r.there - r.back for r in some]]
        shown = " + ".join(f"{statistics.median(p):.2f}" for p in parts)
        yield f"| {name} | {sent} | {how} | {'yes' if evaluated else 'no'} | {' | '.join(columns)} | {shown} | {state} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="of the resident federations; the others play 4")
    parser.add_argument("--sites", type=int, default=1, help="each is a process with a backbone of its own")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--quick", action="store_true", help="the tiny backbone alone, four rounds")
    args = parser.parse_args()
    print(f"{args.sites} site(s), {args.threads} thread(s) each, float32, loopback; median (min-max) of seconds a round\n")
    print("| backbone | update | site | evaluated | all | at the site | overhead | = there + back + coordinator | aim |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, rank in CASES:
        if args.quick and name != "tiny":
            continue
        with tempfile.TemporaryDirectory() as folder:
            backbone = "minilm"
            if name in SHAPES:
                backbone = folder
                random_bert(Path(folder), SHAPES[name])
            for resident in (True, False):
                if not resident and (name == "tiny" or rank == SMALL) and not args.quick:
                    continue
                rounds = args.rounds if resident and not args.quick else 4
                with machine(backbone, rank, rounds, args.sites, args.threads) as made:
                    played = made.play(resident)
                    for row in rows(name, made.sent(), resident, played):
                        print(row, flush=True)


if __name__ == "__main__":
    main()
