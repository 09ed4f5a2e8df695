"""How far what a server did to the model is from the mean of what its clients did to theirs: a round's aggregation error.

    ‖ΔW - Σ_k p_k ΔW_k‖_F / ‖Σ_k p_k ΔW_k‖_F,    over all layers with a common LoRA together

ΔW_k = s_k (B_k A_k - B⁰_k A⁰_k) is by what the model of client k changed in its turn, as it arrived, and ΔW by what the server's
changed in the round: its LoRA, and the low-rank terms beside the weights. p_k are the method's shares, at each layer those of the
clients that sent something of it. Means of factors (FedIT) make the error that FedEx-LoRA (arXiv 2410.09432) and LoRA-FAIR
(arXiv 2411.14961) set out to undo; whatever a robust rule or a server's optimizer makes of the mean is in it too.

A common LoRA is one of which nothing stays at a client. Where there is none, or nobody sent a factor of it, there is no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft.adaptation.from_weights import FromWeights
from weft.adaptation.lora import Delta, LoRA
from weft.federation.client import ClientState
from weft.federation.layout import Adaptation
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.scope import Scope
from weft.federation.server import ServerState
from weft.federation.start_values import initial
from weft.federation.turn import Turn
from weft.tensors import forms
from weft.tensors.forms import Value
from weft.tensors.growing import SLACK
from weft.tensors.lowrank import LowRank


class AggregationError:
    """Looks at a round's updates on their way to the method's rule.

    It keeps a copy of their LoRA factors, of a layer at most 1.5 min(d_out, d_in) ranks together, and no update's own tensors.

    Args:
        server: before the round is closed. turns: what each client was taken to hold when it was asked, by id.
    """

    def __init__(self, method: Method, server: ServerState, turns: Mapping[str, Turn]):
        self.method, self.server, self.turns = method, server, turns
        self.parts = common(server.adaptation)
        self.wanted: dict[tuple[str, str], _Sum] = {}  # by part and site
        self.before = self._model() if self.parts else {}

    def passing(self, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates as they are, each looked at before it is handed on."""
        for update in updates:
            if self.parts:
                self._add(update)
            yield update
            del update  # the next one is read in the memory of this one

    def value(self) -> float | None:
        """The error, once the round is closed; None where it means nothing."""
        if not self.wanted:
            return None
        after, gap, size = self._model(), 0.0, 0.0
        for site, applied in self._applied(after).items():
            wanted = [total.mean() for (_, at), total in self.wanted.items() if at == site]
            squares = _squares(LowRank.cat(wanted, applied.shape), applied)
            gap, size = gap + squares[0], size + squares[1]
        return math.sqrt(gap / size) if size > 0 and math.isfinite(gap) and math.isfinite(size) else None

    def _add(self, update: Update) -> None:
        server, turn = self.server, self.turns[update.client.id]
        held: Mapping[str, Value] = {}
        weight = 1.0 if server.weighting == "uniform" else update.weight
        for name in sorted(self.parts & update.adaptation.keys()):  # sums round in their order
            part = update.adaptation[name][0]
            for site in part.sites(server.bench.of(turn.client).backbone):
                new = {role: update.tensors.get(f"{name}/{site.called}/{role}") for role in "AB"}
                if all(value is None for value in new.values()):
                    continue
                held = held or self._entered(turn, self.parts)
                old = _product(held, name, site.called, part.constants(site)["scale"])
                if not _fits(old, new["A"], new["B"]):
                    continue
                total = self.wanted.setdefault((name, site.called), _Sum((site.d_out, site.d_in)))
                total.move(old, new["A"], new["B"], weight)
                total.weight += weight

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
        server, found = self.server, dict[str, _Sum]()
        for name in sorted(self.parts):
            part = server.adaptation[name][0]
            for site in part.sites(server.bench.backbone):
                scale = part.constants(site)["scale"]
                old, new = (_product(values, name, site.called, scale) for values in (self.before, after))
                total = found.setdefault(site.called, _Sum((site.d_out, site.d_in)))
                same = old.A.shape == new.A.shape
                a, b = (None if same and torch.equal(x, y) else y for x, y in ((old.A, new.A), (old.B, new.B)))
                total.move(old, a, b, 1.0)
        for name, value in after.items():
            called = name.split("/")[1]
            if isinstance(value, LowRank) and called in found:
                found[called].terms += _grown(self.before[name], value)
        return {site: total.mean() for site, total in found.items()}


