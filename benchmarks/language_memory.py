"""Memory of language models: the output layer in chunks, blocks computed once more, and the estimate against what is measured.

    python benchmarks/language_memory.py [--quick] [--device cuda] [output] [recompute] [estimate] [turns]

Each case runs in a process of its own; its peak is the operating system's count (resident set), or the GPU's, above what it held
before the step. `output`: cross-entropy and gradient of 8 x 512 rows, in chunks against logits that are all held. `recompute`:
one step of LoRA (rank 16, all linear layers) on SmolLM2. `estimate`: a step on random weights of the shapes of SmolLM2, TinyLlama
and Llama-2-7B: a few of their layers on a CPU, all of them on a GPU. `turns`: a whole turn of a client, weights included, against
what the model takes to score the same rows: LoRA by gradients, LoRA by fedkseed, which has none, and all weights by fedkseed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

SHAPES = {
    "smollm2": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    | {"num_key_value_heads": 3, "tie_word_embeddings": True},
    "tinyllama": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32}
    | {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "llama-2-7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "tie_word_embeddings": False},
}


# processes ------------------------------------------------------------------------------------------------------------


def resident(what: str) -> int:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at most since :func:`forget`."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(what + ":")) * 1024


def forget() -> None:
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def above(step: Callable[[], Any], device: str = "cpu") -> float:
    """MB that a step takes at most beyond what is there before it."""
    import ctypes
    import gc

    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    forget()
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1e6


def case(**what: Any) -> dict[str, Any]:
    """What :func:`run` gives in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(what)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def run(what: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Callable[..., dict[str, Any]]] = {"output": output, "step": step, "turn": turn}
    return kinds[what.pop("kind")](**what)


# cases ----------------------------------------------------------------------------------------------------------------


def output(vocabulary: int, d: int, rows: int, precision: str, chunked: bool, repeats: int) -> dict[str, Any]:
    import torch.nn.functional as F

    from weft.tensors.output_layer import OutputLayer

    torch.manual_seed(0)
    dtype = getattr(torch, precision)
    weight = torch.randn(vocabulary, d, dtype=dtype) * d**-0.5
    h, y = torch.randn(rows, d, dtype=dtype).requires_grad_(), torch.randint(vocabulary, (rows,))

    def loss() -> torch.Tensor:
        if chunked:
            return OutputLayer(weight).cross_entropy(h, y)
        return F.cross_entropy(F.linear(h, weight).float(), y, reduction="none")

    def once() -> None:
        torch.autograd.grad(loss().sum(), h)

    F.linear(h[:200].detach(), weight)  # what a library sets up once is not the layer's
    megabytes, seconds = above(once), []
    for _ in range(repeats):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    return {"mb": megabytes, "s": statistics.median(seconds)}


def drawn(shape: str, layers: int, precision: str, device: str) -> Any:
    """A backbone of random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from _rounds import words_of
    from weft.backbones.freeze import describe_model
    from weft.backbones.options import Options

    words = words_of(SHAPES[shape]["vocab_size"])
    config = AutoConfig.for_model("llama", num_hidden_layers=layers, max_position_embeddings=2048, **SHAPES[shape])
    torch.manual_seed(0)
    dtype, where = getattr(torch, precision), torch.device(device)
    with where:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    options = Options(task="generation")
    return describe_model(model, words, set(), name=shape, device=where, dtype=dtype, digest="drawn", options=options)


def step(
    shape: str, precision: str, clients: int, batch: int, width: int, recompute: bool = False, layers: int = 0,
    answers: float = 0.5, repeats: int = 1, device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Steps of a pack: peak of the first two, seconds of the others, and the estimate. ``layers`` 0: SmolLM2 itself."""
    from _rounds import replies, states
    from weft.adaptation.optim import Optim
    from weft.backbones.load import load
    from weft.engines import packing
    from weft.federation.bench import Bench
    from weft.federation.layout import named
    from weft.federation.pack import Pack
    from weft.federation.round import Round
    from weft.federation.rounds import begin
    from weft.federation.turn import Turn
    from weft.methods.reparameterized.fedit import FedIT
    from weft.tasks.kinds import GENERATION, make

    if layers:
        backbone = drawn(shape, layers, precision, device)
    else:
        backbone = load(shape, classes=["answer"], device="cpu", precision=precision, task=GENERATION)
    steps = repeats + 2  # moments are there from the second on
    table = replies(clients * batch * steps, width, 1000, answers)
    bench = Bench(backbone, make(("answer",), GENERATION), table, 0, recompute=recompute)
    method = FedIT(rank=16, alpha=16, sites="all", epochs=1.0, batch=batch, optim=Optim("adamw", lr=1e-3))
    everyone = states(clients, batch * steps)
    server = begin(method, bench, [c.info(()) for c in everyone], 1)
    trainable = sum(init.numel for _, init, _ in named(server.adaptation, backbone))
    guess = packing.estimate(bench, method, trainable, width)
    frozen = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    if recompute:
        import torch.utils.checkpoint  # noqa: F401 - its import is not a step's
    made: dict[str, Any] = {}
    moments: list[float] = []

    def first() -> None:
        pack = Pack(bench, [Turn(c, server.adaptation, dict(server.shared)) for c in everyone], Round(0))
        made["optimizer"] = pack.optimizer("lora*", settings=method.optim, epochs=1.0, size=batch)
        made["batches"] = pack.batches(1.0, None, batch)
        made["pack"] = pack
        again()
        again()

    def again() -> None:
        batch_, pack = next(made["batches"]), made["pack"]
        pack.step(made["optimizer"], method.objective(pack, batch_), batch_)

    megabytes = above(first, device)
    for _ in range(repeats):
        began = time.perf_counter()
        again()
        moments.append(time.perf_counter() - began)
    return {
        "mb": megabytes,
        "s": statistics.median(moments or [0.0]),
        "estimate": (guess.total(clients) - frozen) / 1e6,
        "frozen": frozen / 1e6,
    }


