"""Bugs seen in this field's published code, each with a test that would catch it here, for every method.

In `make test` for a method of each kind: there the laws hold every method to the same, in short runs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import of_methods
import tiny
from every_method import METHODS, some
from weft.adaptation.optim import Optim
from weft.communication.codecs import codec
from weft.communication.frame import Expected, Frame, Header
from weft.communication.wire import Refused, decode, encode
from weft.errors import UserError
from weft.federation.exchange import download_shapes
from weft.federation.layout import named, scope_of
from weft.federation.message import ClientInfo, Message, Update
from weft.federation.method import Method
from weft.federation.round import Round
from weft.federation.scope import Scope
from weft.methods import FedIT, FedSALoRA, FFALoRA, FlexLoRA, FLoRA, registry
from weft.tasks.classification import Classification
from weft.testing import compare

TINY = of_methods.said("TINY")


def small(slug: str, **changes: Any) -> Method:
    """The method with several small steps a round and a learning rate that shows."""
    method = registry.build(slug, TINY.get(slug))
    return replace(method, **{"batch": 4, "steps": 2, "optim": method.optim.but(lr=max(method.optim.lr, 1e-2)), **changes})


def eager(slug: str) -> Method:
    """The same with moments and a rate that falls, where the method takes them."""
    method = small(slug)
    try:
        return replace(method, optim=registry.build(slug).optim.but(kind="adamw", lr=1e-2, schedule="linear"))  # type: ignore[arg-type]
    except UserError:
        return method


def everything(run: tiny.Federation) -> dict[str, Tensor]:
    """All that a run leaves behind."""
    personal = {f"{c}:{n}": v for c, values in by_hand.kept(run).items() for n, v in values.items()}
    return by_hand.shared(run) | personal


def dense(values: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: compare.dense(v) for n, v in values.items()}


# an untrained adapter is uploaded, because it was copied before training -------------------------------------------------


IDLE = {("fedp2eft", "generator/values/slope")}
"""A PReLU's slope below 0, where all hidden units begin above it."""


@pytest.mark.parametrize("slug", some(METHODS))
def test_what_a_client_uploads_is_what_it_has_learnt(slug: str) -> None:
    run = tiny.federation(small(slug), rounds=2)
    seen = by_hand.record(run)
    for t in range(2):
        starts = {c.id: by_hand.start_of(run, k, t) for k, c in enumerate(run.clients)}
        run.simulation.round(t)
        if t and not seen[t]:  # a round in which clients only receive
            continue
        assert {u.client.id for u in seen[t]} == {c.id for c in run.clients if c.n}
        for u in seen[t]:
            assert u.tensors
            for name, value in dense(u.tensors).items():
                before = starts[u.client.id].get(name, torch.zeros_like(value))  # 0: what is no part of the model (prototypes)
                assert not torch.equal(value, before) or (slug, name) in IDLE or flat(run, u.client.id, name), name


def flat(run: tiny.Federation, client: str, name: str) -> bool:
    """Whether its loss does not depend on a tensor, as on a bias of keys: softmax ignores what shifts all scores alike."""
    position = next(k for k, c in enumerate(run.clients) if c.id == client)
    pack = run.pack([position], t=1)
    name = name if name in pack.tensors else name.split("/", 1)[1]  # what is sent of a tensor under another first word
    slope = pack.gradients(run.method.objective, name)[name]
    return float(slope.abs().max()) < 1e-12


# merging a small update into few bits erases it --------------------------------------------------------------------------