def common(adaptation: Adaptation) -> set[str]:
    """Names of the parts that are a LoRA of which nothing stays at a client and something goes up."""
    found = set()
    for name, (part, scope) in adaptation.items():
        scopes = list(scope.values()) if isinstance(scope, Mapping) else [scope]
        known = all(Scope.KEEP not in s and (Scope.DOWN in s or Scope.UP in s) for s in scopes)
        # what acts otherwise than by its product is none, as a mixture of two; moves know of no start that stays beside
        by_product = isinstance(part, LoRA) and type(part).apply in (LoRA.apply, FromWeights.apply)
        if by_product and known and any(Scope.UP in s for s in scopes):
            found.add(name)
    return found


@dataclass
class _Sum:
    """Σ w ΔW over moves of LoRA factors at one site, in factors.

    Attributes:
        shape: (d_out, d_in). weight: Σ w, where it is to be a mean.
        terms: of moves of both factors. beside: where one factor stays, by which that is (its role and identity): itself, and the
            sum of the other's moves, so that all of them together have its rank.
    """

    shape: tuple[int, int]
    weight: float = 0.0
    terms: list[LowRank] = field(default_factory=list)
    beside: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def move(self, old: LowRank, A: Value | None, B: Value | None, weight: float) -> None:
        """Add w s (B A - B⁰ A⁰) = w s ((B - B⁰) A + B⁰ (A - A⁰)), in which no large terms cancel.

        Args:
            old: B⁰, A⁰ and s. A, B: the new factors, None = it did not move.
        """
        factor = weight * old.scale
        if isinstance(A, Tensor) and isinstance(B, Tensor) and len(A) != old.rank:  # ranks were added, or pruned
            self.terms += [LowRank(B=B.clone(), A=A.clone(), scale=factor), old * -weight]
            A = B = None
        if isinstance(B, Tensor):
            moved = (B - old.B) * factor
            if isinstance(A, Tensor):
                self.terms.append(LowRank(B=moved, A=A.clone()))
            else:
                self._stays("A", old.A, moved)
        if isinstance(A, Tensor) and bool(old.B.any()):
            self._stays("B", old.B, (A - old.A) * factor)
        if sum(term.rank for term in self.terms) > SLACK * min(self.shape):
            self.terms = [LowRank.cat(self.terms).compress()]

    def _stays(self, role: str, factor: Tensor, moved: Tensor) -> None:
        known = self.beside.get((role, id(factor)))
        self.beside[role, id(factor)] = factor, moved if known is None else known[1] + moved

    def mean(self) -> LowRank:
        """Over the weights, or the sum where there are none."""
        beside = [
            LowRank(B=moved, A=factor) if role == "A" else LowRank(B=factor, A=moved)
            for (role, _), (factor, moved) in self.beside.items()
        ]
        return LowRank.cat([*self.terms, *beside], self.shape) * (1.0 / (self.weight or 1.0))


def _fits(old: LowRank, A: Value | None, B: Value | None) -> bool:
    """Whether factors have a product, the old ones in the place of one that did not move.

    A stranger's may have none, where a method does not know beforehand of how many ranks they are.
    """
    ranks = [value.shape[axis] for value, axis in ((A, 0), (B, 1)) if isinstance(value, Tensor)]
    return len({*ranks, old.rank} if len(ranks) < 2 else {*ranks}) == 1


def _product(values: Mapping[str, Value], part: str, site: str, scale: float) -> LowRank:
    a, b = (values[f"{part}/{site}/{role}"] for role in "AB")
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return LowRank(B=b, A=a, scale=scale)


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


def _squares(wanted: LowRank, applied: LowRank) -> tuple[float, float]:
    """‖applied - wanted‖² and ‖wanted‖², by the triangles of the QRs of both together, see :meth:`LowRank.norm`."""
    both, m = LowRank.cat((wanted, applied)), wanted.rank
    left = torch.linalg.qr(both.B, mode="r")[1]
    right = torch.linalg.qr(both.A.mT, mode="r")[1]
    target = left[:, :m] @ right[:, :m].mT
    gap = left[:, m:] @ right[:, m:].mT - target
    return tuple(float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2 for x in (gap, target))  # type: ignore[return-value]
