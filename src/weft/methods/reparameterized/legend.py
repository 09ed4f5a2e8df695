"""LEGEND: each device has LoRA in as many of the last blocks as it has time for, of ranks that grow towards the output.

J. Liu, Y. Liao, H. Xu, Y. Xu, J. Liu, C. Qian, "Adaptive Parameter-Efficient Federated Fine-Tuning on Heterogeneous Devices",
IEEE TMC 24(11), 2025, arXiv 2412.20004.

Block l of L has rank r_l = r_0 + λ l on every device that has it. A device with depth k has the blocks L-k … L-1, and takes
t(k) = forward + k · backward + upload · Σ_{l ≥ L-k} r_l seconds a round. The server chooses the depths:

    c_i ← 1 / t_i(L);  m ← L
    k_i ← round(m + (L - m) (c_i - c_min) / (c_max - c_min))
    m ← m - 1, and again, until devices wait for the slowest no longer than a share of its time on average, or m = 1

and takes the mean of each block over those who have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from weft.contract import (
    PROFILES,
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Positive,
    Round,
    ServerState,
    Share,
    Task,
    UserError,
    Weighting,
    Whole,
    dealt,
)

DEVICE = ("speed", "bandwidth")
TESTBED = {"jetson-tx2": 3.0, "jetson-nx": 4.0, "jetson-agx": 1.0}
"""Shares of the paper's 80 devices."""


class LEGEND(Method):
    """Defaults of the card: ranks 2 … 13 in 12 blocks.

    Attributes:
        first: r_0, the rank of block 0. growth: λ. alpha: the scale is α/r_0 in all blocks.
        wait: of the slowest device's time, how much the others may wait on average. length: tokens of a row that times are
            estimated for.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="legend",
        title="LoRA in the last blocks, as many as a device has time for, of growing ranks",
        paper="Liu et al., TMC 2025",
        arxiv="2412.20004",
        family="reparameterized",
        challenges=("computational heterogeneity", "communication efficiency"),
        evidence="reconstructed",
        deviations=(
            "Times are reckoned from what devices are said to do (operations of the linear layers over their speed, bits over "
            "their bandwidth) and not measured, so that there is nothing to smooth over rounds; memory sets no limit. The ranks, "
            "the search's details and the plain mean in each block are the likeliest reading of a description."
        ),
        asks=("speed", "bandwidth", "depth"),
        renews=("depth",),
        needs=("separate blocks",),
        sends="both LoRA factors of its blocks, the head, and the number of examples",
    )

    first: Count = 2
    growth: Whole = 1
    alpha: Positive = 2.0
    wait: Share = 0.1
    length: Count = 128
    sites: str = "q,v"
    weighting: Weighting = "uniform"
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-3)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        for fact in DEVICE:
            _positive(client, fact)
        backbone.check_blocks()
        depth = client.facts.get("depth", len(backbone.blocks))
        if type(depth) is not int or not 1 <= depth <= len(backbone.blocks):
            raise UserError(f"client {client.id} has the depth {depth}, and the backbone {len(backbone.blocks)} blocks.")
        last = tuple(range(len(backbone.blocks) - depth, len(backbone.blocks)))
        lora = LoRA(self.first, self.alpha, self.sites, blocks=last, growth=self.growth)
        return {"lora": (lora, SHARED), "head": (task.head, SHARED)}

    def profile(self, position: int) -> dict[str, Any]:
        device = PROFILES[list(TESTBED)[dealt(position, list(TESTBED.values()))]]
        return {"speed": device.speed, "bandwidth": device.bandwidth}

    # server -------------------------------------------------------------------------------------------------------------

    def plan(self, server: ServerState, t: int) -> Round | None:
        chosen = depths(*self.times(server), self.ranks(server.bench.backbone), self.wait)
        for client, depth in zip(server.clients, chosen, strict=True):
            server.renew(client.id, depth=depth)
        return super().plan(server, t)

    def ranks(self, backbone: Backbone) -> list[int]:
        """r_l of each block."""
        return [self.first + self.growth * block for block in range(len(backbone.blocks))]

    def times(self, server: ServerState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seconds of a round of each client: forward, backward through a block with LoRA, and to upload a rank of one."""
        backbone = server.bench.backbone
        blocks = len(backbone.blocks)
        weights = sum(s.d_in * s.d_out for s in backbone.linears if s.block is not None)
        sides = sum(s.d_in + s.d_out for s in server.sites("lora")) / blocks
        speed, bandwidth = (np.array([_positive(c, fact) for c in server.clients]) for fact in DEVICE)
        rows = [self.epochs * c.n if self.steps is None else self.steps * self.batch * bool(c.n) for c in server.clients]
        forward = np.array(rows, dtype=float) * self.length * 2 * weights / (1e12 * speed)
        # weights are frozen, so that a block's backward pass has no gradient but that of what enters it
        return forward, forward / blocks, 32 * sides / (1e6 * bandwidth)


def depths(forward: np.ndarray, backward: np.ndarray, upload: np.ndarray, ranks: Sequence[int], wait: float) -> list[int]:
    """The server's choice, k_i of each device.

    Args:
        forward, backward, upload: seconds, [n]. ranks: r_l of each block. wait: share of the slowest device's time.
    """
    blocks, chosen = len(ranks), np.full(len(forward), len(ranks))
    works = np.flatnonzero(forward > 0)  # a client without rows keeps nobody waiting
    if not len(works):
        return [int(k) for k in chosen]
    above = np.array([sum(ranks[blocks - k :]) for k in range(blocks + 1)], dtype=float)

    def seconds(k: np.ndarray) -> np.ndarray:
        found: np.ndarray = (forward + k * backward + upload * above[k])[works]
        return found

    capacity = 1 / seconds(chosen)
    spread = capacity.max() - capacity.min()
    place = (capacity - capacity.min()) / spread if spread > 0 else np.ones(len(works))
    for least in range(blocks, 0, -1):
        chosen[works] = np.floor(least + (blocks - least) * place + 0.5)
        times = seconds(chosen)
        if float((times.max() - times).mean()) <= wait * float(times.max()):
            break
    return [int(k) for k in chosen]


def _positive(client: ClientInfo, fact: str) -> float:
    """
    Raises:
        UserError: a device that does nothing.
    """
    value = client.facts.get(fact, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"client {client.id} has {fact} = {value!r}: give it a number above 0.")
    return float(value)
