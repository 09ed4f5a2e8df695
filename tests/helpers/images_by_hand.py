"""CLIP and ViT with prompts, computed with transformers' own classes: one class name and one block at a time, no client axis."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from weft.backbones.backbone import Backbone


@functools.cache
def clip(path: str) -> Any:
    """transformers' own CLIPModel of a folder, in float64."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(path, dtype=torch.float64).eval().requires_grad_(False)


@functools.cache
def vit(path: str) -> Any:
    """transformers' own ViTModel of a folder, in float64."""
    from transformers import ViTModel

    return ViTModel.from_pretrained(path, dtype=torch.float64).eval().requires_grad_(False)


def pictures(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    """What the model reads of rows of the table, [n, 3, H, W]."""
    found: Tensor = run.bench.table.collate(rows)["pixel_values"]
    return found.double()


# CLIP -----------------------------------------------------------------------------------------------------------------


def image_embedding(b: Backbone, pixel_values: Tensor) -> Tensor:
    """[n, e], not normalised."""
    model = clip(b.path)
    found: Tensor = model.visual_projection(model.vision_model(pixel_values.double()).pooler_output)
    return found


def text_embedding(b: Backbone, tokens: Tensor) -> Tensor:
    """Feature [e] of unit length of one text, given as token embeddings [T, d] from start to end token."""
    model = clip(b.path)
    text = model.text_model
    x = (tokens + text.embeddings.position_embedding.weight[: len(tokens)]).unsqueeze(0)
    future = torch.full((len(tokens), len(tokens)), -torch.inf, dtype=x.dtype).triu(1)
    for layer in text.encoder.layers:
        x = layer(x, future[None, None])
    end = model.text_projection(text.final_layer_norm(x)[0, -1])
    return end / end.norm()


def word_embeddings(b: Backbone, text: str) -> Tensor:
    """[words, d] of a text without start and end token."""
    ids = [i for i in b.tokenizer(text)["input_ids"] if i not in (b.tokenizer.bos_token_id, b.tokenizer.eos_token_id)]
    return token_embeddings(b, ids)


def token_embeddings(b: Backbone, ids: Sequence[int]) -> Tensor:
    table: Tensor = clip(b.path).text_model.embeddings.token_embedding.weight
    return table[list(ids)]


def framed(b: Backbone, *pieces: Tensor) -> Tensor:
    """Token embeddings [T, d] between those of the start and of the end token."""
    start, end = (token_embeddings(b, [i]) for i in (b.tokenizer.bos_token_id, b.tokenizer.eos_token_id))
    return torch.cat([start, *pieces, end])


def coop(b: Backbone, names: Sequence[str], context: Tensor, where: str = "end") -> Tensor:
    """Text features [C, e] with a context [p, d], or [C, p, d], around each class name."""
    found = []
    for c, name in enumerate(names):
        own = context[c] if context.dim() == 3 else context
        half = len(own) // 2
        word, stop = word_embeddings(b, name), word_embeddings(b, ".")
        order = {"end": (own, word), "front": (word, own), "middle": (own[:half], word, own[half:])}[where]
        found.append(text_embedding(b, framed(b, *order, stop)))
    return torch.stack(found)


def zero_shot(b: Backbone, names: Sequence[str], template: str) -> Tensor:
    """Text features [C, e] of the class names in a template."""
    return torch.stack([text_embedding(b, framed(b, word_embeddings(b, template.format(n)))) for n in names])


def similarity(b: Backbone, z: Tensor, texts: Tensor) -> Tensor:
    """Logits [n, C] of image embeddings [n, e] and text features [C, e]."""
    scale = clip(b.path).logit_scale.exp()
    return scale * F.normalize(z, dim=-1) @ texts.T


# visual prompts -------------------------------------------------------------------------------------------------------


def vpt(b: Backbone, tokens: Sequence[Tensor], pixel_values: Tensor) -> Tensor:
    """Features [n, d] that the head reads, with tokens [m, d] put behind the class token at the first block (one entry), or new
    ones at every block (as many entries as blocks).
    """
    if b.kind == "vit":
        model = vit(b.path)
        x, layers = model.embeddings(pixel_values.double()), model.layers
    else:
        model = clip(b.path).vision_model
        x, layers = model.pre_layrnorm(model.embeddings(pixel_values.double())), model.encoder.layers
    for i, layer in enumerate(layers):
        if i < len(tokens):
            old = 0 if i == 0 else len(tokens[i - 1])
            x = torch.cat([x[:, :1], tokens[i].expand(len(x), -1, -1), x[:, 1 + old :]], 1)
        x = layer(x, None)
    return model.layernorm(x)[:, 0] if b.kind == "vit" else x[:, 1:].mean(1)


def prompted(b: Backbone, values: Mapping[str, Tensor], pixel_values: Tensor, part: str = "prompt") -> Tensor:
    """Logits [n, C] with a client's prompt and head, both by their names in a pack."""
    tokens = [v for n, v in values.items() if n.startswith(f"{part}/")]
    return vpt(b, tokens, pixel_values) @ values["head/classifier/weight"].T + values["head/classifier/bias"]


def own_logits(run: tiny.Federation, k: int, values: Mapping[str, Tensor], rows: np.ndarray) -> Tensor:
    """Logits [n, C] of the k-th client's own backbone, prompt and head on rows of the table."""
    bench = run.bench.of(run.clients[k])
    return prompted(bench.backbone, values, bench.table.collate(rows)["pixel_values"])


def taught_turn(
    run: tiny.Federation,
    k: int,
    values: dict[str, Tensor],
    steps: list[np.ndarray],
    known: Sequence[int],
    gamma: float,
    tau: float,
) -> dict[str, Tensor]:
    """FedHPL's client step, example by example: VPT, and a table of logits that teaches the classes which it has a row for."""
    teacher = values.get("teacher/values/logits")
    values = {n: v.clone().requires_grad_(True) for n, v in values.items() if n.startswith(("prompt/", "head/"))}
    optimizer = torch.optim.SGD(list(values.values()), lr=0.05, momentum=0.9)
    for rows in steps:
        z, y = own_logits(run, k, values, rows), torch.from_numpy(run.bench.table.labels[rows])
        loss = F.cross_entropy(z, y)
        taught = [i for i in range(len(rows)) if int(y[i]) in known]
        for i in taught:
            assert teacher is not None
            p, q = F.softmax(teacher[y[i]] / tau, 0), F.softmax(z[i] / tau, 0)
            loss = loss + gamma * tau**2 * (p * (p / q).log()).sum() / len(taught)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {n: v.detach() for n, v in values.items()}
