"""A federated round of prompt learning on a CLIP against the field's way: each of ten clients its own loop over its pictures.

    python benchmarks/clip_round.py [--patch 16] [--rounds 2]

The other side is what published code of PromptFL and its successors does, in plain PyTorch on the same model of transformers: for
each client and step, the pictures go through the image tower, and the class names with the context through the text tower at its
whole length of 77 places; then one step of SGD, and a mean of the contexts at the end. Both sides see the same rows in the
same steps from the same start; their losses are compared before any time is printed. Later rounds of Weft find the pictures'
embeddings kept. A missed aim is printed as missed.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WEFT_REPORT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import prompt_cache
from _shares import simulation
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.backbones.pixels import Pixels
from weft.federation import plans
from weft.methods.prompts.promptfl import PromptFL

AIM = 20.0
CLIENTS, EACH, BATCH, RATE = 10, 32, 32, 2e-3
PLACES = 77


def texts(backbone: Backbone, context: Tensor, whole: Tensor) -> Tensor:
    """[C, e] of the class names with the context in front, at the text tower's whole length."""
    model = backbone.model
    table = model.text_model.embeddings
    start, words = table.token_embedding(whole[:, :1]), table.token_embedding(whole[:, 1 : PLACES - len(context)])
    x = torch.cat([start, context.expand(len(whole), -1, -1), words], 1)
    x = x + table.position_embedding.weight[:PLACES]
    future = torch.full((PLACES, PLACES), -torch.inf).triu(1)[None, None]
    for layer in model.text_model.encoder.layers:
        x = layer(x, future)
        x = x[0] if isinstance(x, tuple) else x
    end = (whole == backbone.tokenizer.eos_token_id).int().argmax(1) + len(context)
    x = model.text_model.final_layer_norm(x)[torch.arange(len(whole)), end]
    return F.normalize(model.text_projection(x), dim=-1)


def fields_round(backbone: Backbone, table: Pixels, context: Tensor, whole: Tensor, t: int) -> tuple[Tensor, float]:
    """The mean of the clients' contexts after their turns, and the mean of their losses."""
    found, losses = [], []
    for k in range(CLIENTS):
        own = context.clone().requires_grad_(True)
        optimizer = torch.optim.SGD([own], lr=RATE, momentum=0.9)
        lengths = table.lengths[k * EACH : (k + 1) * EACH]
        name = f"c{k}"
        mine = []
        for rows in plans.turn(lengths, size=BATCH, seed=0, client=name, turn=t, epochs=1.0, steps=None).batches:
            index = rows + k * EACH
            pixels = table.collate(index)["pixel_values"]
            images = backbone.model.visual_projection(backbone.model.vision_model(pixels).pooler_output)
            z = backbone.model.logit_scale.exp() * F.normalize(images, dim=-1) @ texts(backbone, own, whole).T
            loss = F.cross_entropy(z, torch.from_numpy(table.labels[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mine.append(float(loss.detach()))
        found.append(own.detach())
        losses.append(float(np.mean(mine)))
    return torch.stack(found).mean(0), float(np.mean(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=16, help="of the image tower: 16 or 32")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    backbone = prompt_cache.random_clip(args.patch)
    table = prompt_cache.pictures(backbone, CLIENTS * EACH)
    method = PromptFL(epochs=1.0, batch=BATCH, optim=Optim("sgd", lr=RATE, momentum=0.9, schedule="constant"))
    with simulation(method, backbone, table, prompt_cache.CLASSES, CLIENTS, args.rounds, True) as federation:
        server = federation.setup.federations[0][0]
        (name,) = server.shared
        context = server.shared[name].clone()  # type: ignore[union-attr]
        ours = []
        for t in range(args.rounds):
            began = time.perf_counter()
            record = federation.round(t)
            assert record is not None
            ours.append((time.perf_counter() - began, float(record["loss"])))
        trained = server.shared[name]
    whole, theirs = class_rows(backbone, len(context)), []
    for t in range(args.rounds):
        began = time.perf_counter()
        context, loss = fields_round(backbone, table, context, whole, t)
        theirs.append((time.perf_counter() - began, loss))
    gap = max(abs(a[1] - b[1]) for a, b in zip(ours, theirs, strict=True))
    apart = float((context - trained).abs().max())
    if gap > 1e-3 or apart > 1e-4:
        raise SystemExit(f"losses differ by {gap:.1e}, contexts by {apart:.1e}; nothing is timed that is not the same")
    print(f"ViT-B/{args.patch}, {CLIENTS} clients of {EACH} pictures, one epoch, {torch.get_num_threads()} threads, float32")
    print(f"losses agree to {gap:.0e}, contexts after {args.rounds} rounds to {apart:.0e}")
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        what = "first round, which fills the cache" if t == 0 else "a later round"
        state = "" if t == 0 else f"; aim {AIM:.0f}x: {'met' if b[0] / a[0] >= AIM else 'MISSED'}"
        print(f"  {what}: {b[0]:.1f} s by each client's own loop, {a[0]:.1f} s by Weft: {b[0] / a[0]:.1f}x{state}")


def class_rows(backbone: Backbone, context: int) -> Tensor:
    """[C, 77 - p] ids of each class name between start and end token."""
    words = backbone.tokenizer
    rows = [[words.bos_token_id, *words(f"{c}", add_special_tokens=False)["input_ids"]] for c in prompt_cache.CLASSES]
    stop = words(".", add_special_tokens=False)["input_ids"]
    rows = [[*row, *stop, words.eos_token_id] for row in rows]
    return torch.tensor([row + [words.eos_token_id] * (PLACES - context - len(row)) for row in rows])


if __name__ == "__main__":
    main()
