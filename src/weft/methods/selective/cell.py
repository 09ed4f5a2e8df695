"""CELL: LotteryFL by one broadcast for all, in which clients that lag behind train the whole model for a while.

S. Seo, S.-W. Ko, J. Park, S.-L. Kim, M. Bennis, "Communication-Efficient and Personalized Federated Lottery Ticket Learning",
IEEE SPAWC 2021, arXiv 2104.12501.

The server sends θ to everybody. A client looks at its accuracy on its validation rows with θ ⊙ M_k:

    above a_k   it is in lottery mode: its turn is that of LotteryFL, and θ_k ⊙ M_k is sent
    else        it is in FL mode: it trains θ, without its mask and without pruning, and all of θ_k is sent;
                of every ``patience`` turns in a row that end so, the last one lowers a_k to ``easing`` · a_k

and each entry of θ becomes the mean over those who sent it; one that nobody sent stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from weft.contract import ClientState, Count, MethodInfo, Pack, Positive, ServerState, Share, Update
from weft.methods.selective.lotteryfl import LotteryFL, tickets

THRESHOLD, FAILED = "threshold", "failed"
"""What a client remembers: a_k, and how many turns in a row it has been in FL mode since that was lowered."""


class CELL(LotteryFL):
    """LotteryFL's attributes, at the values of CELL's description of it.

    Attributes:
        patience: turns in FL mode, one after the other, behind which a client's threshold is lowered.
        easing: what it is multiplied by then; 1 leaves it as it is.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="cell",
        title="Lottery tickets by one broadcast; clients that lag behind train the whole model",
        paper="Seo et al., SPAWC 2021",
        arxiv="2104.12501",
        family="selective",
        challenges=("data heterogeneity", "communication efficiency"),
        evidence="reconstructed",
        deviations=(
            "The paper was not at hand but for its abstract and what others write of it, and its code is not public: that modes "
            "go by the threshold of accuracy, and how that is lowered, is ours; optimizer and batch are LotteryFL's. What is "
            "pruned is a pretrained model. Places of entries go up with every update that is not whole."
        ),
        views=("personal",),
        needs=("classes",),
        sends=(
            "the entries of the tuned tensors that it has not pruned and which ones they are, or the whole tensors while its "
            "accuracy lags behind; and the number of examples"
        ),
    )

    threshold: Share = 0.5
    epochs: Positive = 10.0
    patience: Count = 3
    easing: Share = 0.9

    # server -------------------------------------------------------------------------------------------------------------

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates)  # no mask is noted, so that what goes out is one broadcast

    # client -------------------------------------------------------------------------------------------------------------

    def bar(self, client: ClientState) -> float:
        """a_k."""
        return float(client.memo.get(THRESHOLD, self.threshold))

    def train(self, pack: Pack) -> Iterable[Update]:
        wins = self.wins(pack)
        for k, good in enumerate(wins):
            if good:
                self.prune(pack, k)
            self.ease(pack.clients[k], good)
        lottery, entries = torch.tensor(wins, device=pack.device), tickets(pack)
        for name, mask in entries.items() if not all(wins) else ():
            here = lottery.view(-1, *[1] * (mask.dim() - 1))
            pack.tensors[name] = torch.where(here, pack.tensors[name], received(pack, name))
            entries[name] = mask | ~here
        return self.local(pack, entries)

    def ease(self, client: ClientState, good: bool) -> None:
        """Lower a client's threshold when it has been in FL mode for long enough."""
        failed = 0 if good or not len(client.data.train) else client.memo.get(FAILED, 0) + 1
        if failed == self.patience:
            client.memo[THRESHOLD], failed = self.easing * self.bar(client), 0
        client.memo[FAILED] = failed


def received(pack: Pack, name: str) -> Tensor:
    """[K, …] a tensor as it came, without the clients' masks."""
    whole = pack.tensors[name].clone()
    for row, turn in zip(whole, pack.turns, strict=True):
        value = turn.held[name]
        assert isinstance(value, Tensor)  # of a broadcast
        row.copy_(value)
    return whole
