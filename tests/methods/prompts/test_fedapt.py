"""FedAPT against its card: keyed contexts and a router, put together by hand for one picture at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import images_by_hand as hand
import tiny
from bytes_of import JOINT, TEXT, Case, Sizes, Turn
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import FedAPT, PromptFL
from weft.methods.prompts.fedapt import routed
from weft.testing.compare import assert_same, logits
from weft.testing.sites import remote

NAME = "prompt/text_model.embeddings.token_embedding/context"
ROUTER, KEYS = "router/values/weight", "keys/values/keys"
P, CLASSES = 3, 3
DOMAINS = ["art", "photo", "sketch"]
OF = [1, 0, 1, 2, 0, 2]  # each client's domain; that of client 4 has no rows
FACTS = [{"domain": DOMAINS[s]} for s in OF]
SMALL = FedAPT(tokens=P, epochs=2.0, batch=4, optim=FedAPT().optim.but(lr=0.05))


def read(run: tiny.Federation, prompt: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """Text features [C, e] through p ⊙ (1 + Σ w_s k_s)."""
    key = sum((w * k for w, k in zip(weights, keys, strict=True)), torch.zeros_like(keys[0]))
    return hand.coop(run.bench.backbone, run.bench.task.classes, prompt * (1 + key))


def a_turn(run: tiny.Federation, prompt: Tensor, router: Tensor, keys: Tensor, s: int, steps: list[np.ndarray]) -> list[Tensor]:
    b = run.bench.backbone
    prompt, router = (v.clone().requires_grad_(True) for v in (prompt, router))
    optimizer = torch.optim.SGD([prompt, router], lr=0.05, momentum=0.9, weight_decay=1e-5)
    hot = torch.eye(len(keys), dtype=torch.float64)[s]
    for rows in steps:
        z, y = hand.image_embedding(b, hand.pictures(run, rows)), by_hand.labels(run, rows)
        loss = F.cross_entropy(hand.similarity(b, z, read(run, prompt, hot, keys)), y)
        loss = loss + F.cross_entropy(F.linear(z, router), torch.full_like(y, s))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [prompt.detach(), router.detach()]


def predicted(run: tiny.Federation, rows: np.ndarray, t: float) -> tuple[Tensor, Tensor]:
    """Logits [n, C] of the server's model and the router's weights [n, S], one picture after the other."""
    b, held = run.bench.backbone, by_hand.shared(run)
    found, weights = [], []
    for z in hand.image_embedding(b, hand.pictures(run, rows)):
        o = held[ROUTER] @ z
        w = F.softmax((o - o.mean()) / o.var(unbiased=True).sqrt() / t, 0)
        weights.append(w)
        found.append(hand.similarity(b, z[None], read(run, held[NAME], w, held[KEYS]))[0])
    return torch.stack(found), torch.stack(weights)


@pytest.mark.parametrize("per_class", [True, False])
def test_four_rounds_are_the_algorithm_with_one_client_of_each_domain(per_class: bool) -> None:
    method = replace(SMALL, per_class=per_class)
    run = tiny.federation(method, rounds=4, facts=FACTS, pack=2)
    start = by_hand.start_of(run)
    prompt, router, keys = start[NAME], start[ROUTER], start[KEYS]
    assert router.shape == (3, JOINT)
    assert prompt.shape == ((CLASSES, P, TEXT) if per_class else (P, TEXT))
    cohorts = set()
    for t in range(4):
        steps = {k: by_hand.steps_of(run, k, t) for k, n in enumerate(tiny.SIZES) if n}
        record = run.simulation.round(t)
        assert record is not None
        drawn = [int(c.removeprefix("client-")) for c in record["cohort"]]
        assert sorted(OF[k] for k in drawn) == [0, 1, 2]
        cohorts.add(tuple(drawn))
        sent = [a_turn(run, prompt, router, keys, OF[k], steps[k]) for k in drawn if k in steps]
        prompt, router = (torch.stack(values).mean(0) for values in zip(*sent, strict=True))
        held = by_hand.shared(run)
        by_hand.close(held[NAME], prompt)
        by_hand.close(held[ROUTER], router)
        assert torch.equal(held[KEYS], keys), "nothing moves a key"
    assert len(cohorts) > 1
    rows = np.arange(len(run.bench.table))
    wanted, _ = predicted(run, rows, method.temperature)
    by_hand.close(run.global_logits(dtype=torch.float64), wanted, 1e-5)


@pytest.mark.parametrize(("temperature", "kind"), [(1.0, "soft"), (0.05, "both"), (1e-5, "hard")])
def test_pictures_are_compared_with_the_mixture_of_keys_that_the_router_says(temperature: float, kind: str) -> None:
    run = tiny.federation(replace(SMALL, temperature=temperature), facts=FACTS)
    run.server.write(NAME, run.server.shared[NAME] * 20)  # type: ignore[operator]
    rows = np.arange(len(run.bench.table))
    wanted, weights = predicted(run, rows, temperature)
    sure = weights.max(1).values >= 1 - 1e-6
    assert {"soft": not sure.any(), "hard": sure.all(), "both": 0 < int(sure.sum()) < len(rows)}[kind]
    found = run.global_logits(dtype=torch.float64)
    by_hand.close(found[~sure], wanted[~sure], 1e-9)
    by_hand.close(found[sure], wanted[sure], 1e-4)
    pack = run.server.pack()
    pack.bench.prefix = None
    few = [pack.predict(lambda p, b: run.method.forward(p, b, "global"), [rows], tokens=40, dtype=torch.float64)[0]]
    by_hand.close(few[0], found, 1e-9)


def test_the_texts_of_a_sure_router_are_read_once_for_each_domain_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(replace(SMALL, temperature=1e-5), facts=FACTS)
    pack, rows, calls = run.server.pack(), np.arange(len(run.bench.table)), []
    read_texts = pack.texts
    monkeypatch.setattr(pack, "texts", lambda *a: (calls.append(1), read_texts(*a))[1])
    _, weights = predicted(run, rows, 1e-5)
    pack.predict(lambda p, b: run.method.forward(p, b, "global"), [rows], tokens=10**6)
    assert len(calls) == len(set(weights.argmax(1).tolist())) > 1


def test_keys_are_drawn_from_nought_to_one_for_each_domain_and_stay_everywhere() -> None:
    run = tiny.federation(FedAPT(tokens=40), facts=FACTS)
    keys = by_hand.shared(run)[KEYS]
    assert keys.shape == (3, 40, TEXT)
    assert 0 <= float(keys.min()) < 0.01
    assert 0.99 < float(keys.max()) < 1
    assert abs(float(keys.mean()) - 0.5) < 0.02
    assert not torch.equal(keys[0], keys[1])
    b = tiny.backbone("clip")
    assert "keys" not in by_hand.elements(SMALL, b, Scope.UP, classes=3)
    for k in range(6):
        assert not run.method.send(run.server, run.clients[k].info(run.method.info.asks)).tensors


def test_with_keys_of_nought_it_is_promptfl_with_a_context_for_each_class() -> None:
    ours = tiny.federation(SMALL, rounds=3)
    plain = PromptFL(tokens=P, per_class=True, epochs=2.0, batch=4, optim=SMALL.optim)
    theirs = tiny.federation(plain, rounds=3)
    theirs.server.write(NAME.replace("prompt/", "context/"), ours.server.shared[NAME])
    ours.server.shared[KEYS] = torch.zeros_like(ours.server.shared[KEYS])  # type: ignore[arg-type]
    ours.run()
    theirs.run()
    by_hand.close(by_hand.shared(ours)[NAME], by_hand.shared(theirs)[NAME.replace("prompt/", "context/")], 1e-12)
    by_hand.close(ours.global_logits(dtype=torch.float64), theirs.global_logits(dtype=torch.float64), 1e-10)


def test_packs_and_sites_are_clients_one_by_one() -> None:
    runs = [tiny.federation(SMALL, rounds=3, facts=FACTS, pack=k).run() for k in (1, 3)]
    there, loop = remote(SMALL, rounds=3, facts=FACTS)
    for t in range(3):
        there.simulation.round(t)
    for other in (runs[1], there):
        assert_same(logits(runs[0]), logits(other), 1e-10)
        assert_same(by_hand.shared(runs[0]), by_hand.shared(other), 1e-12)
    assert {site.adaptation["router"][0].shapes[0][1].shape for site in loop.sites.values()} == {(3, JOINT)}  # type: ignore[attr-defined]
    assert all(site.whole for site in loop.sites.values())


@pytest.mark.parametrize("domains", [2, 3, 5])
def test_router_outputs_are_standardised_and_any_scale_and_offset_of_them_is_the_same(domains: int) -> None:
    o = torch.randn(50, domains, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = routed(o, 0.5)
    z = w.log() * 0.5
    z = z - z.mean(-1, keepdim=True)
    by_hand.close(z.std(-1), torch.ones(50, dtype=torch.float64))
    by_hand.close(routed(7 * o - 3, 0.5), w)
    assert torch.equal(routed(o, 1e-6).argmax(-1), o.argmax(-1))
    if domains == 2:
        assert (routed(o, 0.01).max(-1).values > 1 - 1e-6).all()


def test_one_domain_and_a_router_without_an_opinion_are_no_division_by_nought() -> None:
    assert torch.equal(routed(torch.randn(4, 1), 0.01), torch.ones(4, 1))
    by_hand.close(routed(torch.ones(2, 4), 0.01), torch.full((2, 4), 0.25))


@pytest.mark.parametrize("facts", [[{}] * 6, [{"domain": "art"}] * 6])
def test_without_domains_or_with_one_everybody_may_be_drawn_and_all_have_one_key(facts: Sequence[dict[str, str]]) -> None:
    run = tiny.federation(SMALL, rounds=1, facts=facts)
    assert by_hand.shared(run)[KEYS].shape[0] == 1
    record = run.simulation.round(0)
    assert record is not None
    assert len(record["cohort"]) == (1 if facts[0] else 6)


def test_a_client_without_a_domain_among_others_that_have_one_is_refused_with_a_way_out() -> None:
    run = tiny.federation(SMALL, rounds=1, facts=[{}, *FACTS[1:]])
    with pytest.raises(UserError, match=r"client-0 has no domain of its own.*--partition natural"):
        run.run()


def sizes(turn: Turn) -> Sizes:
    return {"prompt": [CLASSES * P * TEXT], "router": [6 * JOINT]}


BYTES = Case({"tokens": P}, sizes, sizes, tuple({"domain": f"d{k}"} for k in range(6)), head=False)
BYTES_VARIANTS = {
    "one context for all classes, and no domains": Case(
        {"tokens": P, "per_class": False},
        lambda turn: {"prompt": [P * TEXT], "router": [JOINT]},
        lambda turn: {"prompt": [P * TEXT], "router": [JOINT]},
        head=False,
    )
}
