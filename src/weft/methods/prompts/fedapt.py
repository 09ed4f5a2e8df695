"""FedAPT: one meta prompt, a frozen random key for each domain, and a router that mixes the keys for each picture.

S. Su, M. Yang, B. Li, X. Xue, "Federated Adaptive Prompt Tuning for Multi-Domain Collaborative Learning", AAAI 2024,
arXiv 2211.07864. Code: leondada/FedAPT, its supervised part.

A client of domain s trains p and Q by CE(s·cos(I, g([p ⊙ (1 + k_s); c])), y) + CE(Q·I, s), I the picture's embedding as it is;
the server takes plain means. Whoever predicts knows no domain: with o = Q·I standardised over the S domains and
w = softmax(o/t), a picture is compared with the texts through p ⊙ (1 + Σ_s w_s k_s).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.contract import (
    GIVEN,
    SHARED,
    Adaptation,
    Backbone,
    Batch,
    ClassContext,
    ClientInfo,
    Count,
    Init,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Positive,
    Round,
    ServerState,
    Task,
    UserError,
    Values,
    Weighting,
    mean_of,
)

KEYS, ROUTER = "keys/values/keys", "router/values/weight"
SURE = 1 - 1e-6
"""Of a weight that is 1 up to rounding: the others' keys count for nothing."""


class FedAPT(Method):
    """Defaults of the code for one client in each domain.

    Attributes:
        tokens: l; 24, or 16 with five clients in each domain.
        per_class: a context for each class, as in the supervised part; else one for all.
        temperature: t. std: of the prompt's start.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedapt",
        title="A meta prompt that frozen keys of domains rescale, mixed for each picture by a shared router",
        paper="Su et al., AAAI 2024",
        arxiv="2211.07864",
        family="prompts",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "Keys are drawn from the run's seed on both sides and do not travel, where the paper's server sends each client that "
            "of its domain. Nothing is computed in half precision. The part with pseudo-labels instead of labels is not built. "
            "Without any domain there is one key, and the router has nothing to choose."
        ),
        sends="the prompts and the router, and once the name of its domain",
        asks=("domain", "every domain"),
        needs=("images", "two towers"),
    )

    tokens: Count = 24
    per_class: bool = True
    temperature: Positive = 0.01
    std: NonNegative = 0.02
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 256
    optim: Optim = Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-5, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        domains = known(client)
        if client.id and client.facts.get("every domain") and "domain" not in client.facts:
            raise UserError(
                f"{client.id} has no domain of its own, and fedapt has a key for each domain: deal rows out by their domain "
                "(--partition natural), or start a site with --fact domain=NAME."
            )
        width = 0 if backbone.words is None else backbone.words.d_out
        features = 1 if backbone.embedding is None else backbone.embedding.d_in
        keys = Init((len(domains), self.tokens, width), "share")
        linear = Init((len(domains), features), "uniform", features**-0.5)  # PyTorch's start of a linear layer
        return {
            "prompt": (ClassContext(self.tokens, per_class=self.per_class, std=self.std), SHARED),
            "router": (Values((("weight", linear),)), SHARED),
            "keys": (Values((("keys", keys),)), GIVEN),
        }

    def plan(self, server: ServerState, t: int) -> Round | None:
        """One random client of each domain: where a domain is left out of a round, the mean router forgets it."""
        if t >= server.rounds:
            return None
        return Round(t, who=("domain",) if all("domain" in c.facts for c in server.clients) else "sample")

    # client -----------------------------------------------------------------------------------------------------------

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        guesses = pack.images(batch) @ batch.of(pack.tensors[ROUTER]).mT
        mine = batch.of(own(pack)).unsqueeze(1).expand(batch.mask.shape)
        astray = F.cross_entropy(guesses.flatten(0, 1), mine.flatten(), reduction="none").view_as(batch.mask)
        return pack.loss(self.forward(pack, batch), batch) + mean_of(astray, batch.mask)

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        raw, count = pack.images(batch), pack.tensors[KEYS].shape[1]
        images = pack.scale * F.normalize(raw, dim=-1)
        if view is None:
            return Output(images @ texts(pack, F.one_hot(own(pack), count), batch).mT)
        weights = routed(raw @ batch.of(pack.tensors[ROUTER]).mT, self.temperature)
        sure, best = weights.max(-1)
        mixed = (sure < SURE) & batch.mask.view_as(sure)
        logits = torch.zeros(*sure.shape, len(pack.task.classes), dtype=images.dtype, device=images.device)
        for s in best[~mixed].unique().tolist():
            of_key = images @ texts(pack, F.one_hot(torch.full_like(own(pack), s), count), batch).mT
            logits = torch.where((~mixed & (best == s)).unsqueeze(-1), of_key, logits)
        place = mixed.cumsum(1)
        for j in range(1, int(place.max()) + 1):  # texts of its own for the j-th such picture of each client
            chosen = (mixed & (place == j)).unsqueeze(-1)
            mine = torch.zeros(len(pack.clients), count, dtype=weights.dtype, device=weights.device)
            mine[slice(None) if batch.clients is None else batch.clients] = (weights * chosen).sum(1)
            logits = torch.where(chosen, images @ texts(pack, mine, batch).mT, logits)
        return Output(logits)


def known(client: ClientInfo) -> Sequence[Any]:
    """The domains of the federation; of one that names none there is one."""
    return client.facts.get("every domain") or [client.facts.get("domain")]


def own(pack: Pack) -> Tensor:
    """[K] the place of each client's domain among all."""
    return torch.tensor([known(c).index(c.facts.get("domain")) for c in pack.clients], device=pack.device)


def texts(pack: Pack, weights: Tensor, batch: Batch) -> Tensor:
    """[k, C, e] the class names through p ⊙ (1 + Σ_s w_s k_s), for weights [K, S]."""
    ((name, prompt),) = pack.params("prompt").items()
    key = torch.einsum("ks,kspd->kpd", weights.to(prompt.dtype), pack.tensors[KEYS])
    with pack.values({name: prompt * (1 + (key.unsqueeze(1) if prompt.dim() == 4 else key))}):
        return pack.texts({"prompt": 1.0}, batch.clients)


def routed(guesses: Tensor, temperature: float) -> Tensor:
    """w [..., S]: a softmax of the router's outputs, standardised over the domains with their unbiased variance."""
    if guesses.shape[-1] == 1:
        return torch.ones_like(guesses)
    spread = guesses.std(-1, keepdim=True).clamp(min=torch.finfo(guesses.dtype).tiny)
    return ((guesses - guesses.mean(-1, keepdim=True)) / spread / temperature).softmax(-1)
