"""A federated round over questions about pictures: clients in one pack against one after another.

    python benchmarks/vqa.py [--clients 8] [--batch 4] [--steps 6] [--repeats 7]

fedit's LoRA and a head of answers on glyph-vilt, over glyph_questions. One after another is a plain PyTorch + PEFT loop on
transformers' own ViLT, and Weft in packs of one; all sides are given the same rows in the same steps from the same start, in
float32, and every client's losses are compared before any time is printed. A missed aim is printed as missed.
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from _rounds import one_by_one, packed, peft_model, ratios, states, timed, verdict, worst_gap
from weft.adaptation.optim import Optim
from weft.backbones.load import load
from weft.backbones.run_table import tabulate
from weft.data.glyph_questions import CLASSES, glyph_questions
from weft.federation.bench import Bench
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.visual_questions import VisualQuestions

AIM = 1.2
RANK = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    plain_class = transformers.ViltForQuestionAnswering
    backbone = load("glyph-vilt", classes=CLASSES, device="cpu", precision="float32")
    many = args.clients * args.steps * args.batch
    table = tabulate(backbone, glyph_questions().train.take(np.arange(many)))
    method = FedIT(rank=RANK, alpha=RANK, sites="all", epochs=1.0, batch=args.batch, optim=Optim("adamw", lr=1e-3))
    bench = Bench(backbone, VisualQuestions(CLASSES), table, 0)
    everyone = states(args.clients, many // args.clients)
    plain = plain_class.from_pretrained(backbone.path, num_labels=len(CLASSES), dtype=torch.float32)
    heads = [head.name for head in backbone.heads]
    loop = peft_model(plain.eval(), [s.name for s in backbone.sites("all")], RANK, RANK, None, heads)

    def loss(model: Any, inputs: dict[str, torch.Tensor], index: np.ndarray) -> torch.Tensor:
        target = F.one_hot(torch.from_numpy(table.labels[index]), len(CLASSES)).float()
        return F.binary_cross_entropy_with_logits(model(**inputs).logits, target) * len(CLASSES)

    sides = {
        "packed": packed(method, bench, everyone, args.clients),
        "packs of one": packed(method, bench, everyone, 1),
        "loop": one_by_one(loop, method, bench, everyone, loss),
    }
    expected = sides["loop"]()
    gap = max(worst_gap(sides[name](), expected) for name in ("packed", "packs of one"))
    if not gap <= 1e-3:
        raise SystemExit(f"losses differ by {gap:.1e}: there is nothing to time")
    took = timed(sides, args.repeats, torch.device("cpu"))
    print(
        f"glyph-vilt, {args.clients} clients, {args.steps} steps of {args.batch} questions, float32, {torch.get_num_threads()} "
        f"threads, median of {args.repeats}; losses agree to {gap:.0e}"
    )
    for name, each in took.items():
        print(f"  {name}: {1000 * statistics.median(each):.0f} ms a round")
    for name in ("loop", "packs of one"):
        value, words = ratios(took[name], took["packed"])
        print(f"  packed against {name}: {words}")
        verdict(f"packed against {name}: at least {AIM}x", value, AIM)


if __name__ == "__main__":
    main()