def test_small_updates_add_up_beside_weights_of_few_bits_that_would_swallow_each_of_them() -> None:
    rounds = 64
    rough, exact = (tiny.federation(FLoRA(rank=1), precision=p, sizes=(3,)) for p in ("bfloat16", "float64"))
    (one,) = by_hand.invented(exact, [3.0])
    one.tensors = {n: v for n, v in dense(one.tensors).items() if n.startswith("lora/")}
    for name, value in one.tensors.items():
        one.tensors[name] = value.abs() * (0.1 / rounds if name.endswith("/B") else 0.1)
    for run in (rough, exact):
        for _ in range(rounds):
            run.server.clock += 1
            sent = {n: v.to(run.bench.dtype) for n, v in dense(one.tensors).items()}
            run.method.aggregate(run.server, [by_hand.update(run, 0, sent, 3.0)])
    merged: dict[str, Tensor] = {}
    for site in by_hand.sites(rough):
        step = 2 * dense(one.tensors)[f"lora/{site}/B"] @ dense(one.tensors)[f"lora/{site}/A"]
        by_hand.close(by_hand.shared(rough)[f"base/{site}/delta"].double(), rounds * step, 1e-5)
        weight = rough.bench.backbone.module(site).weight.detach()
        short, whole = weight.clone(), weight.float()
        level = whole.abs().max() / 127  # of an 8-bit base
        start = whole = (whole / level).round() * level
        for _ in range(rounds):
            short += step.to(short.dtype)
            whole = ((whole + step) / level).round() * level
        merged[f"base/{site}/delta"] = short.double() - weight.double()
        assert (merged[f"base/{site}/delta"] - rounds * step).norm() > 0.4 * (rounds * step).norm()
        assert (whole - start).norm() < 0.2 * (rounds * step).norm()
    head = {n: v for n, v in by_hand.shared(exact).items() if n.startswith("head/")}
    untouched, merging = (by_hand.logits(exact, head | more).float() for more in ({}, merged))
    wanted = exact.global_logits()
    assert (merging - wanted).norm() > 0.4 * (untouched - wanted).norm()
    assert (rough.global_logits() - wanted).norm() < 0.2 * (untouched - wanted).norm()


# keys that silently load nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", some(METHODS))
def test_every_tensor_that_is_sent_is_loaded(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(small(slug), rounds=2)
    sent: dict[str, set[str]] = {}
    pack_update = run.simulation.setup.exchange.pack_update

    def note(server: Any, update: Update, *more: Any) -> Frame:
        sent[update.client.id] = set(update.tensors)
        return pack_update(server, update, *more)

    monkeypatch.setattr(run.simulation.setup.exchange, "pack_update", note)
    seen = by_hand.record(run)
    for t in range(2):
        run.simulation.round(t)
        if t and not seen[t]:  # a round in which clients only receive
            continue
        assert {u.client.id: set(u.tensors) for u in seen[t]} == sent
        assert all(sent.values())
    for client in run.clients:  # and down
        info = client.info(run.method.info.asks)
        run.server.cohort = [info]
        message = run.method.send(run.server, info)
        held = by_hand.turn(run, info).held
        free = set(run.method.downloads(run.bench.of(client), info))
        assert {n.removesuffix("+") for n in message.tensors} <= set(held) | free
        pack = run.pack([int(client.id.removeprefix("client-"))], t=2)
        for name, value in dense(held).items():
            if not name.endswith("/delta"):
                assert torch.equal(pack.value(0, name), value)


@pytest.mark.parametrize("slug", some(METHODS))
def test_keys_with_a_wrappers_prefix_are_refused_in_both_directions(slug: str) -> None:
    run = tiny.federation(small(slug), rounds=2).run(1)
    exchange, server = run.simulation.setup.exchange, run.server
    trained = list(run.method.train(run.pack([0], t=1)))
    t = 1 if trained else 0  # of a method whose clients only receive in the second round: the first
    (update,) = trained or run.method.train(run.pack([0], t=0))
    info = update.client
    turn = by_hand.turn(run, info)
    update.tensors = {f"model.{n}": v for n, v in update.tensors.items()}
    frame = exchange.pack_update(server, update, turn)
    with pytest.raises(Refused, match=r"not expected|is of integers, unexpectedly"):
        exchange.read_update(server, turn, frame.data)
    message = run.method.send(server, info)
    data = encode(
        Header(run.method.info.slug, t, "train", "down", info.id),
        {f"model.{n}": v for n, v in (message.tensors or update.tensors).items()},
        message.facts,
        codec("identity"),
    ).data
    adaptation = run.method.adapt(run.bench.backbone, run.bench.task, info)
    expected = Expected(
        method=run.method.info.slug,
        round=t,
        kind="train",
        direction="down",
        tensors=download_shapes(adaptation, run.bench),
        facts=frozenset(run.method.info.tells),
        max_weight=1e9,
    )
    with pytest.raises(Refused, match=r"not expected|is of integers, unexpectedly"):
        decode(data, expected)


def test_a_refused_update_is_named_and_the_round_goes_on_without_it() -> None:
    run = tiny.federation(small("fedit"), rounds=1, pack=1)
    seen = by_hand.record(run)
    pack_update = run.simulation.setup.exchange.pack_update

    def prefixed(server: Any, update: Update, *more: Any) -> Frame:
        if update.client.id == "client-1":
            update.tensors = {f"model.{n}": v for n, v in update.tensors.items()}
        return pack_update(server, update, *more)

    run.simulation.setup.exchange.pack_update = prefixed  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    assert set(record["refused"]) == {"client-1"}
    assert "not expected" in record["refused"]["client-1"]
    assert [u.client.id for u in seen[0]] == ["client-0", "client-2", "client-3", "client-5"]


# averaging in half precision, in place, or what has no average --------------------------------------------------------


@pytest.mark.parametrize("slug", some(METHODS))
def test_on_a_half_precision_backbone_everything_that_is_learnt_sent_and_averaged_is_single_precision(slug: str) -> None:
    run = tiny.federation(small(slug), precision="bfloat16", rounds=1)
    seen = by_hand.record(run)
    run.run()
    values = [v for u in seen[0] for v in u.tensors.values()] + list(everything(run).values())
    assert values
    assert {v.dtype for v in values if isinstance(v, Tensor)} <= {torch.float32}


@pytest.mark.parametrize("slug", some(METHODS))
def test_averaging_writes_neither_into_an_update_nor_into_what_was_broadcast(slug: str) -> None:
    run = tiny.federation(small(slug), rounds=2)
    first = int(
        run.method.plan(run.server, 1).kind == run.method.plan(run.server, 0).kind
    )  # else they only receive in the second
    run.run(first)
    seen = by_hand.record(run)
    broadcast = dict(run.server.shared)  # the very tensors that clients are given
    copies = {n: v.clone() for n, v in dense(broadcast).items()}
    sent: dict[tuple[str, str], Tensor] = {}
    aggregate = type(run.method).aggregate

    def watched(self: Method, server: Any, updates: Any) -> None:
        got = list(updates)
        sent.update({(u.client.id, n): v.clone() for u in got for n, v in dense(u.tensors).items()})
        aggregate(self, server, iter(got))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.method), "aggregate", watched)
        run.simulation.round(first)
    assert sent
    for u in seen[0]:
        for name, value in dense(u.tensors).items():
            assert torch.equal(value, sent[u.client.id, name])
    for name, value in dense(broadcast).items():
        assert torch.equal(value, copies[name])
    ours = [v for v in run.server.shared.values() if isinstance(v, Tensor)]
    theirs = {v.untyped_storage().data_ptr() for u in seen[0] for v in u.tensors.values() if isinstance(v, Tensor)}
    assert not any(v.untyped_storage().data_ptr() in theirs for v in ours)


