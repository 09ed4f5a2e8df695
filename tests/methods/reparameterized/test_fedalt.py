"""FedALT against its card: an own LoRA that nothing overwrites, beside the mean of all others', mixed for every token."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import by_hand
import cohorts
import tiny
from bytes_of import SITES, Case, Sizes, Turn, lora
from weft.contract import Optim, Scope
from weft.errors import UserError
from weft.methods import FedALT

SCALE, RATE = 3.0, 0.3
SMALL = FedALT(rank=2, alpha=6.0, sites="q", steps=2, batch=3, optim=Optim("sgd", lr=RATE, schedule="constant"))
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}
LATE = ((0, 1), (0, 2), (1, 2, 3), (0, 3))
"""Rounds in which clients come for the first time when others are known already, one of them all the others."""
Values = dict[str, Tensor]


class Mixed:
    """The Hugging Face model with both LoRAs and the router of the card at every site. Call it with values and rows."""

    def __init__(self, run: tiny.Federation):
        self.run = run
        self.values: by_hand.Values = {}
        self.model = copy.deepcopy(run.bench.backbone.model)
        for site in by_hand.sites(run, "mix"):
            self.model.get_submodule(site).register_forward_hook(partial(self.add, site))

    def add(self, site: str, _module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        v = {role: self.values[f"mix/{site}/{role}"] for role in ("A", "B", "RA", "RB", "G")}
        x = args[0]
        up = torch.exp(x @ v["G"].T)
        rest, own = (up / up.sum(-1, keepdim=True)).split(1, -1)
        return out + SCALE * (own * (x @ v["A"].T @ v["B"].T) + rest * (x @ v["RA"].T @ v["RB"].T))

    def __call__(self, _run: tiny.Federation, values: by_hand.Values, rows: np.ndarray) -> Tensor:
        self.values = values
        head = {n.removeprefix("head/").replace("/", "."): v for n, v in values.items() if n.startswith("head/")}
        out: Tensor = functional_call(self.model, head, kwargs=self.run.bench.table.collate(rows)).logits
        return out


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, RATE)


def of_rest(name: str) -> bool:
    return name.endswith(("/RA", "/RB"))


def as_rest(name: str) -> str:
    """``mix/SITE/RA`` of ``mix/SITE/A``."""
    return f"{name[:-1]}R{name[-1]}"


def sent(values: Values) -> Values:
    return {n: v for n, v in values.items() if n.startswith("mix/") and n.endswith(("/A", "/B"))}


def given(newest: dict[int, Values], k: int) -> Values:
    """RA and RB of a client: means over the newest of all others that have ever sent something."""
    others = [v for m, v in newest.items() if m != k]
    return {as_rest(n): torch.stack([v[n] for v in others]).mean(0) for n in (others[0] if others else ())}


def entering(run: tiny.Federation, k: int, t: int) -> Values:
    """Every tensor that a client enters round t with, what it has kept among them."""
    client, store = run.clients[k], run.simulation.setup.store
    store.load(client)
    found = by_hand.start_of(run, k, t)
    store.forget(client)
    return found


@pytest.mark.parametrize(("rounds", "sizes"), [(cohorts.ABSENT, (6, 5, 7)), (LATE, (6, 5, 7, 4))])
@pytest.mark.parametrize("router", ["random", "even"])
def test_four_rounds_by_hand_with_clients_that_are_away(
    router: Any, rounds: tuple[tuple[int, ...], ...], sizes: tuple[int, ...]
) -> None:
    run = tiny.federation(replace(SMALL, router=router), **ABOUT | {"sizes": sizes})
    predict, people = Mixed(run), range(len(sizes))
    newest: dict[int, Values] = {}
    own = {k: by_hand.start_of(run, k) for k in people}
    for t, present in enumerate(rounds):
        for k in people:
            own[k] |= given(newest, k)
            found = entering(run, k, t)
            assert found.keys() == own[k].keys()
            for name, value in found.items():
                by_hand.close(value, own[k][name])
        for k in present:
            steps = by_hand.steps_of(run, k, t)
            own[k] = by_hand.train(run, own[k], steps, sgd, only=lambda n: not of_rest(n), predict=predict)
        cohorts.play(run, t, present)
        newest |= {k: sent(own[k]) for k in present}
        for k, client in enumerate(run.clients):
            found = by_hand.kept(run)[client.id]
            assert not found or found.keys() == {n for n in own[k] if not of_rest(n)}
            for name, value in found.items():
                by_hand.close(value, own[k][name])
    rows = {c.id: c.data.test for c in run.clients}
    for k, client in enumerate(run.clients):
        wanted = predict(run, own[k] | given(newest, k), client.data.test)
        by_hand.close(run.personal_logits("personal", rows, torch.float64)[client.id], wanted.detach())


def test_what_a_client_gets_and_what_it_has_add_up_to_the_same_for_everybody() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(3)
    kept, sums = by_hand.kept(run), []
    for client in run.clients:
        message = run.method.send(run.server, client.info(())).tensors
        sums.append({n: 2 * message[as_rest(n)] + v for n, v in sent(kept[client.id]).items()})  # type: ignore[operator]
    for other in sums[1:]:
        assert other.keys() == sums[0].keys()
        for name, value in other.items():
            by_hand.close(value, sums[0][name], 1e-12)


def test_a_client_begins_where_it_ended() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(2)
    for k, client in enumerate(run.clients):
        start, kept = entering(run, k, 2), by_hand.kept(run)[client.id]
        assert {n for n in start if not of_rest(n)} == kept.keys()
        assert all(torch.equal(start[n], v) for n, v in kept.items())


def test_training_leaves_the_rest_alone() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(1)
    pack = run.pack(t=1)
    received = {n: v.clone() for n, v in pack.tensors.items()}
    assert all(bool(v.any()) for n, v in received.items() if n.endswith("/RB"))
    list(run.method.train(pack))
    assert {n for n, v in received.items() if torch.equal(v, pack.tensors[n])} == {n for n in received if of_rest(n)}
    assert not any(of_rest(n) for n in pack.optimized())


def test_in_the_first_round_the_rest_says_nothing() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    for client in run.clients:
        assert not run.method.send(run.server, client.info(())).tensors
    pack = run.pack()
    g = torch.Generator().manual_seed(3)
    for name, value in pack.params("mix/*/B").items():
        pack.tensors[name] = torch.randn(value.shape, generator=g, dtype=value.dtype)
    batch = next(iter(pack.batches(size=4)))
    before = pack(batch).logits
    for name, value in pack.params("mix/*/RA").items():
        pack.tensors[name] = 100 + value
    assert torch.equal(pack(batch).logits, before)
    assert not torch.allclose(pack(batch, use={}).logits, before, atol=1e-4)


def test_an_even_router_begins_as_plain_lora_at_half_its_scale() -> None:
    run = tiny.federation(replace(SMALL, router="even"), **ABOUT)
    pack = run.pack([0])
    g = torch.Generator().manual_seed(3)
    for name, value in pack.params("mix/*/B").items():
        pack.tensors[name] = torch.randn(value.shape, generator=g, dtype=value.dtype)
    rows = run.clients[0].data.test
    (found,) = pack.predict(lambda p, b: run.method.forward(p, b, "personal"), [rows], dtype=torch.float64)
    values = {n: v[0] for n, v in pack.tensors.items() if not of_rest(n)}
    by_hand.close(found, by_hand.logits(run, values, rows, SCALE / 2))


def test_clients_that_are_alike_get_back_what_they_have() -> None:
    run = tiny.federation(replace(SMALL, batch=9), **ABOUT | {"sizes": (6, 6, 6)})
    for client in run.clients:
        client.data = run.clients[0].data
    run.run(3)
    kept = by_hand.kept(run)
    for client in run.clients:
        message = run.method.send(run.server, client.info(())).tensors
        for name, value in sent(kept[client.id]).items():
            by_hand.close(message[as_rest(name)], value)  # type: ignore[arg-type]


def test_one_client_alone_has_no_rest() -> None:
    run = tiny.federation(SMALL, **ABOUT | {"sizes": (6,)})
    own, predict = by_hand.start_of(run), Mixed(run)
    for t in range(3):
        own = by_hand.train(run, own, by_hand.steps_of(run, 0, t), sgd, only=lambda n: not of_rest(n), predict=predict)
        run.simulation.round(t)
        assert not run.method.send(run.server, run.clients[0].info(())).tensors
    for name, value in by_hand.kept(run)["client-0"].items():
        by_hand.close(value, own[name])


def test_all_clients_draw_the_same_first_values() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    first, *others = (by_hand.start_of(run, k) for k in range(3))
    assert all(torch.equal(v, first[n]) for other in others for n, v in other.items())
    assert all(bool(v.any()) == n.endswith(("/A", "/RA", "/G")) for n, v in first.items() if n.startswith("mix/"))


def test_neither_the_router_nor_the_rest_nor_the_head_goes_up() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    seen = by_hand.record(run)
    run.run(3)
    wanted = {f"mix/{site}/{role}" for site in by_hand.sites(run, "mix") for role in "AB"}
    for updates in seen:
        assert updates
        assert all(set(u.tensors) == wanted and not u.facts for u in updates)
    message = run.method.send(run.server, run.clients[0].info(()))
    assert set(message.tensors) == {as_rest(n) for n in wanted}
    backbone = by_hand.roberta_base()
    count = 12 * 2 * 8 * (768 + 768)
    assert by_hand.elements(FedALT(), backbone, Scope.UP) == by_hand.elements(FedALT(), backbone, Scope.DOWN) == {"mix": count}
    kept = by_hand.elements(FedALT(), backbone, Scope.KEEP)
    assert kept == {"mix": count + 12 * 2 * 2 * 768, "head": 592_130}


def test_defaults_are_the_codes() -> None:
    method = FedALT()
    # jmbian/FedALT, config.py: LORA_RANK 8, LORA_ALPHA 32, q_proj and v_proj, LOCAL_EPOCHS 5, BATCH_SIZE 8, LEARNING_RATE 3e-4;
    # client.py: weight_decay 0.05, and transformers' trainer
    assert (method.rank, method.alpha, method.sites, method.router) == (8, 32.0, "q,v", "random")
    assert (method.epochs, method.batch) == (5.0, 8)
    assert method.optim == by_hand.trainer(3e-4).but(weight_decay=0.05)
    assert method.info.views == ("personal",)
    assert not method.sums, "the server has to see who sent what"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"router": "evne"}, 'Did you mean "even"'),
        ({"rank": 0}, "rank ≥ 1, not 0"),
        ({"alpha": -1.0}, "alpha > 0, not -1.0"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        FedALT(**settings)
    assert "\n" not in str(caught.value)


# what other tests ask of this method --------------------------------------------------------------------------------------


def both_factors(turn: Turn) -> Sizes:
    return {"mix": lora(2)}


BYTES = Case({"rank": 2, **SITES}, both_factors, both_factors, head_stays=True)
BYTES_VARIANTS = {"even router": Case({"rank": 2, "router": "even", **SITES}, both_factors, both_factors, head_stays=True)}
PAGE_SAYS = {"optim": "it clips gradients at a norm of 1"}
