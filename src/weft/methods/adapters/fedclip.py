"""FedCLIP: clients train one attention-based adapter on the image embedding of a frozen CLIP, by CLIP's own contrastive loss.

W. Lu, X. Hu, J. Wang, X. Xie, "FedCLIP: Fast Generalization and Personalization for CLIP in Federated Learning", IEEE Data
Engineering Bulletin 2023, arXiv 2302.13485. Code: microsoft/PersonalizedFL, fedclip.

With z_i the embedding of picture i, not normalised, and v_i that of the sentence of its class, of unit length:

    A(z) = softmax(W2·tanh(W1·z + b1) + b2),    u_i = A(z_i) ⊙ z_i / ‖A(z_i) ⊙ z_i‖
    client:  one epoch of Adam on the n pictures of a batch, beside their own n sentences, with L_ij = exp(s) u_i·v_j:
             ½ [CE(L, (1 … n)) + CE(Lᵀ, (1 … n))]                  CE(L, y): the mean of -log softmax(L_i)_{y_i} over i
    server:  W1, b1, W2, b2 ← the plain mean of the clients'

Two pictures of a class have one sentence and are pushed apart all the same: of C classes alike often the loss of a perfect model
is log(n/C).

The code leaves one domain out, and tests the round that does best on validation rows of the others: of a run that is
``--leave-out`` and its ``best_by_validation``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import Tensor

from weft.contract import (
    SHARED,
    Adaptation,
    AttentionAdapter,
    Backbone,
    Batch,
    ClientInfo,
    Count,
    Method,
    MethodInfo,
    Optim,
    Pack,
    Positive,
    Task,
    Update,
    Weighting,
    mean_of,
)


class FedCLIP(Method):
    """Defaults of the code.

    Attributes:
        loss: ``pairs``, CLIP's contrastive loss within a batch, or ``classes``, cross-entropy over the sentences of all classes.
        batch: examples in a client's step. One alone has nothing to be contrasted with: such a step is left out for ``pairs``.
        optim: Adam with L2 inside of it. Decoupled (``optim.kind=adamw``) the same weight decay is another method.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="fedclip",
        title="One attention-based adapter on the image embedding of a frozen CLIP",
        paper="Lu et al., IEEE Data Engineering Bulletin 2023",
        arxiv="2302.13485",
        family="adapters",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="code",
        deviations=(
            "The sentence of a class is that of the run (`--template`), where the code has `a picture of a {}`. A client without "
            "rows counts for nothing in the mean. The frozen model stays in evaluation mode."
        ),
        sends="the adapter; every client knows all class names",
        needs=("images", "two towers"),
    )

    loss: Literal["pairs", "classes"] = "pairs"
    weighting: Weighting = "uniform"
    epochs: Positive = 1.0
    batch: Count = 32
    optim: Optim = Optim("adam", lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, schedule="constant")

    @property
    def sees_rows(self) -> str:
        return "compares the pictures of a batch with each other" if self.loss == "pairs" else ""

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"adapter": (AttentionAdapter(), SHARED)}

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        out = self.forward(pack, batch)
        return pack.loss(out, batch) if self.loss == "classes" else contrastive(out.logits, batch.labels, batch.mask)

    def train(self, pack: Pack) -> Iterable[Update]:
        if not pack.has_work():
            return pack.updates()
        optimizer = pack.optimizer("*", settings=self.optim, epochs=self.epochs, steps=self.steps, size=self.batch)
        for batch in pack.batches(self.epochs, self.steps, self.batch):
            enough = batch.mask.sum(1) > (1 if self.loss == "pairs" else 0)
            if bool(enough.any()):
                some = batch.only(enough)
                pack.report(some, pack.step(optimizer, self.objective, some))
        # whoever took no step sends what it received, and counts as much as the others
        return pack.updates(tensors=[{n: pack.value(k, n) for n in optimizer.params} for k in range(len(pack.clients))])


def contrastive(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """½ [CE(L, (1 … n)) + CE(Lᵀ, (1 … n))] of each client, [k], L of its n valid pictures and the sentences of their classes.

    Args:
        logits: [k, b, C] of pictures and the sentences of all classes. labels: [k, b]. mask: [k, b] bool, valid ones.
    """
    pairs = logits.gather(2, labels.unsqueeze(1).expand(-1, labels.shape[1], -1))  # of picture i and the sentence of picture j
    nothing = float("-inf")
    over_texts = pairs.masked_fill(~mask.unsqueeze(1), nothing).logsumexp(2)
    over_images = pairs.masked_fill(~mask.unsqueeze(2), nothing).logsumexp(1)
    return mean_of((over_texts + over_images) / 2 - pairs.diagonal(dim1=1, dim2=2), mask)
