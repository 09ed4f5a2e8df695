"""How many clients share a pass: chosen from memory, and by what is known to pay on the device."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from weft.backbones.quantised import size
from weft.backbones.reply_table import Replies
from weft.errors import UserError
from weft.federation.layout import named
from weft.tensors import output_layer
from weft.words import count

if TYPE_CHECKING:
    from weft.engines.setup import Setup
    from weft.federation.bench import Bench
    from weft.federation.client import ClientState
    from weft.federation.method import Method
    from weft.federation.server import ServerState

# Beyond this a processor without idle units gains nothing, and caches suffer: rows of a pass, and tokens on a CPU. Its rate falls
# with the size of a pass (benchmarks/packing.py: 8 x 64 x 16 clients at half a loop's rate in float32, packs of 32 clients in
# bfloat16 at 0.7 of that of 8).
ROWS_AT_ONCE = {"cpu": 256, "cuda": 1024, "mps": 256}
TOKENS_ON_CPU = {torch.float32: 1024, torch.bfloat16: 4096}

SATURATED = (1024, 135e6)
"""Tokens of a pass, and parameters: SmolLM2 gains nothing beyond (benchmarks/language_memory.py: as many tokens a second in packs
of 1, 2, 4 and 8 clients of 256 to 512 tokens, on one thread in float32). Larger models are taken to be so at fewer tokens, by the
root.
"""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one pass: ``fixed`` (the backbone) + ``per_client`` × K."""

    fixed: int
    per_client: int
    available: int

    def total(self, k: int) -> int:
        return self.fixed + k * self.per_client


@dataclass(frozen=True)
class Capacity:
    """Clients of a pass, and its memory."""

    k: int
    guess: Estimate


def capacity(setup: Setup, memory: int | None = None, workers: int = 1) -> Capacity:
    """How many clients share a pass.

    Args:
        memory: bytes that a pass may take, None = what is free here. workers: that share a cohort.
    """
    settings, method, bench = setup.settings, setup.method, setup.bench
    width = _width(bench)
    guess = estimate(bench, method, _trainable(setup.federations[0][0]), width, _texts(setup.federations[0][0]))
    if memory is not None:
        guess = replace(guess, available=memory)
    cohort = sum(max(round(settings.participation * len(c)), 1) for _, c in setup.federations)
    share = math.ceil(cohort / workers)
    return Capacity(1 if settings.debug else choose(settings.pack, share, method.batch, width, guess, bench), guess)


def _trainable(server: ServerState) -> int:
    return sum(init.numel for _, init, _ in named(server.adaptation, server.bench.backbone) if init.kind != "lowrank")


def _texts(server: ServerState) -> bool:
    return any(site.tower for part, _ in server.adaptation.values() for site in part.sites(server.bench.backbone))


def _width(bench: Bench) -> int:
    lengths = bench.table.lengths
    return int(np.quantile(lengths, 0.95)) if len(lengths) else 1


