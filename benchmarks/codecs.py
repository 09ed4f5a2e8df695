"""What each codec saves and costs, for six methods on the digits: bytes, accuracy, error of an update, seconds.

    python benchmarks/codecs.py [--seeds 1] [--rounds 5] [--methods fedit,promptfl] [--runs FOLDER] [--quick]

Every cell is a run of a method with a codec, as `weft run --codec` has it, on the backbones that come with Weft. Four tables:

- bytes: payload of an update in the run's ledger, per client and round, and how many times smaller than identity's that is;
- accuracy: of the last round on the common test rows, mean over the seeds, and the points above or below identity's;
- error: ‖C(x) - x‖ / ‖x‖ over all entries of an update, mean over the clients of one round. x is what a codec of differences is
  given in a run whose updates arrive exact: what a client's turn changed, and the values of what the server holds nothing of;
- seconds: of the processor, for a message of these tensors to be encoded and decoded, checks and checksums included: the median.
  Each is timed beside one of identity's, and the median of the ratios stands there too.

What a codec refuses stands there with its reason. `--runs` keeps finished cells, and another call with it goes on where the last
one was stopped; a cell whose settings were others is measured anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import Tensor

import weft
from weft.communication.codecs import Identity, codec, register
from weft.communication.frame import Expected, Frame, Header, Received
from weft.communication.ledger import format_bytes
from weft.communication.strict import Refused
from weft.communication.wire import decode, encode
from weft.errors import UserError
from weft.tensors.keyed import generator

CODECS = (  # a line each; the first is what the others are compared with
    "identity",
    "half:format=fp16",
    "half:format=bf16",
    "quant8",
    "quant8+entropy",
    "block8",
    "qsgd:levels=7",
    "qsgd:levels=7+entropy",
    "qsgd:levels=7,norm=l2",
    "adaptive",
    "nnadq",
    "nf4",
    "fp4",
    "sign",
    "topk:share=0.01",
    "topk:share=0.1",
    "topk:share=0.1+quant8",
    "topk:share=0.1+qsgd:levels=7+entropy",
    "randk:share=0.1",
    "randk:share=0.1,common=true",
    "randk:share=0.1+quant8",
    "shift+topk:share=0.01",
    "shift+topk:share=0.1",
    "shift+topk:share=0.1+quant8",
    "shift+sign",
    "shift+randk:share=0.1",
    "shift+qsgd:levels=1,bucket=64",
)
LORA: dict[str, Any] = {"rank": 8, "sites": "all", "steps": 6, "batch": 16, "optim": {"kind": "adamw", "lr": 1e-2}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # the backbone and the method's settings
    "fedit": ("glyph-vit", LORA),
    "ffa-lora": ("glyph-vit", LORA | {"optim": {"kind": "adamw", "lr": 2e-2}}),
    "flora": ("glyph-vit", LORA),
    "fedbf": ("glyph-vit", {"steps": 6, "batch": 16, "optim": {"kind": "adamw", "lr": 1e-2}}),
    "promptfl": ("glyph-clip", {"steps": 8, "optim": {"kind": "adamw", "lr": 2e-2, "weight_decay": 0.0}}),
    "fedavg": ("glyph-vit", {"steps": 6, "batch": 16, "optim": {"kind": "adamw", "lr": 2e-3}}),
}
STEPS = ("encode", "decode")
RECORDED = 2  # the round whose updates are measured, from 0
Cell = dict[str, Any]
Given = tuple[dict[str, Tensor], list[str]]
"""What a codec is given for one message: tensors, and the names of those that are no differences."""


@register
@dataclass(frozen=True)
class Recorder(Identity):
    """Differences as they are; ``given`` keeps what every message is made of."""

    name: ClassVar[str] = "recorder"
    differences: ClassVar[bool] = True
    given: ClassVar[list[Given]] = []

    def encode(
        self,
        tensors: dict[str, Tensor],
        generator: torch.Generator | None,
        *,
        common: torch.Generator | None = None,
        whole: Collection[str] = (),
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.given.append(({n: t.clone() for n, t in tensors.items()}, sorted(whole)))
        return tensors, {}


@dataclass
class Message:
    """An update as client and server have it, once the values held are taken for zero: then it equals its differences."""

    tensors: dict[str, Tensor]
    held: dict[str, Tensor]
    client: str

    @classmethod
    def of(cls, given: Given, client: str) -> Message:
        tensors, whole = given
        return cls(tensors, {n: torch.zeros_like(t) for n, t in tensors.items() if n not in whole}, client)

    def write(self, text: str) -> Frame:
        header = Header("measured", RECORDED, "train", "up", self.client, 1.0)
        own, common = generator(0, "codec", RECORDED, self.client), generator(0, "codec", RECORDED)
        return encode(header, self.tensors, {}, codec(text), reference=self.held, generator=own, common=common)

    def read(self, frame: Frame) -> Received:
        shapes = {n: tuple(t.shape) for n, t in self.tensors.items()}
        return decode(frame.data, Expected("measured", RECORDED, "train", "up", shapes, max_weight=1.0), reference=self.held)

    def error(self, frame: Frame) -> float:
        arrived, lost, all_ = self.read(frame).tensors, 0.0, 0.0
        for name, x in self.tensors.items():
            y = arrived[name]
            assert isinstance(y, Tensor)
            lost += float((y.double() - x.double()).square().sum())
            all_ += float(x.double().square().sum())
        return float((lost / all_) ** 0.5)


@dataclass
class Book:
    """Cells by name, kept in a folder.

    Attributes:
        about: what a cell was measured with; one of something else counts as missing.
    """

    folder: Path
    about: Mapping[str, Any]
    cells: dict[str, Cell] = field(default_factory=dict)

    def cell(self, name: str, measure: Callable[[], Cell]) -> Cell:
        if name not in self.cells:
            path = self.folder / f"{re.sub(r'[^a-z0-9.=+-]+', '_', name)}.json"
            kept = json.loads(path.read_text()) if path.is_file() else {}
            if kept.get("about") != self.about:
                kept = {"about": dict(self.about), "cell": measured(measure)}
                part = path.with_suffix(".part")
                part.write_text(json.dumps(kept))
                part.replace(path)
            self.cells[name] = kept["cell"]
        return self.cells[name]


def measured(measure: Callable[[], Cell]) -> Cell:
    try:
        return measure()
    except (UserError, Refused, ValueError) as error:
        return {"refused": " ".join(str(error).split())}


def played(method: str, text: str, seed: int, args: argparse.Namespace) -> weft.Run:
    """A run as a user would have it; only its numbers are kept."""
    model, parameters = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        return weft.run(
            method, model, "digits", args.clients, args.rounds, codec=text, seed=seed, alpha=args.alpha, parameters=parameters,
            recipes=False, baselines=[], precision="float32", device="cpu", pack=args.clients, eval_every=0, eval_clients=1,
            runs=folder, quiet=True,
        )  # fmt: skip


def finished(method: str, text: str, seed: int, args: argparse.Namespace) -> Cell:
    """Accuracy, and bytes of an update."""
    began = time.perf_counter()
    done = played(method, text, seed, args)
    up = done.summary["bytes"]["train"]["up"]
    about = {name: up[name] / up["messages"] for name in ("payload", "wire")}
    return {"accuracy": done.metrics["accuracy"], **about, "seconds": time.perf_counter() - began}


def updates(method: str, args: argparse.Namespace, folder: Path, about: Mapping[str, Any]) -> list[Message]:
    """All clients' updates of one round, of a run whose updates arrive exact."""
    path = folder / f"{method}.updates.pt"
    kept = torch.load(path) if path.is_file() else {}
    if kept.get("about") != about:
        Recorder.given.clear()
        played(method, "recorder", 0, args)
        at = min(RECORDED, args.rounds - 1) * args.clients
        kept = {"about": dict(about), "given": Recorder.given[at : at + args.clients]}
        torch.save(kept, path)
    return [Message.of(given, f"client-{i}") for i, given in enumerate(kept["given"])]


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, which others on the machine change less than those of the clock."""
    began = time.process_time()
    result = step()
    return time.process_time() - began, result


def costs(text: str, messages: list[Message], repeats: int) -> Cell:
    """Error and seconds of updates, each beside one of identity's."""
    found: Cell = {"error": statistics.mean(m.error(m.write(text)) for m in messages)}
    seconds: dict[str, list[dict[str, float]]] = {step: [] for step in STEPS}
    for i in range(repeats):
        m = messages[i % len(messages)]
        encoding, decoding = {}, {}
        for who, name in [("plain", CODECS[0]), ("ours", text)][:: 1 - 2 * (i % 2)]:  # in turn: who comes second has warm caches
            encoding[who], frame = timed(lambda m=m, name=name: m.write(name))  # type: ignore[misc]
            decoding[who], _ = timed(lambda m=m, frame=frame: m.read(frame))  # type: ignore[misc]
        seconds["encode"].append(encoding)
        seconds["decode"].append(decoding)
    for step, both in seconds.items():
        found[step] = statistics.median(one["ours"] for one in both)
        found[f"{step} ratio"] = statistics.median(one["ours"] / one["plain"] for one in both)
    return found


