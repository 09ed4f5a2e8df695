"""Mime: local steps mimic those of one optimizer over all the data, whose state clients receive and do not change.

S. P. Karimireddy, M. Jaggi, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "Mime: Mimicking Centralized Stochastic
Algorithms in Federated Learning", arXiv 2008.03606 (NeurIPS 2021 as "Breaking the centralized barrier for cross-device federated
learning"), algorithm 1. Code: fedjax.algorithms.mime.

With x and the state s of the optimizer what clients received, ∇f_i(x) the gradient over all rows of client i, c the mean of the
cohort's, and ζ a batch:

    mime        g ← ∇f_i(y_i; ζ) - ∇f_i(x; ζ) + c
    mimelite    g ← ∇f_i(y_i; ζ)
    both        y_i ← the optimizer's step along g from s; what it makes of s is thrown away
                s ← the optimizer's state after the gradient c, at the server
                x ← mean of the y_i

The optimizer is the method's own, and s its momentum (SGD: m ← β m + g), or both moments and the number of updates (Adam, AdamW).
∇f_i(x) is the mean over the steps of one epoch of the method's own turn in which nothing moves, so that it is of whatever the
method descends. Clients remember nothing.

Mime takes two exchanges, which settings count as rounds: gradients go up in the first, and c comes down in the second, to the
same clients. MimeLite takes one, in which a client sends y_i and ∇f_i(x).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from weft.adaptation.optim import Moments
from weft.aggregation.mean import WeightedMean
from weft.errors import UserError
from weft.federation.bench import Bench
from weft.federation.guidance import Noted
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.server import ServerState
from weft.rules.over import Over, apart, laid, told, within
from weft.tensors.init import leading
from weft.tensors.integers import Shape

GRADIENTS = "gradients"
"""The kind of an exchange in which nothing is trained."""
GRADIENT, MEAN, REACHED = "full-gradient", "mean-gradient", "mean-gradient of"
STEPS = "moments/steps"


class MimeLite(Over):
    """s goes down as ``moments/…``, ∇f_i(x) goes up as ``full-gradient/…``."""

    word: ClassVar[str] = "mimelite"
    groups: ClassVar[tuple[str, ...]] = ("moments", GRADIENT, MEAN)
    sends: ClassVar[str] = "the gradient of its loss over all its rows, for each tensor that it receives and sends back"

    @property
    def sees_rows(self) -> str:
        return "sends the gradient of all of a client's rows"

    # the state of the optimizer ----------------------------------------------------------------------------------------

    def state(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of s."""
        found = {f"moments/{i}/{n}": shape for i in range(self.optim.moments) for n, shape in shapes.items()}
        return found | {f"{STEPS}/{n}": (1,) for n in shapes if self.optim.kind != "sgd"}

    def updated(self, memo: dict[str, Any], name: str, x: Tensor, g: Tensor, reached: Tensor | None) -> None:
        """s after the gradient ``g`` at ``x``.

        Args:
            reached: [bool] entries that have a gradient, None = all.
        """
        o = self.optim
        if o.coupled and (o.decay_biases or x.dim() > 1):
            g = g + o.weight_decay * x
        old = [memo.get(f"moments/{i}/{name}", torch.zeros_like(x)) for i in range(o.moments)]
        if o.kind == "sgd":
            new = [m * o.momentum + g for m in old]
        else:
            new = [b * m + (1 - b) * h for b, m, h in zip(o.betas, old, (g, g.square()), strict=True)]
            memo[f"{STEPS}/{name}"] = memo.get(f"{STEPS}/{name}", torch.zeros(1, dtype=x.dtype)) + 1
        for i, (m, before) in enumerate(zip(new, old, strict=True)):
            memo[f"moments/{i}/{name}"] = m if reached is None else torch.where(reached, m, before)

    # client -------------------------------------------------------------------------------------------------------------

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, Shape]:
        return {**super().downloads(bench, client), **self.state(self.acts_on(bench, client))}

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        own = self.acts_on(server.bench.of(client), client)
        return {**super().uploads(server, client), **within(GRADIENT, own)}

    def gradients(self, pack: Pack) -> list[dict[str, Tensor]]:
        """∇f_i(x) of each client as it is sent, in its own sizes; of a turn without steps there is none."""
        twin = pack.twin()
        noted = twin.guidance.noted = Noted(len(pack.clients))
        still = replace(self, epochs=1.0, steps=None)
        for _ in super(MimeLite, still).train(twin):
            pass
        means = noted.means()
        found = {n: means[n] for n in self.acts_on_any(pack) if n in means}
        each: list[dict[str, Tensor]] = [{} for _ in pack.clients]
        for name, gradient in found.items():
            here = zip(each, gradient, pack.shapes[name], twin.rows(name).tolist(), strict=True)
            for own, value, shape, has in here:
                if shape is not None and has:
                    own[f"{GRADIENT}/{name}"] = leading(value, shape).to("cpu", copy=True)
        return each

    def begun(self, pack: Pack) -> None:
        """Every step begins with what was received of s."""
        fixed = {}
        for name in self.acts_on_any(pack):
            values = tuple(laid(pack, name, told(pack, f"moments/{i}", name)) for i in range(self.optim.moments))
            counts = [0.0 if v is None else float(v) for v in told(pack, STEPS, name)]
            if values:
                fixed[name] = Moments(torch.tensor(counts, device=pack.device, dtype=torch.float64), values)
        pack.guidance.fixed = fixed

    def train(self, pack: Pack) -> Iterable[Update]:
        gradients = self.gradients(pack)
        self.begun(pack)
        place = {c.id: k for k, c in enumerate(pack.clients)}
        for update in self.guided(pack, super().train(pack)):
            update.tensors |= gradients[place[update.client.id]]
            yield update

    # server -------------------------------------------------------------------------------------------------------------

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send(server, client)
        for name, shape in self.state(self.at_hand(server, client, message)).items():
            if name in server.memo:
                message.tensors[name] = leading(server.memo[name], shape)
        return message

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        gradients, x = Gradients(self, server), dict(server.shared)
        super().aggregate(server, apart(updates, GRADIENT, gradients.take))
        for name, (g, reached) in gradients.means().items():
            self.updated(server.memo, name, x[name], g, reached)  # type: ignore[arg-type]