@pytest.mark.parametrize("model", ["roberta", "gpt2", "vit", "clip"])
@pytest.mark.parametrize("slug", METHODS)
def test_nothing_that_travels_is_a_buffer_or_an_integer(slug: str, model: str) -> None:
    method = small(slug)
    kind = model if "images" not in method.info.needs or model in tiny.IMAGES else "vit"
    kind = "vit" if kind == "clip" and "head" in method.info.needs else kind  # which has none, but for the names of classes
    if "texts" in method.info.needs and kind in tiny.IMAGES:
        kind = "bert"
    if "label words" in method.info.needs and kind not in tiny.ENCODERS:
        kind = "bert"
    fixed = {"two towers", "items", "connector"} & {*method.info.needs}
    checkpoint = "lm" if "connector" in method.info.needs else None
    backbone = tiny.backbone(tiny.home(method) if fixed else kind, task=tiny.task_of(method), checkpoint=checkpoint)
    adaptation = method.adapt(backbone, Classification(tiny.names(3)), ClientInfo(""))
    whole = backbone.model
    buffers = {n for n, _ in whole.named_buffers()}
    weights = dict(whole.named_parameters())
    for name, init, scope in named(adaptation, backbone):
        if not scope & (Scope.UP | Scope.DOWN):
            continue
        part, site, role = name.split("/")
        if part in ("bias", "head"):
            assert weights[f"{site}.{role}"].is_floating_point()
            assert f"{site}.{role}" not in buffers
        if init.kind != "lowrank":
            assert init.draw(0, name).is_floating_point()


def test_an_integer_among_the_tensors_of_an_update_is_not_even_sent() -> None:
    run = tiny.federation(small("fedit"))
    (update,) = run.method.train(run.pack([0]))
    update.tensors["lora/x/position_ids"] = torch.arange(4)
    with pytest.raises(ValueError, match="exact things are Integers, or belong in facts"):
        run.simulation.setup.exchange.pack_update(run.server, update, by_hand.turn(run, update.client, {}))


