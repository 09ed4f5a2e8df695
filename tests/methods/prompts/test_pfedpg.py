"""pFedPG against its card: a generator at the server that follows its clients' displacement, and VPT on every client."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
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
from bytes_of import Case, D, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.communication.strict import Refused
from weft.errors import UserError
from weft.federation.message import ClientInfo, Update
from weft.federation.rounds import close_round
from weft.federation.scope import Scope
from weft.methods import PFedPG

K, WIDTH, INNER = 3, 32, 8  # tokens; features of the tiny ViT; inner width of the attention
NAME = "prompt/vit.layers.0/tokens"
ADAPTED = "adapted/vit.layers.0/tokens"
LEARNT = ("q", "k", "v", "o", "base", "clients")
SMALL = PFedPG(tokens=K, inner=INNER, epochs=2.0, batch=4, server_lr=0.05)
SITES = range(len(tiny.SIZES))


def generated(memo: Mapping[str, Tensor], d: Tensor) -> Tensor:
    """P_base and, on every row, what d finds in P_base by PyTorch's own attention."""
    base = memo["base"]
    found = F.scaled_dot_product_attention((d @ memo["q"]).unsqueeze(0), base @ memo["k"], base @ memo["v"])
    return base + found @ memo["o"]


def learnt(run: tiny.Federation) -> dict[str, Tensor]:
    return {n: run.server.memo[n].clone() for n in LEARNT}


