"""How many clients share a pass: chosen from memory, and by what is known to pay on the device."""

from __future__ import annotations

import bisect
import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from weft.backbones.quantised import size
from weft.backbones.reply_table import Replies
from weft.errors import UserError
from weft.federation.layout import Adaptation, named
from weft.tensors import output_layer
from weft.words import count

if TYPE_CHECKING:
    from weft.engines.setup import Setup
    from weft.federation.bench import Bench
    from weft.federation.client import ClientState
    from weft.federation.method import Method

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


SERVER, SENDING, CLOSING = 4, 3, 5
"""Copies of all that a client trains, at the server and on their way: throughout a round (its values, the download as bytes and
as it was read, what an allocator keeps), more of them while an update is written, and while one after the other is taken into the
mean (measured by benchmarks/weights_memory.py).
"""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one pass.

    Attributes:
        fixed: the backbone. trained: of each client, the values that it trains.
        kept: of each client, activations that wait for the backward pass. work: of each client, what the block in progress takes
            beside them. logits: of a language model, those that are held at once, whosever they are.
        available: what is free. reused: what one moment of a pass leaves, the next one takes. On a CPU a process grows by nearly
            as much as all of them together, as its allocator gives back little and leaves holes.
        held: copies of the trained values that the optimizer holds beside them.
        apart: the server and messages lie in other memory than the passes: beside a GPU.
    """

    fixed: int
    trained: int
    kept: int
    available: int
    work: int = 0
    logits: int = 0
    reused: bool = True
    held: int = 2
    apart: bool = True

    def total(self, k: int) -> int:
        """At the worst of these moments: between forward and backward pass, at the end of the latter, in the step after it, while
        an update is written, as the round is closed.
        """
        own, message = (1 + self.held) * k * self.trained, 0 if self.apart else self.trained
        if self.reused:
            between = k * self.kept + max(self.logits, k * self.work)
            step = max(between, k * (self.trained + self.work), 2 * k * self.trained)  # gradients, and a temporary of them
        else:
            step = self.logits + k * (2 * self.trained + self.kept + self.work)
        return self.fixed + SERVER * message + max(own + max(step, SENDING * message), CLOSING * message)

    @property
    def server(self) -> int:
        """Of the server and its messages at most, where they are."""
        return (SERVER + CLOSING) * self.trained

    def most(self, memory: int, limit: int) -> int:
        """How many clients fit, at least 1 and no more than ``limit``."""
        return bisect.bisect_right(range(1, max(limit, 1) + 1), memory, key=self.total) or 1


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
    adaptation = setup.federations[0][0].adaptation
    guess = of_adaptation(bench, method, adaptation)
    if memory is not None:
        guess = replace(guess, available=memory)
    cohort = sum(max(round(settings.participation * len(c)), 1) for _, c in setup.federations)
    share = math.ceil(cohort / workers)
    single = settings.debug or alone(adaptation)
    return Capacity(1 if single else choose(settings.pack, share, method.batch, width, guess, bench), guess)


def alone(adaptation: Adaptation) -> bool:
    """Whether a pass can take one client alone."""
    return any(part.alone for part, _ in adaptation.values())


def of_adaptation(bench: Bench, method: Method, adaptation: Adaptation) -> Estimate:
    """The :func:`estimate` for clients that train this."""
    trainable = sum(init.numel for _, init, _ in named(adaptation, bench.backbone) if init.kind != "lowrank")
    texts = any(site.tower for part, _ in adaptation.values() for site in part.sites(bench.backbone))
    return estimate(bench, method, trainable, _width(bench), texts, alone(adaptation))


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


def estimate(bench: Bench, method: Method, trainable: int, width: int, texts: bool = False, whole: bool = False) -> Estimate:
    """Memory of a training pass, roughly: activations kept for the backward pass, and parts with gradient and moments.

    Args:
        trainable: elements of one client's trainable tensors. width: tokens of a long batch.
        texts: a part sits in the text tower. whole: they are the backbone's own, of which a pass keeps a copy in its precision.
    """
    config = bench.backbone.model.config
    trained = 4 * trainable
    item = torch.finfo(bench.backbone.dtype).bits // 8
    cast = item * trainable if whole and bench.backbone.dtype != bench.dtype else 0
    frozen = sum(size(p) for p in bench.backbone.model.parameters())
    free, reused = available_memory(bench.backbone.device), bench.backbone.device.type != "cpu"
    more: dict[str, Any] = {"reused": reused, "held": method.optim.copies, "apart": reused}
    if bench.backbone.vocabulary is not None:
        more |= language(bench, method.batch * width)
        return Estimate(frozen, trained, available=free, **more | {"kept": more["kept"] + cast})
    sizes = getattr(config, "vision_config", config)
    d = bench.backbone.d
    ffn = int(getattr(sizes, "intermediate_size", 0) or getattr(sizes, "n_inner", 0) or 4 * d)
    heads = 0 if bench.backbone.maps else getattr(sizes, "num_attention_heads", 12)
    heads = max(heads) if isinstance(heads, (list, tuple)) else int(heads)
    tokens = method.batch * width
    per_layer = int((tokens * (10 * d + 3 * ffn) + 3 * method.batch * heads * width * width) * bench.backbone.spread)
    layers = len(bench.backbone.blocks)
    activations = (layers * per_layer if not bench.recompute else layers * tokens * d + per_layer) * item
    names = bench.backbone.names
    if names is not None and texts:  # every class name goes through the text tower for every client
        text = config.text_config
        rows, length = len(names.names), min(names.limit, 32)
        per_row = length * (10 * text.hidden_size + 3 * text.intermediate_size) + 3 * text.num_attention_heads * length**2
        activations += text.num_hidden_layers * rows * per_row * item
    return Estimate(frozen, trained, activations + cast, free, **more)


SLACK = {torch.float32: 1.35, torch.bfloat16: 1.15}
"""What a process grows by on a CPU against the sizes of activations, as its allocator leaves holes (measured by
benchmarks/language_memory.py).
"""


def language(bench: Bench, tokens: int) -> dict[str, int]:
    """Bytes that a pass of a language model takes: ``kept``, ``work`` and ``logits`` of :class:`Estimate`.

    A block of LLaMA's keeps two normed inputs, two residual streams (in float32, whatever the backbone computes in), queries,
    keys, values and what attention makes of them, and four tensors as wide as its feed-forward; fused attention keeps no scores.

    Args:
        tokens: of one client in a step.
    """
    backbone, config, table = bench.backbone, bench.backbone.model.config, bench.table
    item = torch.finfo(backbone.dtype).bits // 8
    d, layers = backbone.d, len(backbone.blocks)
    ffn = max((s.d_in for s in backbone.linears if "ffn.out" in s.roles), default=4 * d)
    gated = any("ffn.gate" in s.roles for s in backbone.linears)
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    grouped = int(getattr(config, "num_key_value_heads", 0) or heads) / heads
    block = tokens * ((4 + 2 * grouped) * d + (4 if gated else 3) * ffn) * item + tokens * 2 * d * max(item, 4)
    at_work = tokens * (2 * d + 2 * ffn) * item  # gradients and temporaries of the block in progress
    kept = layers * (tokens * d * item if bench.recompute else block)
    work = at_work + (block if bench.recompute else 0)
    if backbone.device.type == "cpu":  # the block above has left a hole
        work += tokens * ffn * item + (block if bench.recompute else 0)
    assert backbone.vocabulary is not None
    wide, whole = backbone.vocabulary.size, max(item, 4)
    share = float(table.answer.mean()) if isinstance(table, Replies) and len(table.answer) else 1.0
    predicted = math.ceil(share * tokens)
    logits = 3 * max(output_layer.CHUNK // wide, output_layer.ROWS) * wide * whole  # exponents beside them, and a temporary
    if not backbone.vocabulary.plain:  # all of them, and their gradient
        logits, kept = 0, kept + 3 * predicted * wide * whole
    slack = SLACK.get(backbone.dtype, 1.0) if backbone.device.type == "cpu" else 1.0
    return {"kept": int(slack * kept), "work": int(slack * work), "logits": int(logits)}


def choose(pack: str | int, cohort: int, batch: int, width: int, guess: Estimate, bench: Bench) -> int:
    """Clients per pack for ``--pack auto``, or the number asked for.

    Args:
        batch: rows of one client in a step. width: tokens of a row.
    """
    if pack != "auto":
        return max(int(pack), 1)
    by_memory = guess.most(int(guess.available * 0.6), cohort)
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
