"""FedLin: two exchanges a round; every local gradient is corrected by the difference between everybody's and one's own.

A. Mitra, R. Jaafar, G. J. Pappas, H. Hassani, "Linear Convergence in Federated Learning: Tackling Client Heterogeneity and Sparse
Gradients", NeurIPS 2021, arXiv 2102.07053.

First exchange: clients receive x̄ and send ∇f_i(x̄), the gradient over all their rows; the server averages them to g. Second
exchange, with the same clients: they receive g, take τ_i steps y ← y - (η̄/τ_i)(∇f_i(y) - ∇f_i(x̄) + g) from y = x̄, and send y;
the server averages. Clients with more steps take smaller ones, so that all go equally far; at the minimum of the mean loss nobody
moves, however different the clients are.

Both gradients of a step are of the step's own batch (as in SVRG): against ∇f_i(x̄) of all rows, a batch's own noise would be in
every correction. With batches of all rows this is the paper's step.

The server may send nothing but the k largest entries of e + g, where its memory e is what it has not sent so far; and so may
clients. With the former the minimum is still reached, with the latter a neighbourhood of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from weft.contract import (
    Batch,
    Bench,
    ClientInfo,
    Message,
    MethodInfo,
    Optim,
    Pack,
    Portion,
    Round,
    ServerState,
    Tuned,
    Update,
    Weighting,
    named,
)
from weft.tensors import sparse


class FedLin(Tuned):
    """The paper's rates are bounds, in terms of a loss's curvature; the default is a filling.

    Attributes:
        server_top: share of the entries of the mean gradient that the server sends, with a memory of what it did not.
        client_top: share of the entries of its gradient that a client sends, with a memory of its own.
        weighting: of gradients and of models in their means: ``uniform`` as in the paper, or ``examples`` (n_k).
        optim: its rate is η̄, which the steps of a client's round share.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedlin",
        title="Local steps corrected by the gradient of the mean loss",
        paper="Mitra et al., NeurIPS 2021",
        arxiv="2102.07053",
        family="full",
        challenges=("data heterogeneity", "computational heterogeneity", "communication efficiency"),
        deviations=(
            "Both gradients of a local step are of the step's batch, as in SVRG; the paper's are of all rows, as here in batches "
            "that hold all of them. What is tuned is a setting, LoRA by default, whose factors are averaged apart. Where a "
            "cohort is drawn, the mean gradient is the cohort's, an estimate of everybody's. Settings count exchanges as rounds: "
            "two are one round of the paper."
        ),
        sends="the gradient of its loss at what it has received, then every tensor that is trained; and the number of examples",
        tells=("places",),
        reveals=("places",),
    )
    demands: ClassVar[tuple[str, ...]] = ("gradient",)

    server_top: Portion = 1.0
    client_top: Portion = 1.0
    weighting: Weighting = "uniform"
    optim: Optim = Optim("sgd", lr=0.05, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "takes the gradient of all of a client's rows at once"

    @property
    def sums(self) -> bool:
        return self.client_top == 1  # clients that choose entries send them one below the other, and their places

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        return Round(t, "gradient") if t % 2 == 0 else Round(t, "train", who="same")

    def shapes(self, bench: Bench, client: ClientInfo) -> dict[str, tuple[int, ...]]:
        """Of all tensors that are trained."""
        adaptation = self.adapt(bench.backbone, bench.task, client)
        return {n: tuple(init.shape) for n, init, _ in named(adaptation, bench.backbone)}

    # first exchange: gradients up -----------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        if server.round.kind != "gradient":
            return {}
        return _sized("gradient", self.shapes(server.bench.of(client), client), self.client_top)

    def train(self, pack: Pack) -> Iterable[Update]:
        return self._gradients(pack) if pack.round.kind == "gradient" else self._steps(pack)

    def _gradients(self, pack: Pack) -> Iterable[Update]:
        found = pack.gradients(self.objective, "*", size=self.batch)
        tensors: list[dict[str, Tensor]] = []
        facts: list[dict[str, Any]] = []
        for k, client in enumerate(pack.clients):
            own, about = {n: g[k].cpu() for n, g in found.items()}, {}
            if self.client_top < 1 and client.n:
                own, about["places"] = sparse.entries(_fed_back(client.memo, own, self.client_top))
            tensors.append({f"gradient/{n}": g for n, g in own.items()})
            facts.append(about)
        return pack.updates(facts, tensors)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        if server.round.kind != "gradient":
            server.mean(updates)
            return
        mean = server.average(self._whole(server, updates), only="gradient")
        if not mean:
            return
        mean, memo = {n.removeprefix("gradient/"): g for n, g in mean.items()}, server.memo
        if self.server_top < 1:
            mean, memo["places"] = sparse.entries(_fed_back(memo, mean, self.server_top))
        memo |= {f"mean/{n}": g for n, g in mean.items()} | {"mean of": server.round.index}

    def _whole(self, server: ServerState, updates: Iterable[Update]) -> Iterator[Update]:
        """Updates with whole gradients; one whose places do not fit its entries counts for nothing."""
        for update in updates:
            if self.client_top == 1:
                yield update
                continue
            shapes = {f"gradient/{n}": s for n, s in self.shapes(server.bench.of(update.client), update.client).items()}
            given = {n: g for n, g in update.tensors.items() if isinstance(g, Tensor) and n in shapes}
            try:
                whole = sparse.dense(given, update.facts.get("places"), shapes)
            except ValueError:
                continue
            yield replace(update, tensors=dict(whole))

    # second exchange: the mean gradient down, steps, models up --------------------------------------------------------

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return _sized("mean", self.shapes(bench, client), self.server_top)

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message, memo = super().send(server, client), server.memo
        if memo.get("mean of") == server.round.index - 1:  # else nobody's gradient has counted
            message.tensors |= {n: g for n, g in memo.items() if n.startswith("mean/")}
            message.facts |= {"places": memo["places"]} if self.server_top < 1 else {}
        return message

    def send_to_test(self, server: ServerState, client: ClientInfo) -> Message:
        return server.stale(client)

    def _steps(self, pack: Pack) -> Iterable[Update]:
        told = [c for c, received in zip(pack.clients, pack.received, strict=True) if received]
        some = pack.of(told)
        if not some.has_work():
            return
        mean = self._mean(pack)
        start = {n: v.detach().requires_grad_(True) for n, v in pack.params("*").items()}
        turn: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
        share = 1 / some.lengths(**turn).cpu().double().clamp(min=1)
        optimizer = some.optimizer("*", settings=self.optim, rates={"*": share}, **turn)
        others = optimizer.offsets
        for batch in some.batches(**turn):
            own = self._slopes(some, batch, start)
            optimizer.offsets = {n: others.get(n, 0.0) + g - own[n] for n, g in mean.items()}
            some.report(batch, some.step(optimizer, self.objective, batch))
        known = {c.id for c in told}
        yield from (u for u in pack.updates() if u.client.id in known)

    def _mean(self, pack: Pack) -> dict[str, Tensor]:
        """g [K, …] as each client was told it, 0 where it was told nothing."""
        params = pack.params("*")
        shapes = {f"mean/{n}": tuple(v.shape[1:]) for n, v in params.items()}
        rows: list[Mapping[str, Any]] = []
        for told, facts in zip(pack.received, pack.facts, strict=True):
            some = {n: g for n, g in told.items() if isinstance(g, Tensor)}
            rows.append(sparse.dense(some, facts.get("places"), shapes) if some and self.server_top < 1 else some)
        return {n: torch.stack([row.get(f"mean/{n}", torch.zeros_like(v[0])).to(v) for row in rows]) for n, v in params.items()}

    def _slopes(self, pack: Pack, batch: Batch, at: dict[str, Tensor]) -> dict[str, Tensor]:
        """∇f_i(x̄) [K, …] on a batch; 0 for clients that are not in it."""
        with pack.values(at):
            loss = self.objective(pack, batch).sum()
        return {n: torch.zeros_like(at[n]) if g is None else g for n, g in pack.slopes(loss, at).items()}


def _sized(group: str, shapes: Mapping[str, tuple[int, ...]], share: float) -> dict[str, tuple[int | None, ...]]:
    """Names and shapes on the wire: some entries of a tensor lie one below the other."""
    return {f"{group}/{n}": shape if share == 1 else (None,) for n, shape in shapes.items()}


def _fed_back(memo: dict[str, Any], values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """TOPₖ(e + values); the rest is the next e, in the memo."""
    whole = {n: v + memo.get(f"error/{n}", 0.0) for n, v in values.items()}
    sent = sparse.largest(whole, share)
    memo |= {f"error/{n}": v - sent[n] for n, v in whole.items()}
    return sent
