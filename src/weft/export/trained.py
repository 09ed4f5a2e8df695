"""What a run leaves behind: parts with their values and weights, apart from the run and from the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft.adaptation.head import Head
from weft.adaptation.part import Part
from weft.adaptation.placed import place, stack
from weft.adaptation.values import Values
from weft.adaptation.weave import Weave
from weft.backbones.run_table import Table
from weft.errors import UserError
from weft.federation import generating
from weft.federation.batch import Batch, make_batch
from weft.federation.bench import Bench
from weft.federation.client import ClientState
from weft.federation.common_facts import nobody
from weft.federation.info import common
from weft.federation.layout import named
from weft.federation.message import beside
from weft.federation.one_pass import one_pass
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.rounds import adapted, enter
from weft.federation.scope import GIVEN
from weft.federation.turn import Turn
from weft.rules import without_options
from weft.tasks.outputs import Output
from weft.tensors.forms import Value, finite
from weft.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.federation.method import Method
    from weft.federation.server import ServerState
    from weft.tasks.observed import Observed
    from weft.tasks.task import Task


@dataclass(frozen=True)
class Rule:
    """How a method predicts, where that is more than its parts at fixed weights: the method itself has to do it."""

    method: Method
    view: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """One model.

    Attributes:
        parts: those that take part in predicting. values: of their tensors, float32 on the CPU.
        use: part -> its weight in the forward pass. rule: says how to predict instead, if that is not enough.
    """

    parts: Mapping[str, Part]
    values: Mapping[str, Value]
    use: Mapping[str, float]
    rule: Rule | None = None

    def on(self, bench: Bench) -> Pack:
        """A pack of one with this model."""
        adaptation = {name: (part, GIVEN) for name, part in self.parts.items()}
        return Pack(bench, [Turn(ClientState(""), adaptation, self.values)], Round(0))

    def forward(self, pack: Pack, batch: Batch) -> Output:
        if self.rule is not None:
            return self.rule.method.forward(pack, batch, self.rule.view)
        return pack(batch, use=self.use)

    def logits(self, backbone: Backbone, task: Task, table: Table, rows: np.ndarray) -> Tensor:
        """[n, C] on rows of a table, or of every word in them."""
        return self.on(Bench(backbone, task, table, seed=0)).predict(self.forward, [rows])[0]

    @torch.no_grad()
    def read(self, backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
        """What one pass makes of the model's own inputs: [n, C], or [n, T, C] of each token."""
        device, dtype = backbone.device, torch.float64 if backbone.dtype == torch.float64 else torch.float32
        tensors = {
            f"{name}.{role}" if role else name: tensor
            for name, value in self.values.items()
            for role, tensor in stack([value], device, dtype).items()
        }
        weave = Weave(backbone, place(backbone, [self.parts], device, dtype), tensors, 1)
        own = weave.own_tokens
        inputs = own.of_names(own.of_rows(inputs, self.use), 1, self.use)
        with weave.attached(None, 1, self.use):
            found: Tensor = backbone.model(**inputs).logits
        return found

    def observe(self, backbone: Backbone, task: Task, table: Table) -> Observed:
        """What the task keeps of all rows of a table, of which there are some."""
        rows = np.arange(len(table))
        chosen = [np.isin(rows, generating.few(0, rows, task.samples))] if task.samples else None
        (seen,) = generating.observe(self.on(Bench(backbone, task, table, seed=0)), self.forward, [rows], chosen)
        assert seen is not None
        return seen


def capture(method: Method, server: ServerState, view: str, client: ClientState | None = None) -> Trained:
    """The model that ``view`` stands for: the one for all, a client's own with its memory loaded, or that of a new client.

    Raises:
        UserError: the method's way to predict can be written neither as weights of parts nor by its name.
    """
    known = nobody(server.clients) if client is None else client.info(method.info.asks)
    pack = pack_of(method, server, view, client)
    adaptation = pack.adaptations[0]
    use = _weights(method, pack, view)
    rule = None if use is not None else by_name(method, view, known.facts)
    parts = {name: part for name, (part, _) in adaptation.items() if use is None or part.always or use.get(name, 0.0) != 0.0}
    values: dict[str, Value] = {}
    for name, init, _ in named(adaptation, pack.backbone):
        if name.split("/", 1)[0] not in parts:
            continue
        if init.kind == "lowrank":
            values[name] = LowRank(B=_plain(pack.tensors[f"{name}.B"]), A=_plain(pack.tensors[f"{name}.A"]))
        else:
            values[name] = _plain(pack.tensors[name])
    weights = dict.fromkeys(parts, 1.0) if use is None else {n: w for n, w in use.items() if n in parts}
    return Trained(parts, values, weights, rule)