# ---- tables --------------------------------------------------------------------------------------------------------------------


def table(title: str, methods: list[str], value: Callable[[str, str], str]) -> str:
    lines = [f"{title}:", "", "| codec | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    lines += [f"| `{text}` | " + " | ".join(value(m, text) for m in methods) + " |" for text in CODECS]
    return "\n".join(lines) + "\n"


class Tables:
    """The cells as four tables, and the reasons of what was refused."""

    def __init__(self, runs: Mapping[tuple[str, str], list[Cell]], messages: Mapping[tuple[str, str], Cell]):
        self.runs, self.messages = runs, messages
        self.reasons: list[str] = []

    def refused(self, cell: Cell) -> str:
        if cell["refused"] not in self.reasons:
            self.reasons.append(cell["refused"])
        return f"refused ({self.reasons.index(cell['refused']) + 1})"

    def size(self, method: str, text: str) -> str:
        cell, plain = self.runs[method, text][0], self.runs[method, CODECS[0]][0]
        if "refused" in cell:
            return self.refused(cell)
        if text == CODECS[0]:
            return format_bytes(cell["payload"])
        return f"{format_bytes(cell['payload'])} ({times(plain['payload'] / cell['payload'])})"

    def accuracy(self, method: str, text: str) -> str:
        cells, plain = self.runs[method, text], self.runs[method, CODECS[0]]
        if bad := next((c for c in cells if "refused" in c), None):
            return self.refused(bad)
        found = f"{statistics.mean(c['accuracy'] for c in cells):.3f}"
        if text == CODECS[0]:
            return found
        return f"{found} ({100 * statistics.mean(c['accuracy'] - p['accuracy'] for c, p in zip(cells, plain, strict=True)):+.1f})"

    def error(self, method: str, text: str) -> str:
        cell = self.messages[method, text]
        return self.refused(cell) if "refused" in cell else f"{cell['error']:.2g}" if cell["error"] else "0"

    def seconds(self, method: str, text: str) -> str:
        cell = self.messages[method, text]
        if "refused" in cell:
            return self.refused(cell)
        if text == CODECS[0]:
            return " + ".join(milliseconds(cell[step]) for step in STEPS)
        return " + ".join(f"{milliseconds(cell[step])} ({times(cell[f'{step} ratio'])})" for step in STEPS)


def times(ratio: float) -> str:
    return f"{ratio:.{1 if ratio < 9.95 else 0}f}x"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{2 if seconds < 0.001 else 1 if seconds < 0.00995 else 0}f}"


