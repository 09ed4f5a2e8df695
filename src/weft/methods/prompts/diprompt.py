"""DiPrompT: a prompt of what all domains share, one for each latent domain, and one that asks of which domain a picture is.

S. Bai, J. Zhang, S. Guo, S. Li, J. Guo, J. Hou, T. Han, X. Lu, "DiPrompT: Disentangled Prompt Tuning for Multiple Latent Domain
Generalization in Federated Learning", CVPR 2024, arXiv 2403.08506. No official code.

RECONSTRUCTED: the paper's equations could not be read. Known are the three kinds of prompts, that a step updates the query Q,
then routes each picture by it, then updates G and the routed D at once, that regularisers (an L2 and a KL) hold Q near texts
written by hand, that the server moves D by a moving average, and that predictions are ensembles with weights that depend on the
picture. All formulas and numbers are fillings; name the variant with every result.

With I of unit length, u_{s,c} = g([Q; w_s c]), h_{s,c} = g("a w_s of a c") and w_s the word of a domain, a step is

    Q:     CE(σ·mean_s⟨I, u_s⟩, y) + λ(mean‖u − h‖² + KL(softmax_s σ⟨I, h_{s,y}⟩ ‖ softmax_s r)),   r_s = σ⟨I, u_{s,y}⟩
    G, D:  CE(σ⟨I, g([G; ·])⟩, y) + γ·CE(σ⟨I, g([D_ŝ; ·])⟩, y) + δ·L_dis,                            ŝ = argmax_s r_s
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.contract import (
    SHARED,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    ClassContext,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Positive,
    ServerState,
    Share,
    Task,
    Update,
    distillation,
    mean_of,
)

MOST = 10**9
"""Pictures that a client can say to have routed."""


class DiPrompT(Method):
    """Every default but the paper's course of a step is a filling.

    Attributes:
        tokens: l of each prompt.
        domains: words w_s of the source domains; without any, the names that clients tell, or ``domain 1``, ``domain 2`` … where
            they tell none. nameless: how many there are then.
        lam: λ, of what holds Q near texts written by hand. gamma: γ, of the routed prompt's loss.
        delta: δ, of −log σ(⟨D_ŝ, h_ŝ⟩ − ⟨D_ŝ, G⟩), on features averaged over the classes: D_ŝ near its domain's text, not near G.
        beta: share of the old D_s in the new one. counts: a client tells how many pictures it routed to each domain, by which D_s
            are weighted; else by its examples.
        share: w_g, weight of G in the ensemble; None = as sure of its class as G is, compared with D.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="diprompt",
        title="General and domain prompts, told apart by a query prompt that guesses each picture's domain",
        paper="Bai et al., CVPR 2024",
        arxiv="2403.08506",
        family="prompts",
        challenges=("data heterogeneity",),
        evidence="reconstructed",
        deviations=(
            "Reconstructed: every formula, every weight and every number is a filling; known is the order of a step and what "
            "the prompts are for. The query prompt travels. The words of the domains are the names that clients tell, where no "
            "others are given."
        ),
        views=("global", "global/general", "global/domain"),
        asks=("domain", "every domain"),
        reveals=("routed",),
        sends="its prompts, of the domains that it has pictures of, how many it routed to each, and once the name of its domain",
        needs=("images", "two towers", "all classes"),
    )

    tokens: Count = 16
    domains: tuple[str, ...] = ()
    nameless: Count = 3
    lam: NonNegative = 1.0
    gamma: NonNegative = 1.0
    delta: NonNegative = 0.0
    beta: Share = 0.5
    counts: bool = True
    share: Share | None = None
    epochs: Positive = 5.0
    batch: Count = 16
    optim: Optim = Optim("sgd", lr=0.005, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "finds domains of all of a client's rows at once"

    @property
    def sums(self) -> bool:
        return not self.counts  # they are weights that the server has to see

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        words = self.words(client)
        asked = tuple(f"{word} {name}" for word in words for name in task.classes)
        written = tuple(f"{word} of a {name}" for word in words for name in task.classes)
        context = ClassContext(self.tokens)
        return {
            "general": (context, SHARED),
            **{f"domain{s}": (context, SHARED) for s in range(len(words))},
            "query": (ClassContext(self.tokens, words=asked), SHARED),
            "hand": (ClassContext(phrase="a", words=written), TEMPORARY),
        }

    def words(self, client: ClientInfo) -> tuple[str, ...]:
        """w_1 … w_S."""
        told = tuple(str(name) for name in client.facts.get("every domain", ()))
        return self.domains or told or tuple(f"domain {s + 1}" for s in range(self.nameless))

    # client -----------------------------------------------------------------------------------------------------------

    def train(self, pack: Pack) -> Iterable[Update]:
        count = domains_of(pack)
        routed = torch.zeros(len(pack.clients), count, dtype=torch.long, device=pack.device)
        if pack.has_work():
            hand = by_hand(pack)
            turn: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
            optimizer = pack.optimizer("general", "domain*", "query", settings=self.optim, **turn)
            for batch in pack.batches(**turn):
                pack.step(optimizer, partial(self.asking, hand=hand), batch, only=("query",), tick=False)
                routes = route(pack, batch)
                found = (F.one_hot(routes, count) * batch.mask.unsqueeze(-1)).sum(1)
                new = torch.zeros_like(routed)
                new[slice(None) if batch.clients is None else batch.clients] = found
                moving = {
                    name: (new[:, s] > 0).view(-1, 1, 1).expand_as(value)
                    for s in range(count)
                    for name, value in pack.params(f"domain{s}").items()
                }
                objective = partial(self.answering, hand=hand, known=(batch, routes))
                loss = pack.step(optimizer, objective, batch, only=("general", "domain*"), entries=moving)
                pack.report(batch, loss)
                routed += new
        by_client = {c.id: row for c, row in zip(pack.clients, routed.tolist(), strict=True)}
        for update in pack.updates():
            mine = by_client[update.client.id]
            idle = tuple(f"domain{s}/" for s, m in enumerate(mine) if not m)
            update.tensors = {n: v for n, v in update.tensors.items() if not n.startswith(idle)}
            update.facts = {"routed": mine} if self.counts else {}
            yield update

    def asking(self, pack: Pack, batch: Batch, hand: Tensor) -> Tensor:
        """The loss of Q, [k]."""
        images, asked = pictures(pack, batch), queries(pack, batch)
        similar = torch.einsum("kbe,ksce->kbsc", images, asked)
        written = torch.einsum("kbe,sce->kbsc", images, hand)
        guess, prior = of_class(similar, batch.labels), of_class(written, batch.labels)
        category = pack.loss(Output(similar.mean(2)), batch)
        near = (asked - hand).square().sum(-1).mean((1, 2))
        return category + self.lam * (near + distillation(prior, Output(guess), batch.mask, 1.0))

    def answering(
        self, pack: Pack, batch: Batch, hand: Tensor | None = None, known: tuple[Batch, Tensor] | None = None
    ) -> Tensor:
        """The loss of G and of each picture's D, [k].

        Args:
            known: a batch and the domains of its pictures; those of another batch are asked for.
        """
        routes = known[1] if known is not None and batch is known[0] else route(pack, batch)
        images = pictures(pack, batch)
        general = pack.texts({"general": 1.0}, batch.clients)
        logits = torch.zeros_like(images @ general.mT)
        apart = torch.zeros_like(logits[..., 0])
        clients = torch.arange(len(pack.clients), device=pack.device) if batch.clients is None else batch.clients
        for s in routes[batch.mask].unique().tolist():
            who = ((routes == s) & batch.mask).any(1).nonzero().squeeze(1)  # who has pictures of it
            own, here = pack.texts({f"domain{s}": 1.0}, clients[who]), routes[who] == s
            logits = logits.index_copy(0, who, torch.where(here.unsqueeze(-1), images[who] @ own.mT, logits[who]))
            if self.delta:
                middle, written = own.mean(1), (by_hand(pack) if hand is None else hand)[s].mean(0)
                near = F.cosine_similarity(middle, written.expand_as(middle), dim=-1)
                common = F.cosine_similarity(middle, general.detach()[who].mean(1), dim=-1)
                apart = apart.index_copy(0, who, torch.where(here, F.softplus(common - near).unsqueeze(1), apart[who]))
        loss = pack.loss(Output(images @ general.mT), batch) + self.gamma * pack.loss(Output(logits), batch)
        return loss + self.delta * mean_of(apart, batch.mask) if self.delta else loss

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        return self.answering(pack, batch)

    # server -----------------------------------------------------------------------------------------------------------

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        for name, value in server.average(updates, weight=lambda update: self.weights(server, update)).items():
            old = server.shared[name]
            assert isinstance(old, Tensor)
            moving = name.startswith("domain")
            server.write(name, self.beta * old + (1 - self.beta) * value if moving else value)

    def weights(self, server: ServerState, update: Update) -> dict[str, float | Tensor]:
        """Of each tensor; prompts of domains whose numbers of pictures make no sense count for nothing."""
        found: dict[str, float | Tensor] = dict.fromkeys(update.tensors, server.weigh(update))
        if self.counts:
            told = update.facts.get("routed")
            numbers = told if isinstance(told, list) and all(type(m) is int and 0 <= m <= MOST for m in told) else []
            for name in (n for n in found if n.startswith("domain")):
                s = int(name.split("/", 1)[0].removeprefix("domain"))
                found[name] = float(numbers[s]) if s < len(numbers) else 0.0
        return found

    # prediction -------------------------------------------------------------------------------------------------------

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        images = pictures(pack, batch)
        general = (images @ pack.texts({"general": 1.0}, batch.clients).mT).log_softmax(-1)
        if view is None or view == "global/general":
            return Output(general)
        similar = torch.einsum("kbe,ksce->kbsc", images, queries(pack, batch))
        weights = of_class(similar, general.argmax(-1)).log_softmax(-1)
        texts = [pack.texts({f"domain{s}": 1.0}, batch.clients) for s in range(weights.shape[-1])]
        each = torch.stack([(images @ own.mT).log_softmax(-1) for own in texts], 2)
        special = (weights.unsqueeze(-1) + each).logsumexp(2)
        if view == "global/domain":
            return Output(special)
        if self.share is None:
            odds = general.amax(-1, keepdim=True) - special.amax(-1, keepdim=True)
            first, second = F.logsigmoid(odds), F.logsigmoid(-odds)
        else:
            first, second = (torch.full_like(general[..., :1], w).log() for w in (self.share, 1 - self.share))
        return Output(torch.logaddexp(first + general, second + special))


def domains_of(pack: Pack) -> int:
    """S."""
    return len(pack.params("domain*"))


def pictures(pack: Pack, batch: Batch) -> Tensor:
    """σI, [k, b, e]."""
    return pack.scale * F.normalize(pack.images(batch), dim=-1)


def queries(pack: Pack, batch: Batch) -> Tensor:
    """u, [k, S, C, e]."""
    return pack.texts({"query": 1.0}, batch.clients).unflatten(1, (-1, len(pack.task.classes)))


@torch.no_grad()
def by_hand(pack: Pack) -> Tensor:
    """h, [S, C, e]: one and the same for all clients."""
    return pack.common_texts({"hand": 1.0}).unflatten(0, (-1, len(pack.task.classes)))


@torch.no_grad()
def route(pack: Pack, batch: Batch) -> Tensor:
    """ŝ, [k, b]: the domain whose query about a picture's own class is most like it."""
    similar = torch.einsum("kbe,ksce->kbsc", pictures(pack, batch), queries(pack, batch))
    return of_class(similar, batch.labels).argmax(-1)


def of_class(values: Tensor, classes: Tensor) -> Tensor:
    """[k, b, S] of [k, b, S, C], each picture's at a class [k, b]."""
    return values.gather(3, classes[:, :, None, None].expand(*values.shape[:3], 1)).squeeze(3)