def gradients(memo: Mapping[str, Tensor], displacement: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The chain rule of the card: Σ_n (∂P_n/∂φ)ᵀ·(−ΔP_n)."""
    total = {n: torch.zeros_like(memo[n]) for n in LEARNT}
    for k, moved in displacement.items():
        leaves = {n: memo[n].clone().requires_grad_(True) for n in LEARNT}
        prompt = generated(leaves, leaves["clients"][k])
        found = torch.autograd.grad(prompt, list(leaves.values()), grad_outputs=-moved)
        for n, g in zip(LEARNT, found, strict=True):
            total[n] = total[n] + g
    return total


def a_turn(run: tiny.Federation, values: dict[str, Tensor], steps: list[np.ndarray]) -> dict[str, Tensor]:
    """VPT on one client: SGD with decay on prompt and head together."""
    values = {n: v.clone().requires_grad_(True) for n, v in values.items() if n.startswith(("prompt/", "head/"))}
    optimizer = torch.optim.SGD(list(values.values()), lr=0.25, weight_decay=1e-3)
    for rows in steps:
        optimizer.zero_grad()
        found = hand.prompted(run.bench.backbone, values, hand.pictures(run, rows))
        F.cross_entropy(found, by_hand.labels(run, rows)).backward()
        optimizer.step()
    return {n: v.detach() for n, v in values.items()}


# the generator --------------------------------------------------------------------------------------------------------


def test_each_client_gets_what_the_attention_makes_of_its_own_descriptor() -> None:
    run = tiny.federation(SMALL)
    for k in SITES:
        message = run.method.send(run.server, run.clients[k].info(()))
        assert set(message.tensors) == {NAME}
        assert not message.facts
        found = message.tensors[NAME]
        assert isinstance(found, Tensor)
        assert found.shape == (K, WIDTH)
        by_hand.close(found, generated(run.server.memo, run.server.memo["clients"][k]), 1e-12)


def test_clients_with_equal_descriptors_get_equal_prompts_and_others_do_not() -> None:
    run = tiny.federation(SMALL)
    run.server.memo["clients"][1] = run.server.memo["clients"][0]
    sent = [run.method.send(run.server, run.clients[k].info(())).tensors[NAME] for k in (0, 1, 2)]
    assert torch.equal(sent[0], sent[1])  # type: ignore[arg-type]
    assert not torch.allclose(sent[0], sent[2])  # type: ignore[arg-type]


def test_without_an_output_projection_everybody_gets_the_basis() -> None:
    run = tiny.federation(SMALL)
    run.server.memo["o"] = torch.zeros_like(run.server.memo["o"])
    for k in SITES:
        assert torch.equal(run.method.send(run.server, run.clients[k].info(())).tensors[NAME], run.server.memo["base"])  # type: ignore[arg-type]


def test_the_basis_starts_by_vpts_rule_descriptors_within_one_and_projections_as_linear_layers() -> None:
    run = tiny.federation(PFedPG(tokens=200, inner=300))
    memo = run.server.memo
    bounds = {n: 1 / math.sqrt(len(memo[n])) for n in "qkvo"} | {"clients": 1.0, "base": math.sqrt(6 / (3 * 4**2 + WIDTH))}
    shapes = dict.fromkeys("qkv", (WIDTH, 300)) | {"o": (300, WIDTH), "clients": (6, WIDTH), "base": (200, WIDTH)}
    for n, bound in bounds.items():
        assert tuple(memo[n].shape) == shapes[n]
        assert 0.97 * bound < memo[n].abs().max() <= bound
        assert math.isclose(float(memo[n].std()), bound / math.sqrt(3), rel_tol=0.1)
    assert len({float(memo[n][0, 0]) / b for n, b in bounds.items()}) == 6, "each has a stream of its own"


# a client's turn ------------------------------------------------------------------------------------------------------


def test_clients_tune_the_prompt_they_received_and_their_own_head_and_send_the_prompt_alone() -> None:
    run = tiny.federation(SMALL, rounds=2)
    seen = by_hand.record(run)
    heads: dict[str, dict[str, Tensor]] = {}
    for t in range(2):
        wanted = {}
        for k, client in enumerate(run.clients):
            if not client.n:
                continue
            values = by_hand.start_of(run, k, t) | heads.get(client.id, {})
            by_hand.close(values[NAME], generated(run.server.memo, run.server.memo["clients"][k]), 1e-12)
            wanted[client.id] = a_turn(run, values, by_hand.steps_of(run, k, t))
            heads[client.id] = {n: v for n, v in wanted[client.id].items() if n.startswith("head/")}
        run.simulation.round(t)
        kept = by_hand.kept(run)
        assert {u.client.id for u in seen[t]} == set(wanted)
        for u in seen[t]:
            assert set(u.tensors) == {NAME}, "no head, no descriptor, no statistics"
            assert not u.facts
            values = wanted[u.client.id]
            sent = u.tensors[NAME]
            assert isinstance(sent, Tensor)
            by_hand.close(sent, values[NAME])
            assert torch.equal(kept[u.client.id][ADAPTED], sent), "what is sent is what the client goes on to predict with"
            for n, v in heads[u.client.id].items():
                by_hand.close(kept[u.client.id][n], v)


def test_a_message_holds_k_times_l_numbers_in_either_direction_and_head_and_adapted_prompt_stay() -> None:
    b = tiny.backbone("vit")
    for scope in (Scope.UP, Scope.DOWN):
        assert by_hand.elements(SMALL, b, scope, classes=3) == {"prompt": K * WIDTH}
    assert by_hand.elements(SMALL, b, Scope.KEEP, classes=3) == {"adapted": K * WIDTH, "head": 3 * WIDTH + 3}


def test_one_client_alone_is_vpt_from_a_prompt_made_anew_in_each_round() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=3)
    values = by_hand.start_of(run)
    memo = learnt(run)
    for t in range(3):
        values[NAME] = generated(memo, memo["clients"][0])
        trained = a_turn(run, values, by_hand.steps_of(run, 0, t))
        slopes = gradients(memo, {0: trained[NAME] - values[NAME]})
        memo = {n: memo[n] - 0.05 * slopes[n] for n in LEARNT}
        values |= trained
        run.simulation.round(t)
    for n in LEARNT:
        by_hand.close(run.server.memo[n], memo[n])
    for n, v in by_hand.kept(run)["client-0"].items():
        by_hand.close(v, values[NAME if n == ADAPTED else n])


# the server's step ----------------------------------------------------------------------------------------------------


def updates_of(run: tiny.Federation, prompts: Mapping[int, Tensor]) -> list[Update]:
    return [by_hand.update(run, k, {NAME: v}, float(tiny.SIZES[k])) for k, v in prompts.items()]


def sent_to(run: tiny.Federation) -> dict[int, Tensor]:
    found = {k: run.method.send(run.server, run.clients[k].info(())).tensors[NAME] for k in SITES}
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}


def targets(seed: int = 0) -> dict[int, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(K, WIDTH, generator=g, dtype=torch.float64) for k in SITES}


def test_a_step_goes_down_the_displacement_handed_back_through_the_generator() -> None:
    run = tiny.federation(SMALL)
    before, aims = learnt(run), targets()
    chosen = {k: aims[k] for k in (0, 2, 3)}
    displacement = {k: v - sent_to(run)[k] for k, v in chosen.items()}
    slopes = gradients(before, displacement)
    run.method.aggregate(run.server, updates_of(run, chosen))
    for n in LEARNT:
        by_hand.close(run.server.memo[n], before[n] - 0.05 * slopes[n], 1e-12)
        assert slopes[n].abs().max() > 0


def test_every_client_weighs_the_same_and_the_generator_learns_from_their_sum() -> None:
    run = tiny.federation(SMALL)
    before, aims = learnt(run), targets()
    each = {}
    for k in (0, 1, 2):
        one = copy.copy(run.server)
        one.memo = run.server.memo | before
        run.method.aggregate(one, updates_of(run, {k: aims[k]}))
        each[k] = {n: one.memo[n] - before[n] for n in LEARNT}
    run.method.aggregate(run.server, updates_of(run, {k: aims[k] for k in (0, 1, 2)}))
    for n in ("q", "k", "v", "o", "base"):
        by_hand.close(run.server.memo[n] - before[n], sum((e[n] for e in each.values()), torch.zeros_like(before[n])), 1e-12)
    for k in (0, 1, 2):  # d_n moves by its own client's term alone
        own = run.server.memo["clients"][k] - before["clients"][k]
        by_hand.close(own, each[k]["clients"][k], 1e-12)
        assert own.abs().max() > 0
        assert not any((e["clients"][k]).any() for j, e in each.items() if j != k)


def test_clients_that_stand_at_fixed_prompts_are_approached_without_exception() -> None:
    """The sign trap: with the paper's ΔP taken as the gradient, the distance would grow."""
    run = tiny.federation(replace(SMALL, server_lr=0.01))
    aims = targets()

    def distance() -> float:
        return sum(float((v - aims[k]).square().sum()) for k, v in sent_to(run).items())

    path = [distance()]
    for _ in range(40):
        run.method.aggregate(run.server, updates_of(run, aims))
        path.append(distance())
    assert all(b < a for a, b in itertools.pairwise(path))
    assert path[-1] < 0.8 * path[0]


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_if_no_client_moves_its_prompt_nothing_moves(optimizer: str) -> None:
    run = tiny.federation(replace(SMALL, server_optimizer=optimizer))
    before = learnt(run)
    run.method.aggregate(run.server, updates_of(run, sent_to(run)))
    assert all(torch.equal(run.server.memo[n], before[n]) for n in LEARNT)


def test_without_any_update_the_server_stays_as_it_is() -> None:
    run = tiny.federation(SMALL)
    before = learnt(run)
    run.method.aggregate(run.server, [])
    assert all(torch.equal(run.server.memo[n], before[n]) for n in LEARNT)


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
def test_the_descriptor_of_an_absent_client_stays_even_if_it_was_moving_before(optimizer: str) -> None:
    run = tiny.federation(replace(SMALL, server_optimizer=optimizer))
    aims = targets()
    run.method.aggregate(run.server, updates_of(run, aims))
    before = learnt(run)["clients"]
    run.method.aggregate(run.server, updates_of(run, {k: aims[k] for k in (1, 4)}))
    for k in SITES:
        assert torch.equal(run.server.memo["clients"][k], before[k]) == (k not in (1, 4))


def test_adam_at_the_server_is_torchs_adam_with_a_parameter_for_every_client() -> None:
    run = tiny.federation(replace(SMALL, server_optimizer="adam"))
    memo = {n: v.requires_grad_(True) for n, v in learnt(run).items() if n != "clients"}
    descriptors = [run.server.memo["clients"][k].clone().requires_grad_(True) for k in SITES]
    optimizer = torch.optim.Adam([*memo.values(), *descriptors], lr=0.05)
    for t, present in enumerate([(0, 1, 2, 3, 4, 5), (1, 3), (0, 1), (2, 5)]):
        aims = {k: targets(t)[k] for k in present}
        optimizer.zero_grad(set_to_none=True)
        for k, aim in aims.items():
            prompt = generated(memo, descriptors[k])
            prompt.backward(-(aim - prompt.detach()))
        optimizer.step()
        run.method.aggregate(run.server, updates_of(run, aims))
        for n, v in memo.items():
            by_hand.close(run.server.memo[n], v.detach(), by_hand.ADAM)
        by_hand.close(run.server.memo["clients"], torch.stack(descriptors).detach(), by_hand.ADAM)


def test_the_servers_state_and_adams_survive_a_checkpoint() -> None:
    method = replace(SMALL, server_optimizer="adam")
    plain, resumed = (tiny.federation(method, rounds=2) for _ in range(2))
    for run in (plain, resumed):
        run.run(1)
    tensors, state = resumed.server.tensors_and_json()
    resumed.server.memo.clear()
    resumed.server.restore(tensors, state)
    for run in (plain, resumed):
        run.simulation.round(1)
    assert all(torch.equal(resumed.server.memo[n], plain.server.memo[n]) for n in LEARNT)


def test_an_update_without_a_prompt_is_refused_before_the_rule_sees_it() -> None:
    run = tiny.federation(SMALL)
    info = run.clients[0].info(())
    exchange = run.simulation.setup.exchange
    frame = exchange.pack_update(run.server, by_hand.update(run, 0, {}, 9.0), by_hand.turn(run, info, {}))
    with pytest.raises(Refused, match="prompt"):
        exchange.read_update(run.server, by_hand.turn(run, info, {}), frame.data)


def test_an_unknown_optimizer_of_the_server_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r'unknown server_optimizer "adm".*Did you mean "adam"'):
        PFedPG(server_optimizer="adm")


