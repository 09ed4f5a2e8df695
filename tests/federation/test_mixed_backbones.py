"""Clients with different backbones in one federation: FedHPL on a ViT, a wider and shallower ViT, and a CLIP's image tower."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

import by_hand
import images_by_hand as hand
import tiny
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.engines import here, scoring
from weft.errors import UserError
from weft.federation.rounds import enter
from weft.methods import FedHPL, FedIT
from weft.tensors.keyed import numpy_generator
from weft.testing.strangers import by_messages

C = 3
SMALL = FedHPL(tokens=3, batch=4, epochs=2.0)


def models() -> list[Backbone]:
    """A ViT, a wider and shallower one, and the image tower of a CLIP."""
    wide = tiny.backbone("vit", hidden_size=48, num_hidden_layers=2, intermediate_size=96)
    return [tiny.backbone("vit"), wide, tiny.backbone("clip", task="classification")]


@functools.cache
def mixed(method: FedHPL = SMALL, **settings: Any) -> tiny.Federation:
    """Two rounds of a federation on three backbones; nobody may go on with it."""
    return tiny.mixed_federation(method, models(), rounds=2, **settings).run()


def model_of(run: tiny.Federation, k: int) -> Backbone:
    return run.bench.of(run.clients[k]).backbone


def test_clients_with_different_backbones_run_in_one_federation_and_each_predicts_with_its_own() -> None:
    run = mixed()
    assert [model_of(run, k).name for k in range(6)] == [m.name for m in models()] * 2
    found, kept = by_hand.personal_logits(run), by_hand.kept(run)
    for k, client in enumerate(run.clients):
        if client.n:
            width = model_of(run, k).d
            assert kept[client.id]["head/classifier/weight"].shape == (C, width)
            by_hand.close(found[client.id], hand.own_logits(run, k, kept[client.id], client.data.test).float(), 1e-5)
    assert {model_of(run, k).d for k in range(3)} == {32, 48}


def test_a_turn_in_a_mixed_federation_is_the_clients_own_vpt_taught_by_the_common_table() -> None:
    run = tiny.mixed_federation(SMALL, models(), rounds=2)
    own: dict[int, dict[str, Tensor]] = {}
    for t in range(2):
        for k, n in enumerate(tiny.SIZES):
            if n:
                known = run.pack([k], t).facts[0].get("known", [])
                values = by_hand.start_of(run, k, t) | own.get(k, {})
                own[k] = hand.taught_turn(run, k, values, by_hand.steps_of(run, k, t), known, 1.0, 2.0)
        run.simulation.round(t)
    for k, values in own.items():
        for n, v in values.items():
            by_hand.close(by_hand.kept(run)[f"client-{k}"][n], v)


def test_what_a_client_sends_and_gets_is_as_long_whatever_its_backbone() -> None:
    run = mixed()
    ledger = run.simulation.setup.exchange.ledger
    up = ledger.by_client(phase="train", direction="up")
    assert {c: b.payload for c, b in up.items()} == {c.id: 2 * 8 * (C * C + C) for c in run.clients if c.n}
    facts = len(json.dumps(run.pack([0], 1).facts[0], separators=(",", ":")))
    down = ledger.by_client(phase="train", direction="down")
    assert {c: b.payload for c, b in down.items()} == {c.id: 8 * C * C + facts for c in run.clients}  # none in round 0


def test_no_pack_holds_clients_of_two_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.mixed_federation(SMALL, models(), rounds=1, pack=6)
    seen: list[tuple[Backbone, list[int]]] = []

    def watched(*args: Any, **more: Any) -> Any:
        pack = enter(*args, **more)
        seen.append((pack.backbone, [run.clients.index(c) for c in pack.clients if c in run.clients]))
        return pack

    for module in (here, scoring):
        monkeypatch.setattr(module, "enter", watched)
    run.run()
    run.simulation.evaluate(0)
    assert all(model_of(run, k) is backbone for backbone, group in seen for k in group)
    assert sorted(k for _, group in seen[:3] for k in group) == list(range(6))
    assert [len(group) for _, group in seen[:3]] == [2, 2, 2], "clients of one backbone do share a pack"


def test_packed_one_by_one_or_message_by_message_the_result_is_the_same() -> None:
    packed = mixed(pack=6)
    single = mixed(pack=1)
    apart = tiny.mixed_federation(SMALL, models(), rounds=2, pack=1)
    by_messages(apart)
    wanted = by_hand.personal_logits(packed)
    for other in (single, apart):
        for client, found in by_hand.personal_logits(other).items():
            by_hand.close(found, wanted[client], 1e-8)
    for name in ("logits", "accuracy"):
        by_hand.close(single.server.memo[name], packed.server.memo[name], 1e-6)


def test_no_backbone_is_touched() -> None:
    before = [frozen_fingerprint(m) for m in models()]
    run = tiny.mixed_federation(SMALL, models(), rounds=2).run()
    run.simulation.evaluate(1)
    assert [frozen_fingerprint(m) for m in models()] == before
    assert not any(list(tiny.hooks(m.model)) for m in models())


def test_the_common_test_puts_every_row_of_the_global_test_set_to_one_client() -> None:
    run = mixed()
    rows = numpy_generator(0, "evaluation", "common test").permutation(run.simulation.setup.tests.test)
    every = by_hand.personal_logits(run, rows=rows)
    asked = [c.id for c in run.clients if len(c.data.test)]
    assert len(rows) > len(asked) == 5
    right = [bool(every[asked[i % 5]][i].argmax() == run.bench.table.labels[r]) for i, r in enumerate(rows)]
    found = {e.metric: e for e in run.simulation.evaluate(2) if e.people == "common test"}
    assert (found["accuracy"].value, found["accuracy"].n) == (sum(right) / len(rows), len(rows))
    assert found["accuracy"].pooling == "pooled over clients' models"
    assert len({int((z.argmax(1) == by_hand.labels(run, rows)).sum()) for z in every.values()}) > 1, "clients differ"


def test_a_method_whose_tensors_depend_on_the_backbone_is_refused_with_one_sentence() -> None:
    sentence = r"fedit sends 7 tensors that are not the same for .*, such as head/classifier/weight: .* \(fedhpl\)\."
    with pytest.raises(UserError, match=sentence) as e:  # A and B in three blocks, and a head of another width
        tiny.mixed_federation(FedIT(rank=2), models()[:2])
    assert str(e.value).count(". ") == 0


def test_backbones_of_one_shape_may_share_what_depends_on_it() -> None:
    other = tiny.backbone("vit", hidden_dropout_prob=0.1)  # the same tensors in another folder
    run = tiny.mixed_federation(FedIT(rank=2, batch=4), [tiny.backbone("vit"), other], rounds=1)
    before = by_hand.shared(run)
    run.run()
    assert any(not torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())
