"""``weft.testing`` as a stranger uses it: one line for a method of another package, and broken methods, each caught."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paths import ROOT
from patience import patience
from weft.contract import Tune
from weft.federation.batch import Batch
from weft.federation.client import ClientState
from weft.federation.message import ClientInfo, Update
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.server import ServerState
from weft.methods import MPFT, FedIT, FedPM, FedSALoRA, PFedMoAP
from weft.storage.store import ClientStore
from weft.tasks.outputs import Output
from weft.testing import laws, of_settings
from weft.testing.compare import dense
from weft.testing.federation import federation
from weft.testing.plays import exchanges, plays
from weft.testing.strangers import by_messages

SRC = ROOT / "src"

PACKAGE = '''
"""Half the step."""
from __future__ import annotations
from collections.abc import Iterable
from typing import ClassVar
from weft.federation.info import MethodInfo
from weft.federation.message import Update
from weft.federation.pack import Pack
from weft.methods.reparameterized.fedit import FedIT

class HalfIT(FedIT):
    """FedIT at half the rate."""
    info: ClassVar[MethodInfo] = MethodInfo(
        slug="half-it", title="Half the rate", paper="nobody", family="reparameterized", sends="both LoRA factors and the head",
    )
    def train(self, pack: Pack) -> Iterable[Update]:
        return self.fit(pack, lr=self.optim.lr / 2)
'''
TESTS = """
from half_it import HalfIT
from weft.testing import laws
test_laws = laws.over(HalfIT(rank=2))
"""


def test_a_method_of_another_package_is_held_to_every_law_by_one_line(tmp_path: Path) -> None:
    (tmp_path / "half_it.py").write_text(PACKAGE)
    (tmp_path / "test_half_it.py").write_text(TESTS)
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(SRC)))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "test_half_it.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for name in laws.LAWS:
        assert f"PASSED test_half_it.py::test_laws[half-it-{name}]" in done.stdout


def test_neither_weft_nor_its_laws_need_pytest_until_it_is_asked_for() -> None:
    script = (
        "import sys; sys.modules['pytest'] = None\n"
        "import weft.testing; assert 'torch' not in sys.modules\n"
        "from weft.testing import laws\n"
        "from weft.methods import FedIT\n"
        "laws.check(FedIT(rank=1), 'nobody')"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(SRC)}, timeout=patience(60))
    assert done.returncode == 0


# planted errors -----------------------------------------------------------------------------------------------------------


class Mixed(FedIT):
    """Two clients of a pack are held to one another's labels."""

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        out = self.forward(pack, batch)
        return pack.loss(Output(out.logits.roll(1, 0)), batch)


class Unkeyed(FedIT):
    """A pull at every tensor is drawn for the pack and not for the client."""

    def train(self, pack: Pack) -> Iterable[Update]:
        pull = torch.rand(len(pack.clients), generator=torch.Generator().manual_seed(pack.round.index), dtype=pack.dtype)

        def objective(pack: Pack, batch: Batch) -> Tensor:
            sums = torch.stack([w.flatten(1).sum(1) for w in pack.params("*").values()]).sum(0)
            return self.objective(pack, batch) + batch.of(pull * sums)

        return self.fit(pack, objective=objective)


class Even(FedIT):
    """A mean that ignores weights."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, weight=lambda update: 1.0)


class InPlace(FedIT):
    """The mean is added up in the first update."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        got = list(updates)
        total = sum(u.weight for u in got)
        for name in got[0].tensors if got else ():
            first: Any = got[0].tensors[name]
            first.mul_(got[0].weight / total)
            for u in got[1:]:
                first.add_(u.tensors[name], alpha=u.weight / total)
            server.write(name, first)


class Hidden(FedIT):
    """A count that no checkpoint holds scales the loss."""

    def train(self, pack: Pack) -> Iterable[Update]:
        turns = _TURNS.setdefault(id(self), [0])
        turns[0] += 1
        return self.fit(pack, lr=self.optim.lr / turns[0])


_TURNS: dict[int, list[int]] = {}


class Copied(FedIT):
    """Sends what it has received."""

    def train(self, pack: Pack) -> Iterable[Update]:
        before = [{n: pack.value(k, n) for n in pack.tensors} for k in range(len(pack.clients))]
        at = {c.id: k for k, c in enumerate(pack.clients)}
        for update in super().train(pack):
            update.tensors = {n: before[at[update.client.id]][n] for n in update.tensors}
            yield update