@pytest.mark.parametrize(("wrong", "words"), [({"inner": 0}, "inner ≥ 1, not 0"), ({"server_lr": -1.0}, "server_lr ≥ 0, not -1")])
def test_an_attention_without_width_and_a_negative_rate_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PFedPG(**wrong)


# prediction -----------------------------------------------------------------------------------------------------------


def test_a_client_predicts_with_its_adapted_prompt_or_with_what_is_generated_for_it_and_its_own_head() -> None:
    run = tiny.federation(SMALL, rounds=2).run()
    kept, b = by_hand.kept(run), run.bench.backbone
    personal, fresh = by_hand.personal_logits(run), by_hand.personal_logits(run, "generated")
    for k, client in enumerate(run.clients):
        if not client.n:
            continue
        x, head = hand.pictures(run, client.data.test), kept[client.id]
        by_hand.close(personal[client.id], hand.prompted(b, head, x, "adapted").float(), 1e-5)
        prompt = {NAME: generated(run.server.memo, run.server.memo["clients"][k])}
        by_hand.close(fresh[client.id], hand.prompted(b, head | prompt, x).float(), 1e-5)
        assert (personal[client.id] - fresh[client.id]).abs().max() > 1e-3


def test_head_and_adapted_prompt_of_an_absent_client_survive() -> None:
    run = tiny.federation(SMALL, rounds=4, participation=0.5)
    by_hand.play_and_see_who_stays(run, 4)