def turn(shape: str, layers: int, precision: str, batch: int, width: int, what: str, device: str) -> dict[str, Any]:
    """Peak of a client's turn of three steps, or of scoring as many rows, with the weights of the model."""
    from _rounds import replies, states
    from weft.adaptation.optim import Optim
    from weft.adaptation.tune import Tune
    from weft.federation.bench import Bench
    from weft.federation.pack import Pack
    from weft.federation.round import Round
    from weft.federation.rounds import begin
    from weft.federation.turn import Turn
    from weft.methods import FedIT, FedKSeed
    from weft.tasks.kinds import GENERATION, make

    backbone, steps = drawn(shape, layers, precision, device), 3
    bench = Bench(backbone, make(("answer",), GENERATION), replies(batch * steps, width, 1000), 0)
    tune = Tune("weights", weights="all") if what == "all weights, fedkseed" else Tune("lora", rank=16, alpha=16, at="all")
    plain = {"epochs": 1.0, "steps": None, "batch": batch}
    by_gradient = FedIT(rank=16, alpha=16, sites="all", optim=Optim("adamw", lr=1e-3), **plain)
    method = FedKSeed(tune=tune, optim=Optim("sgd", lr=1e-6, schedule="constant"), **plain) if "fedkseed" in what else by_gradient
    client = states(1, batch * steps)[0]
    server = begin(method, bench, [client.info(())], 1)
    frozen = sum(p.numel() * p.element_size() for p in backbone.model.parameters())

    def once() -> None:
        pack = Pack(bench, [Turn(client, server.adaptation, dict(server.shared))], Round(0))
        if what != "scoring":
            list(method.train(pack))
            return
        with torch.no_grad():
            for one in pack.batches(1.0, None, batch):
                method.objective(pack, one)

    return {"mb": frozen / 1e6 + above(once, device), "frozen": frozen / 1e6}


# tables ---------------------------------------------------------------------------------------------------------------


