"""Pilot against its card: rounds in plain PyTorch on a tiny LLaVA, losses in their dense form, who gets what, and from whom."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import by_hand
import tiny
import weft
from bytes_of import Case, Sizes, Turn, lora
from picture_folders import asked_about
from run_laws import LAWS, Law, keep
from weft.adaptation.optim import Optim
from weft.cli.sizes import made_up, measure
from weft.errors import UserError
from weft.export import load as load_model
from weft.federation.scope import Scope
from weft.methods import Pilot
from weft.methods.adapters.pilot import alike, features, imbalance, sizes
from weft.testing.plays import Plays

CONNECTOR = "model.multi_modal_projector"
LAYERS = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
DOMAINS = ("colour", "count", "colour", "place", "count", "colour")
FACTS = [{"domain": d} for d in DOMAINS]
TASKS = sorted(set(DOMAINS))
SIZES = (6, 5, 1, 4, 0, 3)
RATE, LORA_RATE = 0.05, 3.0
SMALL = Pilot(
    rank=2,
    alpha=6.0,
    sites="q,v,ffn.in",
    batch=3,
    neighbours=1,
    lora_rate=LORA_RATE,
    optim=Optim("sgd", lr=RATE, schedule="constant"),
)
Net = Mapping[str, Tensor]


def federation(method: Pilot = SMALL, **settings: Any) -> tiny.Federation:
    return tiny.federation(method, **({"facts": FACTS, "sizes": SIZES, "rounds": 3} | settings))


def others(domain: str) -> list[str]:
    return [domain, *(t for t in TASKS if t != domain)]


# by hand ------------------------------------------------------------------------------------------------------------------


class Instead(nn.Module):
    """In the place of a connector."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mlp(net: Net, x: Tensor) -> Tensor:
    h = x @ net["linear_1.weight"].T + net["linear_1.bias"]
    return (h * 0.5 * (1 + torch.erf(h / 2**0.5))) @ net["linear_2.weight"].T + net["linear_2.bias"]


def taken(values: Net, at: str) -> dict[str, Tensor]:
    return {n: values[at + n] for n in LAYERS}


def connected(values: Net, stage: int, method: Pilot) -> Callable[[Tensor], Tensor]:
    """What stands in the place of the connector, by a client's values under their names in a pack."""
    if stage == 1:
        return lambda x: mlp(taken(values, f"task/{CONNECTOR}/"), x) + mlp(taken(values, f"client/{CONNECTOR}/"), x)
    at = f"mixture/{CONNECTOR}/"

    def mixture(x: Tensor) -> Tensor:
        p = torch.softmax(x @ values[at + "router"].T, -1)
        if method.top is not None:
            least = p.sort(-1, descending=True).values[..., method.top - 1 : method.top]
            p = torch.where(p >= least, p, 0.0)
            p = p / p.sum(-1, keepdim=True)
        found = p[..., 0:1] * mlp(taken(values, f"{at}task1."), x)
        for i in range(2, p.shape[-1] + 1):
            pair = mlp(taken(values, f"{at}task{i}."), x) + mlp(taken(values, f"{at}cross{i}."), x)
            found = found + p[..., i - 1 : i] * pair
        return found + mlp(taken(values, f"client/{CONNECTOR}/"), x) if method.stage2_client == "add_frozen" else found

    return mixture


def logits(run: tiny.Federation, values: Net, rows: np.ndarray, connector: Callable[[Tensor], Tensor]) -> Tensor:
    """[m, T, V] of the frozen model with merged LoRA and another connector."""
    model = copy.deepcopy(run.bench.backbone.model)
    model.model.multi_modal_projector = Instead(connector)
    method = run.method
    assert isinstance(method, Pilot)
    weights: dict[str, Tensor] = {}
    for name in (n for n in values if n.startswith("lora/") and n.endswith("/B")):
        at = name.split("/")[1]
        low = values[name] @ values[name[:-1] + "A"]
        weights[f"{at}.weight"] = model.get_parameter(f"{at}.weight") + method.alpha / method.rank * low
    found: Tensor = functional_call(model, weights, kwargs=run.bench.table.collate(rows)).logits
    return found