def test_a_client_that_was_never_trained_predicts_with_what_is_made_for_it_and_a_stranger_is_an_average_client() -> None:
    run = tiny.federation(SMALL, rounds=1)
    run.clients, late = run.clients[:3], run.clients[3]
    run.simulation.setup.federations = [(run.server, run.clients)]
    run.run()
    memo = run.server.memo
    for client, d in ((late, memo["clients"][3]), (replace(late, id="stranger"), memo["clients"].mean(0))):
        run.clients = [client]
        assert not by_hand.kept(run)[client.id]
        (found,) = by_hand.personal_logits(run).values()
        values = by_hand.start_of(run, 0, 1) | {NAME: generated(memo, d)}
        wanted = hand.prompted(run.bench.backbone, values, hand.pictures(run, client.data.test))
        by_hand.close(found, wanted.float(), 1e-5)


def test_a_backbone_for_texts_is_refused() -> None:
    with pytest.raises(UserError, match="has no picture patches"):
        tiny.federation(SMALL, "bert")


def test_defaults_are_the_papers() -> None:
    method = PFedPG()
    # "K = 10", "l_k = l_v = 512", "α = 0.001", "default gd for fidelity"
    assert (method.tokens, method.inner, method.server_lr, method.server_optimizer) == (10, 512, 1e-3, "gd")
    # "5 local epochs, batch 64"; "SGD, lr γ = 0.25, weight decay 0.001"
    assert (method.epochs, method.steps, method.batch) == (5.0, None, 64)
    assert method.optim == Optim("sgd", lr=0.25, weight_decay=1e-3, schedule="constant")
    # "default adapted, expose a switch"; "Do not evaluate on a global test set"
    assert method.info.views == ("personal", "generated")