@pytest.mark.parametrize("slug", some(METHODS))
def test_every_client_counts_and_not_the_first_alone(slug: str) -> None:
    run = tiny.federation(small(slug), rounds=1)
    seen = by_hand.record(run)
    run.run()
    for left_out in seen[0]:
        fresh = tiny.federation(small(slug), rounds=1)
        fresh.server.round = fresh.method.plan(fresh.server, 0) or Round(0)
        fresh.server.clock += 1
        fresh.method.aggregate(fresh.server, iter([u for u in seen[0] if u is not left_out]))
        after, whole = by_hand.known(fresh), by_hand.known(run)
        touched = {n for n in whole if after[n].shape != whole[n].shape or not torch.equal(after[n], whole[n])}
        assert touched, left_out.client.id


# state that leaks from client to client or from round to round ----------------------------------------------------------


@pytest.mark.parametrize("slug", some(METHODS))
def test_a_clients_update_does_not_depend_on_who_trained_before_it(slug: str) -> None:
    """Each client's turn, taken again by itself on the same message, gives the update that the crowded round gave."""
    method = eager(slug)
    run = tiny.federation(method, rounds=2, pack=1).run(1)
    alone: dict[str, dict[str, Tensor]] = {}
    for k in reversed(range(len(run.clients))):
        run.simulation.setup.store.load(run.clients[k])
        pack = run.pack([k], t=1)
        alone |= {u.client.id: {n: v.clone() for n, v in dense(u.tensors).items()} for u in method.train(pack)}
        run.simulation.setup.store.forget(run.clients[k])
    seen = by_hand.record(run)
    run.simulation.round(1)
    for u in seen[0]:
        assert set(u.tensors) == set(alone[u.client.id])
        for name, value in dense(u.tensors).items():
            assert torch.equal(value, alone[u.client.id][name])
    assert {u.client.id for u in seen[0]} == set(alone)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_first_step_of_every_turn_is_that_of_a_new_optimizer(kind: str) -> None:
    """A new AdamW moves every element by its rate, whatever the gradient; new momentum adds nothing to the gradient."""
    optim = Optim(kind, lr=1e-3, eps=1e-30, momentum=0.9, schedule="linear")
    run = tiny.federation(FedIT(rank=2, batch=16, steps=1, optim=optim), sizes=(9, 5), rounds=3)
    seen = by_hand.record(run)
    for t in range(3):
        starts = [by_hand.start_of(run, k, t) for k in range(2)]
        plans = [by_hand.steps_of(run, k, t) for k in range(2)]
        run.simulation.round(t)
        for k, u in enumerate(seen[t]):
            plain = by_hand.train(run, starts[k], plans[k], lambda p: torch.optim.SGD(p, lr=1e-3), scale=8.0)
            for name, value in dense(u.tensors).items():
                moved, slope = value - starts[k][name], plain[name] - starts[k][name]
                if kind == "sgd":
                    by_hand.close(moved, slope, 1e-14)
                else:
                    clear = slope.abs() > 1e-12
                    assert clear.any() or (t == 0 and name.endswith("/A"))
                    by_hand.close(moved[clear], 1e-3 * slope[clear].sign(), 1e-12)


@pytest.mark.parametrize("slug", METHODS)
def test_all_clients_of_one_size_start_from_the_same_shared_values(slug: str) -> None:
    """Factors that every client draws for itself average out to nothing."""
    method = replace(small(slug), **({"mix": "none"} if slug.endswith("flexlora") else {}))
    run = tiny.federation(method)
    pack = run.pack()
    made = run.method.send(run.server, run.clients[0].info(run.method.info.asks)).tensors  # by the server, for each client
    for name, value in pack.tensors.items():
        if name not in pack.shapes or name in made:
            continue
        sizes = {k: shape for k, shape in enumerate(pack.shapes[name]) if shape is not None}
        if Scope.DOWN | Scope.UP in scope_of(pack.adaptations[min(sizes)], name):
            for size in set(sizes.values()):
                same = value[[k for k, shape in sizes.items() if shape == size]]
                assert torch.equal(same, same[:1].expand_as(same))


@pytest.mark.parametrize("slug", some(METHODS))
def test_testing_between_rounds_changes_no_later_round(slug: str) -> None:
    """Evaluation that leaves a switch behind has frozen a part for good elsewhere."""
    watched, plain = (tiny.federation(small(slug), rounds=3) for _ in range(2))
    for t in range(3):
        watched.simulation.round(t)
        watched.simulation.evaluate(t)
    plain.run()
    found, wanted = everything(watched), everything(plain)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(v, wanted[n]) for n, v in found.items())


# random streams that depend on each other ----------------------------------------------------------------------------


