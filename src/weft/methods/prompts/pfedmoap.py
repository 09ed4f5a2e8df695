"""pFedMoAP: a client mixes its own prompt with the prompts of others through an attention of its own.

J. Luo, C. Chen, S. Wu, "Mixture of Experts Made Personalized: Federated Prompt Learning for Vision-Language Models", ICLR 2025,
arXiv 2410.10114. Code: ljaiverson/pFedMoAP.

The server keeps the last prompt that each client has sent. A client that has sent one gets, beside the global prompt P_g, those
of its K nearest neighbours by ‖P_i − P_j‖. They are frozen; it trains P_i (from P_g) and its gate θ_i by one cross-entropy on

    z^(c)(x) = s·⟨pool(I), T_MoE^(c)(x)⟩ + λ·s·⟨I, T_i^(c)⟩,

where T_MoE^(c) is a multi-head attention of the picture over the class's text features through P_i and the K others. P_i goes
up, θ_i stays. A client's first turn is CoOp on P_i alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from weft.contract import (
    PERSONAL,
    SHARED,
    TEMPORARY,
    Adaptation,
    Backbone,
    Batch,
    Bench,
    ClassContext,
    ClientInfo,
    Count,
    Init,
    Message,
    Method,
    MethodInfo,
    NonNegative,
    Optim,
    Output,
    Pack,
    Positive,
    ServerState,
    Task,
    Update,
    UserError,
    Values,
)

OTHERS = "others"
"""Prompts [K_i, l, d] of other clients, as they go down."""
LAST = "prompt"
"""What the server notes of a client: the prompt that it sent last."""
TEXTS, THERE = "experts/values/texts", "experts/values/there"
LINEAR = ("query", "key", "value", "out")


class PFedMoAP(Method):
    """Defaults of the paper; what it leaves open is the code's.

    Attributes:
        tokens: l. others: K, most prompts of other clients that a client gets.
        selection: of these: the ``nearest``, as in the paper, or ``random`` ones, which is what the code draws.
        width: coordinates of an embedding that the gate reads, every (e / width)-th; all of them, if there are no more.
        heads: of the gate. kappa: what scores are multiplied by before the softmax, in the place of 1/√(width / heads).
        lam: λ, weight of the client's own prompt beside the mixture.
        gate_rate: learning rate of the gate as a multiple of the prompt's: 0.01 and 0.002 in the paper.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="pfedmoap",
        title="Each client mixes its prompt with those of its nearest neighbours through a gate of its own",
        paper="Luo et al., ICLR 2025",
        arxiv="2410.10114",
        family="prompts",
        challenges=("data heterogeneity",),
        evidence="code",
        deviations=(
            "Neighbours are chosen as in the paper: the released code draws them at random. They are those of the round before "
            "for all clients, where the code's later clients see prompts of the same round. Gates, neighbours and optimizers are "
            "each client's own, where the code's first turns take over those of the client before. Models are scored after the "
            "server's step, with neighbours chosen anew, and so are clients that were absent. A client without any "
            "neighbour trains its prompt alone."
        ),
        views=("personal", "global"),
        sends="its prompt; the server keeps the last one and hands it to other clients, without a name",
        needs=("images", "two towers"),
    )

    demands: ClassVar[tuple[str, ...]] = ("prompt",)

    tokens: Count = 16
    others: Count = 9
    selection: Literal["nearest", "random"] = "nearest"
    width: Count = 128
    heads: Count = 8
    kappa: Positive = 10.0
    lam: NonNegative = 0.5
    gate_rate: NonNegative = 5.0
    epochs: Positive = 5.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=0.002, momentum=0.9, weight_decay=5e-4, schedule="constant")

    @property
    def sums(self) -> bool:
        return False

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        width, context = self.read(backbone), ClassContext(self.tokens)
        if width % self.heads:
            raise UserError(
                f"pfedmoap's gate has {self.heads} heads, which can't share {width} coordinates: give it another width."
            )
        side = width**-0.5  # PyTorch's start of a linear layer
        linear = [(name, Init((width, width), "uniform", side)) for name in LINEAR]
        biases = [(f"{name}_bias", Init((width,), "uniform", side)) for name in LINEAR]
        features = (("texts", (self.others, len(task.classes), width)), ("there", (self.others,)))
        return {
            "prompt": (context, SHARED),
            "adapted": (context, PERSONAL),
            "gate": (Values((*linear, *biases)), PERSONAL),
            "expert": (context, TEMPORARY),  # where one prompt after the other is read
            "experts": (Values(features), TEMPORARY),
        }

    def read(self, backbone: Backbone) -> int:
        """How many coordinates of an embedding the gate reads."""
        return self.width if backbone.embedding is None else min(self.width, backbone.embedding.d_in)

    # server -----------------------------------------------------------------------------------------------------------

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        width = 0 if bench.backbone.words is None else bench.backbone.words.d_out
        return {OTHERS: (None, self.tokens, width)}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = server.stale(client)
        if chosen := self.chosen(server, client.id):
            message.tensors[OTHERS] = torch.stack(chosen)
        return message

    def chosen(self, server: ServerState, client: str) -> list[Tensor]:
        """Prompts of other clients, the nearest first; none for a client that has sent none."""
        mine = server.notes.get(client).get(LAST)
        if mine is None:
            return []
        notes = (server.notes.get(other) for other in sorted(server.notes.manifest) if other != client)
        pool = [note[LAST] for note in notes if LAST in note]
        if self.selection == "random":
            order = torch.randperm(len(pool), generator=server.generator("experts", client))
        else:
            order = torch.tensor([float((other - mine).norm()) for other in pool]).argsort(stable=True)
        return [pool[i] for i in order[: self.others].tolist()]

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        def noted() -> Iterator[Update]:
            for update in updates:
                (prompt,) = (v for n, v in update.tensors.items() if n.startswith("prompt/"))
                server.notes.put(update.client.id, {LAST: prompt})
                yield update

        server.mean(noted())

    # client -----------------------------------------------------------------------------------------------------------

    def load(self, pack: Pack) -> None:
        """The text features of the others' prompts: they are frozen, so that they are computed once a turn."""
        received = [found[OTHERS] if OTHERS in found else torch.zeros(0) for found in pack.received]
        counts = [prompts.shape[0] for prompts in received]
        ((slot, empty),) = pack.params("expert").items()
        pack.tensors |= {name: pack.tensors[name].clone() for name in (TEXTS, THERE)}
        for j in range(max(counts)):
            with_it = [k for k, count in enumerate(counts) if count > j]
            prompts, clients = empty.detach().clone(), torch.tensor(with_it, device=pack.device)
            for k in with_it:
                prompts[k] = received[k][j].to(prompts)  # type: ignore[index]
            with torch.no_grad(), pack.values({slot: prompts}):
                found = pack.texts({"expert": 1.0}, clients)
            pack.tensors[TEXTS][clients, j] = self.pooled(pack, found)
            pack.tensors[THERE][clients, j] = 1.0

    def pooled(self, pack: Pack, embeddings: Tensor) -> Tensor:
        """[…, width] of embeddings […, e]."""
        width = self.read(pack.backbone)
        return embeddings[..., :: embeddings.shape[-1] // width][..., :width]

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        images = torch.nn.functional.normalize(pack.images(batch), dim=-1)
        own = pack.texts({"adapted" if view == "personal" else "prompt": 1.0}, batch.clients)
        alone = pack.scale * images @ own.mT
        there = batch.of(pack.tensors[THERE]) > 0
        mixes = there.any(1)
        if view == "global" or not bool(mixes.any()):
            return Output(alone)
        keys = torch.cat([self.pooled(pack, own).unsqueeze(1), batch.of(pack.tensors[TEXTS])], 1)
        gate = {n.rsplit("/", 1)[1]: batch.of(v) for n, v in pack.params("gate").items()}
        seen = torch.cat([torch.ones_like(there[:, :1]), there], 1)
        mixed = mixture(gate, self.pooled(pack, images), keys, seen, self.heads, self.kappa)
        return Output(torch.where(mixes.view(-1, 1, 1), pack.scale * mixed + self.lam * alone, alone))

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.has_work():
            rates = {"gate": self.gate_rate * pack.tensors[THERE].amax(1)}  # a first turn leaves the gate as it is
            turn = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
            optimizer = pack.optimizer("prompt", "gate", settings=self.optim, rates=rates, **turn)  # type: ignore[arg-type]
            for batch in pack.batches(**turn):  # type: ignore[arg-type]
                pack.report(batch, pack.step(optimizer, self.objective, batch))
        pack.copy("prompt", "adapted")
        return pack.updates()

    def personalise(self, pack: Pack) -> None:
        new = torch.tensor([c.rounds_seen == 0 for c in pack.clients], device=pack.device)
        pack.copy("prompt", "adapted", new)  # a client that was never trained has nothing but the global prompt


def mixture(gate: Mapping[str, Tensor], images: Tensor, texts: Tensor, seen: Tensor, heads: int, kappa: float) -> Tensor:
    """⟨x, T_MoE^(c)(x)⟩ [k, b, C] of pictures x [k, b, n] and text features [k, E, C, n], of which ``seen`` [k, E] take part.

    The mixed features [k, b, C, n] are not formed: ⟨x, W_O z + b_O⟩ = ⟨W_Oᵀx, z⟩ + ⟨x, b_O⟩, with z the attention's.
    """

    def heads_of(x: Tensor, name: str) -> Tensor:
        found = torch.baddbmm(gate[f"{name}_bias"].unsqueeze(1), x.flatten(1, -2), gate[name].mT)
        return found.unflatten(1, x.shape[1:-1]).unflatten(-1, (heads, -1))

    query, keys, values = heads_of(images, "query"), heads_of(texts, "key"), heads_of(texts, "value")
    scores = kappa * torch.einsum("kbhd,kechd->kbceh", query, keys)
    scores = scores.masked_fill(~seen[:, None, None, :, None], -torch.inf)
    asked = (images @ gate["out"]).unflatten(-1, (heads, -1))
    worth = torch.einsum("kbhd,kechd->kbceh", asked, values)
    return (scores.softmax(3) * worth).sum((3, 4)) + images @ gate["out_bias"].unsqueeze(-1)
