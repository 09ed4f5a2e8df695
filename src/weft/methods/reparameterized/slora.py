"""SLoRA: some rounds train a few entries of the weights themselves; the SVD of what they have changed is where LoRA starts.

S. Babakniya, A. R. Elkordy, Y. H. Ezzeldin, Q. Liu, K.-B. Song, M. El-Khamy, S. Avestimehr, "SLoRA: Federated Parameter Efficient
Fine-Tuning of Language Models", FL@FM-NeurIPS 2023, arXiv 2308.06522. Others' code was read: alibaba/FederatedScope, branch
FlexLoRA.

With s = α/r and M the places of the entries, drawn once from the run's seed, the same for all:

    stage 1   Δ_k ← local steps on the entries in M, from Δ;  Δ ← Σ_k p_k Δ_k             the model is W0 + Δ
    switch    Δ ≈ U_r Σ_r V_rᵀ, the best of rank r;  B ← U_r Σ_r / s,  A ← V_rᵀ            Δ goes, and W0 is back
    stage 2   A_k, B_k ← local steps from A, B;  A ← Σ_k p_k A_k,  B ← Σ_k p_k B_k         the model is W0 + s B A

Of a layer whose Δ has a rank below r, the rest of A and B stays as it was drawn: of all layers, where nothing was learnt or there
is no stage 1. Entries at random places have a flat spectrum, of which r triplets hold a small share: the loss may rise at the
switch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from weft.contract import (
    GIVEN,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    LoRA,
    Method,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Portion,
    Positive,
    Round,
    ServerState,
    SparseWeights,
    Task,
    Update,
    Whole,
)
from weft.tensors.principal import principal_of_entries

SPARSE, SWITCH, LOW_RANK = "sparse", "switch", "lora"
"""Kinds of rounds: of stage 1, the last of these, and of stage 2."""


class SLoRA(Method):
    """Rounds of stage 1 as in the code that was read.

    Attributes:
        rank, alpha: of LoRA; the update is (α/r)·B A.
        density: the share of each matrix's entries that stage 1 trains; None: as many as LoRA has, r (d_in + d_out).
        sparse_rounds: of stage 1, at most half of all; 0 = LoRA alone, from its ordinary start.
        sites: linear layers whose entries are trained and that get LoRA, see ``Backbone.sites``.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="slora",
        title="A few entries of the weights first; the SVD of their change starts LoRA",
        paper="Babakniya et al., FL@FM-NeurIPS 2023",
        arxiv="2308.06522",
        family="reparameterized",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="reconstructed",
        deviations=(
            "The paper was not at hand but for its abstract, and its authors' code is not public; that of others draws new "
            "entries for each client and round. Rank, α, learning rate and rounds of the first stage are not the paper's. "
            "Entries are those of LoRA's layers alone, so that nothing is lost at the switch. They are trained as differences to "
            "the pretrained weights, to which weight decay pulls them back."
        ),
        needs=("factors",),
        sends=(
            "in the first rounds some entries of the tuned weights, at places that all know; then both LoRA factors of every "
            "site; the head, and the number of examples"
        ),
    )

    rank: Count = 8
    alpha: Positive = 16.0
    density: Portion | None = None
    sparse_rounds: Whole = 5
    sites: str = "q,v"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adamw", lr=1e-3)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        lora: Adaptation = {"lora": (LoRA(self.rank, self.alpha, self.sites), SHARED), "head": (task.head, SHARED)}
        if not self.sparse_rounds:
            return lora
        return {"sparse": (SparseWeights(self.density, self.rank, self.sites), {"value": SHARED, "places": GIVEN}), **lora}

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        last = min(self.sparse_rounds, server.rounds // 2) - 1
        # entries are left where the round of the switch does not count: its result was not finite, or the server has gone back
        late = t > last and any(_nonzero(v) for n, v in server.shared.items() if _is_entries(n))
        return Round(t, SPARSE if t < last else SWITCH if t == last or late else LOW_RANK)

    # client -------------------------------------------------------------------------------------------------------------

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        return pack(batch, use={self._stage(pack, training=view is None): 1.0})

    def sent(self, round: Round) -> tuple[str, ...]:
        return "lora" if round.kind == LOW_RANK else "sparse", "head"

    def train(self, pack: Pack) -> Iterable[Update]:
        return self.fit(pack, only=(self._stage(pack, training=True), "head"))

    def _stage(self, pack: Pack, training: bool) -> str:
        """The part that the model has. Whoever is scored after the switch may still hold entries, but a B that is not 0."""
        if not self.sparse_rounds or pack.round.kind == LOW_RANK:
            return "lora"
        if training and pack.round.kind in (SPARSE, SWITCH):
            return "sparse"
        return "lora" if any(_nonzero(b) for b in pack.params("lora/*/B").values()) else "sparse"

    # server -------------------------------------------------------------------------------------------------------------

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, only=self.sent(server.round))
        if server.round.kind == SWITCH:
            self._switch(server)

    def _switch(self, server: ServerState) -> None:
        lora, _ = server.adaptation["lora"]
        for site in server.sites("sparse"):
            value, places, a, b = (
                server.shared[f"{part}/{site.called}/{role}"]
                for part, role in (("sparse", "value"), ("sparse", "places"), ("lora", "A"), ("lora", "B"))
            )
            assert isinstance(value, Tensor) and isinstance(places, Tensor)
            assert isinstance(a, Tensor) and isinstance(b, Tensor)
            if not value.any():
                continue
            shape, draw = (site.d_out, site.d_in), server.generator("switch", site.called)
            u, d, vh = principal_of_entries(value, places, shape, self.rank, draw)
            a, b = a.clone(), b.clone()
            a[: len(d)], b[:, : len(d)] = vh.to(a), (u * d / lora.constants(site)["scale"]).to(b)
            server.write(f"lora/{site.called}/A", a)
            server.write(f"lora/{site.called}/B", b)
        server.reset("sparse/*/value")


def _is_entries(name: str) -> bool:
    return name.startswith("sparse/") and name.endswith("/value")


def _nonzero(value: object) -> bool:
    return isinstance(value, Tensor) and bool(value.any())