def spread(cells: list[Cell]) -> float:
    """Standard deviation of the accuracy over the seeds, in points."""
    return 100 * statistics.stdev(c["accuracy"] for c in cells)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=1.0, help="of the Dirichlet deal")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25, help="timings of each message")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of them, joined by commas")
    parser.add_argument("--runs", help="folder that keeps finished cells")
    parser.add_argument("--quick", action="store_true", help="one seed, one round, one method: shows that it runs")
    args = parser.parse_args()
    methods = args.methods.split(",")
    if strange := [m for m in methods if m not in METHODS]:
        parser.error(f"{', '.join(strange)}: not among {', '.join(METHODS)}")
    if args.quick:
        args.seeds, args.rounds, args.repeats, methods = 1, 1, 3, methods[:1]
    with tempfile.TemporaryDirectory() as own:
        folder = Path(args.runs or own)
        folder.mkdir(parents=True, exist_ok=True)
        runs: dict[tuple[str, str], list[Cell]] = {(m, text): [] for m in methods for text in CODECS}
        messages: dict[tuple[str, str], Cell] = {}
        total, done, began = len(runs) * args.seeds, 0, time.perf_counter()
        for seed in range(args.seeds):  # outermost, so that a measuring that is stopped has all cells of fewer seeds
            for method in methods:
                model, parameters = METHODS[method]
                about = {
                    "clients": args.clients, "alpha": args.alpha, "rounds": args.rounds, "model": model,
                    "parameters": parameters, "weft": weft.__version__,
                }  # fmt: skip
                book = Book(folder, about)
                for text in CODECS:
                    name = f"{method} {text} s{seed}"
                    cell = book.cell(name, lambda m=method, t=text, s=seed: finished(m, t, s, args))  # type: ignore[misc]
                    runs[method, text].append(cell)
                    done += 1
                    end = f"accuracy {cell['accuracy']:.3f}" if "accuracy" in cell else f"refused: {cell['refused']}"
                    say(f"{done}/{total}, {(time.perf_counter() - began) / 60:.1f} min: {name}: {end}")
                if seed == 0:
                    timing = Book(folder, about | {"repeats": args.repeats})
                    given = updates(method, args, folder, about)
                    say(f"messages of {method}")
                    for text in CODECS:
                        messages[method, text] = timing.cell(
                            f"{method} {text} message",
                            lambda t=text, g=given: costs(t, g, args.repeats),  # type: ignore[misc]
                        )
    tables = Tables(runs, messages)
    print(f"digits, {args.clients} clients, Dirichlet {args.alpha:g}, rounds: {args.rounds}, seeds: {args.seeds}, float32\n")
    print(table("Bytes of an update", methods, tables.size))
    print(table("Accuracy, and points against identity", methods, tables.accuracy))
    if args.seeds > 1:
        deviations = ", ".join(f"{m} {spread(runs[m, CODECS[0]]):.1f}" for m in methods)
        print(f"Standard deviation of identity's accuracy over the seeds, in points: {deviations}\n")
    print(table("Relative error of an update", methods, tables.error))
    print(table("Milliseconds to encode + decode a message, and times identity's", methods, tables.seconds))
    for i, reason in enumerate(tables.reasons):
        print(f"({i + 1}) {reason}")
    wire = ", ".join(f"{m} {format_bytes(c['wire'] - c['payload'])}" for m in methods if "wire" in (c := runs[m, CODECS[0]][0]))
    print(f"Header of an update with identity: {wire}")


if __name__ == "__main__":
    main()
