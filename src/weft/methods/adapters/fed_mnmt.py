"""Fed-MNMT: adapters of a translator, averaged among clients of related languages, encoder and decoder apart.

Y. Liu, X. Bi, L. Li, S. Chen, W. Yang, X. Sun, "Communication Efficient Federated Learning for Multilingual Neural Machine
Translation with Adapter", Findings of ACL 2023, arXiv 2305.12449. Code: lancopku/FedMNMT.

A client has one direction of translation. A bottleneck follows each sublayer of a frozen encoder-decoder, before the residual
sum:

    A(h) = h + U ReLU(D h + b) + b'        D, U ~ N(0, std²), drawn alike by all clients

1. A client trains all adapters, and the layer norms but those of embeddings, for an epoch, and sends them.
2. The server sorts clients into clusters twice, and takes a plain mean in each:

       θ_enc of E = 1/|E| Σ_{k ∈ E} θ_enc of k    E: clients whose source is of one family of languages
       θ_dec of D = 1/|D| Σ_{k ∈ D} θ_dec of k    D: clients whose target is

3. A client gets θ_enc of its E and θ_dec of its D.

A model that is one stack has no encoder: there the lower half of the blocks goes by the source and the upper half, with what lies
behind it, by the target. A client that tells no language is a family by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weft.aggregation.clusters import at_random, by_angle
from weft.aggregation.mean import WeightedMean
from weft.contract import (
    SHARED,
    Adaptation,
    Backbone,
    Bottleneck,
    ClientInfo,
    Count,
    Message,
    Method,
    MethodInfo,
    NonNegative,
    Norm,
    Optim,
    Pack,
    Positive,
    Round,
    ServerState,
    Shape,
    Site,
    Task,
    Update,
    UserError,
    Weighting,
    family_of,
    language_of,
    name_of,
    named,
    nearest,
)

SIDES = ("source", "target")
GRADIENT = "gradient"


class FedMNMT(Method):
    """Defaults of the code.

    Attributes:
        clusters: ``families`` of languages; ``fed``: all clients in one; ``random``: as many as there are families, of like size;
            ``gradients``: as many, by the angles between the clients' gradients of their adapters before all training, to which
            round 0 goes.
        families: families in the place of those of the table, as ``zh+th+en,ar+he``, of codes or names; other languages keep the
            table's.
        reduction: d over the inner width of an adapter. std: of the start values of both its matrices.
        weighting: of clients in a mean. batch: in the code 8 rows, accumulated 16 times.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fed-mnmt",
        title="Adapters averaged among related languages, encoder and decoder apart",
        paper="Liu et al., Findings of ACL 2023",
        arxiv="2305.12449",
        family="adapters",
        challenges=("communication efficiency", "data heterogeneity"),
        evidence="code",
        deviations=(
            "The code lists the clusters of its gradient variant, and how they came about was not at hand: here round 0 sends "
            "each client's mean gradient of its adapters over all its rows, and average linkage of cosines makes as many "
            "clusters as there are families. The last step of an epoch takes what rows are left. The last round's model is kept: "
            "keep = best takes the best by validation, as the code does."
        ),
        views=("personal",),
        asks=("source", "target"),
        sends="the adapters and norms that it has trained, and from which language to which it translates",
    )

    clusters: Literal["families", "fed", "random", "gradients"] = "families"
    families: str = ""
    reduction: Count = 16
    std: NonNegative = 0.02
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 128
    optim: Optim = Optim("adamw", lr=1e-3, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "takes the gradient of all of a client's rows to find clusters" if self.clusters == "gradients" else ""

    def __post_init__(self) -> None:
        super().__post_init__()
        every = [name_of(one) for group in self._groups() for one in group]
        if not all(every) or len(set(every)) < len(every):
            raise UserError(f'"{self.families}" are no families: write each language once, as zh+th+en,ar+he.')

    def _groups(self) -> list[list[str]]:
        return [[one.strip() for one in group.split("+")] for group in self.families.split(",") if self.families]

    @property
    def sums(self) -> bool:
        return self.clusters == "fed"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        adapters = Bottleneck(self.reduction, self.std, "sublayers")
        return {"adapter": (adapters, SHARED), "norm": (Norm(embeddings=False), SHARED), "head": (task.head, SHARED)}

    # who shares what ------------------------------------------------------------------------------------------------------

    def start(self, server: ServerState) -> None:
        told = any(side in c.facts for c in server.clients for side in SIDES)
        if self.clusters != "fed" and server.bench.task.kind == "generation" and not told:
            raise UserError(
                "fed-mnmt sorts clients by their languages, and none tells its own: give data with pairs of languages (--pairs) "
                "and a client for each, or set clusters to fed."
            )
        spoken = {name_of(str(c.facts[side])): str(c.facts[side]) for c in server.clients for side in SIDES if side in c.facts}
        for one in (one for group in self._groups() for one in group):
            if language_of(one) is None and one not in spoken:
                raise UserError(
                    f'families name the language "{one}", and no client has it: use the codes of the data, '
                    f"{', '.join(sorted(spoken.values()))}.{nearest(one, list(spoken.values()))}"
                )
        if self.clusters == "random":
            names = [c.id for c in server.clients]
            for side in SIDES:
                server.memo[f"clusters/{side}"] = at_random(
                    names, len(self._families(server, side)), server.generator("clusters", side)
                )

    def _family(self, client: ClientInfo, side: str) -> str:
        """By a table of languages: of the source of a client, or of its target."""
        language = client.facts.get(side)
        if language is None:
            return f"of {client.id}"
        own = {name_of(one): "+".join(group) for group in self._groups() for one in group}
        return own.get(name_of(str(language))) or family_of(str(language))

    def _families(self, server: ServerState, side: str) -> set[str]:
        return {self._family(c, side) for c in server.clients}

    def cluster(self, server: ServerState, client: ClientInfo, side: str) -> str:
        """The name of a client's cluster; one that came too late to be sorted is a cluster by itself."""
        if self.clusters == "families":
            return self._family(client, side)
        found: Mapping[str, int] = server.memo.get(f"clusters/{side}", {})
        return str(found.get(client.id, f"of {client.id}"))

    # server ---------------------------------------------------------------------------------------------------------------

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        return Round(0, GRADIENT, "all") if t == 0 and self.clusters == "gradients" else Round(t)

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        if server.round.kind == GRADIENT:
            self._sort(server, updates)
            return
        if self.clusters == "fed":
            server.mean(updates)
            return
        side, means = sides(server), dict[str, WeightedMean]()
        for update in updates:
            for which in SIDES:
                mine = {n: v for n, v in update.tensors.items() if side[n] == which and isinstance(v, Tensor)}
                mean = means.setdefault(f"{which}/{self.cluster(server, update.client, which)}", WeightedMean())
                mean.add(mine, server.weigh(update))
        for cluster, mean in means.items():
            server.memo |= {f"{cluster}|{n}": v for n, v in mean.result().items()}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        if self.clusters == "fed":
            return super().send(server, client)
        names = {n: f"{which}/{self.cluster(server, client, which)}|{n}" for n, which in sides(server).items()}
        return Message({n: server.memo[there] for n, there in names.items() if there in server.memo})

    # clusters by gradients ------------------------------------------------------------------------------------------------

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        if server.round.kind != GRADIENT:
            return {}
        bench = server.bench.of(client)
        adaptation = self.adapt(bench.backbone, bench.task, client)
        return {f"{GRADIENT}/{n}": tuple(i.shape) for n, i, _ in named({"adapter": adaptation["adapter"]}, bench.backbone)}

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.kind != GRADIENT:
            return self.fit(pack)
        found = pack.gradients(self.objective, "adapter", size=self.batch)
        return pack.updates(tensors=[{f"{GRADIENT}/{n}": g[k].cpu() for n, g in found.items()} for k in range(len(pack.clients))])

    def _sort(self, server: ServerState, updates: Iterable[Update]) -> None:
        """Sort clients by the angles between their gradients."""
        side = sides(server)
        vectors: dict[str, dict[str, Tensor]] = {which: {} for which in SIDES}
        for update in updates:
            for which, found in vectors.items():
                mine = [v for n, v in sorted(update.tensors.items()) if side[n.removeprefix(f"{GRADIENT}/")] == which]
                vector = torch.cat([v.flatten() for v in mine if isinstance(v, Tensor)]) if mine else torch.zeros(0)
                if bool(vector.any()):
                    found[update.client.id] = vector
        for which, found in vectors.items():
            server.memo[f"clusters/{which}"] = by_angle(found, len(self._families(server, which)))


def sides(server: ServerState) -> dict[str, str]:
    """Of each tensor that travels whether it goes by the source or by the target."""
    backbone, found = server.bench.backbone, dict.fromkeys(server.shared, "target")
    reads = encodes(backbone)
    for part in ("adapter", "norm"):
        lower = tuple(f"{part}/{site.called}/" for site in server.sites(part) if reads(site))
        found |= {n: "source" for n in found if n.startswith(lower)} if lower else {}
    return found


def encodes(backbone: Backbone) -> Callable[[Site], bool]:
    """Whether a site is of the encoder, or, where there is one stack, of the lower half of its blocks."""
    if not backbone.encoder_decoder:
        return lambda site: site.block is not None and 2 * site.block < len(backbone.blocks)
    encoder = {id(module) for module in backbone.model.get_encoder().modules()}
    return lambda site: id(backbone.module(site.name)) in encoder
