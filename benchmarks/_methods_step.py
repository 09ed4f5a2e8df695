"""What a server does at the end of a round, for any method that averages LoRA, at Llama-2-7B's shapes.

A server as a run has it, on a random LLaMA of one block of that width: its method's own ``aggregate`` is timed on made-up
updates, and beside it the same step in dense matrices. A method needs no line here: the dense side of one that is not in
``DENSE`` is the mean of products, written out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from weft.federation.client import ClientState
from weft.federation.diagnostics import Diagnostics
from weft.federation.layout import named
from weft.federation.message import Update
from weft.federation.method import Method
from weft.federation.moves import common
from weft.federation.rounds import adapted
from weft.federation.scope import Scope
from weft.federation.turn import Turn
from weft.methods import registry
from weft.tensors.forms import Value
from weft.tensors.keyed import generator
from weft.testing.federation import Federation, federation
from weft.testing.models import backbone

T = TypeVar("T")
LAYERS = 32
STEPS = 1000
"""Of LoRA-FAIR's solver in the codes that could be read."""
FEW = 5
"""Of which so many are timed."""


@dataclass
class Site:
    """What a rule gets at one layer, and the layer's weight."""

    As: list[Tensor]
    Bs: list[Tensor]
    p: list[float]
    scale: float
    weight: Tensor

    def mean(self) -> Tensor:
        """Σ p_k s B_k A_k."""
        found = torch.zeros(self.weight.shape)
        for a, b, p in zip(self.As, self.Bs, self.p, strict=True):
            found.addmm_(b, a, alpha=p * self.scale)
        return found

    def of_means(self) -> Tensor:
        """s B̄ Ā."""
        a, b = (sum(p * v for p, v in zip(self.p, some, strict=True)) for some in (self.As, self.Bs))
        return self.scale * (b @ a)  # type: ignore[operator]


def merge(site: Site) -> float:
    """The mean of products, onto the weight."""
    site.weight + site.mean()
    return 1.0


def merge_of_means(site: Site) -> float:
    site.weight + site.of_means()
    return 1.0


def residual(site: Site) -> float:
    """FedEx-LoRA's, onto the weight; it would go down whole."""
    site.weight + (site.mean() - site.of_means())
    return 1.0


def residual_in_factors(site: Site) -> float:
    torch.linalg.svd(site.mean() - site.of_means(), full_matrices=False)
    return 1.0


def cut(site: Site) -> float:
    """FlexLoRA's."""
    torch.linalg.svd(site.mean(), full_matrices=False)
    return 1.0


def solver(site: Site) -> float:
    """LoRA-FAIR's: steps of SGD on ΔB, by the cosine of whole products."""
    a, b = (sum(p * v for p, v in zip(site.p, some, strict=True)) for some in (site.As, site.Bs))
    target = site.mean().flatten()
    moved = torch.zeros_like(b, requires_grad=True)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([moved], 0.01)
    for _ in range(FEW):
        optimizer.zero_grad()
        cosine = torch.nn.functional.cosine_similarity(target, ((b + moved) @ a).flatten(), dim=0)
        (1 - cosine + 0.01 * moved.norm()).backward()
        optimizer.step()
    return STEPS / FEW


Dense = Callable[[Site], float]
"""The dense step; by how much its time is to be multiplied."""
DENSE: dict[str, list[tuple[str, Dense]]] = {
    "flexlora": [("dense SVD", cut)],
    "flora": [("dense merge", merge)],
    "fedex-lora": [("dense residual", residual), ("dense residual, SVD", residual_in_factors)],
    "frlora": [("dense merge", merge_of_means)],
    "lora-fair": [(f"{STEPS} dense steps ({FEW} timed)", solver)],
}
METHODS = [*DENSE, "hetlora"]
"""Those of the table; what is not there yet is left out."""


@dataclass
class Line:
    """Seconds of the processor for one site, medians."""

    step: str
    against: str
    ours: float
    dense: float
    error: float | None = None
    sends: float | None = None
    check: str = ""
    aim: float | None = None
    sites: int = 2 * LAYERS

    def cells(self) -> list[str]:
        ratio = self.dense / self.ours
        verdict = "" if self.aim is None else f">= {self.aim:g}x {'met' if ratio >= self.aim else 'MISSED'}"
        own, other = (f"{self.sites * seconds:.3g}" for seconds in (self.ours, self.dense))
        told = [f"{self.ours:.3g}", own, self.against, f"{self.dense:.3g}", other]
        more = ["" if v is None else f"{self.sites * v:.3g}" for v in (self.sends, self.error)]
        return [self.step, *told, f"{ratio:.3g}x", verdict, *more, self.check]


