"""FlexLoRA against its card: products are averaged in full, and everybody gets the best cut at its own rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from bytes_of import SITES, Case, factors_and_head
from weft.adaptation.optim import Optim
from weft.federation.message import ClientInfo, Update
from weft.federation.scope import Scope
from weft.methods import FlexLoRA
from weft.methods.reparameterized.flexlora import MIXES, TYPES
from weft.tensors.lowrank import LowRank

ALPHA = 16.0
SMALL = FlexLoRA(rank=2, alpha=ALPHA, mix="none", sites="q,v", batch=4, optim=Optim("adamw", lr=3e-2))
RANKS = (4, 1, 3, 2, 12, 1)


def federation(
    ranks: Sequence[int] = RANKS, sizes: Sequence[int] = tiny.SIZES, rounds: int = 2, **more: object
) -> tiny.Federation:
    return tiny.federation(SMALL, sizes=sizes, facts=[{"rank": r, "ffn_rank": r} for r in ranks], rounds=rounds, **more)  # type: ignore[arg-type]


def received(run: tiny.Federation, k: int) -> dict[str, Tensor]:
    """What client k would get now."""
    tensors = run.method.send(run.server, run.clients[k].info(("rank", "ffn_rank"))).tensors
    return {n: v for n, v in tensors.items() if isinstance(v, Tensor)}


def update(value: Update, site: str) -> Tensor:
    """(α/r_k) B_k A_k, with the rank read from the factors."""
    a, b = value.tensors[f"lora/{site}/A"], value.tensors[f"lora/{site}/B"]
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    assert a.shape[0] == b.shape[1]
    return ALPHA / a.shape[0] * b @ a


def mean(updates: Sequence[Update], site: str) -> Tensor:
    total = sum(u.client.n for u in updates)
    return sum((u.client.n / total * update(u, site) for u in updates), torch.zeros(32, 32, dtype=torch.float64))


def test_the_server_holds_the_weighted_mean_of_the_products_of_this_rounds_clients() -> None:
    run = federation(rounds=3, participation=0.7)
    seen = by_hand.record(run)
    for t in range(3):
        run.simulation.round(t)
        for site in by_hand.sites(run):
            wanted = mean(seen[t], site)
            product = run.server.memo[f"product/{site}"]
            assert isinstance(product, LowRank)
            assert wanted.norm() > 1e-2
            by_hand.close(product.dense(), wanted)
            # the factored path against a plain SVD of the dense matrix
            by_hand.close(product.svd()[1], torch.linalg.svdvals(wanted)[: product.rank])
            a, b = (by_hand.shared(run)[f"lora/{site}/{role}"] for role in "AB")
            by_hand.close(ALPHA / 2 * b @ a, wanted)  # the global model is the whole of it, at the server's own scale


def test_the_global_model_predicts_with_the_whole_average() -> None:
    run = federation()
    seen = by_hand.record(run)
    run.run()
    head = {n: v for n, v in by_hand.shared(run).items() if n.startswith("head/")}
    delta = {f"base/{site}/delta": mean(seen[-1], site) for site in by_hand.sites(run)}
    by_hand.close(run.global_logits(), by_hand.logits(run, head | delta).float(), 1e-5)


def test_each_client_gets_the_best_cut_at_its_own_rank_and_the_whole_if_its_rank_is_enough() -> None:
    run = federation((4, 1, 3, 2, 12, 1), sizes=(9, 5, 1, 7, 6, 6))
    made = by_hand.invented(run, [9.0, 5.0])  # ranks 4 and 1: the mean has rank 5
    run.server.clock += 1
    run.method.aggregate(run.server, made)
    for site in by_hand.sites(run):
        product = sum(u.weight / 14 * update(u, site) for u in made)
        singular = torch.linalg.svdvals(product)
        assert singular[4] > 1 > 1e-9 > singular[5]
        for k, rank in enumerate((4, 1, 3, 2, 12, 1)):
            got = received(run, k)
            a, b = got[f"lora/{site}/A"], got[f"lora/{site}/B"]
            assert a.shape == (rank, 32)
            assert b.shape == (32, rank)
            cut = ALPHA / rank * b @ a
            lost = (cut - product).square().sum()
            by_hand.close(lost, singular[rank:].square().sum(), 1e-8)
            if rank >= 5:
                by_hand.close(cut, product, 1e-10)


def test_directions_beyond_the_averages_rank_are_random_and_able_to_learn() -> None:
    run = federation((1, 12), sizes=(9, 5))
    run.server.clock += 1
    run.method.aggregate(run.server, by_hand.invented(run, [9.0]))
    got = received(run, 1)
    for site in by_hand.sites(run):
        a, b = got[f"lora/{site}/A"], got[f"lora/{site}/B"]
        by_hand.close(a @ a.T, torch.eye(12, dtype=torch.float64))
        assert b[:, 0].any()
        assert not b[:, 1:].any()
    pack = run.pack([1], t=1)
    list(run.method.train(pack))
    for site in by_hand.sites(run):
        assert bool(pack.tensors[f"lora/{site}/B"][0].any(0).all())


def test_before_the_first_aggregation_everybody_has_plain_lora_of_its_own_rank() -> None:
    run = federation()
    pack = run.pack()
    assert not any("lora" in n for k in range(6) for n in received(run, k))
    for site in by_hand.sites(run):
        for k, rank in enumerate(RANKS):
            a, b = pack.value(k, f"lora/{site}/A"), pack.value(k, f"lora/{site}/B")
            assert a.shape == (rank, 32)
            assert not b.any()
            assert 0.7 / math.sqrt(32) < a.abs().max() <= 1 / math.sqrt(32)


def test_clients_of_different_ranks_train_side_by_side_as_each_would_alone() -> None:
    run = federation((4, 1, 3), sizes=(9, 5, 7), rounds=2, pack=3)
    seen = by_hand.record(run)
    for t in range(2):
        starts = [by_hand.start_of(run, k, t) for k in range(3)]
        plans = [by_hand.steps_of(run, k, t) for k in range(3)]
        run.simulation.round(t)
        for k, rank in enumerate((4, 1, 3)):
            wanted = by_hand.train(
                run,
                starts[k],
                plans[k],
                lambda p: torch.optim.AdamW(p, lr=3e-2, weight_decay=0.0),
                scale=ALPHA / rank,
                linear=True,
            )
            for name, value in seen[t][k].tensors.items():
                assert isinstance(value, Tensor)
                by_hand.close(value, wanted[name], by_hand.ADAM)


def test_the_server_step_turns_one_clients_factors_and_leaves_its_weights() -> None:
    run = federation((3,), sizes=(9,), rounds=1)
    seen = by_hand.record(run)
    run.run()
    got = received(run, 0)
    for site in by_hand.sites(run):
        a, b = got[f"lora/{site}/A"], got[f"lora/{site}/B"]
        by_hand.close(ALPHA / 3 * b @ a, update(seen[0][0], site), 1e-11)
        by_hand.close(a @ a.T, torch.eye(3, dtype=torch.float64))
        sent = seen[0][0].tensors[f"lora/{site}/A"]
        assert isinstance(sent, Tensor)
        assert not torch.allclose(sent, a)


def test_products_are_averaged_and_not_factors() -> None:
    run = federation((2, 2), sizes=(9, 5))
    made = by_hand.invented(run, [9.0, 5.0])
    run.method.aggregate(run.server, made)
    for site in by_hand.sites(run):
        a, b = ([u.tensors[f"lora/{site}/{role}"] for u in made] for role in "AB")
        factors = 8.0 * (9 * b[0] + 5 * b[1]) / 14 @ ((9 * a[0] + 5 * a[1]) / 14)  # type: ignore[operator]
        product = run.server.memo[f"product/{site}"].dense()
        by_hand.close(product, by_hand.mean_product(made, site, [8.0, 8.0]))
        assert (product - factors).norm() > 0.1 * product.norm()


def test_equal_products_count_the_same_at_any_rank_and_scale() -> None:
    run = federation((2, 6), sizes=(9, 5))
    made = by_hand.invented(run, [9.0, 5.0])
    for name in list(made[0].tensors):
        if name.endswith("/A"):  # the same product in 6 ranks at α/6, of which 4 are idle
            a, b = made[0].tensors[name], made[0].tensors[name[:-1] + "B"]
            assert isinstance(a, Tensor)
            assert isinstance(b, Tensor)
            made[1].tensors[name] = torch.cat([a, torch.ones(4, 32, dtype=a.dtype)])
            made[1].tensors[name[:-1] + "B"] = torch.cat([b * (8.0 / (ALPHA / 6)), torch.zeros(32, 4, dtype=b.dtype)], 1)
    results = []
    for updates in (made, made[:1], made[1:]):
        fresh = federation((2, 6), sizes=(9, 5))
        fresh.method.aggregate(fresh.server, updates)
        results.append([fresh.server.memo[f"product/{site}"].dense() for site in by_hand.sites(fresh)])
    for one, other, both in zip(*results, strict=True):
        by_hand.close(other, one)
        by_hand.close(both, one)


def test_the_head_is_averaged_by_example_counts() -> None:
    run = federation(rounds=1)
    seen = by_hand.record(run)
    run.run()
    total = sum(u.client.n for u in seen[0])
    for name in ("head/classifier/weight", "head/classifier/bias"):
        wanted = sum((u.client.n / total * u.tensors[name] for u in seen[0]), torch.zeros(()))
        by_hand.close(by_hand.shared(run)[name], wanted)


def test_a_round_without_updates_keeps_everything() -> None:
    run = federation().run(1)
    before, product = by_hand.shared(run), run.server.memo[f"product/{by_hand.sites(run)[0]}"]
    run.method.aggregate(run.server, iter(()))
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())
    assert run.server.memo[f"product/{by_hand.sites(run)[0]}"] is product


@pytest.mark.parametrize("mix", [m for m, shares in MIXES.items() if shares is not None])
def test_resource_types_are_dealt_in_the_shares_of_the_mix(mix: str) -> None:
    method = FlexLoRA(mix=mix)
    dealt = [tuple(method.profile(k).values()) for k in range(2000)]
    assert set(method.profile(0)) == {"rank", "ffn_rank"}
    for kind, share in zip(TYPES, MIXES[mix] or (), strict=True):
        assert math.isclose(dealt.count(kind) / 2000, share, abs_tol=0.01)


def test_types_and_mixes_are_the_cards() -> None:
    # "Type 1 r=8 everywhere; Type 2 r=30; Type 3 r=30 on attention and r=200 on FFN; Type 4 r=200"
    assert TYPES == ((8, 8), (30, 30), (30, 200), (200, 200))
    # "uniform 25% each; heavy-tail-light 80% Type 1 (rest 10/5/5 over Type 4/3/2)"
    assert MIXES["uniform"] == (0.25,) * 4
    assert MIXES["heavy-tail-light"] == (0.80, 0.05, 0.05, 0.10)
    # "heavy-tail-strong 80% Type 4 (10% Type 3, 5% Type 2, 5% Type 1)"
    assert MIXES["heavy-tail-strong"] == (0.05, 0.05, 0.10, 0.80)
    # "the paper's caption says Types 2 and 3 dominate"
    normal = MIXES["normal"]
    assert normal is not None
    assert math.isclose(sum(normal), 1)
    assert min(normal[1:3]) > 3 * max(normal[0], normal[3])
    # "Homogeneous baseline: everybody r=8"
    assert FlexLoRA(mix="none").profile(3) == {}
    assert FlexLoRA().rank == 8


@pytest.mark.parametrize("kind", TYPES)
def test_on_base_sized_layers_each_type_sends_its_ranks_times_both_sides(kind: tuple[int, int]) -> None:
    backbone = by_hand.roberta_base()
    lora = FlexLoRA().adapt(backbone, tiny.bench().task, ClientInfo("x", 1, {"rank": kind[0], "ffn_rank": kind[1]}))["lora"][0]
    found = sum(i.numel for s in lora.sites(backbone) for i in lora.tensors(backbone, s).values())
    assert found == 12 * (4 * kind[0] * (768 + 768) + 2 * kind[1] * (768 + 3072))
    assert {lora.constants(s)["scale"] for s in lora.sites(backbone)} == {ALPHA / r for r in kind}
    assert by_hand.elements(replace(FlexLoRA(), rank=8), backbone, Scope.UP)["lora"] == 1_327_104


def test_the_shares_of_normal_are_the_codes_density_over_types_in_order_of_size() -> None:
    """Its main.py draws an index from the density of N(1.5, 0.7²) at 0 to 3, but numbers its types 1, 4, 3, 2 in our order."""
    density = [math.exp(-0.5 * ((i - 1.5) / 0.7) ** 2) for i in range(4)]
    assert MIXES["normal"] == pytest.approx([d / sum(density) for d in density], abs=1e-3)
    assert "not read" in FlexLoRA.info.deviations


def test_defaults_are_the_codes_but_for_rate_and_mix() -> None:
    """alibaba/FederatedScope, branch FlexLoRA: main.py and fed_utils/client.py."""
    method = FlexLoRA()
    # lora_target_modules q, k, v, o, gate, down, up; lora_alpha 16
    assert (method.sites, method.alpha) == ("all", 16.0)
    # local_num_epochs 1, local_batch_size 4; fed_utils/model_aggregation.py: by len(local_train_dataset)
    assert (method.epochs, method.steps, method.batch, method.weighting) == (1.0, None, 4, "examples")
    # optim = 'sgd' if baseline == 'fedavg' else 'adamw_torch', in transformers' Trainer; the rate is that of LoRA-A²
    assert method.optim == by_hand.trainer(5e-4)
    # aggregation: default "homo", which averages factors; "random" draws the four types alike
    assert method.mix == "uniform"
    assert all(said in method.info.deviations for said in ("SGD at 1e-6", "equal ranks"))


# what other tests ask of this method --------------------------------------------------------------------------------------


MIXED = tuple({"rank": r, "ffn_rank": f} for r, f in ((4, 2), (1, 1), (3, 5), (2, 2), (1, 3), (2, 1)))
BYTES = Case(SITES | {"mix": "none"}, factors_and_head, factors_and_head, MIXED)
PAGE_SAYS = {"optim": "it clips gradients at a norm of 1"}