def test_who_joins_later_has_the_average_descriptor_and_moves_from_there() -> None:
    run = tiny.federation(PFedPG(tokens=2, inner=4, server_optimizer="adam"), sizes=(5, 3))
    memo, name = run.server.memo, NAME

    def update(client: ClientInfo) -> Update:
        prompt = run.method.send(run.server, client).tensors[name]
        assert isinstance(prompt, Tensor)
        return Update(tensors={name: prompt + 1.0}, client=client, weight=1.0)

    close_round(run.method, run.server, map(update, run.server.clients))
    old, late = memo["clients"].clone(), ClientInfo("late")
    assert not torch.allclose(old[0], old[1])
    before = run.method.send(run.server, late).tensors[name]
    for _ in range(2):  # a second welcome changes nothing
        run.method.welcome(run.server, late)
        assert torch.equal(memo["clients"][:2], old)
        by_hand.close(memo["clients"][2:], old.mean(0, keepdim=True), 1e-12)
        by_hand.close(run.method.send(run.server, late).tensors[name], before, 1e-12)  # type: ignore[arg-type]
    close_round(run.method, run.server, iter([update(late)]))
    assert torch.equal(memo["clients"][:2], old)
    # Adam's first step has the length of the rate in every coordinate: its own moments begin at 0
    by_hand.close((memo["clients"][2] - old.mean(0)).abs(), torch.full_like(old[0], run.method.server_lr), 1e-5)  # type: ignore[attr-defined]


# what other tests ask of this method --------------------------------------------------------------------------------------


def prompt_bytes(turn: Turn) -> Sizes:
    return {"prompt": [4 * D]}  # K·l


BYTES = Case({"tokens": 4, "inner": 6}, prompt_bytes, prompt_bytes, first=prompt_bytes, head_stays=True)