HEADER = ["step", "s a site", "64 sites", "against", "dense, a site", "64 sites", "ratio", "aim", "downloads", "error", "check"]


def lines(methods: Sequence[str], rank: int, clients: int, quick: bool, repeats: int, say: Callable[[str], None]) -> list[Line]:
    width = 64 if quick else 4096
    heads, size = (4, 16) if quick else (32, 128)
    shape = {"hidden_size": width, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": heads}
    shape |= {"num_key_value_heads": heads, "head_dim": size}
    of = backbone("llama", classes=1, precision="float32", checkpoint="lm", task="generation", **shape)
    found = []
    for slug in methods:
        if slug not in registry.infos():
            say(f"{slug} is not there, and left out")
            continue
        found += _of_method(slug, of, rank, clients, repeats, say)
    return found


def _of_method(slug: str, of: Any, rank: int, clients: int, repeats: int, say: Callable[[str], None]) -> list[Line]:
    say(f"{slug}, {clients} clients")
    kind = registry.load(slug)
    wanted = {"rank": rank, "alpha": 2.0 * rank, "sites": "q,v", "mix": "none", "weighting": "uniform"}
    method: Method = kind(**{n: v for n, v in wanted.items() if n in {f.name for f in fields(kind)}})
    run = federation(method, of, sizes=(3,) * clients, task="generation")
    part = next(iter(common(run.server.adaptation)))
    sites = run.server.sites(part)
    against = DENSE.get(slug, [("dense merge", merge)])
    ours, looks, sends, value = list[float](), list[float](), list[float](), None
    dense: dict[str, list[float]] = {name: [] for name, _ in against}
    for i in range(repeats + 1):  # the first is the warm-up, and leaves LoRA where it is not zero
        updates, turns = _updates(run, part, i)
        error = Diagnostics(method, run.server, turns)
        run.server.clock += 1
        seconds, _ = _timed(lambda: method.aggregate(run.server, updates))  # noqa: B023
        watched, value = _timed(lambda: _look(error, updates))  # noqa: B023
        sent, _ = _timed(lambda: [method.send(run.server, c.info(method.info.asks)) for c in run.clients])
        run.server.synced = {c.id: run.server.clock for c in run.clients}
        if not i:
            continue
        ours, looks, sends = [*ours, seconds], [*looks, watched], [*sends, sent]
        terms = [u.lowrank(part, sites[0]) for u in updates]
        weight = run.bench.backbone.weight(sites[0]).float()
        site = Site([t.A for t in terms], [t.B for t in terms], [1 / clients] * clients, terms[0].scale, weight)
        for name, step in against:
            if i == 1 or "SVD" not in name:  # minutes each
                taken, factor = _timed(lambda: step(site))  # noqa: B023
                dense[name].append(taken * factor)
    told = "" if value is None else f"aggregation error {value:.0e}"
    n = len(sites)
    found = [
        Line(slug, name, _median(ours) / n, _median(times), _median(looks) / n, _median(sends) / n, told, _aim(name))
        for name, times in dense.items()
    ]
    if "start" in vars(kind):
        begun, _ = _timed(lambda: method.start(run.server))
        svd, _ = _timed(lambda: torch.linalg.svd(weight, full_matrices=False))
        found.append(Line(f"{slug}, its start", "dense SVD", begun / n, svd, aim=100.0))
    return found


def _aim(against: str) -> float | None:
    return 100.0 if "SVD" in against or "steps" in against else None


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _timed(step: Callable[[], T]) -> tuple[float, T]:
    began = time.process_time()
    found = step()
    return time.process_time() - began, found


def _look(error: Diagnostics, updates: list[Update]) -> float | None:
    for _ in error.passing(updates):
        pass
    return error.values().get("aggregation_error")


def _updates(run: Federation, part: str, i: int) -> tuple[list[Update], dict[str, Turn]]:
    """Made up: factors that are some way from what was received."""
    method, server = run.method, run.server
    updates: list[Update] = []
    turns: dict[str, Turn] = {}
    for client in run.clients:
        info = client.info(method.info.asks)
        adaptation = adapted(method, run.bench, info)
        held = server.held_by(info, adaptation, method.send(server, info))
        turns[client.id] = Turn(ClientState(client.id, 1), adaptation, held)
        g = generator(i, "made up", client.id)
        tensors: dict[str, Value] = {}
        for name, init, scope in named(adaptation, run.bench.backbone):
            if Scope.UP in scope and name.startswith(f"{part}/"):
                noise = 0.3 * torch.randn(init.shape, generator=g) / math.sqrt(max(init.shape))
                old = held.get(name)
                tensors[name] = old + noise if isinstance(old, Tensor) else noise
        updates.append(Update(tensors=tensors, client=info, weight=1.0, adaptation=adaptation))
    return updates, turns
