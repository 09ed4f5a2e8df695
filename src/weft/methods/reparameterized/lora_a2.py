"""LoRA-A²: one factor is trained in each round, and every client sends the ranks of it that matter most to its own data.

J. Koo, M. Jang, J. Ok, "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous Clients", ACL 2025, arXiv
2410.22815, algorithm 2.

A unit is one rank of one layer: a column of B and the row of A with it. In round t, with F = B in even rounds and A in odd ones:

    ΔF ← an epoch of local steps on F, thrown away
    S ← ‖ΔB[:, i]‖ ‖A[i]‖, in odd rounds ‖B[:, i]‖ ‖ΔA[i]‖, for each unit
    R_k ← the r_k · N units of highest S, of all N layers together
    F_k ← local steps that move nothing but R_k;  F_k - F of these units goes up
    F ← F + Σ_k p_k (F_k - F)                     what a client did not send counts as unmoved
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weft.contract import (
    GIVEN,
    SHARED,
    Adaptation,
    Backbone,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    ServerState,
    Site,
    Task,
    Update,
    UserError,
    Value,
)

UNITS = "units"


class LoRAA2(Method):
    """Defaults of the paper.

    Attributes:
        rank, alpha: of the LoRA that all hold; the update is (α/r)·B A.
        budget: r_k, ranks a layer that a client sends on average. budgets: different ones dealt to the clients in turn; a
            client's own fact ``rank`` goes first. None is above ``rank``.
        ratio: the learning rate of B over that of A.
        steps: if set, those of the round, and as many of the probe, in the place of its one epoch.
        sites: linear layers that get LoRA, see ``Backbone.sites``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="lora-a2",
        title="Alternating factors, of which clients send the ranks that matter to them",
        paper="Koo et al., ACL 2025",
        arxiv="2410.22815",
        family="reparameterized",
        challenges=("server-side aggregation bias", "computational heterogeneity", "communication efficiency"),
        deviations=(
            "The first round trains B, as in the paper's algorithm; its text has the order the other way round, in which nothing "
            "would move. The rank that all hold is that of the paper's analysis, as its tables name none."
        ),
        asks=("rank",),
        reveals=("units",),
        derives=("units",),
        needs=("factors",),
        sends=(
            "by how much it has changed the ranks that matter most to it, of one LoRA factor, which these are, and the number of "
            "examples"
        ),
    )

    rank: Count = 16
    alpha: Positive = 16.0
    budget: Count = 2
    budgets: tuple[Count, ...] = ()
    ratio: Positive = 5.0
    sites: str = "all"
    epochs: Positive = 5.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=5e-4)

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if (budget := self._budget(client)) > self.rank:
            raise UserError(
                f"a client is to send {budget} ranks a layer, and there are {self.rank}: choose a smaller method.budget (or "
                "method.budgets), or a larger method.rank."
            )
        return {"lora": (LoRA(self.rank, self.alpha, self.sites), SHARED), "head": (task.head, GIVEN)}

    def profile(self, position: int) -> dict[str, Any]:
        return {"rank": self.budgets[position % len(self.budgets)]} if self.budgets else {}

    # client -------------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        if not pack.has_work():
            return
        factor = factor_of(pack.round.index)
        optim = self.optim.but(lr=self.optim.lr * (self.ratio if factor == "B" else 1.0))
        pattern, received = f"lora/*/{factor}", dict(pack.params("lora"))
        probe = pack.twin()
        probe.minimise(self.objective, (pattern,), optim, 1.0, self.steps, self.batch)
        chosen = self._chosen(pack, {n: v.detach() - received[n] for n, v in probe.params(pattern).items()})
        across = 1 if factor == "B" else 2  # the axis along which a unit lies
        entries = {n: mask.unsqueeze(across).expand_as(received[n]) for n, mask in chosen.items()}
        optimizer = pack.optimizer(pattern, settings=optim, epochs=self.epochs, steps=self.steps, size=self.batch)
        for batch in pack.batches(self.epochs, self.steps, self.batch):
            pack.report(batch, pack.step(optimizer, self.objective, batch, entries=entries))
        place = {c.id: k for k, c in enumerate(pack.clients)}
        for update in pack.updates():
            k, bits = place[update.client.id], []
            sent: dict[str, Value] = {}
            for name, mask in chosen.items():
                moved = (pack.tensors[name].detach()[k] - received[name][k]).movedim(2 - across, 0)  # [r, d]
                bits.append(mask[k].cpu().numpy())
                if bool(mask[k].any()):
                    sent[rows_of(name)] = moved[mask[k]].cpu()
            packed = np.packbits(np.concatenate(bits)).tobytes()
            yield replace(update, tensors=sent, facts={UNITS: base64.b85encode(packed).decode()})

    def _chosen(self, pack: Pack, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which units each client may move, of the ranks that its probe has changed by ``deltas``: bool [K, r]."""
        scores = []
        for name, delta in deltas.items():
            other = pack.tensors[name[:-1] + ("A" if name.endswith("B") else "B")].detach()
            column, row = (delta, other) if name.endswith("B") else (other, delta)
            scores.append(torch.linalg.vector_norm(column, dim=1) * torch.linalg.vector_norm(row, dim=2))
        score = torch.stack(scores, 1).flatten(1)  # [K, N r]
        place = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # of equal ones the first
        budgets = torch.tensor([self._budget(c) for c in pack.clients], device=score.device)
        mask = (place < (budgets * len(deltas))[:, None]).unflatten(1, (len(deltas), -1))
        return {name: mask[:, i] for i, name in enumerate(deltas)}

    def _budget(self, client: ClientInfo) -> int:
        return int(client.facts.get("rank", self.budget))

    # server -------------------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        factor = factor_of(server.round.index)
        return {rows_of(name): (None, size) for name, size in sizes(server, factor).items()}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        factor = factor_of(server.round.index)
        server.mean(self._whole(server, updates, factor), only=f"lora/*/{factor}")

    def _whole(self, server: ServerState, updates: Iterable[Update], factor: str) -> Iterator[Update]:
        """Updates with whole factors; one whose units do not fit what it sends counts for nothing."""
        names, along = list(sizes(server, factor)), 0 if factor == "A" else 1  # the axis of the ranks
        for update in updates:
            masks = _read(update.facts.get(UNITS), len(names), self.rank)
            sent = {n: update.tensors.get(rows_of(n)) for n in names}
            if masks is None or any(
                (len(v) if isinstance(v, Tensor) else 0) != int(m.sum()) for v, m in zip(sent.values(), masks, strict=True)
            ):
                continue
            whole: dict[str, Value] = {}
            for (name, rows), mask in zip(sent.items(), masks, strict=True):
                value = server.shared[name]
                assert isinstance(value, Tensor)
                moved = value.clone()
                if isinstance(rows, Tensor):
                    moved.index_add_(along, mask.nonzero().flatten(), rows.movedim(0, along).to(value))
                whole[name] = moved
            yield replace(update, tensors=whole)


def factor_of(t: int) -> str:
    """What the t-th round trains: B first, since A has no gradient as long as B is 0."""
    return "B" if t % 2 == 0 else "A"


def rows_of(name: str) -> str:
    """``rows/SITE`` for ``lora/SITE/B``."""
    return f"rows/{name.split('/')[1]}"


def sizes(server: ServerState, factor: str) -> dict[str, int]:
    """The length of a unit in this factor, by name, in the order in which clients name units."""
    found: list[Site] = server.sites("lora")
    return {f"lora/{s.name}/{factor}": s.d_out if factor == "B" else s.d_in for s in found}


def _read(text: object, layers: int, rank: int) -> list[Tensor] | None:
    """Which units a client names, bool [r] for each layer; None if it names none that could be."""
    try:
        raw = np.frombuffer(base64.b85decode(text), np.uint8) if isinstance(text, str) else np.zeros(0, np.uint8)
    except ValueError:
        return None
    bits = np.unpackbits(raw)
    if len(raw) != -(-layers * rank // 8) or bits[layers * rank :].any():
        return None
    return list(torch.from_numpy(bits[: layers * rank].astype(bool)).view(layers, rank))