def pack_of(method: Method, server: ServerState, view: str, client: ClientState | None = None) -> Pack:
    """The model that ``view`` stands for, as a pack of one.

    Args:
        client: whose own it is, with its memory loaded; None = that of a new client, where there is none for all.
    """
    if common(view):
        pack = server.pack()
    else:  # a new client begins with what it is sent, which may be made for it
        pack = _entering(method, server, client or ClientState("", facts=nobody(server.clients).facts))
        method.personalise(pack)
    pack.hold(None)
    return pack


def untrained(trained: Trained, bench: Bench) -> str:
    """``model`` where every value is what it was drawn as before anything was learnt, ``head`` where those of the head are, which
    then guesses; else nothing.
    """
    drawn: dict[str, bool] = {}
    known = set()  # heads that the checkpoint has
    # no pass reads values that a method keeps beside the parts, but its own way to predict may
    read = {n: (p, GIVEN) for n, p in trained.parts.items() if trained.rule is not None or not isinstance(p, Values)}
    for name, init, _ in named(read, bench.backbone):
        part, value = name.split("/", 1)[0], trained.values[name]
        known |= {part} if init.kind == "value" else set()
        if not drawn.setdefault(part, True):
            continue
        if isinstance(value, LowRank):
            drawn[part] = not bool(value.B.any())
        elif isinstance(value, Tensor):
            drawn[part] = torch.equal(value, bench.draw(init, name).to(value))
    if drawn and all(drawn.values()):
        return "model"
    heads = {name for name, part in trained.parts.items() if isinstance(part, Head) and name in drawn}
    return "head" if any(drawn[name] for name in heads - known) else ""


def not_finite(values: Mapping[str, Value]) -> str | None:
    """Name of a value that holds NaN or infinity."""
    for name, value in values.items():
        if not finite([value]):
            return name
    return None


def _plain(stacked: Tensor) -> Tensor:
    return stacked[0].detach().to("cpu", torch.float32).clone()


def _entering(method: Method, server: ServerState, client: ClientState) -> Pack:
    """A pack of one client after the newest download."""
    info = client.info(method.info.asks)
    message = method.send_to_test(server, info)
    adaptation = adapted(method, server.bench, info)
    free = beside(adaptation, server.bench.of(client).backbone, message.tensors)
    turn = Turn(client, adaptation, server.held_by(info, adaptation, message), message.facts, free)
    return enter(method, server.bench.of(client), [method.turn_to_test(server, turn)], server.round, server.start)


def _weights(method: Method, pack: Pack, view: str) -> dict[str, float] | None:
    """Part -> weight, if the view is one pass with fixed weights and nothing else; None if it is more."""
    table = pack.bench.table
    batch = make_batch(pack.task, table, np.arange(min(2, len(table)))[None], None, pack.device)
    once = one_pass(pack, lambda p, b: method.forward(p, b, view), batch)
    if once is None or pack.held:  # weights of parts say nothing of blocks that are left out
        return None
    if once.use is None:
        return dict.fromkeys(pack.adaptations[0], 1.0)
    return {n: float(w) for n, w in once.use.items()} if all(isinstance(w, (int, float)) for w in once.use.values()) else None


def by_name(method: Method, view: str, facts: Mapping[str, Any]) -> Rule:
    from weft.methods import registry

    bare = without_options(method)
    slug = bare.info.slug
    if slug not in registry.infos() or registry.load(slug) is not type(bare):
        raise UserError(
            f'view "{view}" of {slug} predicts with more than weights of parts, so that a reader of its files needs the method: '
            'register it under the entry point "weft.methods" before you export it.'
        )
    return Rule(method, view, dict(facts))