def shake(seed: int) -> None:
    """Set the global random streams, on which nothing may depend."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def streams() -> tuple[object, ...]:
    """Where the global random streams stand."""
    _, words, *place = np.random.get_state()  # noqa: NPY002
    return random.getstate(), words.tobytes(), place, torch.get_rng_state().tolist()


def test_cohorts_depend_on_the_seed_and_the_round_and_on_nothing_else() -> None:
    def cohorts(method: Method, disturb: bool = False, seed: int = 0) -> list[list[str]]:
        run = tiny.federation(method, rounds=6, participation=0.5, seed=seed)
        found = []
        for t in range(6):
            if disturb:
                shake(t)
            record = run.simulation.round(t)
            assert record is not None
            found.append(record["cohort"])
        return found

    few = cohorts(FedIT(rank=1, batch=4, steps=1))
    assert len({tuple(c) for c in few}) > 1
    assert cohorts(FedIT(rank=1, batch=2, steps=3)) == few
    assert cohorts(FFALoRA(rank=1, batch=4, steps=1), disturb=True) == few
    assert cohorts(FedIT(rank=1, batch=4, steps=1), seed=1) != few


@pytest.mark.parametrize("slug", some(METHODS))
def test_a_run_neither_reads_nor_moves_the_global_random_streams(slug: str) -> None:
    results = []
    for seed in (1, 2):
        shake(seed)
        before = streams()
        run = tiny.federation(small(slug), rounds=1, participation=0.7, dropout=0.2, codec_name="quant8").run()
        run.simulation.evaluate(0)
        assert streams() == before
        results.append(everything(run))
    assert all(torch.equal(v, results[1][n]) for n, v in results[0].items())


# rules that are not what they seem -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [FedIT(rank=2), FLoRA(rank=2), FlexLoRA(rank=2, mix="none")], ids=lambda m: m.info.slug)
def test_the_server_step_commutes_with_writing_every_update_in_other_factors(method: Method) -> None:
    """(A, B) -> (cA, B/c) is the same update. Server optimizers that treat A and B apart, as FedAdam does, would not see it."""
    results = []
    for c in (1.0, 7.0):
        run = tiny.federation(method, sizes=(9, 5))
        made = by_hand.invented(run, [9.0, 5.0])
        for u in made:
            for name, value in u.tensors.items():
                assert isinstance(value, Tensor)
                u.tensors[name] = value * (c if name.endswith("/A") else 1 / c if name.endswith("/B") else 1.0)
        run.server.clock += 1
        run.method.aggregate(run.server, made)
        values = by_hand.shared(run)
        products = {n: values[n[:-1] + "B"] @ v for n, v in values.items() if n.endswith("/A")}
        results.append({n: v for n, v in values.items() if n.endswith("/delta")} or products)
    assert results[0]
    for name, value in results[0].items():
        assert value.any()
        by_hand.close(results[1][name], value)


@pytest.mark.parametrize("slug", some(METHODS))
def test_a_round_of_clients_without_rows_changes_nothing_and_divides_by_nothing(slug: str) -> None:
    run = tiny.federation(small(slug), sizes=(0, 0), rounds=1)
    before = by_hand.shared(run)
    record = run.simulation.round(0)
    assert record is not None
    assert record["refused"] == {}
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_personal_values_never_pass_through_another_clients_hands() -> None:
    """One module handed from client to client carries the last one's B and head along."""
    run = tiny.federation(FedSALoRA(rank=1, batch=4, steps=2), rounds=1, pack=1)
    loaded: dict[str, dict[str, Tensor]] = {}
    train = FedSALoRA.train

    def watched(self: FedSALoRA, pack: Any) -> Any:
        (client,) = pack.clients
        loaded[client.id] = {n: pack.value(0, n) for n in pack.tensors if n.endswith("/B") or n.startswith("head")}
        return train(self, pack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedSALoRA, "train", watched)
        run.run()
    first, *others = loaded.values()
    assert len(loaded) == len(run.clients)
    assert not any(v.any() for n, v in first.items() if n.endswith("/B"))
    assert all(torch.equal(v, first[n]) for other in others for n, v in other.items())


def test_messages_do_not_grow_by_being_read() -> None:
    """Nothing that was sent is still changed by its sender, and nothing received by its reader."""
    run = tiny.federation(small("fedit"), rounds=2).run(1)
    info = run.clients[0].info(())
    message: Message = run.method.send(run.server, info)
    _, received = run.simulation.setup.exchange.download(run.server, info, by_hand.turn(run, info).adaptation, message)
    for value in received.tensors.values():
        assert isinstance(value, Tensor)
        value.add_(1)
    assert all(not torch.equal(received.tensors[n], v) for n, v in dense(run.server.shared).items())
