"""SCAFFOLD: every local step is corrected by what the clients' steps are on average, less what one's own are.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning", ICML 2020, arXiv 1910.06378, algorithm 1 with option II.

With x what client i received, y_i what it sends and η_k the rate of its k-th step:

    y_i ← y_i - η_k (u_k + c - c_i)             u_k: what its optimizer makes of a gradient, with plain SGD the gradient itself
    Δc_i = (x - y_i) / Σ_k η_k - c              so that c_i + Δc_i is the mean of the u_k
    c_i ← c_i + Δc_i                            at the client
    c ← c + Σ_{i in the cohort} p_i Δc_i        at the server; p_i = 1/N, or n_i over all examples where the method weighs by them

The paper's optimizer is SGD at a constant rate, for which this is its algorithm. With any other the correction is a part of the
step and not of the gradient, as OpenFedLLM (Ye et al., KDD 2024, arXiv 2402.06954) has it for AdamW: c and c_i then are means of
steps, and what is in the units of steps is not put through the normalisation of AdamW. The paper's global rate is that of a
server step, ``avgm`` without momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from weft.federation.bench import Bench
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.pack import Pack
from weft.federation.server import ServerState
from weft.rules.over import Shares, apart, laid, told, within
from weft.rules.remembering import Remembering
from weft.tensors.init import leading
from weft.tensors.integers import Shape

CONTROL, CHANGE = "control", "change"


class Scaffold(Remembering):
    """c goes down as ``control/…``, Δc_i goes up as ``change/…``; c_i stays in the client's memory."""

    word: ClassVar[str] = "scaffold"
    groups: ClassVar[tuple[str, ...]] = (CONTROL, CHANGE)
    sends: ClassVar[str] = "by how much its mean step has changed, for each tensor that it receives and sends back"
    mean: ClassVar[str] = CONTROL

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, Shape]:
        return {**super().downloads(bench, client), **within(CONTROL, self.acts_on(bench, client))}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send(server, client)
        for name, shape in self.at_hand(server, client, message).items():
            if f"{CONTROL}/{name}" in server.memo:
                message.tensors[f"{CONTROL}/{name}"] = leading(server.memo[f"{CONTROL}/{name}"], shape)
        return message

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        own = self.acts_on(server.bench.of(client), client)
        return {**super().uploads(server, client), **within(CHANGE, own)}

    def train(self, pack: Pack) -> Iterable[Update]:
        names = self.acts_on_any(pack)
        memories = self.memories(pack)
        received = {n: pack.tensors[n].detach() for n in names}
        common = {n: laid(pack, n, told(pack, CONTROL, n)) for n in names}
        pack.guidance.corrections = {n: common[n] - laid(pack, n, [m.get(n) for m in memories]) for n in names}
        place = {c.id: k for k, c in enumerate(pack.clients)}
        for update in self.guided(pack, super().train(pack)):
            k, changes = place[update.client.id], {}
            far = torch.stack([pack.travelled(n)[k] for n in names]).tolist()
            for name, length in zip(names, far, strict=True):
                if length > 0 and isinstance(sent := update.tensors.get(name), Tensor):
                    x, c = (leading(v[name][k], tuple(sent.shape)).to(sent) for v in (received, common))
                    changes[name] = (x - sent) / length - c
            memories[k].add(changes, pack.round.index)
            update.tensors |= within(CHANGE, changes)
            yield update

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        shares = Shares(self, server)
        sums: dict[str, Tensor] = {}

        def take(update: Update, changes: dict[str, Tensor]) -> None:
            for name, change in changes.items():
                if isinstance(held := server.shared.get(name), Tensor):
                    total = sums.setdefault(name, torch.zeros(held.shape, dtype=change.dtype))
                    share = shares.of(update.client.id, name, change.shape)
                    total[tuple(slice(0, n) for n in change.shape)] += (share * change).to(total)

        super().aggregate(server, apart(updates, CHANGE, take))
        for name, total in sums.items():
            old = server.memo.get(f"{CONTROL}/{name}")
            self.put(server, shares, name, total if old is None else old + total)
