"""DiPrompT as its file reconstructs it, put together by hand: routing, three kinds of prompts, and a bank that moves slowly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import images_by_hand as hand
import tiny
from bytes_of import TEXT, Case, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.federation.message import ClientInfo
from weft.federation.scope import Scope
from weft.methods import DiPrompT, PromptFL
from weft.testing.compare import assert_same, logits
from weft.testing.sites import remote

SITE = "text_model.embeddings.token_embedding/context"
P, CLASSES = 3, 3
WORDS = ("w5", "w9 w2", "w17")
TINY = {"domains": WORDS}
MOVING = Optim("sgd", lr=0.02, momentum=0.9, weight_decay=1e-2, schedule="constant")
SMALL = DiPrompT(tokens=P, domains=WORDS, lam=0.7, gamma=0.8, delta=0.5, beta=0.3, epochs=2.0, batch=4, optim=MOVING)
PROMPTS = ("general", "domain0", "domain1", "domain2", "query")

Bank = dict[str, Tensor]


def named(values: Mapping[str, Tensor]) -> Bank:
    """Contexts by the name of their part."""
    return {n.split("/")[0]: v for n, v in values.items() if n.split("/")[0] in PROMPTS}


def read(run: tiny.Federation, context: Tensor, before: Sequence[str] = ("{}",)) -> Tensor:
    """Features [S, C, e] of the class names in some frames; [C, e] in the one that is nothing but the name."""
    names = run.bench.task.classes
    found = [hand.coop(run.bench.backbone, [frame.format(c) for c in names], context) for frame in before]
    return found[0] if len(found) == 1 else torch.stack(found)


def asked(run: tiny.Federation, query: Tensor) -> Tensor:
    return read(run, query, [f"{w} {{}}" for w in WORDS])


def written(run: tiny.Federation) -> Tensor:
    return read(run, hand.word_embeddings(run.bench.backbone, "a"), [f"{w} of a {{}}" for w in WORDS])


def turned(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    b = run.bench.backbone
    return hand.clip(b.path).logit_scale.exp() * F.normalize(hand.image_embedding(b, hand.pictures(run, rows)), dim=-1)


def a_turn(run: tiny.Federation, bank: Bank, steps: list[np.ndarray]) -> tuple[Bank, list[int]]:
    """Picture by picture, with an optimizer for each prompt; of the bank only those move that a picture was routed to."""
    method = run.method
    assert isinstance(method, DiPrompT)
    leaves = {n: v.clone().requires_grad_(True) for n, v in bank.items()}
    each = {n: torch.optim.SGD([v], lr=0.02, momentum=0.9, weight_decay=1e-2) for n, v in leaves.items()}
    h, routed = written(run), [0, 0, 0]
    for rows in steps:
        images, y = turned(run, rows), by_hand.labels(run, rows)
        u = asked(run, leaves["query"])
        loss = F.cross_entropy(sum(images @ u[s].T for s in range(3)) / 3, y)
        gap = torch.stack([((u[s, c] - h[s, c]) ** 2).sum() for s in range(3) for c in range(CLASSES)]).mean()
        kl = torch.stack(
            [
                F.kl_div((u[:, c] @ x).log_softmax(0), (h[:, c] @ x).softmax(0), reduction="sum")
                for x, c in zip(images, y, strict=True)
            ]
        ).mean()
        each["query"].zero_grad()
        (loss + method.lam * (gap + kl)).backward()
        each["query"].step()
        with torch.no_grad():
            u = asked(run, leaves["query"])
            chosen = [int((u[:, c] @ x).argmax()) for x, c in zip(images, y, strict=True)]
        texts = {n: read(run, leaves[n]) for n in ("general", *(f"domain{s}" for s in set(chosen)))}
        loss = F.cross_entropy(images @ texts["general"].T, y)
        apart, own = [], []
        for x, s in zip(images, chosen, strict=True):
            routed[s] += 1
            own.append(texts[f"domain{s}"] @ x)
            d, g, w = (v.mean(0) for v in (texts[f"domain{s}"], texts["general"].detach(), h[s]))
            to_w, to_g = torch.exp(F.cosine_similarity(d, w, dim=0)), torch.exp(F.cosine_similarity(d, g, dim=0))
            apart.append(-torch.log(to_w / (to_w + to_g)))
        loss = loss + method.gamma * F.cross_entropy(torch.stack(own), y) + method.delta * torch.stack(apart).mean()
        for n in texts:
            each[n].zero_grad()
        loss.backward()
        for n in texts:
            each[n].step()
    return {n: v.detach() for n, v in leaves.items()}, routed


def probabilities(run: tiny.Federation, rows: np.ndarray, share: float | None = None) -> dict[str, Tensor]:
    """[n, C] of each view, one picture after the other."""
    bank = named(by_hand.shared(run))
    u, general = asked(run, bank["query"]), read(run, bank["general"])
    special = [read(run, bank[f"domain{s}"]) for s in range(3)]
    found: dict[str, list[Tensor]] = {"global": [], "global/general": [], "global/domain": []}
    for x in turned(run, rows):
        g = (general @ x).softmax(0)
        w = (u[:, int(g.argmax())] @ x).softmax(0)
        d = sum((w[s] * (special[s] @ x).softmax(0) for s in range(3)), torch.zeros_like(g))
        part = float(g.max() / (g.max() + d.max())) if share is None else share
        for view, p in (("global", part * g + (1 - part) * d), ("global/general", g), ("global/domain", d)):
            found[view].append(p)
    return {view: torch.stack(some) for view, some in found.items()}


@pytest.mark.parametrize("counts", [True, False])
def test_four_rounds_of_some_clients_are_the_reconstructed_algorithm(counts: bool) -> None:
    run = tiny.federation(replace(SMALL, counts=counts), rounds=4, participation=0.5, pack=2)
    seen = by_hand.record(run)
    bank = named(by_hand.start_of(run))
    assert set(bank) == set(PROMPTS)
    used, idle, drawn = set[int](), 0, list[set[int]]()
    for t in range(4):
        steps = {k: by_hand.steps_of(run, k, t) for k, n in enumerate(tiny.SIZES) if n}
        record = run.simulation.round(t)
        assert record is not None
        cohort = {k for k in steps if f"client-{k}" in record["cohort"]}
        drawn.append(cohort)
        turns = {k: a_turn(run, bank, steps[k]) for k in sorted(cohort)}
        for update in seen[t]:
            values, routed = turns[int(update.client.id.removeprefix("client-"))]
            assert update.facts == ({"routed": routed} if counts else {})
            mine = named(update.tensors)  # type: ignore[arg-type]
            assert set(mine) == {"general", "query", *(f"domain{s}" for s, m in enumerate(routed) if m)}
            for n, v in mine.items():
                by_hand.close(v, values[n])
        total = sum(tiny.SIZES[k] for k in turns)
        new = {
            n: sum((tiny.SIZES[k] / total * v[n] for k, (v, _) in turns.items()), torch.zeros(())) for n in ("general", "query")
        }
        for s in range(3):
            shares = {k: (m[s] if counts else tiny.SIZES[k]) for k, (_, m) in turns.items() if m[s]}
            if not shares:
                idle += 1
                continue
            used.add(s)
            parts = (m / sum(shares.values()) * turns[k][0][f"domain{s}"] for k, m in shares.items())
            new[f"domain{s}"] = 0.3 * bank[f"domain{s}"] + 0.7 * sum(parts, torch.zeros(()))
        bank = bank | new  # type: ignore[operator]
        held = named(by_hand.shared(run))
        for n in PROMPTS:
            by_hand.close(held[n], bank[n])
    assert len(used) > 1, "pictures go to several domains"
    assert any((a & c) - b for a, b, c in zip(drawn, drawn[1:], drawn[2:], strict=False)) or (drawn[0] & drawn[3]) - drawn[1]
    rows = np.arange(len(run.bench.table))
    for view, wanted in probabilities(run, rows).items():
        by_hand.close(run.global_logits(view=view, dtype=torch.float64).exp(), wanted, 1e-8)


def test_general_prompts_alone_are_promptfl() -> None:
    ours = tiny.federation(replace(SMALL, gamma=0.0, delta=0.0), rounds=2)
    theirs = tiny.federation(PromptFL(tokens=P, weighting="examples", epochs=2.0, batch=4, optim=MOVING), rounds=2)
    theirs.server.write(f"context/{SITE}", ours.server.shared[f"general/{SITE}"])
    ours.run()
    theirs.run()
    assert torch.equal(by_hand.shared(ours)[f"general/{SITE}"], by_hand.shared(theirs)[f"context/{SITE}"])
    wanted = theirs.global_logits(dtype=torch.float64).log_softmax(-1)
    by_hand.close(ours.global_logits(view="global/general", dtype=torch.float64), wanted, 1e-12)


def test_with_one_domain_the_query_moves_nothing_else() -> None:
    banks = []
    for lam in (0.0, 5.0):
        run = tiny.federation(replace(SMALL, domains=("w5",), lam=lam, epochs=1.0), rounds=2).run()
        banks.append(named(by_hand.shared(run)))
    assert not torch.equal(banks[0]["query"], banks[1]["query"])
    assert all(torch.equal(banks[0][n], banks[1][n]) for n in ("general", "domain0"))


def test_a_prompt_without_pictures_keeps_every_bit_and_stays_at_home() -> None:
    run = tiny.federation(SMALL, rounds=1)
    seen = by_hand.record(run)
    start = named(by_hand.start_of(run))
    packs = {k: run.pack([k]) for k, n in enumerate(tiny.SIZES) if n}
    sent = {k: next(iter(run.method.train(pack))) for k, pack in packs.items()}
    idle = 0
    for k, pack in packs.items():
        for s, m in enumerate(sent[k].facts["routed"]):
            same = torch.equal(pack.tensors[f"domain{s}/{SITE}"][0], start[f"domain{s}"])
            assert same == (m == 0) == (f"domain{s}/{SITE}" not in sent[k].tensors)
            idle += same
    assert idle
    run.run()
    assert {u.client.id: u.facts for u in seen[0]} == {f"client-{k}": u.facts for k, u in sent.items()}


def test_the_bank_moves_by_what_was_routed_and_the_rest_by_examples() -> None:
    run = tiny.federation(replace(SMALL, beta=0.25))
    before = named(by_hand.shared(run))
    g = torch.Generator().manual_seed(0)
    values = [{n: torch.randn(P, TEXT, generator=g, dtype=torch.float64) for n in PROMPTS} for _ in range(2)]
    updates = [
        by_hand.update(run, k, {f"{n}/{SITE}": v for n, v in some.items()}, w)
        for k, (some, w) in enumerate(zip(values, (9.0, 3.0), strict=True))
    ]
    updates[0].facts, updates[1].facts = {"routed": [6, 0, 0]}, {"routed": [2, 5, 0]}
    run.method.aggregate(run.server, updates)
    held, (a, b) = named(by_hand.shared(run)), values
    by_hand.close(held["general"], 0.75 * a["general"] + 0.25 * b["general"])
    by_hand.close(held["query"], 0.75 * a["query"] + 0.25 * b["query"])
    by_hand.close(held["domain0"], 0.25 * before["domain0"] + 0.75 * (0.75 * a["domain0"] + 0.25 * b["domain0"]))
    by_hand.close(held["domain1"], 0.25 * before["domain1"] + 0.75 * b["domain1"])
    assert torch.equal(held["domain2"], before["domain2"])


@pytest.mark.parametrize("told", [None, "zzz", [1, 2], [-1, 1, 1], [True, 1, 1], [0.5, 1, 1], [10**12, 1, 1]])
def test_what_a_stranger_says_of_its_pictures_is_believed_only_if_it_makes_sense(told: Any) -> None:
    run = tiny.federation(replace(SMALL, beta=0.0))
    before = named(by_hand.shared(run))
    (update,) = by_hand.invented(run, [9.0])
    update.facts = {} if told is None else {"routed": told}
    run.method.aggregate(run.server, [update])
    held, sent = named(by_hand.shared(run)), named(update.tensors)  # type: ignore[arg-type]
    assert torch.equal(held["general"], sent["general"])
    assert torch.equal(held["domain2"], before["domain2"])
    counted = told == [1, 2]  # it says nothing of the third
    assert torch.equal(held["domain0"], sent["domain0"] if counted else before["domain0"])


def test_a_bank_with_all_its_inertia_is_frozen() -> None:
    run = tiny.federation(replace(SMALL, beta=1.0), rounds=2)
    before = named(by_hand.shared(run))
    after = named(by_hand.shared(run.run()))
    assert [torch.equal(before[n], after[n]) for n in PROMPTS] == [False, True, True, True, False]


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_ensembles_are_distributions_of_the_shares_that_were_asked_for(share: float | None) -> None:
    run = tiny.federation(replace(SMALL, share=share), rounds=1).run()
    rows = np.arange(len(run.bench.table))
    wanted = probabilities(run, rows, share)
    found = run.global_logits(dtype=torch.float64)
    assert torch.isfinite(found).all()
    by_hand.close(found.exp(), wanted["global"], 1e-8)
    by_hand.close(found.exp().sum(1), torch.ones(len(rows), dtype=torch.float64))
    if share in (0.0, 1.0):
        by_hand.close(found.exp(), wanted["global/general" if share else "global/domain"], 1e-8)


def test_where_all_prompts_are_one_every_view_is_that_one() -> None:
    run = tiny.federation(SMALL)
    for s in range(3):
        run.server.write(f"domain{s}/{SITE}", run.server.shared[f"general/{SITE}"])
    views = [run.global_logits(view=view, dtype=torch.float64) for view in run.method.views]
    by_hand.close(views[0], views[1])
    by_hand.close(views[2], views[1])


def test_the_order_of_the_domains_does_not_matter() -> None:
    run = tiny.federation(SMALL, rounds=1).run()
    other = tiny.federation(replace(SMALL, domains=(WORDS[2], WORDS[0], WORDS[1])))
    bank = named(by_hand.shared(run))
    order = {"domain0": "domain2", "domain1": "domain0", "domain2": "domain1"}
    for n in PROMPTS:
        other.server.write(f"{n}/{SITE}", bank[order.get(n, n)])
    for view in run.method.views:
        by_hand.close(run.global_logits(view=view, dtype=torch.float64), other.global_logits(view=view, dtype=torch.float64))


def test_domains_are_those_that_were_given_or_told_or_have_numbers() -> None:
    told = ClientInfo("", facts={"every domain": ["clip_art", "photo"]})
    assert DiPrompT(domains=("a", "b", "c")).words(told) == ("a", "b", "c")
    assert DiPrompT().words(told) == ("clip_art", "photo")
    assert DiPrompT(nameless=2).words(ClientInfo("")) == ("domain 1", "domain 2")


def test_sites_with_domains_of_their_own_train_one_bank() -> None:
    method = replace(SMALL, domains=())
    facts = [{"domain": WORDS[k % 3]} for k in range(6)]
    here = tiny.federation(method, rounds=2, facts=facts, pack=3).run()
    there, _ = remote(method, rounds=2, facts=facts)
    for t in range(2):
        record = there.simulation.round(t)
        assert record is not None
        assert not record["refused"]
    assert set(named(by_hand.shared(here))) == set(PROMPTS)
    assert_same(by_hand.shared(here), by_hand.shared(there), 1e-12)
    assert_same(logits(here), logits(there), 1e-10)


def test_prompts_are_all_that_leaves_a_client_and_it_keeps_nothing() -> None:
    b = tiny.backbone("clip")
    assert by_hand.elements(SMALL, b, Scope.UP, classes=3) == dict.fromkeys(PROMPTS, P * TEXT)
    assert by_hand.elements(SMALL, b, Scope.KEEP, classes=3) == {}
    run = tiny.federation(SMALL, rounds=2).run()
    assert not any(by_hand.kept(run).values())
    start = named(by_hand.start_of(run))
    assert len({float(v[0, 0]) for v in start.values()}) == 5, "no two prompts are the same"


def sizes(turn: Turn) -> Sizes:
    return {part: [P * TEXT] for part in ("general", "domain0", "query")}


BYTES = Case(
    {"tokens": P, "domains": ("w5",)}, sizes, sizes, head=False, revealed=len(json.dumps({"routed": [8]}, separators=(",", ":")))
)
BYTES_VARIANTS = {"no counts": Case({"tokens": P, "domains": ("w5",), "counts": False}, sizes, sizes, head=False)}
