"""What a round's updates say of the federation: the aggregation error, the drift of clients, the effective rank.

**Aggregation error**, how far what a server did to the model is from the mean of what its clients did to theirs:

    ‖ΔW - Σ_k p_k ΔW_k‖_F / ‖Σ_k p_k ΔW_k‖_F,    over all layers with a common LoRA together

ΔW_k = s_k (B_k A_k - B⁰_k A⁰_k) is by what the model of client k changed in its turn, as it arrived, and ΔW by what the server's
changed in the round: its LoRA, and the low-rank terms beside the weights. p_k are the method's shares, at each layer those of the
clients that sent something of it. Means of factors (FedIT) make the error that FedEx-LoRA (arXiv 2410.09432) and LoRA-FAIR
(arXiv 2411.14961) set out to undo; whatever a robust rule or a server's optimizer makes of the mean is in it too.

A common LoRA is one of which nothing stays at a client. Where there is none, or nobody sent a factor of it, there is no number.

**Drift**, how far clients move apart in a round, by how far they move together:

    √( Σ_k p_k ‖Δ_k - Δ̄‖² / ‖Δ̄‖² ),    Δ̄ = Σ_k p_k Δ_k

over all that clients send and do not keep: a common LoRA by its product ΔW_k, every other tensor (head, adapter, prompt,
bias, weights) as it is, but no tensor of which clients send different sizes. Of 0 all clients do the same; of 1 they move as
far apart as together. It is the gradient diversity of Yin et al. (arXiv 1706.05699), less one and under a root. One client has
none.

**Effective rank** of ΔW, the server's change, in the mean over layers that changed: exp(-Σ q_i log q_i) of its singular values
as shares q = σ / Σσ (Roy and Vetterli, "The effective rank", EUSIPCO 2007).

**Density**, of the tensors that the server holds some entries of alone: the share of their entries that it holds; and
**two of four**, the share of every four entries along their last axes of which it holds two at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from weft.adaptation.lora import Delta
from weft.aggregation.pruning import share_of_pattern
from weft.federation.client import ClientState
from weft.federation.layout import scope_of
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.moves import Moves, common, fits, product, square
from weft.federation.pack import Pack
from weft.federation.scope import Scope
from weft.federation.server import ServerState
from weft.federation.spread import Spread
from weft.federation.start_values import initial
from weft.federation.turn import Turn
from weft.tensors import forms
from weft.tensors.forms import Value
from weft.tensors.lowrank import LowRank
from weft.tensors.masked import Masked


class Diagnostics:
    """Looks at a round's updates on their way to the method's rule.

    It keeps a copy of their LoRA factors, of a layer at most 1.5 min(d_out, d_in) ranks together, the sum of some entries of
    other tensors, and no update's own.

    Args:
        server: before the round is closed. turns: what each client was taken to hold when it was asked, by id.
    """

    def __init__(self, method: Method, server: ServerState, turns: Mapping[str, Turn]):
        self.method, self.server, self.turns = method, server, turns
        self.parts = common(server.adaptation)
        self.clients = 0
        self.wanted: dict[tuple[str, str], Moves] = {}  # by part and site
        self.others: dict[str, Spread | None] = {}  # by tensor; None where clients' are of different shapes
        self.before = self._model() if self.parts else {}

    def passing(self, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates as they are, each looked at before it is handed on."""
        for update in updates:
            self._add(update)
            yield update
            del update  # the next one is read in the memory of this one

    def values(self) -> dict[str, float]:
        """``aggregation_error``, ``drift``, ``effective_rank``, ``density`` and ``two_of_four``, once the round is closed;
        without those that mean nothing.
        """
        means = {at: moves.mean() for at, moves in self.wanted.items()}
        found: dict[str, float | None] = {"drift": self._drift(means)}
        if means:
            applied = self._applied(self._model())
            found["aggregation_error"] = _error(means, applied)
            found["effective_rank"] = effective_rank(applied.values())
        if masks := [v.mask for v in self.server.shared.values() if isinstance(v, Masked)]:
            found |= density_of(masks)
        return {name: value for name, value in found.items() if value is not None}

    def _drift(self, means: Mapping[tuple[str, str], LowRank]) -> float | None:
        apart = together = 0.0
        for at, mean in means.items():
            size = square(mean)
            apart += self.wanted[at].squares / self.wanted[at].weight - size
            together += size
        for spread in self.others.values():
            if spread is not None:
                parts = spread.parts()
                apart, together = apart + parts[0], together + parts[1]
        finite = math.isfinite(apart) and math.isfinite(together)
        return math.sqrt(max(0.0, apart) / together) if self.clients > 1 and finite and together > 0 else None

    def _add(self, update: Update) -> None:
        server, turn = self.server, self.turns[update.client.id]
        weight = server.weigh(update)
        self.clients += 1
        sent = {name.split("/", 1)[0] for name in update.tensors} & update.adaptation.keys()
        held = self._entered(turn, sent) if sent else {}
        for name in sorted(self.parts & sent):  # sums round in their order
            part = update.adaptation[name][0]
            for site in part.sites(server.bench.of(turn.client).backbone):
                new = {role: update.tensors.get(f"{name}/{site.called}/{role}") for role in "AB"}
                if all(value is None for value in new.values()):
                    continue
                old = product(held, name, site.called, part.constants(site)["scale"])
                if not fits(old, new["A"], new["B"]):
                    continue
                moves = self.wanted.setdefault((name, site.called), Moves((site.d_out, site.d_in)))
                moves.move(old, new["A"], new["B"], weight)
                moves.weight += weight
        for name in sorted(update.tensors):
            part_name = name.split("/", 1)[0]
            if (
                part_name in sent - self.parts
                and update.adaptation[part_name][0].mode != "normalises"
                and Scope.KEEP not in scope_of(update.adaptation, name)
            ):
                self._beside(name, held.get(name), update.tensors[name], weight)

    def _beside(self, name: str, old: Value | None, new: Value, weight: float) -> None:
        if not isinstance(old, Tensor) or not isinstance(new, Tensor) or not new.is_floating_point():
            return
        if name not in self.others:
            self.others[name] = Spread.none(new.shape)
        spread = self.others[name]
        if spread is None or new.shape != spread.shape or old.shape != new.shape:
            self.others[name] = None
        else:
            spread.add(old, new, weight)

    def _model(self) -> Mapping[str, Value]:
        """The server's own: its common LoRAs, and what lies beside the weights."""
        turn = Turn(ClientState(""), self.server.adaptation, dict(self.server.shared))
        deltas = {name for name, (part, _) in self.server.adaptation.items() if isinstance(part, Delta)}
        return self._entered(turn, self.parts | deltas, at_server=True)

    def _entered(self, turn: Turn, parts: set[str], at_server: bool = False) -> Mapping[str, Value]:
        """The values that a model has in these parts when a turn begins, on the CPU."""
        server = self.server
        bench = server.bench.of(turn.client)
        if type(self.method).load is Method.load:  # the model is what was received
            only = {name: of for name, of in turn.adaptation.items() if name in parts}
            return initial(bench, Turn(turn.client, only, turn.held), server.round, server.start)
        pack = Pack(bench, [turn], server.round, server.start, at_server, self.method.load)
        tensors = {n: t[0].cpu() for n, t in pack.tensors.items() if n.split("/", 1)[0] in parts}
        return forms.restore(tensors, dict.fromkeys(forms.factored(tensors, "."), 1.0), ".")

    def _applied(self, after: Mapping[str, Value]) -> dict[str, LowRank]:
        """By what the server's model changed, at each site with a common LoRA."""
        server, found = self.server, dict[str, Moves]()
        for name in sorted(self.parts):
            part = server.adaptation[name][0]
            for site in part.sites(server.bench.backbone):
                scale = part.constants(site)["scale"]
                old, new = (product(values, name, site.called, scale) for values in (self.before, after))
                total = found.setdefault(site.called, Moves((site.d_out, site.d_in)))
                same = old.A.shape == new.A.shape
                a, b = (None if same and torch.equal(x, y) else y for x, y in ((old.A, new.A), (old.B, new.B)))
                total.move(old, a, b, 1.0)
        for name, value in after.items():
            called = name.split("/")[1]
            if isinstance(value, LowRank) and called in found:
                found[called].terms += _grown(self.before[name], value)
        return {site: total.mean() for site, total in found.items()}


