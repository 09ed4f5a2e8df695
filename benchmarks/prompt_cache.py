"""A round of each prompt method for a CLIP with and without the feature cache: its image tower needs to see a picture once.

    python benchmarks/prompt_cache.py [--methods promptfl,fedotp] [--backbones ViT-B/16] [--repeats 3] [--memory] [--quick]

Both sides train the same clients on the same pictures from the same start; their losses are compared before any time is printed.
"first round" fills the cache; "later rounds" find it filled, which is what all rounds but one of a run look like. Seconds are
of processor time, in which whatever else the machine does has no part: one thread (OMP_NUM_THREADS=1) says most. Rows: a
CLIP of ViT-B/32's shape (151 M parameters, random weights, 224 pixels), one of ViT-B/16's, and the tiny one that comes with
Weft, whose image tower costs less than its text tower. ``--memory``: the most that a process of two cached rounds at ViT-B/16's
shape takes, for fedotp against promptfl, each in a process of its own. A missed aim is printed as missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from transformers import CLIPConfig

from _shares import simulation
from weft.backbones.backbone import Backbone
from weft.backbones.clip import ClassNames, SimilarityCLIP
from weft.backbones.freeze import describe_model
from weft.backbones.load import load
from weft.backbones.options import TEMPLATE
from weft.backbones.pixels import Pixels
from weft.federation.method import Method
from weft.methods import registry

AIM, AIM_MEMORY = 5.0, 1.2
METHODS = ("promptfl", "promptfolio", "fedotp", "pfedprompt", "pfedmoap", "fedapt", "diprompt", "fedclip")
CLASSES = tuple("0123456789")
CASES = {  # patch, clients, pictures each, local epochs
    "ViT-B/32": (32, 2, 32, 1.0),
    "ViT-B/16": (16, 2, 16, 1.0),
    "glyph-clip": (0, 8, 64, 1.0),
}


def random_clip(patch: int) -> Backbone:
    """The released shapes with random weights, in float32; the words of the shipped tokenizer stand for CLIP's own."""
    small = load("glyph-clip", classes=CLASSES, device="cpu", precision="float32")
    end = small.tokenizer.eos_token_id
    config = CLIPConfig(
        text_config={
            "vocab_size": len(small.tokenizer),
            "eos_token_id": end,
            "bos_token_id": small.tokenizer.bos_token_id,
            "pad_token_id": end,
        },
        vision_config={"patch_size": patch, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    )
    torch.manual_seed(0)
    model = SimilarityCLIP(config)
    model.set_attn_implementation("eager")
    names = ClassNames(small.tokenizer, CLASSES, TEMPLATE, 77)
    small.processor.size, small.processor.crop_size = {"height": 224, "width": 224}, {"height": 224, "width": 224}
    return describe_model(model, small.tokenizer, set(), processor=small.processor, names=names, name=f"ViT-B/{patch}")


def pictures(backbone: Backbone, n: int) -> Pixels:
    rng = np.random.default_rng(0)
    size = backbone.model.config.vision_config.image_size
    values = rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    half = np.full(3, 0.5, np.float32)
    return Pixels(values, half, half, backbone.picture_tokens, rng.integers(0, len(CLASSES), n), np.arange(n))


def made(slug: str, epochs: float) -> Method:
    """The method with its paper's settings, but for the length of a turn, which is one of equal steps for all."""
    method: Any = registry.load(slug)()
    return replace(method, epochs=epochs, batch=32)


def run(method: Method, backbone: Backbone, table: Pixels, clients: int, rounds: int, cached: bool) -> list[tuple[float, float]]:
    """(seconds of processor time, loss) of each round; nothing is evaluated."""
    found = []
    with simulation(method, backbone, table, CLASSES, clients, rounds, cached) as federation:
        for t in range(rounds):
            began = time.process_time()
            record = federation.round(t)
            assert record is not None
            found.append((time.process_time() - began, float(record["loss"])))
    return found


def memory(slug: str) -> float:
    """Bytes, the most that a process of its own takes."""
    done = subprocess.run([sys.executable, __file__, "--alone", slug], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(slug: str) -> None:
    """Two cached rounds at ViT-B/16's shape, and the most memory that this process has had."""
    _, clients, each, epochs = CASES["ViT-B/16"]
    backbone = random_clip(16)
    run(made(slug, epochs), backbone, pictures(backbone, clients * each), clients, 2, cached=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--backbones", default=",".join(CASES), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="later rounds that are timed")
    parser.add_argument("--memory", action="store_true", help="of fedotp against promptfl, and nothing else")
    parser.add_argument("--quick", action="store_true", help="the tiny backbone and the first method alone, two rounds")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return alone(args.alone)
    if args.memory:
        ours, theirs = memory("fedotp"), memory("promptfl")
        state = "met" if ours / theirs <= AIM_MEMORY else "MISSED"
        figures = f"fedotp takes {ours / 1e9:.2f} GB, {ours / theirs:.2f}x the {theirs / 1e9:.2f} GB of promptfl"
        print(f"{figures}; aim {AIM_MEMORY}x: {state}")
        return None
    repeats = 1 if args.quick else args.repeats
    print(f"{torch.get_num_threads()} threads, float32, {len(CLASSES)} classes, batch 32\n")
    print("| method | backbone | clients x pictures | gap of losses | without, s a round | first round | later (min-max) | aim |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ["glyph-clip"] if args.quick else args.backbones.split(","):
        patch, clients, each, epochs = CASES[name]
        backbone = random_clip(patch) if patch else load(name, classes=CLASSES, device="cpu", precision="float32")
        table = pictures(backbone, clients * each)
        for slug in args.methods.split(",")[: 1 if args.quick else None]:
            method = made(slug, epochs)
            plain = run(method, backbone, table, clients, repeats + 1, cached=False)
            kept = run(method, backbone, table, clients, repeats + 1, cached=True)
            gap = max(abs(a[1] - b[1]) for a, b in zip(plain, kept, strict=True))
            if gap > 1e-3:
                raise SystemExit(f"{slug}, {name}: losses differ by {gap:.1e}; nothing is timed that is not the same")
            ratios = [a[0] / b[0] for a, b in zip(plain[1:], kept[1:], strict=True)]
            middle = statistics.median(ratios)
            state = f">= {AIM:.0f}x: {'met' if middle >= AIM else 'MISSED'}"
            print(
                f"| {slug} | {name} | {clients} x {each} | {gap:.0e} | {statistics.median(s for s, _ in plain):.2f} "
                f"| {plain[0][0] / kept[0][0]:.1f}x | {middle:.1f}x ({min(ratios):.1f}-{max(ratios):.1f}) | {state} |",
                flush=True,
            )
    return None


if __name__ == "__main__":
    main()