def available_memory(device: torch.device) -> int:
    """Free bytes on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return int(pages)
    except (OSError, ValueError):
        return 4 << 30


def estimate(bench: Bench, method: Method, trainable: int, width: int, texts: bool = False) -> Estimate:
    """Memory of a training pass, roughly: activations kept for the backward pass, and parts with gradient and moments.

    Args:
        trainable: elements of one client's trainable tensors. width: tokens of a long batch.
        texts: a part sits in the text tower.
    """
    config = bench.backbone.model.config
    parts = trainable * 4 * 5  # value, gradient, two moments, one temporary
    frozen = sum(size(p) for p in bench.backbone.model.parameters())
    free = available_memory(bench.backbone.device)
    if bench.backbone.vocabulary is not None:
        chunk, activations = language(bench, method.batch * width)
        return Estimate(frozen + chunk, activations + parts, free)
    sizes = getattr(config, "vision_config", config)
    d = bench.backbone.d
    ffn = int(getattr(sizes, "intermediate_size", 0) or getattr(sizes, "n_inner", 0) or 4 * d)
    heads = int(getattr(sizes, "num_attention_heads", 12))
    item = torch.finfo(bench.backbone.dtype).bits // 8
    tokens = method.batch * width
    per_layer = tokens * (10 * d + 3 * ffn) + 3 * method.batch * heads * width * width
    layers = len(bench.backbone.blocks)
    activations = (layers * per_layer if not bench.recompute else layers * tokens * d + per_layer) * item
    names = bench.backbone.names
    if names is not None and texts:  # every class name goes through the text tower for every client
        text = config.text_config
        rows, length = len(names.names), min(names.limit, 32)
        per_row = length * (10 * text.hidden_size + 3 * text.intermediate_size) + 3 * text.num_attention_heads * length**2
        activations += text.num_hidden_layers * rows * per_row * item
    return Estimate(frozen, activations + parts, free)


SLACK = {torch.float32: 1.35, torch.bfloat16: 1.15}
"""What a process grows by on a CPU, against the sizes of activations: its allocator leaves holes."""


def language(bench: Bench, tokens: int) -> tuple[int, int]:
    """Bytes that a pass of a language model takes for the logits that it holds at once, and those of one client's activations.

    A block of LLaMA's keeps two normed inputs, two residual streams (in float32, whatever the backbone computes in), queries,
    keys, values and what attention makes of them, and four tensors as wide as its feed-forward; fused attention keeps no scores.

    Args:
        tokens: of one client in a step.
    """
    backbone, config = bench.backbone, bench.backbone.model.config
    item = torch.finfo(backbone.dtype).bits // 8
    d, layers = backbone.d, len(backbone.blocks)
    ffn = max((s.d_in for s in backbone.linears if "ffn.out" in s.roles), default=4 * d)
    gated = any("ffn.gate" in s.roles for s in backbone.linears)
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    grouped = int(getattr(config, "num_key_value_heads", 0) or heads) / heads
    block = tokens * ((4 + 2 * grouped) * d + (4 if gated else 3) * ffn) * item + tokens * 2 * d * max(item, 4)
    at_work = tokens * (2 * d + 3 * ffn) * item  # gradients and temporaries of the block in progress
    # while a block is computed once more, the one above it has not gone yet
    kept = layers * tokens * d * item + min(2, layers) * block if bench.recompute else layers * block
    assert backbone.vocabulary is not None
    wide, whole = backbone.vocabulary.size, max(item, 4)
    rows = min(max(output_layer.CHUNK // wide, output_layer.ROWS), tokens)
    logits = 3 * rows * wide * whole  # exponents beside them, and a copy in half precision or another temporary
    if not backbone.vocabulary.plain:  # all of them, and their gradient
        logits, kept = 0, kept + 3 * tokens * wide * whole
    slack = SLACK.get(backbone.dtype, 1.0) if backbone.device.type == "cpu" else 1.0
    return int(logits), int(slack * (kept + at_work))


def choose(pack: str | int, cohort: int, batch: int, width: int, guess: Estimate, bench: Bench) -> int:
    """Clients per pack for ``--pack auto``, or the number asked for.

    Args:
        batch: rows of one client in a step. width: tokens of a row.
    """
    if pack != "auto":
        return max(int(pack), 1)
    by_memory = max(int(guess.available * 0.6 - guess.fixed) // max(guess.per_client, 1), 1)
    backbone = bench.backbone
    size_of = 0 if backbone.vocabulary is None else backbone.parameters
    k = max(min(cohort, by_memory, paying(batch, width, backbone.device, backbone.dtype, size_of)), 1)
    # equal packs: 9 clients as 5 + 4 rather than 8 + 1
    return math.ceil(cohort / math.ceil(cohort / k)) if cohort else k


def paying(batch: int, width: int, device: torch.device, dtype: torch.dtype, parameters: int = 0) -> int:
    """How many clients can share a pass before it gets slower.

    Args:
        parameters: of a language model, 0 = another.
    """
    rows = ROWS_AT_ONCE.get(device.type, 256)
    if device.type == "cpu" and dtype in TOKENS_ON_CPU:
        tokens, at = SATURATED
        most = TOKENS_ON_CPU[dtype] if not parameters else min(TOKENS_ON_CPU[dtype], int(tokens * math.sqrt(at / parameters)))
        rows = min(rows, most // max(width, 1))
    return max(rows // max(batch, 1), 1)


def group(clients: list[ClientState], k: int, bench: Bench) -> list[list[ClientState]]:
    """Packs of at most k clients of one backbone, of similar work: sorted by number of rows, so that few leave a pack early.

    Rows of prompts and answers differ much in length from client to client, and a pack is as wide as its longest row: there,
    clients of about as many rows are sorted by the mean length of theirs.
    """
    found = []
    for model in dict.fromkeys(c.model for c in clients):
        ordered = sorted((c for c in clients if c.model == model), key=lambda c: (-c.n, c.id))
        if isinstance(bench.table, Replies):
            lengths = bench.table.lengths
            wide = {c.id: float(lengths[c.data.train].mean()) if len(c.data.train) else 0.0 for c in ordered}
            ordered.sort(key=lambda c: (-round(math.log2(max(c.n, 1))), -wide[c.id], c.id))
        found += [ordered[i : i + k] for i in range(0, len(ordered), k)]
    return found


def out_of_memory(capacity: Capacity) -> UserError:
    k = capacity.k
    lower = f"--pack {max(k // 2, 1)}" if k > 1 else "--set method.batch to a smaller number, or --max-length"
    return UserError(
        f"out of memory with {count(k, 'client')} in a pack (estimated {capacity.guess.total(k) / 1e9:.1f} GB); lower {lower}."
    )
