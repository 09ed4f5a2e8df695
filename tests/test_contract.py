"""What the contract promises to a method's author, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from every_method import built
from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.communication.strict import Refused
from weft.errors import UserError, WeftError
from weft.federation.info import MethodInfo
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.method import Method
from weft.federation.pack import Pack
from weft.federation.round import Round
from weft.federation.scope import GIVEN, PERSONAL, SENT, SHARED, TEMPORARY, Scope, matches
from weft.federation.server import ServerState
from weft.methods import FedIT, FFALoRA, registry
from weft.tasks.classification import Classification

CARD = MethodInfo(slug="toy", title="a toy", paper="none", family="reparameterized", sends="what its scopes say")
SCOPES = {
    "nothing": TEMPORARY,
    "given": GIVEN,
    "sent": SENT,
    "personal": PERSONAL,
    "shared": SHARED,
    "sent_kept": Scope.UP | Scope.KEEP,
    "given_kept": Scope.DOWN | Scope.KEEP,
    "all": SHARED | PERSONAL,
}


class Toy(Method):
    """One LoRA for each scope, at one site each, and a head."""

    info: ClassVar[MethodInfo] = CARD
    steps: int | None = 2
    batch: int = 4
    optim: Optim = Optim("sgd", lr=0.1, schedule="constant")

    def adapt(self, backbone: Backbone, task: Classification, client: ClientInfo) -> Adaptation:
        parts: dict[str, Any] = {name: (LoRA(1, 1.0, "q"), scope) for name, scope in SCOPES.items()}
        return parts | {"head": (task.head, SHARED)}

    def aggregate(self, server: ServerState, updates: Iterable[Update]) -> None:
        server.mean(updates, only=("shared", "all", "head"))  # what only goes up is the method's own business


# settings ---------------------------------------------------------------------------------------------------------------


def test_a_setting_overridden_without_a_type_is_an_error_and_not_silently_ignored() -> None:
    with pytest.raises(TypeError, match=r"write `weighting: TYPE = 'uniform'`"):

        class Forgetful(FedIT):
            weighting = "uniform"


def test_a_setting_overridden_with_a_type_is_in_force() -> None:
    class Careful(FedIT):
        weighting: str = "uniform"
        rank: int = 3

    method = Careful()
    assert (method.weighting, method.rank, method.sites) == ("uniform", 3, "q")
    run = tiny.federation(Careful(steps=1, batch=4), rounds=1)
    made = by_hand.invented(run, [9.0, 1.0])
    run.method.aggregate(run.server, made)
    for name, found in by_hand.shared(run).items():
        values = [v for u in made if isinstance(v := u.tensors[name], Tensor)]
        by_hand.close(found, (values[0] + values[1]) / 2)


def test_a_method_is_a_frozen_value() -> None:
    method = FedIT(rank=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.rank = 8  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.memory = {}  # type: ignore[attr-defined]
    assert method == FedIT(rank=4) != FedIT(rank=8)
    assert len({method, FedIT(rank=4)}) == 1


@pytest.mark.parametrize("wrong", [{"epochs": 0.0}, {"batch": 0}, {"steps": 0}, {"weighting": "exmples"}])
def test_settings_out_of_range_are_refused_with_a_sentence(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        FedIT(**wrong)


@pytest.mark.parametrize("slug", sorted(registry.infos()))
def test_every_method_is_reproduced_by_its_own_settings(slug: str) -> None:
    method = registry.build(slug)
    assert registry.build(slug, registry.values(method)) == method == replace(method)


# scopes -----------------------------------------------------------------------------------------------------------------


def test_every_combination_of_scope_bits_has_a_word() -> None:
    assert {s.word for s in (SHARED, PERSONAL, GIVEN, SENT, TEMPORARY)} == {"shared", "personal", "given", "sent", "temporary"}
    words = {str(bits): Scope(bits).word for bits in range(8)}
    assert len(set(words.values())) == 8
    assert all(words.values())
    assert Scope(0) is TEMPORARY
    assert (SHARED | PERSONAL).word == "DOWN+UP+KEEP"
    assert (Scope.UP | Scope.KEEP).word == "UP+KEEP"


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("lora", ["lora/x.y/A", "lora/x.y/B"]),
        ("lora/*/A", ["lora/x.y/A"]),
        ("*", ["lora/x.y/A", "lora/x.y/B", "lora2/x.y/A", "head/c/bias"]),
        ("head", ["head/c/bias"]),
        ("lor", []),
    ],
)
def test_a_pattern_means_a_part_or_a_glob_and_never_the_beginning_of_a_name(pattern: str, meant: list[str]) -> None:
    names = ["lora/x.y/A", "lora/x.y/B", "lora2/x.y/A", "head/c/bias"]
    assert [n for n in names if matches(n, [pattern])] == meant


def test_what_travels_what_is_kept_and_what_starts_afresh_is_what_the_scope_says() -> None:
    run = tiny.federation(Toy(), sizes=(9, 5), rounds=2)
    seen = by_hand.record(run)

    def entering(t: int) -> list[dict[str, Tensor]]:
        found = []
        for k, client in enumerate(run.clients):
            run.simulation.setup.store.load(client)
            found.append(by_hand.start_of(run, k, t))
            run.simulation.setup.store.forget(client)
        return found

    first = entering(0)
    run.simulation.round(0)
    second, kept, news = entering(1), by_hand.kept(run), run.method.send(run.server, run.clients[0].info(()))
    site = by_hand.sites(run, "shared")[0]
    for part, scope in SCOPES.items():
        for name in (f"{part}/{site}/A", f"{part}/{site}/B"):
            mine = [s[name] for s in second]
            trained = scope != GIVEN
            sent = [u.tensors.get(name) for u in seen[0]]
            assert all((s is not None) == (Scope.UP in scope and trained) for s in sent), part
            assert all((name in kept[c.id]) == (Scope.KEEP in scope) for c in run.clients), part
            if Scope.DOWN in scope:
                assert (name in news.tensors) == (Scope.UP in scope), part  # what nobody sent has no news
                assert all(torch.equal(m, by_hand.shared(run)[name]) for m in mine), part
            else:
                assert name not in news.tensors | run.server.shared, part
            if scope == PERSONAL or scope == Scope.UP | Scope.KEEP:
                for k, client in enumerate(run.clients):
                    assert torch.equal(mine[k], kept[client.id][name]), part
                    assert not torch.equal(mine[k], first[k][name]), part
            if scope == SENT and name.endswith("/A"):  # drawn anew for every client and round
                assert len({tuple(v[name].flatten().tolist()) for v in first + second}) == 4
            if scope == TEMPORARY:
                assert all(torch.equal(s[name], f[name]) for s, f in zip(second, first, strict=True)), part


def test_a_given_tensor_can_not_be_handed_to_an_optimizer() -> None:
    run = tiny.federation(FFALoRA(rank=2))
    pack = run.pack()
    with pytest.raises(WeftError, match="no trainable tensor matches"):
        pack.optimizer("lora/*/A", "head", settings=Optim())
    opt = pack.optimizer("lora", settings=Optim())
    assert opt.params
    assert all(n.endswith("/B") for n in opt.params)
    batch = next(iter(pack.batches(size=4)))
    before = {n: v.clone() for n, v in pack.tensors.items()}
    pack.step(opt, run.method.objective, batch)
    assert {n.rsplit("/", 1)[1] for n, v in pack.tensors.items() if not torch.equal(v, before[n])} == {"B"}


def test_a_step_asked_for_tensors_that_the_optimizer_does_not_hold_is_an_error() -> None:
    run = tiny.federation(FedIT(rank=2))
    pack = run.pack()
    opt = pack.optimizer("lora", settings=Optim())
    batch = next(iter(pack.batches(size=4)))
    loss = run.method.objective(pack, batch)
    before = {n: v.detach().clone() for n, v in pack.tensors.items()}
    with pytest.raises(WeftError, match="holds no tensor that matches head"):
        pack.step(opt, loss, batch, only=("head",))
    assert all(torch.equal(v, before[n]) for n, v in pack.tensors.items())


# facts ------------------------------------------------------------------------------------------------------------------


class Asking(FedIT):
    """Wants to know a rank; tells and reveals a number each."""

    info: ClassVar[MethodInfo] = dataclasses.replace(CARD, asks=("rank", "nowhere"), tells=("told",), reveals=("seen",))
    tell: str = "told"
    reveal: str = "seen"

    def adapt(self, backbone: Backbone, task: Classification, client: ClientInfo) -> Adaptation:
        rank = int(client.facts.get("rank", 2))
        return {"lora": (LoRA(rank, 1.0, "q"), SHARED), "head": (task.head, SHARED)}

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send(server, client)
        message.facts = {self.tell: 7} if self.tell else {}
        return message

    def train(self, pack: Pack) -> Iterable[Update]:
        list(super().train(pack))
        return pack.updates([{self.reveal: c.n} if self.reveal else {} for c in pack.clients])


def test_the_server_learns_the_facts_that_the_method_asks_for_and_no_others() -> None:
    facts = [{"rank": 2, "income": 3, "domain": "x"}, {"income": 4}]
    run = tiny.federation(Asking(steps=1, batch=4), sizes=(9, 5), facts=facts, rounds=1)
    known: list[Mapping[str, Any]] = [c.facts for c in run.server.clients]
    assert known == [{"rank": 2}, {}], "a fact that nobody knows is absent, not made up"
    seen = by_hand.record(run)
    run.run()
    assert [c.facts for c in run.server.cohort] == [{"rank": 2}, {}]
    assert [u.client.facts for u in seen[0]] == [{"rank": 2}, {}]
    assert [u.facts for u in seen[0]] == [{"seen": 9}, {"seen": 5}]


def test_a_fact_in_an_update_that_the_card_does_not_reveal_is_refused() -> None:
    run = tiny.federation(Asking(steps=1, batch=4, reveal="income"), sizes=(9, 5), rounds=1)
    record = run.simulation.round(0)
    assert record is not None
    assert set(record["refused"]) == {"client-0", "client-1"}
    assert all("income" in why for why in record["refused"].values())


def test_a_fact_in_a_message_that_the_card_does_not_tell_is_refused() -> None:
    run = tiny.federation(Asking(steps=1, batch=4, tell="income"), sizes=(9, 5), rounds=1)
    with pytest.raises(Refused, match="income"):
        run.run()


def test_facts_reach_the_client_exactly() -> None:
    run = tiny.federation(Asking(steps=1, batch=4), sizes=(9, 5), rounds=1)
    heard: list[list[Mapping[str, Any]]] = []
    train = Asking.train

    def watched(self: Asking, pack: Pack) -> Iterable[Update]:
        heard.append(list(pack.facts))
        return train(self, pack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asking, "train", watched)
        run.run()
    assert heard == [[{"told": 7}, {"told": 7}]]


# absent values ------------------------------------------------------------------------------------------------------------


class Stingy(FedIT):
    """Forgets to send half of what has changed."""

    info: ClassVar[MethodInfo] = CARD

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send(server, client)
        message.tensors = {n: v for n, v in message.tensors.items() if not n.endswith("/B")}
        return message


def test_a_value_that_a_client_never_got_is_an_error_and_not_zero() -> None:
    run = tiny.federation(Stingy(rank=2, steps=1, batch=4), rounds=2).run(1)
    with pytest.raises(WeftError, match=r'client client-\d has no value for "lora/.*/B"'):
        run.simulation.round(1)


def test_a_client_that_lacks_a_value_is_only_asked_for_blocks_that_it_does_not_hold() -> None:
    run = tiny.federation(Stingy(rank=2, steps=1, batch=4), rounds=2).run(1)
    pack = run.pack(t=1)
    pack.hold(torch.zeros(len(run.clients), 3, dtype=torch.bool))
    rows = [c.data.train for c in run.clients]
    assert len(pack.predict(run.method.forward, rows)) == len(rows)
    pack.hold(None)
    with pytest.raises(WeftError, match="has no value"):
        pack.predict(run.method.forward, rows)


def test_an_average_of_what_the_server_does_not_hold_is_an_error() -> None:
    run = tiny.federation(Toy(), sizes=(9, 5))
    made = by_hand.invented(run, [9.0, 5.0])
    with pytest.raises(WeftError, match='no DOWN tensor "sent'):
        run.server.mean(made)


def test_writing_a_value_that_the_server_does_not_hold_is_an_error() -> None:
    run = tiny.federation(FedIT(rank=2))
    with pytest.raises(WeftError, match='no DOWN tensor "lora/nowhere/A"'):
        run.server.write("lora/nowhere/A", torch.zeros(2, 32))


def test_an_upload_of_another_rank_than_the_clients_own_is_refused() -> None:
    run = tiny.federation(Asking(steps=1, batch=4), sizes=(9, 5), facts=[{"rank": 2}, {"rank": 2}], rounds=1)
    pack = run.pack([0])
    (update,) = run.method.train(pack)
    wider = ClientInfo(update.client.id, 9, {"rank": 3})
    frame = run.simulation.setup.exchange.pack_update(run.server, update, by_hand.turn(run, wider, {}))
    with pytest.raises(Refused, match="shape"):
        run.simulation.setup.exchange.read_update(run.server, by_hand.turn(run, wider, {}), frame.data)


class Misshapen(FedIT):
    """Sends a B with a row too many."""

    info: ClassVar[MethodInfo] = CARD

    def send(self, server: ServerState, client: ClientInfo) -> Message:
        message = super().send(server, client)
        for name, value in message.tensors.items():
            if name.endswith("/B") and isinstance(value, Tensor):
                message.tensors[name] = torch.cat([value, value[:1]])
        return message


def test_a_message_of_another_shape_than_the_clients_parts_is_refused() -> None:
    run = tiny.federation(Misshapen(rank=2, steps=1, batch=4), rounds=2).run(1)
    with pytest.raises(Refused, match=r"has shape \(33, 2\)"):
        run.simulation.round(1)


def test_an_update_that_lacks_what_the_rule_demands_is_refused_and_any_other_may_send_less() -> None:
    demanding = [slug for slug in registry.infos() if registry.load(slug).demands]
    assert {"flora", "flexlora"} <= set(demanding)
    for slug in (*demanding, "fedit"):
        method = replace(built(slug), batch=4, steps=1)
        run = tiny.federation(method, sizes=(9, 5), rounds=1, pack=1)
        pack = run.pack([0])
        (update,) = run.method.train(pack)
        lost = next(n for n in update.tensors if matches(n, method.demands or ("*",)))
        del update.tensors[lost]
        turn = by_hand.turn(run, update.client)
        frame = run.simulation.setup.exchange.pack_update(run.server, update, turn)
        if slug == "fedit":
            read = run.simulation.setup.exchange.read_update(run.server, turn, frame.data)
            assert set(read.tensors) == set(update.tensors)
            continue
        with pytest.raises(Refused, match=f'"{lost}" is missing'):
            run.simulation.setup.exchange.read_update(run.server, turn, frame.data)


# turns ------------------------------------------------------------------------------------------------------------------


def test_a_client_lost_in_the_middle_of_its_turn_has_downloaded_but_keeps_and_sends_nothing() -> None:
    run = tiny.federation(Toy(), rounds=1, dropout=0.5)
    seen = by_hand.record(run)
    record = run.simulation.round(0)
    assert record is not None
    assert 0 < len(record["lost"]) < len(run.clients)
    assert {u.client.id for u in seen[0]} == {c.id for c in run.clients if c.n} - set(record["lost"])
    for client, values in by_hand.kept(run).items():
        assert bool(values) == (client not in record["lost"])
        assert client in run.server.synced
    for client in run.clients:
        run.simulation.setup.store.load(client)
        assert client.rounds_seen == (client.id not in record["lost"])


def test_a_client_counts_its_completed_turns_whether_it_keeps_something_or_not() -> None:
    for method in (FedIT(rank=1, steps=1, batch=4), FFALoRA(rank=1, steps=1, batch=4)):
        run = tiny.federation(method, sizes=(5, 3), rounds=3, dropout=0.4)
        turns = dict.fromkeys((c.id for c in run.clients), 0)
        for t in range(3):
            record = run.simulation.round(t)
            assert record is not None
            for client in run.clients:
                turns[client.id] += client.id not in record["lost"]
                run.simulation.setup.store.load(client)
                assert client.rounds_seen == turns[client.id]
        assert len(set(turns.values()) | {3}) > 1, "somebody was lost"


def test_values_tried_on_a_pack_do_not_reach_the_server() -> None:
    """The tensors of a pack of one start as the very ones that the server holds."""
    run = tiny.federation(FedIT(rank=2, steps=2, batch=4))
    before = by_hand.shared(run)
    pack = run.server.pack()
    held = pack.params("*")
    opt = pack.optimizer("*", settings=Optim("sgd", lr=1.0))
    pack.clients = [run.clients[0]]
    batch = next(iter(pack.batches(size=4)))
    pack.step(opt, run.method.objective, batch)
    assert any(not torch.equal(v, held[n]) for n, v in pack.params("*").items())
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_a_method_that_does_not_say_what_it_adapts_says_so() -> None:
    class Silent(Method):
        info: ClassVar[MethodInfo] = CARD

    with pytest.raises(NotImplementedError, match="Silent does not say what it adapts"):
        tiny.federation(Silent())


def test_a_plan_ends_the_run() -> None:
    class Short(FedIT):
        info: ClassVar[MethodInfo] = CARD

        def plan(self, server: ServerState, t: int) -> Round | None:
            return Round(t, kind="probe" if t == 0 else "train", who="all") if t < 2 else None

    run = tiny.federation(Short(rank=1, steps=1, batch=4), rounds=9, participation=0.3)
    records = [run.simulation.round(t) for t in range(3)]
    assert records[2] is None
    assert [r["kind"] for r in records if r] == ["probe", "train"]
    assert all(len(r["cohort"]) == len(run.clients) for r in records if r)