def _grown(old: Value, new: Value) -> list[LowRank]:
    """By what a low-rank sum differs from what it was, without the terms that both have in the same place."""
    assert isinstance(old, LowRank)
    assert isinstance(new, LowRank)
    if new is old:
        return []
    m = min(old.rank, new.rank)
    alike = (old.A[:m] == new.A[:m]).all(1) & (old.B[:, :m] * old.scale == new.B[:, :m] * new.scale).all(0)

    def rest(value: LowRank, sign: float) -> LowRank:
        keep = torch.cat([~alike, alike.new_ones(value.rank - m)])
        return LowRank(B=value.B[:, keep], A=value.A[keep], scale=sign * value.scale)

    return [rest(new, 1.0), rest(old, -1.0)]


def _error(means: Mapping[tuple[str, str], LowRank], applied: Mapping[str, LowRank]) -> float | None:
    gap = size = 0.0
    for site, mine in applied.items():
        squares = _squares(LowRank.cat([mean for (_, at), mean in means.items() if at == site], mine.shape), mine)
        gap, size = gap + squares[0], size + squares[1]
    return math.sqrt(gap / size) if size > 0 and math.isfinite(gap) and math.isfinite(size) else None


def density_of(masks: Sequence[Tensor]) -> dict[str, float | None]:
    """``density``, and ``two_of_four`` in the mean over the tensors whose last axes allow it, by their entries."""
    size = sum(m.numel() for m in masks)
    fit = [(share, m.numel()) for m in masks if (share := share_of_pattern(m)) is not None]
    of_fours = sum(share * n for share, n in fit) / sum(n for _, n in fit) if fit else None
    return {"density": sum(int(m.sum()) for m in masks) / size if size else None, "two_of_four": of_fours}


def effective_rank(changes: Iterable[LowRank]) -> float | None:
    """In the mean over those that change anything; None if none does, or one is not finite."""
    found = []
    for change in changes:
        try:
            values = change.singular_values().double()
        except ValueError:
            return None
        if not bool(torch.isfinite(values).all()):
            return None
        if bool(values.any()):
            found.append(float(torch.special.entr(values / values.sum()).sum().exp()))
    return sum(found) / len(found) if found else None


def _squares(wanted: LowRank, applied: LowRank) -> tuple[float, float]:
    """‖applied - wanted‖² and ‖wanted‖², by the triangles of the QRs of both together, see :meth:`LowRank.norm`; of more terms
    than rows or columns by the matrices themselves, which are smaller then.
    """
    both, m = LowRank.cat((wanted, applied)), wanted.rank
    if both.rank > min(both.shape):
        target = wanted.dense()
        return _square(applied.dense() - target), _square(target)
    left = torch.linalg.qr(both.B, mode="r")[1]
    right = torch.linalg.qr(both.A.mT, mode="r")[1]
    target = left[:, :m] @ right[:, :m].mT
    gap = left[:, m:] @ right[:, m:].mT - target
    return _square(gap), _square(target)


def _square(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