class First(FedIT):
    """Only the first client counts."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(list(updates)[:1])


PLANTS: list[tuple[type[FedIT], str, str]] = [
    (Mixed, "pack", "breaks the pack law"),
    (Unkeyed, "pack", "breaks the pack law"),
    (Even, "sums", "Weigh by the clients' examples"),
    (InPlace, "reading", "aggregate writes into .* of the update of"),
    (Hidden, "return", "breaks the return law"),
    (Copied, "learning", "as if it had not trained"),
    (First, "counting", "without the update of client-"),
]


@pytest.mark.parametrize(("cls", "law", "says"), PLANTS, ids=[c.__name__ for c, _, _ in PLANTS])
def test_a_broken_method_is_caught_with_a_sentence(cls: type[FedIT], law: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        laws.check(cls(rank=2), law)


class InTwo(FedIT):
    """Every second round is of the cohort before it, and is told a factor of the rate; only then is anything trained."""

    def plan(self, server: ServerState, t: int) -> Round | None:
        if t >= server.rounds:
            return None
        return Round(t, "train", "same", {"factor": 0.5 + t}) if t % 2 else Round(t, "look")

    def uploads(self, server: ServerState, client: ClientInfo) -> Mapping[str, tuple[int | None, ...]]:
        return {"seen": (1,)} if server.round.kind == "look" else {}

    def train(self, pack: Pack) -> Iterable[Update]:
        if pack.round.kind == "train":
            assert all(facts == pack.round.extra for facts in pack.facts)
            return self.fit(pack, lr=self.optim.lr * pack.facts[0]["factor"])
        return pack.updates(tensors=[{"seen": torch.full((1,), c.n, dtype=pack.dtype)} for c in pack.clients])

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        if server.round.kind == "train":
            server.mean(updates)
        else:
            server.memo |= server.average(updates)


@pytest.mark.parametrize("law", laws.LAWS)
def test_a_method_whose_rounds_go_in_pairs_keeps_the_laws(law: str) -> None:
    laws.check(InTwo(rank=2), law)


class MixedInTwo(InTwo, Mixed):
    """What is wrong with it shows in the second exchange."""


def test_laws_of_short_runs_play_a_round_of_every_kind() -> None:
    assert [exchanges(m) for m in (FedIT(), InTwo(), MPFT())] == [1, 2, 2]
    with pytest.raises(AssertionError, match="breaks the pack law"):
        laws.check(MixedInTwo(rank=2), "single precision")


def test_a_pack_past_the_wire_has_been_told_what_was_planned() -> None:
    assert federation(InTwo(rank=2), sizes=(4, 3), rounds=4).pack(t=3).facts == [{"factor": 3.5}] * 2


class Drifts(PFedMoAP):
    """The server's prompt grows by itself."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        super().aggregate(server, updates)
        for name, value in server.shared.items():
            server.write(name, value * 1.1)  # type: ignore[operator]


class GateMoves(PFedMoAP):
    """What a client keeps grows without an optimizer."""

    def train(self, pack: Pack) -> Iterable[Update]:
        updates = list(super().train(pack))
        pack.tensors |= {n: v + 0.1 for n, v in pack.params("gate").items()}
        return updates


class SendsMore(PFedMoAP):
    """What is sent is not what was trained."""

    def train(self, pack: Pack) -> Iterable[Update]:
        for update in super().train(pack):
            update.tensors = {n: v + 0.1 for n, v in update.tensors.items()}  # type: ignore[operator]
            yield update


@pytest.mark.parametrize("cls", [Drifts, GateMoves, SendsMore])
def test_at_a_rate_of_zero_only_what_a_server_hands_out_may_change_predictions(cls: type[PFedMoAP]) -> None:
    of_settings.check_rate_zero(PFedMoAP(width=8, heads=2), "identity")
    with pytest.raises(AssertionError, match="at a learning rate of zero, with identity, something moves"):
        of_settings.check_rate_zero(cls(width=8, heads=2), "identity")


class AnyBit(FedPM):
    """A weight is kept if any client wants it, which the mean of their bits does not tell a rule that looks for ones."""

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        every = list(updates)
        for name in every[0].tensors:
            bits = torch.stack([dense(u.tensors[name]) for u in every])
            server.write(name, (bits == 1).any(0).to(server.bench.dtype))


def test_a_rule_on_integers_is_held_to_their_means() -> None:
    tune = Tune("lora", rank=2)
    laws.check(FedPM(tune=tune), "sums")
    with pytest.raises(AssertionError, match="fedpm breaks the sums law"):
        laws.check(AnyBit(tune=tune), "sums")


def test_messages_go_to_the_cohort_of_the_round_before_where_that_is_planned() -> None:
    asked: list[list[str]] = []

    class Watched(InTwo):
        def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
            asked.append([c.id for c in server.cohort])
            super().aggregate(server, updates)

    run = federation(Watched(rank=2), sizes=(4, 3, 5, 2), rounds=4, participation=0.5, seed=3)
    by_messages(run)
    assert asked[0] == asked[1] != asked[2] == asked[3]


@pytest.fixture
def _anew() -> Iterator[None]:
    """What is planted below methods shows in runs that are played with it."""
    plays.cache_clear()
    yield
    plays.cache_clear()


@pytest.mark.usefixtures("_anew")
def test_a_stale_stamp_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has just been written is taken for what everybody has got in the round before."""
    write = ServerState.write

    def stale(self: ServerState, name: str, value: Any) -> None:
        write(self, name, value)
        self.stamps[name] -= 1

    monkeypatch.setattr(ServerState, "write", stale)
    with pytest.raises(AssertionError, match="breaks the message law"):
        laws.check(FedIT(rank=2), "pack")


class Forgets(ClientStore):
    """Keeps the number of turns, and no tensor."""

    def save(self, client: ClientState) -> None:
        client.kept = {}
        super().save(client)


@pytest.mark.usefixtures("_anew")
def test_personal_tensors_that_a_site_forgets_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.engines.site.ClientStore", Forgets)
    with pytest.raises(AssertionError, match="gives other values with real sites"):
        laws.check(FedSALoRA(rank=2), "sites")


@pytest.mark.usefixtures("_anew")
def test_personal_tensors_that_a_checkpoint_forgets_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = ClientStore.manifest
    monkeypatch.setattr(ClientStore, "manifest", lambda self: manifest(self) | {"versions": {}})
    with pytest.raises(AssertionError, match="does not survive a checkpoint"):
        laws.check(FedSALoRA(rank=2), "resuming")
