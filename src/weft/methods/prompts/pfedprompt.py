"""pFedPrompt: one text prompt for all, and beside it each client's attention to the pictures that it was trained with.

T. Guo, S. Guo, J. Wang, "pFedPrompt: Learning Personalized Prompt for Vision-Language Models in Federated Learning", WWW 2023,
doi 10.1145/3543507.3583518. No official code.

RECONSTRUCTED: of the paper its abstract and what others report of it could be read, not its formulas. Known are: a prompt that
clients learn together (user consensus), and a non-parametric attention to features of a client's own pictures, in its memory
(local feature attention). The attention's form is that of caches for CLIP (R. Zhang et al., "Tip-Adapter", ECCV 2022).

Of a picture I and the client's own training pictures F_j of classes Y_j, all embeddings of unit length:
z_c = s·⟨I, t_c(p)⟩, LFA(I) = Σ_j a_j Y_j with a_j = exp(−β·(1 − ⟨I, F_j⟩)), personal logits z + α·LFA(I).
Clients train p as in PromptFL; the server takes the mean of p. F and Y are never sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot
from torch.nn.utils.rnn import pad_sequence

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
    Place,
    Positive,
    Task,
    Update,
    Values,
)

KEYS, CLASSES = "memory/values/keys", "memory/values/classes"


class PFedPrompt(Method):
    """Every default is a filling: the prompt's are those of the same authors' PromptFL, the attention's those of Tip-Adapter.

    Attributes:
        tokens: l. where: the class name stands: ``end``, ``middle`` or ``front``. std: of the random start.
        alpha: α; logits of the prompt are multiplied by the CLIP's s, often 100, those of the memory by this alone.
        beta: β, how near a picture has to be. kernel: a_j as above (``exp``), or a softmax of β·⟨I, F_j⟩ over the memory.
        per_shot: divide what a class gets by its pictures in the memory: else it grows with them, which tells what is frequent.
        in_training: the memory is in the logits of the local loss too, without the picture that they are of.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="pfedprompt",
        title="A shared text prompt for a frozen CLIP, and attention to a private memory of the client's own pictures",
        paper="Guo et al., WWW 2023",
        family="prompts",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="reconstructed",
        deviations=(
            "Reconstructed: the form of the attention, that it takes embeddings of whole pictures, where it is used, and every "
            "number are fillings. The memory holds all training pictures of a client, which are not augmented; much of what it "
            "gains where clients have few classes is that it tells which these are."
        ),
        views=("personal", "global"),
        sends="the context tokens; embeddings and labels of its pictures stay; every client knows all class names",
        needs=("images", "two towers"),
    )

    tokens: Count = 16
    where: Place = "end"
    std: NonNegative = 0.02
    alpha: NonNegative = 1.0
    beta: NonNegative = 5.5
    kernel: Literal["exp", "softmax"] = "exp"
    per_shot: bool = False
    in_training: bool = False
    epochs: Positive = 5.0
    batch: Count = 32
    optim: Optim = Optim("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="cosine", warmup=0.2)

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        prompt = {"context": (ClassContext(self.tokens, self.where, std=self.std), SHARED)}
        if backbone.embedding is None:  # which the prompt refuses
            return prompt
        memory = Values((("keys", (client.n, backbone.embedding.d_in)), ("classes", (client.n, len(task.classes)))))
        return {**prompt, "memory": (memory, TEMPORARY)}

    def load(self, pack: Pack) -> None:
        """F [K, n, e] and Y [K, n, C] of the clients' training rows; a row of zeros is no picture."""
        if pack.hidden is not None and not self.in_training:
            return  # a turn has no use for it, and is not to look at rows
        rows = [c.data.train for c in pack.clients]
        labels = [torch.from_numpy(pack.labels(own)) for own in rows]
        classes = [one_hot(y, len(pack.task.classes)).to(pack.device, pack.dtype) for y in labels]
        pack.tensors[KEYS] = pad_sequence([normalize(z, dim=-1) for z in pack.embed(rows)], batch_first=True)
        pack.tensors[CLASSES] = pad_sequence(classes, batch_first=True)

    def forward(self, pack: Pack, batch: Batch, view: str | None = None) -> Output:
        out = pack(batch, use={"context": 1.0})
        if view == "personal":
            return Output(out.logits + self.alpha * self.attention(pack, batch))
        if view is None and self.in_training:
            return Output(out.logits + self.alpha * self.attention(pack, batch, others(pack, batch)))
        return out

    def attention(self, pack: Pack, batch: Batch, seen: Tensor | None = None) -> Tensor:
        """LFA(I) [k, b, C].

        Args:
            seen: bool [k, b, n], the pictures of the memory that a row attends to; None = all.
        """
        keys, classes = batch.of(pack.tensors[KEYS]), batch.of(pack.tensors[CLASSES])
        there = classes.any(-1).unsqueeze(1).expand(-1, batch.index.shape[1], -1)
        there = there if seen is None else there & seen
        cosines = normalize(pack.images(batch), dim=-1) @ keys.mT
        if self.kernel == "exp":
            weights = torch.exp(self.beta * (cosines - 1)) * there
        else:
            weights = torch.softmax((self.beta * cosines).masked_fill(~there, -torch.inf), -1).nan_to_num()  # of no picture: 0
        found = weights @ classes
        return found / (there.to(classes) @ classes).clamp(min=1) if self.per_shot else found

    def train(self, pack: Pack) -> Iterable[Update]:
        return self.fit(pack, only=("context",))


def others(pack: Pack, batch: Batch) -> Tensor:
    """bool [k, b, n]: the pictures in the clients' memories that are another one than a row's own."""
    rows = [torch.from_numpy(c.data.train) for c in pack.clients]
    memory = batch.of(pad_sequence(rows, batch_first=True, padding_value=-1).to(pack.device))
    return memory.unsqueeze(1) != torch.from_numpy(pack.bench.table.row_of(batch.index)).to(pack.device).unsqueeze(2)