def answers(run: tiny.Federation, rows: np.ndarray) -> list[tuple[int, int, int]]:
    """Of each token of an answer its row of the batch, the place that predicts it, and the token."""
    table: Any = run.bench.table
    found = []
    for i, row in enumerate(rows.tolist()):
        own = slice(table.offsets[row], table.offsets[row + 1])
        ids, flags = table.ids[own], table.answer[own]
        found += [(i, j - 1, int(ids[j])) for j in range(1, len(ids)) if flags[j]]
    return found


def cross_entropy(run: tiny.Federation, values: Net, rows: np.ndarray, connector: Callable[[Tensor], Tensor]) -> Tensor:
    found, where = logits(run, values, rows, connector), answers(run, rows)
    z = torch.stack([found[i, j] for i, j, _ in where])
    return F.cross_entropy(z, torch.tensor([token for *_, token in where]))


def seen(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    return run.bench.table.collate(rows)["image_features"]


def spanned(x: Tensor, y: Tensor) -> Tensor:
    """‖Xᵀ Y‖² of one picture's tokens of unit length, with the matrix written out, over N²."""
    x, y = (z / z.square().sum(-1, keepdim=True).sqrt() for z in (x, y))
    return (x.T @ y).square().sum() / len(x) ** 2


def loss_of(run: tiny.Federation, values: Net, rows: np.ndarray, stage: int) -> Tensor:
    method = run.method
    assert isinstance(method, Pilot)
    loss = cross_entropy(run, values, rows, connected(values, stage, method))
    pictures = seen(run, rows)
    if stage == 1:
        pairs = [[mlp(taken(values, f"{who}/{CONNECTOR}/"), h) for who in ("task", "client")] for h in pictures]
        return loss + 0.1 * sum(spanned(x, y) for x, y in pairs) / len(pairs)
    router = values[f"mixture/{CONNECTOR}/router"]
    balance = zed = torch.zeros((), dtype=torch.float64)
    for h in pictures:
        z = h @ router.T
        p = torch.softmax(z, -1)
        counts = [sum(int(row.argmax()) == e for row in z) / len(z) for e in range(len(router))]
        balance = balance + len(router) * sum(f * p[:, e].mean() for e, f in enumerate(counts))
        zed = zed + z.exp().sum(-1).log().square().mean()
    return loss + (0.1 * balance + 0.01 * zed) / len(pictures)


def moves(name: str, stage: int) -> bool:
    part, _, role = name.split("/")
    if part == "lora":
        return True
    return part in ("task", "client") if stage == 1 else part == "mixture" and not role.startswith(("task2", "task3"))


def trained(run: tiny.Federation, values: Net, steps: Sequence[np.ndarray], stage: int) -> dict[str, Tensor]:
    found = {n: v.clone().requires_grad_(moves(n, stage)) for n, v in values.items()}
    moving = {n: v for n, v in found.items() if v.requires_grad}
    for rows in steps:
        slopes = torch.autograd.grad(loss_of(run, found, rows, stage), list(moving.values()))
        with torch.no_grad():
            for (name, value), slope in zip(moving.items(), slopes, strict=True):
                value -= RATE * (LORA_RATE if stage == 2 and name.startswith("lora/") else 1.0) * slope
    return {n: v.detach() for n, v in found.items()}


def mixes(loras: Mapping[str, Net], n: Mapping[str, int], neighbours: int) -> dict[str, dict[str, Tensor]]:
    """Each client's next LoRA."""
    flat = {c: torch.cat([own[name].flatten() for name in sorted(own)]) for c, own in loras.items()}
    found = {}
    for c, own in loras.items():
        d = {o: float((flat[c] - flat[o]).square().sum()) ** 0.5 for o in loras if o != c}
        near = sorted(d, key=lambda o: d[o])[:neighbours]
        total = sum(1 / d[o] for o in near)
        w = {o: 1 / d[o] / total for o in near}
        rho = n[c] / (n[c] + sum(w[o] * n[o] for o in near))
        found[c] = {
            name: rho * v + (1 - rho) * sum(w[o] * loras[o][name] for o in near) if near else v for name, v in own.items()
        }
    return found  # type: ignore[return-value]


class Hand:
    """The federation by hand: the server's bank and mixes, and what each client has to itself."""

    def __init__(self, run: tiny.Federation):
        self.run, self.method = run, run.method
        projector = {n: p.clone() for n, p in run.bench.backbone.module(CONNECTOR).named_parameters()}
        self.bank = {t: dict(projector) for t in TASKS}
        start = {c.id: by_hand.start_of(run, i) for i, c in enumerate(run.clients)}
        self.lora = {c: {n: v for n, v in s.items() if n.startswith("lora/")} for c, s in start.items()}
        at = f"mixture/{CONNECTOR}/"
        self.own: dict[str, dict[str, Tensor]] = {}
        for c, s in start.items():
            self.own[c] = {f"client/{CONNECTOR}/{n}": v for n, v in projector.items()} | {at + "router": s[at + "router"]}
            self.own[c] |= {f"{at}cross{i}.{n}": v for i in (2, 3) for n, v in projector.items()}

    def entering(self, i: int, stage: int) -> dict[str, Tensor]:
        """What client i enters a round with, of what is in use in that stage."""
        client = f"client-{i}"
        found = self.own[client] | self.lora[client]
        for place, task in enumerate(others(DOMAINS[i]), 1):
            if stage == 2:
                found |= {f"mixture/{CONNECTOR}/task{place}.{n}": v for n, v in self.bank[task].items()}
            elif place == 1:
                found |= {f"task/{CONNECTOR}/{n}": v for n, v in self.bank[task].items()}
        return found

    def round(self, t: int) -> list[str]:
        """Play a round in both; gives who took part."""
        run, stage = self.run, 1 if t == 0 else 2
        steps = {c.id: by_hand.steps_of(run, i, t) for i, c in enumerate(run.clients)}
        run.simulation.round(t)
        cohort = list(run.simulation.last_cohort)
        sent: dict[str, dict[str, Tensor]] = {}
        for i, client in enumerate(run.clients):
            if client.id not in cohort or not steps[client.id]:
                continue
            entered = self.entering(i, stage)
            after = trained(run, entered, steps[client.id], stage)
            self.own[client.id] = {n: after.get(n, v) for n, v in self.own[client.id].items()}
            sent[client.id] = after
        own = f"task/{CONNECTOR}/" if stage == 1 else f"mixture/{CONNECTOR}/task1."
        for task in TASKS:
            here = [i for i, d in enumerate(DOMAINS) if d == task and f"client-{i}" in sent]
            if here:
                total = sum(SIZES[i] for i in here)
                self.bank[task] = {n: sum(SIZES[i] / total * sent[f"client-{i}"][own + n] for i in here) for n in LAYERS}  # type: ignore[misc]
        loras = {c: {n: v for n, v in values.items() if n.startswith("lora/")} for c, values in sent.items()}
        assert isinstance(self.method, Pilot)
        self.lora |= mixes(loras, {f"client-{i}": n for i, n in enumerate(SIZES)}, self.method.neighbours)
        return cohort

    def check(self, t: int) -> None:
        """What clients would enter round t + 1 with."""
        for i in range(len(SIZES)):
            found = by_hand.start_of(self.run, i, t + 1)
            for n, v in self.entering(i, 2).items():
                by_hand.close(found[n], v, 1e-8)


@pytest.mark.parametrize(
    "changes",
    [{}, {"top": 2, "neighbours": 2}, {"stage2_client": "add_frozen", "neighbours": 0}, {"halve_init": True}],
    ids=["plain", "top", "added", "halves"],
)
def test_rounds_with_a_part_of_the_clients_are_the_cards(changes: dict[str, Any]) -> None:
    """All clients in stage 1, and half of them in each later round; one has no rows."""
    rounds = 3 if changes else 4
    run = federation(replace(SMALL, **changes), rounds=rounds, participation=0.5, pack=2)
    hand = Hand(run)
    if changes.get("halve_init"):
        for net in (*hand.bank.values(), *hand.own.values()):
            net |= {n: v / 2 for n, v in net.items() if "linear_2" in n}
    drawn = []
    for t in range(rounds):
        drawn.append(set(hand.round(t)))
        hand.check(t)
    assert drawn[0] == {f"client-{i}" for i in range(6)}
    assert all(len(d) == 3 for d in drawn[1:])
    trains = {f"client-{i}" for i, n in enumerate(SIZES) if n}
    assert any(c in drawn[0] and c not in drawn[1] for c in trains), "somebody was away"
    if not changes:
        assert any(c not in drawn[1] and c in drawn[2] | drawn[3] for c in trains), "and came back"
    found = by_hand.personal_logits(run)
    for i, client in enumerate(run.clients):
        if client.id in found:
            rows, values = client.data.test, hand.entering(i, 2)
            z = logits(run, values, rows, connected(values, 2, run.method))  # type: ignore[arg-type]
            torch.testing.assert_close(
                found[client.id].double(), torch.stack([z[r, j] for r, j, _ in answers(run, rows)]), rtol=1e-4, atol=1e-4
            )


def test_after_stage_1_clients_are_scored_with_its_model() -> None:
    run = federation(rounds=1).run()
    found = by_hand.personal_logits(run)
    hand = Hand(federation(rounds=1))
    hand.round(0)
    for i, client in enumerate(run.clients):
        if client.id in found:
            rows, values = client.data.test, hand.entering(i, 1)
            z = logits(run, values, rows, connected(values, 1, SMALL))
            torch.testing.assert_close(
                found[client.id].double(), torch.stack([z[r, j] for r, j, _ in answers(run, rows)]), rtol=1e-4, atol=1e-4
            )


def test_a_server_that_has_read_its_checkpoint_knows_which_stage_it_is_in() -> None:
    for rounds in (1, 2):
        run = federation(rounds=rounds).run()
        before = by_hand.personal_logits(run)
        run.server.restore(*run.server.tensors_and_json())
        after = by_hand.personal_logits(run)
        assert all(torch.equal(after[c], z) for c, z in before.items())


# the card's invariants ----------------------------------------------------------------------------------------------------


def test_stage_1_begins_at_twice_the_connector() -> None:
    run = federation()
    pack = run.pack([0], 0)
    (batch,) = list(pack.batches(steps=1, size=3))
    h = pack.patches(batch)
    found = features(pack, batch, "task", h) + features(pack, batch, "client", h)
    torch.testing.assert_close(found, 2 * run.bench.backbone.module(CONNECTOR)(h), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        run.method.forward(pack, batch).logits[batch.mask],
        torch.stack(
            [
                logits(run, {}, batch.index[0], lambda x: 2 * run.bench.backbone.module(CONNECTOR)(x))[i, j]
                for i, j, _ in answers(run, batch.index[0])
            ]
        ),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("t", [0, 3])
def test_losses_of_some_clients_of_a_pack_are_of_their_own_values(t: int) -> None:
    run = federation(rounds=4).run(t)
    together, alone = run.pack([0, 3], t), run.pack([3], t)
    (both,) = list(together.batches(steps=1, size=3))
    (own,) = list(alone.batches(steps=1, size=3))
    some = both.only(torch.tensor([False, True]))
    by_hand.close(run.method.objective(together, some), run.method.objective(alone, own))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_difference_of_tokens_is_that_of_the_dense_form() -> None:
    x, y = drawn(2, 3, 5, 7), drawn(2, 3, 5, 7, seed=1)
    rows = torch.tensor([[True, True, True], [True, True, False]])
    found = alike(x, y, rows)
    wanted = [torch.stack([spanned(x[k, i], y[k, i]) for i in range(n)]).mean() for k, n in ((0, 3), (1, 2))]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-9)
    assert bool(((found > 0) & (found < 1)).all())


def test_the_difference_is_0_where_columns_are_orthogonal_and_1_of_a_single_token() -> None:
    x, y = torch.zeros(1, 1, 4, 6, dtype=torch.float64), torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    x[0, 0, :, :3], y[0, 0, :, 3:] = drawn(1, 3), drawn(1, 3, seed=1)  # each of rank 1 over its tokens: all ones
    assert float(alike(x, y, torch.ones(1, 1, dtype=torch.bool))) == pytest.approx(1.0)
    signs = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    y = y * signs[:, None]  # columns of x are multiples of (1, 1, 1, 1), those of y of (1, -1, 1, -1)
    assert float(alike(x, y, torch.ones(1, 1, dtype=torch.bool))) == pytest.approx(0.0, abs=1e-15)
    one = alike(drawn(3, 2, 1, 5), drawn(3, 2, 1, 5, seed=1), torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(one, torch.ones(3, dtype=torch.float64))


def test_the_difference_of_the_code_is_next_to_nothing() -> None:
    """The mean of squares of the matrix of all features by all features, which a test can write out."""
    x, y = drawn(2, 3, 2, 4), drawn(2, 3, 2, 4, seed=1)
    rows = torch.tensor([[True, True, True], [True, False, False]])
    found = alike(x, y, rows, "code")
    for k, n in ((0, 3), (1, 1)):
        a, b = (z[k, :n].reshape(n, -1) for z in (x, y))
        a, b = (z / (z.norm(dim=1, keepdim=True) + 1e-6) for z in (a, b))
        torch.testing.assert_close(found[k], (a.T @ b).square().mean(), rtol=0, atol=1e-12)
        assert float(found[k]) <= n**2 / 8**2
    leaf = x.clone().requires_grad_(True)
    alike(leaf, y, rows[1:].expand(2, 3) & False | rows[1], "code").sum().backward()
    # of one picture its square is constant but for the norm, which has no gradient: all that is left is to shrink
    slope = leaf.grad
    assert slope is not None
    torch.testing.assert_close(slope[1, 0] / x[1, 0], (slope[1, 0] / x[1, 0]).mean().expand(2, 4), rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", ["tokens", "code"])
def test_the_difference_trains_in_either_form(form: Any) -> None:
    run, plain = (federation(replace(SMALL, difference=d, difference_of=form), rounds=1).run() for d in (50.0, 0.0))
    for name, value in run.server.memo.items():
        assert not torch.equal(value, plain.server.memo[name])


def test_all_logits_alike_are_balanced_whatever_a_tie_gives() -> None:
    for a in (0.0, 1.5, -2.0):
        z = torch.full((2, 3, 4, 5), a, dtype=torch.float64)
        torch.testing.assert_close(imbalance(z), torch.ones(2, 3, dtype=torch.float64))
        torch.testing.assert_close(sizes(z), torch.full((2, 3), (a + float(np.log(5))) ** 2, dtype=torch.float64))


def test_of_one_task_the_mixture_is_its_adapter_and_balanced() -> None:
    run = federation(facts=None)
    values = by_hand.start_of(run, 0, 1)
    assert {n.split("/")[2].split(".")[0] for n in values if n.startswith("mixture/")} == {"task1", "router"}
    assert bool((imbalance(drawn(2, 3, 4, 1)) == 1).all())
    pack = run.pack([0], 1)
    (batch,) = list(pack.batches(steps=1, size=3))
    rows = batch.index[0]
    z = logits(run, values, rows, lambda x: mlp(taken(values, f"mixture/{CONNECTOR}/task1."), x))
    found = run.method.forward(pack, batch).logits[batch.mask]
    torch.testing.assert_close(found, torch.stack([z[i, j] for i, j, _ in answers(run, rows)]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kept", ["drop", "add_frozen"])
def test_other_tasks_adapters_and_in_stage_2_that_of_the_client_stay_bit_for_bit(kept: Any) -> None:
    run = federation(replace(SMALL, stage2_client=kept), rounds=2)
    seen_up = by_hand.record(run)
    run.simulation.round(0)
    before = by_hand.start_of(run, 0, 1)
    pack = run.pack([0], 1)
    list(run.method.train(pack))
    after = {n: pack.value(0, n) for n in before}
    moved = {n for n, v in after.items() if not torch.equal(v, before[n])}
    assert moved == {n for n in after if moves(n, 2)}
    run.simulation.round(1)
    for t, updates in enumerate(seen_up):
        own = f"task/{CONNECTOR}/" if t == 0 else f"mixture/{CONNECTOR}/task1."
        for update in updates:
            strange = {n for n in update.tensors if not n.startswith("lora/")} ^ {own + n for n in LAYERS}
            assert not strange
    for client in run.server.clients:
        down = run.method.send(run.server, client).tensors
        assert not any(n.startswith(("client/", "task/")) or "/cross" in n or n.endswith("router") for n in down)


def test_who_is_sent_what() -> None:
    """All adapters of tasks, its own first, and a LoRA that no other client gets, unless two are alone with each other."""
    run = federation(replace(SMALL, neighbours=2), rounds=2).run()
    bank = {t: {n: run.server.memo[f"{i}|{n}"] for n in LAYERS} for i, t in enumerate(TASKS)}
    mixed = []
    for i, info in enumerate(run.server.clients):
        down = run.method.send(run.server, info).tensors
        for place, task in enumerate(others(DOMAINS[i]), 1):
            assert all(torch.equal(down[f"mixture/{CONNECTOR}/task{place}.{n}"], v) for n, v in bank[task].items())  # type: ignore[arg-type]
        mixed.append({n: v for n, v in down.items() if n.startswith("lora/")})
    assert not mixed[4], "a client without rows has sent none"
    assert all(not torch.equal(a[n], b[n]) for k, a in enumerate(mixed) for b in mixed[:k] for n in a if n in b)  # type: ignore[arg-type]


def invented(run: tiny.Federation, loras: Sequence[float]) -> list[Any]:
    """Updates of round 1 whose LoRA is the start plus a number."""
    run.server.round = run.method.plan(run.server, 1)  # type: ignore[assignment]
    found = []
    for k, shift in enumerate(loras):
        start = by_hand.start_of(run, k, 1)
        sent = {n: v + shift if n.startswith("lora/") else v for n, v in start.items() if n.startswith("lora/") or "/task1." in n}
        found.append(by_hand.update(run, k, sent, 2.0 + k))
    return found


@pytest.mark.parametrize("share", ["default", "raw"])
@pytest.mark.parametrize("distance", ["factors", "products"])
def test_of_equal_loras_each_stays_bit_for_bit(share: Any, distance: Any) -> None:
    run = federation(replace(SMALL, share=share, distance=distance, neighbours=3))
    updates = invented(run, [0.1] * 4)
    run.method.aggregate(run.server, updates)
    for update in updates:
        noted = run.server.notes.get(update.client.id)
        assert noted
        assert all(torch.equal(v, update.tensors[n]) for n, v in noted.items())


@pytest.mark.parametrize("distance", ["factors", "products"])
def test_far_clusters_of_loras_take_nothing_from_each_other(distance: Any) -> None:
    run = federation(replace(SMALL, distance=distance, neighbours=2))
    places = [0.1, 0.11, 0.13, 5.0, 5.01, 5.03]
    updates = invented(run, places)
    run.method.aggregate(run.server, updates)
    name = next(n for n in updates[0].tensors if n.endswith("/B"))
    found = [float(run.server.notes.get(u.client.id)[name].flatten()[0]) for u in updates]
    assert all(0.1 <= v <= 0.13 + 1e-12 for v in found[:3])
    assert all(5.0 <= v <= 5.03 + 1e-12 for v in found[3:])
    assert found != places


def test_distances_of_products_choose_other_neighbours() -> None:
    """Client 1 has client 0's product, factored otherwise; client 2 has factors that are nearer, and another product."""
    found = {}
    for distance in ("factors", "products"):
        run = federation(replace(SMALL, distance=distance, neighbours=1))  # type: ignore[arg-type]
        updates = invented(run, [0.3, 0.3, 0.32])
        for n, v in list(updates[1].tensors.items()):
            if n.startswith("lora/"):
                updates[1].tensors[n] = v * (4.0 if n.endswith("/A") else 0.25)
        run.method.aggregate(run.server, updates)
        name = next(n for n in updates[0].tensors if n.endswith("/B"))
        before, after = updates[0].tensors[name].flatten()[0], run.server.notes.get("client-0")[name].flatten()[0]
        found[distance] = float(after - before)
    assert found["factors"] > 0 > found["products"]


def test_who_is_away_keeps_its_lora_and_a_task_of_which_nobody_is_there_its_adapter() -> None:
    run = federation(rounds=2)
    run.simulation.round(0)
    bank, noted = dict(run.server.memo), {c.id: run.server.notes.get(c.id) for c in run.clients}
    updates = invented(run, [0.1, 0.2])  # of colour and count
    run.method.aggregate(run.server, updates)
    for name, value in bank.items():
        same = torch.equal(run.server.memo[name], value)
        assert same or TASKS[int(name[0])] != "place"
    for client in ("client-2", "client-3", "client-5"):
        assert all(torch.equal(v, noted[client][n]) for n, v in run.server.notes.get(client).items())


def test_what_travels_of_llava_is_the_cards_formula() -> None:
    d, c = 1024, 4096
    assert d * c + c**2 + 2 * c == 20_979_712
    run = federation()
    own = by_hand.elements(run.method, run.bench.backbone, Scope.UP)
    v, w = 24, 32
    assert own["task"] == own["mixture"] == v * w + w**2 + 2 * w
    vicuna = 64 * (4 * (4096 + 4096) + 3 * (4096 + 11008)) * 32
    assert vicuna == 159_907_840
    everywhere = federation(replace(SMALL, sites="all", rank=1))
    kv = 16  # of two key heads
    assert by_hand.elements(everywhere.method, everywhere.bench.backbone, Scope.UP)["lora"] == 3 * (
        2 * (w + w) + 2 * (w + kv) + 3 * (w + 64)
    )
    assert all(s.name.startswith("model.language_model.layers.") for s in everywhere.server.sites("lora"))


def test_sizes_without_data_are_those_of_a_single_task() -> None:
    path = tiny.backbone("llava", checkpoint="lm", task="generation", classes=1).path
    found = measure(replace(SMALL, sites="q,ffn.in"), *made_up(path, 3, 2, SMALL.info.needs))
    net, low = 4 * sum(NET), 4 * sum(lora(2))
    ups = [{n: b for n, b in r.up.items() if b} for r in found.rounds]
    assert ups[:2] == [{"task": net, "lora": low}, {"mixture": net, "lora": low}]
    assert {n: b for n, b in found.rounds[1].down.items() if b} == {"mixture": net, "lora": low}


# laws, of several tasks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_tasks() -> Plays:
    return Plays(replace(SMALL, neighbours=2, optim=Optim("adamw", lr=1e-3)), facts=FACTS)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_federations_of_several_tasks_keep_the_laws(law: Law, of_tasks: Plays) -> None:
    keep(law, of_tasks)


# settings -----------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_codes() -> None:
    method = Pilot()
    assert (method.rank, method.alpha, method.sites) == (64, 128.0, "all")
    assert (method.difference, method.balance, method.router_z) == (0.1, 0.1, 0.01)
    assert (method.top, method.stage2_client, method.difference_of, method.halve_init) == (None, "drop", "tokens", False)
    assert (method.neighbours, method.share, method.distance) == (3, "default", "factors")
    assert method.optim == Optim("adamw", lr=2e-5, weight_decay=0.0, schedule="cosine", warmup=0.03)
    assert method.optim.lr * method.lora_rate == 4e-5
    assert (method.epochs, method.batch) == (1.0, 16 * 2)
    assert not method.sums


def test_the_first_round_is_stage_1_for_all_and_the_others_are_stage_2() -> None:
    run = federation(rounds=3)
    plans = [run.method.plan(run.server, t) for t in range(4)]
    assert [(p.kind, p.who) for p in plans if p] == [("stage 1", "all"), ("stage 2", "sample"), ("stage 2", "sample")]
    assert plans[3] is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"difference_of": "pictures"}, "unknown difference_of"),
        ({"stage2_client": "frozen"}, 'unknown stage2_client "frozen"'),
        ({"neighbours": -1}, "neighbours ≥ 0, not -1"),
        ({"balance": -0.1}, "balance ≥ 0"),
        ({"top": 0}, "top"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        Pilot(**settings)
    assert "\n" not in str(caught.value)


def test_more_experts_for_a_token_than_there_are_tasks() -> None:
    with pytest.raises(UserError, match=r"there are 3 tasks, of which no token can take 4: set method\.top to fewer"):
        federation(replace(SMALL, top=4))


def test_a_backbone_without_a_connector_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="has no connector between a tower of pictures and a language model"):
        tiny.federation(SMALL, "llama", task="generation")


def test_a_client_without_a_task_of_its_own_among_others_that_have_one() -> None:
    with pytest.raises(UserError, match=r"client-1 has no domain of its own.*deal rows out by their domain"):
        federation(facts=[{"domain": "a"}, {}, *FACTS[2:]], rounds=1).run()


# a run --------------------------------------------------------------------------------------------------------------------


def test_a_run_on_files_whose_clients_are_kinds_of_questions(tmp_path: Path) -> None:
    folder = tmp_path / "questions"
    kinds = ("colour", "count", "place")
    asked = [
        [{"question": f"w{i + j}", "answer": f"w{i % 3}", "domain": kind} for j, kind in enumerate(kinds)] for i in range(24)
    ]
    asked_about(folder, asked)
    path = tiny.backbone("llava", checkpoint="lm", task="generation", classes=1).path
    run = weft.run(
        data=str(folder), method="pilot", model=path, task="generation", template="plain", clients=3, rounds=2, max_length=40,
        samples=2, new_tokens=2, precision="float32", baselines=[], quiet=True, runs=tmp_path / "runs",
        parameters={"rank": 2, "batch": 8, "optim.lr": 1e-3},
    )  # fmt: skip
    assert run.adapter is not None
    about = json.loads((run.adapter / "weft_adapter.json").read_text())
    assert about["parts"]["mixture"]["settings"]["experts"] == 3
    model = load_model(run.adapter)
    source = weft.data.load(str(folder), wanted="answers")
    assert len(model.observe(source.train)) == len(source.train)


# what other tests ask of this method --------------------------------------------------------------------------------------

TINY = {"rank": 4, "alpha": 8.0}

NET = [32 * 24, 32, 32 * 32, 32]


def sent(turn: Turn) -> Sizes:
    return {"task" if turn.t == 0 else "mixture": NET, "lora": lora(2)}


def received(turn: Turn) -> Sizes:
    own = {"lora": lora(2)} if sum(turn.counts) else {}  # who has sent none is mixed none
    return {"mixture": NET * len(TASKS), **own}


BYTES = Case({"rank": 2, "sites": "q,ffn.in"}, received, sent, facts=tuple(FACTS), head=False)
BYTES_VARIANTS = {
    "one task": Case({"rank": 2, "sites": "q,ffn.in", "top": 1}, lambda turn: received(turn) | {"mixture": NET}, sent, head=False)
}