def table_output(args: argparse.Namespace) -> None:
    sizes = [(49152, 576), (49152, 2048), (128256, 576), (128256, 2048)]
    precisions, rows = ["float32", "bfloat16"], 4096
    if args.quick:
        sizes, precisions, rows = sizes[:1], precisions[:1], 1024
    print(f"Output layer, {rows} rows, forward and backward\n")
    print("| vocabulary | d | precision | all held MB | in chunks MB | less | all held s | in chunks s | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    least, slowest = float("inf"), 0.0
    for vocabulary, d in sizes:
        for precision in precisions:
            both: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
            for _ in range(args.repeats):  # by turns: the machine drifts
                for chunked in both:
                    what = {"vocabulary": vocabulary, "d": d, "rows": rows, "precision": precision, "chunked": chunked}
                    both[chunked].append(case(kind="output", repeats=1, **what))
            mb = {c: statistics.median(r["mb"] for r in found) for c, found in both.items()}
            s = {c: min(r["s"] for r in found) for c, found in both.items()}
            less, time_ = mb[False] / mb[True], s[True] / s[False]
            least, slowest = min(least, less), max(slowest, time_)
            print(
                f"| {vocabulary} | {d} | {precision} | {mb[False]:.0f} | {mb[True]:.0f} | {less:.1f}x | {s[False]:.1f} "
                f"| {s[True]:.1f} | {time_:.2f}x |",
                flush=True,
            )
    print(f"\n{'met   ' if least >= 5 else 'MISSED'} at least 5x less memory (worst {least:.1f}x)")
    print(f"{'met   ' if slowest <= 1.05 else 'MISSED'} no slower (worst {slowest:.2f}x)\n")


def table_recompute(args: argparse.Namespace) -> None:
    shape = {"clients": 1, "batch": 4, "width": 256, "repeats": 2}
    if args.quick:
        shape |= {"batch": 1, "width": 64, "repeats": 1}
    print(f"SmolLM2, 1 client, {shape['batch']} x {shape['width']} tokens\n")
    print("| precision | kept MB | computed once more MB | less | kept s | once more s | time |")
    print("|---|---|---|---|---|---|---|")
    for precision in ("float32", "bfloat16"):
        kept, again = (case(kind="step", shape="smollm2", precision=precision, recompute=r, **shape) for r in (False, True))
        print(
            f"| {precision} | {kept['mb']:.0f} | {again['mb']:.0f} | {kept['mb'] / again['mb']:.1f}x | {kept['s']:.1f} "
            f"| {again['s']:.1f} | {again['s'] / kept['s']:.2f}x |",
            flush=True,
        )
    print()


def table_estimate(args: argparse.Namespace) -> None:
    shapes, counts = [("smollm2", 8), ("tinyllama", 4)], (1, 4)
    precisions, batch, width = ["float32", "bfloat16"], 2, 256
    if args.device == "cuda":
        shapes, precisions, counts, batch = [("tinyllama", 22), ("llama-2-7b", 32)], ["bfloat16"], (1, 8), 4
    if args.quick:
        shapes, precisions, counts, width = shapes[:1], precisions[:1], counts[:1], 64
    print(f"Estimate against measured, beyond the weights; {batch} rows of {width} tokens a client, half of them answers\n")
    print("| shape | layers | precision | clients | recompute | measured MB | estimate MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    worst = 1.0
    for (shape, layers), precision, clients, recompute in itertools.product(shapes, precisions, counts, (False, True)):
        what = {"shape": shape, "layers": layers, "precision": precision, "clients": clients, "recompute": recompute}
        found = case(kind="step", batch=batch, width=width, repeats=0, device=args.device, **what)
        ratio = found["estimate"] / found["mb"]
        worst = max(worst, ratio, 1 / ratio)
        print(
            f"| {shape} | {layers} | {precision} | {clients} | {'yes' if recompute else 'no'} | {found['mb']:.0f} "
            f"| {found['estimate']:.0f} | {ratio:.2f} |",
            flush=True,
        )
    print(f"\n{'met   ' if worst <= 1.15 else 'MISSED'} within 15 % (worst {worst:.2f}x)\n")


def table_turns(args: argparse.Namespace) -> None:
    shape, layers, precision = ("tinyllama", 22, "bfloat16") if args.device == "cuda" else ("smollm2", 30, "float32")
    size = {"shape": shape, "layers": layers, "precision": precision, "batch": 1, "width": 64 if args.quick else 256}
    print(f"A turn of a client on the shape of {shape}, {layers} layers, {precision}, steps of 1 row of {size['width']} tokens\n")
    print("| what | MB with the weights | of scoring |")
    print("|---|---|---|")
    found = {}
    for what in ("scoring", "LoRA, fedit", "LoRA, fedkseed", "all weights, fedkseed"):
        runs = [case(kind="turn", what=what, device=args.device, **size)["mb"] for _ in range(args.repeats)]
        found[what] = statistics.median(runs)
        print(f"| {what} | {found[what]:.0f} | {found[what] / found['scoring']:.2f}x |", flush=True)
    ratio = found["LoRA, fedkseed"] / found["scoring"]
    print(f"\n{'met   ' if ratio <= 1.1 else 'MISSED'} LoRA by fedkseed within 1.1x of scoring ({ratio:.2f}x)\n")


TABLES = {"output": table_output, "recompute": table_recompute, "estimate": table_estimate, "turns": table_turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which; all, if none is named")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the estimates: cuda for whole models")
    parser.add_argument("--quick", action="store_true", help="small cases, once")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run(json.loads(args.case))))
        return
    if args.quick:
        args.repeats = 1
    for name in args.tables or TABLES:
        TABLES[name](args)


if __name__ == "__main__":
    main()
