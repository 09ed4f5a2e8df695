"""Models that are made of what was received, and tensors of free size that go down for a turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
import torch

import tiny
from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.aggregation.mean import weighted_mean
from weft.backbones.backbone import Backbone
from weft.communication.strict import Refused
from weft.export.trained import capture
from weft.federation.bench import Bench
from weft.federation.layout import Adaptation, named
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.scope import SHARED, TEMPORARY
from weft.federation.server import ServerState
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.task import Task
from weft.testing import laws
from weft.testing.compare import assert_same, logits
from weft.testing.sites import kept, remote
from weft.testing.workers import scattered

OPTIM = Optim("sgd", lr=0.05, schedule="constant")
LAWS = ("pack", "return", "sums", "sites", "scores", "ledger", "resuming", "counting", "reading", "nobody")


class Replay(Method):
    """FedIT whose server keeps the mean move of every round, and whose clients make their adapter of all of them anew."""

    info = FedIT.info.__class__(slug="replay", title="Replay", paper="none", family="full", sends="moves")
    batch: int = 3
    optim: Optim = OPTIM

    def adapt(self, backbone: Backbone, task: Task, client: ClientInfo) -> Adaptation:
        return {"lora": (LoRA(2, 4.0, "q,v"), TEMPORARY), "head": (task.head, SHARED)}

    def _own(self, bench: Bench, client: ClientInfo) -> dict[str, tuple[int, ...]]:
        adaptation = self.adapt(bench.backbone, bench.task, client)
        return {n: i.shape for n, i, _ in named(adaptation, bench.backbone) if n.startswith("lora/")}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send(server, client)
        message.tensors |= {n: v for n, v in server.memo.items() if n.startswith("moves/")}
        return message

    def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return {f"moves/{n}": (None, *shape) for n, shape in self._own(bench, client).items()}

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return {f"move/{n}": shape for n, shape in self._own(server.bench.of(client), client).items()}

    def load(self, pack: Pack) -> None:
        for name in pack.params("lora"):
            moves = [r[f"moves/{name}"].sum(0) if f"moves/{name}" in r else 0.0 for r in pack.received]  # type: ignore[union-attr]
            pack.tensors[name] = torch.stack([v + m for v, m in zip(pack.tensors[name], moves, strict=True)])

    def train(self, pack: Pack) -> Iterable[Update]:
        before = {n: v.detach().clone() for n, v in pack.params("lora").items()}
        for _ in self.fit(pack):
            pass
        return pack.updates(
            tensors=[
                {f"move/{n}": (pack.tensors[n] - v)[k].detach() for n, v in before.items()} for k in range(len(pack.clients))
            ]
        )

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        received = list(updates)
        server.mean(received, only="head")
        means = weighted_mean(
            ({n: v for n, v in u.tensors.items() if n.startswith("move/")}, u.weight)
            for u in received  # type: ignore[misc]
        )
        for name, value in means.items():
            key = name.replace("move/", "moves/", 1)
            server.memo[key] = torch.cat(
                [server.memo.get(key, value[:0].unsqueeze(0)[:0].new_zeros(0, *value.shape)), value[None]]
            )


SAME = FedIT(rank=2, alpha=4.0, sites="q,v", batch=3, optim=OPTIM)


@pytest.mark.parametrize("law", LAWS)
def test_a_rebuilt_model_keeps_the_laws(law: str) -> None:
    laws.check(Replay(), law)


def test_it_is_the_model_that_was_never_taken_apart_wherever_it_is_made() -> None:
    """In the simulation, at sites, at workers, at the server, for tests and for export; with a client that comes back."""
    about = {"rounds": 3, "participation": 0.6}
    whole = tiny.federation(SAME, **about).run()
    rebuilt = tiny.federation(Replay(), **about).run()
    assert next(len(v) for n, v in rebuilt.server.memo.items() if n.startswith("moves/")) == 3
    assert_same(logits(whole), logits(rebuilt), 1e-12)
    for run in (remote(Replay(), **about)[0], scattered(Replay(), **about)[0]):
        assert_same(logits(rebuilt), logits(run.run()), 1e-12)
    ours, theirs = (capture(run.method, run.server, "global") for run in (rebuilt, whole))
    for name, value in theirs.values.items():
        torch.testing.assert_close(ours.values[name], value)


def test_tensors_that_were_not_announced_are_refused() -> None:
    class Silent(Replay):
        def downloads(self, bench: Bench, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
            return {}

    with pytest.raises(Refused, match="not expected"):
        tiny.federation(Silent(), rounds=2).run()


def test_what_comes_down_for_a_turn_is_not_kept() -> None:
    run, loop = remote(Replay(), rounds=2)
    run.run()
    assert not any("moves/" in n for n in kept(loop))
