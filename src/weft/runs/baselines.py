"""What a method is compared with: each client alone, all rows in one place, a linear head on the frozen backbone, and the
backbone as it is.

``local`` and ``central`` are no methods: they rearrange who trains on what, with the method, the settings and the number of turns
of the experiment unchanged. Where the settings count steps, the one client of ``central`` takes those of all clients.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.errors import UserError
from weft.experiment import Experiment, as_played
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.common_facts import nobody
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation, named
from weft.federation.message import ClientInfo, Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.rounds import adapted
from weft.federation.scope import SHARED
from weft.federation.server import ServerState
from weft.runs.prepare import copies
from weft.tasks.task import Task


class Probe(Method):
    """Federated averaging of the task head alone. With the prefix cache the backbone runs once per row.

    The learning rate falls linearly over the rounds: with clients of different labels, heads drift apart in every round, and a
    constant rate keeps the mean from settling (0.55 against 0.51 after 60 rounds on pydocs).

    Attributes:
        rounds: over which the rate falls to 0.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="probe",
        title="Federated linear probing: the head on the frozen backbone",
        paper="McMahan et al., AISTATS 2017",
        arxiv="1602.05629",
        family="selective",
        evidence="paper",
        sends="the head, and the number of examples",
    )

    rounds: int = 60
    batch: int = 64
    optim: Optim = Optim("adamw", lr=0.1, schedule="constant")

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if not backbone.heads:
            why = "it compares images with class names" if backbone.names is not None else "its output layer is trained already"
            other = ", or use --task classification" if backbone.names is not None else ""
            raise UserError(
                f'backbone "{backbone.name}" has no head to probe, {why}: leave probe out of --start-head and --baselines, and '
                f"take zero-shot for a baseline{other}."
            )
        return {"head": (task.head, SHARED)}

    def train(self, pack: Pack) -> Iterable[Update]:
        return self.fit(pack, lr=self.optim.lr * max(1 - pack.round.index / self.rounds, 0.0))


class ZeroShot(Method):
    """The backbone as it is: nothing is trained and nothing sent. A CLIP knows classes by their names alone."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="zero-shot",
        title="The backbone without any training",
        paper="Radford et al., ICML 2021",
        arxiv="2103.00020",
        family="full",
        evidence="paper",
        sends="nothing",
    )

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        if backbone.heads:
            raise UserError(
                f'backbone "{backbone.name}" knows nothing of these classes before its head is trained: compare with '
                "--baselines probe, or use a CLIP with --task similarity."
            )
        return {}

    def train(self, pack: Pack) -> Iterable[Update]:
        return []


def stand_in(experiment: Experiment) -> Method | None:
    """The method that takes the place of the experiment's own, if its baseline is one."""
    found: dict[str | None, Method] = {"probe": probe(experiment), "zero-shot": ZeroShot()}
    return found.get(experiment.baseline)


def played(experiment: Experiment, method: Method) -> list[Method]:
    """Every method that a run plays: its own or what stands in for it, what trains the head first, and its baselines."""
    compared = (stand_in(experiment.model_copy(update={"baseline": name})) for name in experiment.baselines)
    first = probe(experiment) if probing(experiment) else None
    return [stand_in(experiment) or method, *(m for m in (first, *compared) if m is not None)]


def planned(experiment: Experiment) -> int:
    """Rounds of a federation of the experiment or its baseline."""
    if experiment.baseline is None:
        return experiment.rounds
    own = {"probe": experiment.probe_rounds, "zero-shot": 1}.get(experiment.baseline, as_played.turns(experiment))
    return turns(own, experiment)


def probing(experiment: Experiment) -> bool:
    """Whether a probe trains the head first."""
    return experiment.start_head == "probe" and experiment.baseline not in ("probe", "zero-shot")


def probe(experiment: Experiment) -> Probe:
    return Probe(rounds=experiment.probe_rounds, optim=Optim("adamw", lr=experiment.probe_lr, schedule="constant"))


def warmed(method: Method, x: Experiment, bench: Bench, clients: Iterable[ClientInfo]) -> set[str]:
    """The tensors of its own parts that ``method`` could start from after a probe: those of the same name."""
    known = nobody(clients)
    own, probed = ({n for n, _, _ in named(adapted(m, bench, known), bench.backbone)} for m in (method, probe(x)))
    return own & probed


def head_of(server: ServerState, names: set[str]) -> dict[str, Tensor]:
    """The values of tensors of a probe's server."""
    return {n: v for n, v in server.shared.items() if n in names and isinstance(v, Tensor)}


def federations(clients: list[ClientState], baseline: str | None) -> list[list[ClientState]]:
    """The clients of each server: one federation; one for each client; or one with a single client that has all rows."""
    people = copies(clients)
    if baseline == "local":
        return [[c] for c in people]
    if baseline == "central":
        splits = [np.unique(np.concatenate([getattr(c.data, split) for c in clients])) for split in ("train", "val", "test")]
        return [[ClientState("all", len(splits[0]), {}, data=Splits(*splits))]]
    return [people]


def travels(experiment: Experiment) -> bool:
    """Whether messages cross a wire at all: not where nobody is apart from anybody."""
    return experiment.baseline not in ("local", "central")


def servers(experiment: Experiment, clients: int) -> int:
    """How many there are beside each other at most, in the run or in a baseline of it."""
    return clients if "local" in (experiment.baseline, *experiment.baselines) else 1


def with_all_steps(method: Method, baseline: str | None, clients: int) -> Method:
    """The method with which ``central`` works through as many rows as the clients do together, be it by epochs or by steps."""
    if baseline != "central" or method.steps is None:
        return method
    return replace(method, steps=method.steps * clients)


def turns(rounds: int, experiment: Experiment) -> int:
    """Rounds of a federation that gives a client of a baseline as many turns as one of the experiment's gets on average."""
    alone = experiment.baseline in ("local", "central")
    return max(round(rounds * experiment.participation), 1) if alone else rounds