class Mime(MimeLite):
    """c goes down too, as ``mean-gradient/…``."""

    word: ClassVar[str] = "mime"
    exchanges: ClassVar[int] = 2

    def plan(self, server: ServerState, t: int) -> Round | None:
        counted = copy.copy(server)  # the method's rounds are pairs of exchanges, of which it may ask how many there are
        counted.rounds = -(-server.rounds // 2)
        inner = super().plan(counted, t // 2) if t < server.rounds else None
        if inner is None:
            return None
        return replace(inner, index=t, kind=GRADIENTS) if t % 2 == 0 else replace(inner, index=t, who="same")

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, Shape]:
        return {**super().downloads(bench, client), **within(MEAN, self.acts_on(bench, client))}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        if server.round.kind == GRADIENTS:
            return super(MimeLite, self).send(server, client)
        message, memo = super().send(server, client), server.memo
        for name, shape in self.at_hand(server, client, message).items():
            reached = memo.get(f"{REACHED}/{name}")
            if f"{MEAN}/{name}" in memo and (reached is None or bool(leading(reached, shape).all())):
                message.tensors[f"{MEAN}/{name}"] = leading(memo[f"{MEAN}/{name}"], shape)
        return message

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, Shape]:
        return (
            super().uploads(server, client) if server.round.kind == GRADIENTS else super(MimeLite, self).uploads(server, client)
        )

    def train(self, pack: Pack) -> Iterable[Update]:
        index, pack.round = pack.round.index, replace(pack.round, index=pack.round.index // 2)
        if index % 2 == 0:
            gradients = self.gradients(pack)
            if pack.has_work() and not any(gradients):
                raise UserError(
                    f'{self.without()} moves nothing that it sends along a gradient, and rule = "{self.word}" needs that: leave '
                    "--rule out."
                )
            return pack.updates(tensors=gradients)
        self.begun(pack)
        centre = {}
        for name in self.acts_on_any(pack):
            values = told(pack, MEAN, name)
            has = torch.tensor([v is not None for v in values], device=pack.device)
            if bool(has.any()):
                centre[name] = laid(pack, name, values), has
        pack.guidance.centre = centre
        return self.guided(pack, super(MimeLite, self).train(pack))

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        memo, x = server.memo, dict(server.shared)
        if server.round.kind != GRADIENTS:
            super(MimeLite, self).aggregate(server, updates)
            for name in [n.removeprefix(f"{MEAN}/") for n in memo if n.startswith(f"{MEAN}/")]:
                g, reached = memo.pop(f"{MEAN}/{name}"), memo.pop(f"{REACHED}/{name}", None)
                self.updated(memo, name, x[name], g, reached)  # type: ignore[arg-type]
            return
        for name in [n for n in memo if n.startswith((f"{MEAN}/", f"{REACHED}/"))]:
            del memo[name]
        gradients = Gradients(self, server)
        for _ in apart(updates, GRADIENT, gradients.take):
            pass
        for name, (g, reached) in gradients.means().items():
            memo |= {f"{MEAN}/{name}": g} | ({} if reached is None else {f"{REACHED}/{name}": reached})
        server.remarks = {"rule": server.robust.rule}  # it is in the mean of models that others have a say


class Gradients:
    """The weighted mean of clients' gradients."""

    def __init__(self, rule: MimeLite, server: ServerState):
        self.like = {n: torch.zeros_like(v) for n, v in server.shared.items() if isinstance(v, Tensor)}
        self.uniform = rule.weighting == "uniform"
        self.mean = WeightedMean(leading=True)

    def take(self, update: Update, gradients: dict[str, Tensor]) -> None:
        self.mean.add({n: g for n, g in gradients.items() if n in self.like}, 1.0 if self.uniform else update.weight)

    def means(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """In the size of what the server holds, 0 where nobody sent an entry; and which entries somebody sent, None = all."""
        reached = self.mean.reached(self.like)
        return {n: (g, reached.get(n)) for n, g in self.mean.result(self.like).items()}
