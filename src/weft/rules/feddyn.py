"""FedDyn: every client's loss is tilted by the gradient that it ended its last turn with, and the server makes up for the tilts.

D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama, "Federated Learning Based on Dynamic
Regularization", ICLR 2021, arXiv 2111.04263, algorithm 1.

With θ what the clients received and m all clients:

    θ_k ← argmin L_k(θ_k) - ⟨g_k, θ_k⟩ + α/2 ‖θ_k - θ‖²           by the method's own local steps
    g_k ← g_k - α (θ_k - θ)                                        at the client: the gradient of L_k where its turn ended
    h ← h - α Σ_{k in the cohort} p_k (θ_k - θ)                    at the server; p_k = 1/m, or n_k over all examples
    θ ← mean of the cohort's θ_k - h / α

Nothing of this depends on the local optimizer, but that its steps come near the minimum: -g_k is added to every gradient, and
α/2 ‖·‖² is the proximal term of the optimizers. Where θ stands still h is 0, and so is Σ p_k g_k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.pack import Pack
from weft.federation.server import ServerState
from weft.rules.over import Shares, added, laid
from weft.rules.remembering import Remembering
from weft.tensors.init import leading
from weft.typed import Positive

TILT = "tilt"


@dataclass(frozen=True)
class FedDyn(Remembering):
    """Nothing is sent beside what the method sends; g_k stays in the client's memory.

    Attributes:
        feddyn_alpha: α. The paper tries 0.1, 0.01 and 0.001.
    """

    word: ClassVar[str] = "feddyn"
    groups: ClassVar[tuple[str, ...]] = ()
    mean: ClassVar[str] = TILT

    feddyn_alpha: Positive = 0.01

    def train(self, pack: Pack) -> Iterable[Update]:
        names = self.acts_on_any(pack)
        memories = self.memories(pack)
        received = {n: pack.tensors[n].detach() for n in names}
        tilts = {n: -laid(pack, n, [m.get(n) for m in memories]) for n in names}
        pack.offsets.update(tilts)
        pack.guidance.prox = self.feddyn_alpha
        place = {c.id: k for k, c in enumerate(pack.clients)}
        for update in self.guided(pack, super().train(pack)):
            if any(pack.offsets.get(n) is not tilt for n, tilt in tilts.items()):
                raise UserError(
                    f"{self.without()} adds something of its own to every gradient, as depthfl does by its dyn, in the place of "
                    f'what rule = "{self.word}" adds: leave --rule out, or that.'
                )
            k, changes = place[update.client.id], {}
            for name in names:
                if isinstance(sent := update.tensors.get(name), Tensor):
                    changes[name] = -self.feddyn_alpha * (sent - leading(received[name][k], tuple(sent.shape)).to(sent))
            memories[k].add(changes, pack.round.index)
            yield update

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        shares, alpha = Shares(self, server), self.feddyn_alpha
        held = {n: v for n, v in server.shared.items() if n in shares.totals and isinstance(v, Tensor)}
        parts: dict[str, float | Tensor] = {}

        def counted() -> Iterator[Update]:
            for update in updates:
                for name in update.tensors.keys() & held.keys():
                    shape = update.tensors[name].shape
                    share = shares.of(update.client.id, name, shape)
                    parts[name] = added(parts.get(name, 0.0), share, shape, held[name].shape)
                yield update

        super().aggregate(server, counted())
        for name, part in parts.items():
            mean = server.shared[name]
            if server.stamps[name] != server.clock or not isinstance(mean, Tensor):
                continue
            old = server.memo.get(f"{TILT}/{name}")
            tilt = (torch.zeros_like(mean) if old is None else old) - (alpha * part * (mean - held[name].to(mean))).to(mean)
            self.put(server, shares, name, tilt)
            moved = mean - tilt / alpha
            server.write(name, torch.where(part > 0, moved, mean) if isinstance(part, Tensor) else moved)
