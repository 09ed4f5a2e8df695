"""PFCR: domains learn the rows that codes of items stand for, by sums of gradients; then each tunes prompts at home.

L. Guo, Z. Lu, J. Yu, Q. V. H. Nguyen, H. Yin, "Prompt-enhanced Federated Content Representation Learning for Cross-domain
Recommendation", WWW 2024, arXiv 2401.14678. Code: Ckano/PFCR, on top of VQ-Rec (:mod:`weft.backbones.vq_rec`).

A client is a domain; users and items of domains have nothing in common but words. E is the table of rows that the codes of items
stand for, u what the sequence encoder makes of a row.

Stage 1, federated: a client receives E, takes steps of its own optimizer with E_k, which begins as E, and with its encoder,
which never leaves it, and sends G_k = Σ ∂L/∂E_k over the steps of its turn. E ← E - η Σ w_k G_k, w_k = n_k / Σ n over who took
part. What became of E_k is forgotten. G_k is a sum and not a mean, so that clients with more rows count twice: by their steps
and by w_k.

Stage 2, the last rounds, which send nothing: the encoder is frozen. With prompts P and an attention that has P for keys and
values,

    light   u' = u + MHA(u, P, P)
    full    u' = LN(W [MHA(u, P, P); h; u])    with h of a second encoder over embeddings of the items themselves

and a client trains P, MHA, the second encoder, W, LN, and its own E_k from the last E on. It predicts by cos(u', item) / τ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from weft.contract import (
    GIVEN,
    PERSONAL,
    Adaptation,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    Init,
    Method,
    MethodInfo,
    Optim,
    Output,
    Pack,
    Positive,
    Round,
    ServerState,
    Task,
    Update,
    UserError,
    Values,
    Weights,
    Whole,
)
from weft.tensors import response

E = "code.weight"
SHARED_E, OWN_E, GRADIENT = "codes/code/weight", "own/code/weight", "gradient/own/code/weight"
BEGUN = "stage/values/second"
"""1 at a client whose second stage has begun."""
NETWORK = {"own": 1.0, "encoder": 1.0}
"""Parts at work in a pass."""
TUNE = "tune"


class PFCR(Method):
    """Defaults of the code.

    Attributes:
        prompts: ``full``, ``light``, or ``none``: the second stage trains E_k alone.
        length: of P. heads: of the attention over it; they have to divide the hidden size.
        tuning: the last rounds of a run, which are the second stage; half of them at most.
        server_lr: η; None = the rate of ``optim``, as in the code.
        codec: of G_k: ``none``; ``unbiased``, answers that are right on average, with a variance that is enormous at the paper's
            ε; ``paper-code``, the published one, of which the server learns next to nothing. See :mod:`weft.tensors.response`;
            neither is a claim of privacy.
        epsilon, clip: ε and c of the latter two.
        optim: of both stages, made anew in each round.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="pfcr",
        title="Sequences of items: a shared table of code rows by summed gradients, then prompts tuned at home",
        paper="Guo et al., WWW 2024",
        arxiv="2401.14678",
        family="prompts",
        challenges=("data heterogeneity", "privacy preservation"),
        evidence="code",
        deviations=(
            "Gradients go as they are, where the code has an encoding that destroys them, and the paper one that it means to be "
            "private: both are options, and levels then travel as numbers of the run's precision and not as bytes. Adam's "
            "moments are made anew in each round. The second stage is of as many rounds as are asked for, and stops early only "
            "where a run does. There is no item of padding among those that are ranked. Codes are fitted to the titles of all "
            "domains together, an artefact that everybody shares outside of the protocol."
        ),
        views=("personal",),
        sends="the sum of its gradients by the table of code rows; everybody knows the titles of all items",
        needs=("items",),
    )
    demands: ClassVar[tuple[str, ...]] = ("gradient",)

    prompts: Literal["full", "light", "none"] = "full"
    length: Count = 1024
    heads: Count = 4
    tuning: Whole = 10
    server_lr: Positive | None = None
    codec: Literal["none", "unbiased", "paper-code"] = "none"
    epsilon: Positive = 0.3
    clip: Positive = 0.12
    batch: Count = 1024
    optim: Optim = Optim("adamw", lr=1e-3, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "sends the gradients of its steps as they come"

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if backbone.reads != "items":
            raise UserError(
                f'pfcr learns the rows of a table that codes of items stand for, and backbone "{backbone.name}" has none: choose '
                "--model vq-rec or vq-rec-small, with --task next-item."
            )
        if self.prompts != "none" and backbone.d % self.heads:
            raise UserError(f"{self.heads} heads do not divide the hidden size {backbone.d}: choose another number of heads.")
        encoder = [n for n in backbone.own if n != E]
        found: Adaptation = {
            "codes": (Weights(E), GIVEN),
            "own": (Weights(E), PERSONAL),
            "encoder": (Weights(",".join(encoder)), PERSONAL),
            "stage": (Values((("second", (1,)),)), PERSONAL),
        }
        if self.prompts == "none":
            return found
        d = backbone.d
        prompt = {
            "P": _xavier(self.length, d),
            "in.weight": _xavier(3 * d, d),
            "in.bias": Init((3 * d,)),
            "out.weight": Init((d, d), "uniform", 1 / math.sqrt(d)),
            "out.bias": Init((d,)),
        }
        parts: Adaptation = {**found, "prompt": (Values(tuple(prompt.items())), PERSONAL)}
        if self.prompts == "light":
            return parts
        std = backbone.model.config.initializer_range
        shapes = {n.removeprefix("encoder."): tuple(p.shape) for n, p in backbone.model.named_parameters() if n in encoder}
        second = {n: Init(shape) if n.endswith("bias") else Init(shape, "normal", std) for n, shape in shapes.items()}
        norms = {n: Init(shapes[n], "ones") for n in shapes if "norm" in n and n.endswith("weight")}
        items = {"items": Init((len(task.classes) + 1, d), "normal", std)}
        join = {"W.weight": Init((d, 3 * d), "uniform", 1 / math.sqrt(3 * d)), "W.bias": Init((d,))}
        join |= {"LN.weight": Init((d,), "ones"), "LN.bias": Init((d,))}
        context = {**items, **second, **norms}
        return {
            **parts,
            "context": (Values(tuple(context.items())), PERSONAL),
            "join": (Values(tuple(join.items())), PERSONAL),
        }

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        second = t >= server.rounds - min(self.tuning, server.rounds // 2)
        return Round(t, TUNE, who="all") if second else Round(t)

    # client ---------------------------------------------------------------------------------------------------------

    def load(self, pack: Pack) -> None:
        """E_k is E, until the second stage has begun."""
        pack.copy("codes", "own", pack.tensors[BEGUN][:, 0] == 0)

    def train(self, pack: Pack) -> Iterable[Update]:
        second = pack.round.kind == TUNE
        pack.tensors[BEGUN] = torch.full_like(pack.tensors[BEGUN], float(second))
        if second:
            self.fit(pack, only=("own", "prompt", "context", "join"))
            return ()
        pack.copy("codes", "own")
        return self._gradients(pack)

    def _gradients(self, pack: Pack) -> Iterable[Update]:
        """Steps of E_k and the encoder, and the sums of the gradients by E_k on the way."""
        if not pack.has_work():
            return ()
        turn: dict[str, Any] = {"epochs": self.epochs, "steps": self.steps, "size": self.batch}
        optimizer = pack.optimizer("own", "encoder", settings=self.optim, **turn)
        total = torch.zeros_like(pack.tensors[OWN_E])

        def add(gradient: Tensor) -> None:
            total.add_(gradient)

        hook = pack.tensors[OWN_E].register_hook(add)
        for batch in pack.batches(**turn):
            pack.report(batch, pack.step(optimizer, self.objective, batch))
        hook.remove()
        streams = pack.generators("answers")
        return pack.updates(tensors=[{GRADIENT: self.told(g.cpu(), s)} for g, s in zip(total, streams, strict=True)])

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        begun = bool(batch.of(pack.tensors[BEGUN])[:, 0].any())  # of one client: whole weights are in the pass
        if self.prompts == "none" or not begun:
            return pack(batch, use=NETWORK)
        users = pack.with_features(batch, use=NETWORK)[1]
        return Output(pack.backbone.model.logits(self.prompted(pack, batch, users), batch.of(pack.tensors[OWN_E])[0]))

    def prompted(self, pack: Pack, batch: Batch, users: Tensor) -> Tensor:
        """u' [1, b, d] of u."""
        own = {n: batch.of(t)[0] for n, t in pack.params("prompt", "context", "join").items()}
        p = {n.removeprefix("prompt/values/"): t for n, t in own.items()}
        attended = attention(users[0], p["P"], p, self.heads)
        if self.prompts == "light":
            return users + attended
        inputs = pack.backbone.to_model(pack.bench.table.collate(batch.index.reshape(-1)))
        context = {n.removeprefix("context/values/"): t for n, t in own.items() if n.startswith("context/")}
        vectors = F.embedding(inputs["input_ids"], context.pop("items"))
        h = torch.func.functional_call(pack.backbone.model.encoder, context, (vectors, inputs["attention_mask"]))
        joined = F.linear(torch.cat([attended, h, users[0]], -1), own["join/values/W.weight"], own["join/values/W.bias"])
        return F.layer_norm(joined, joined.shape[-1:], own["join/values/LN.weight"], own["join/values/LN.bias"]).unsqueeze(0)

    # messages -------------------------------------------------------------------------------------------------------

    def told(self, gradient: Tensor, generator: torch.Generator) -> Tensor:
        """G_k as it leaves a client."""
        if self.codec == "none":
            return gradient
        written = response.answers if self.codec == "unbiased" else response.published
        return written(gradient, self.epsilon, self.clip, generator)

    def heard(self, sent: Tensor) -> Tensor:
        """G_k as the server reads it."""
        if self.codec == "none":
            return sent
        return (
            response.read(sent, self.epsilon, self.clip)
            if self.codec == "unbiased"
            else response.read_as_published(sent, self.clip)
        )

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return {} if server.round.kind == TUNE else {GRADIENT: tuple(server.shared[SHARED_E].shape)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(self._moved(server, updates))

    def _moved(self, server: ServerState, updates: Iterable[Update]) -> Iterator[Update]:
        """E - η G_k of each, whose mean is E - η Σ w_k G_k."""
        rate = self.optim.lr if self.server_lr is None else self.server_lr
        for update in updates:
            e, gradient = server.shared[SHARED_E], update.tensors[GRADIENT]
            assert isinstance(e, Tensor)
            assert isinstance(gradient, Tensor)
            yield replace(update, tensors={SHARED_E: e - rate * self.heard(gradient)})


def attention(queries: Tensor, prompts: Tensor, w: Mapping[str, Tensor], heads: int) -> Tensor:
    """Of each query [b, d] over the prompts [m, d], which are keys and values: [b, d]."""
    d = queries.shape[-1]
    into, bias = w["in.weight"].chunk(3), w["in.bias"].chunk(3)
    q, k, v = (
        F.linear(x, into[i], bias[i]).view(len(x), heads, -1).transpose(0, 1) for i, x in enumerate((queries, prompts, prompts))
    )
    seen = torch.softmax(q @ k.mT / math.sqrt(d / heads), -1) @ v
    return F.linear(seen.transpose(0, 1).flatten(1), w["out.weight"], w["out.bias"])


def _xavier(rows: int, columns: int) -> Init:
    return Init((rows, columns), "uniform", math.sqrt(6 / (rows + columns)))
