"""FedP²EFT against its card: statistics, both stages of a turn, the mean of generators, and the ranks that a client keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import by_hand
import cohorts
import tiny
from bytes_of import LAYERS, SITES, Case, D, Sizes, Turn
from bytes_of import F as WIDE
from exporting import RUN_CLOSE, exported
from weaving import own_model
from weft.backbones import describe
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.contract import Optim, Scope
from weft.errors import UserError
from weft.export import load
from weft.federation.pack import Pack
from weft.methods import FedP2EFT, registry
from weft.methods.reparameterized import fedp2eft
from weft.tasks.kinds import GENERATION
from weft.testing import laws

SCALE = 2.0
SMALL = FedP2EFT(rank=3, budget=1, alpha=3 * SCALE, batch=3)
BALANCED = replace(  # all three terms of the loss matter
    SMALL,
    sparsity=1e-2,
    prior=1e-3,
    score_lr=0.05,
    optim=Optim("adamw", lr=0.03, schedule="constant"),
    generator=Optim("adamw", lr=2e-3, schedule="constant"),
)
START = {
    "head/classifier/weight": 0.5 * torch.randn(3, D, generator=torch.Generator().manual_seed(4)),
    "head/classifier/bias": torch.tensor([0.1, -0.2, 0.0]),
}
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 3, "model": "bert", "start": START}
LOW, HIGH = 1e-4, 1000.0
SCORES = "scores/values/lambda"
Values = Mapping[str, Tensor]


# by hand ------------------------------------------------------------------------------------------------------------------


def linears(run: tiny.Federation) -> list[str]:
    """Every linear layer of the model, in its own order: those of the blocks, the pooler, the classifier."""
    return [n for n, m in run.bench.backbone.model.named_modules() if isinstance(m, nn.Linear)]


def described(run: tiny.Federation, k: int) -> Tensor:
    """s of a client: each of its rows alone, so that nothing is padded, and all numbers side by side."""
    model, seen = own_model(run.bench.backbone), {n: [] for n in linears(run)}
    for name, some in seen.items():
        model.get_submodule(name).register_forward_pre_hook(lambda _m, args, some=some: some.append(args[0].detach().flatten()))
    for row in run.clients[k].data.train:
        model(**run.bench.table.collate(np.array([row])))
    every = [torch.cat(some) for some in seen.values()]
    means, variances = [v.mean() for v in every], [v.var(correction=0) for v in every]
    return torch.stack([*means, *((v + 1e-5).sqrt() for v in variances)])


def network(values: Values) -> nn.Sequential:
    """The generator as PyTorch has it."""
    w = {n.rsplit("/", 1)[1]: v for n, v in values.items() if n.startswith("generator/")}
    hidden, features = w["in"].shape
    made = nn.Sequential(nn.Linear(features, hidden), nn.PReLU(), nn.Linear(hidden, len(w["out"]))).double()
    with torch.no_grad():
        for p, name in zip(made.parameters(), ("in", "in_bias", "slope", "out", "out_bias"), strict=True):
            p.copy_(w[name])
    return made


def weights_of(made: nn.Sequential) -> dict[str, Tensor]:
    names = ("in", "in_bias", "slope", "out", "out_bias")
    return {f"generator/values/{n}": p.detach() for n, p in zip(names, made.parameters(), strict=True)}


def put_together(run: tiny.Federation, a: Values, b: Values, scores: Tensor, head: Values) -> dict[str, Tensor]:
    """Values whose merged weights are W + s·B diag(λ) A in every linear layer; the head is first, as LoRA is added to it."""
    found = dict(head)
    for name, w in zip(linears(run), scores.unflatten(0, (len(a), -1)), strict=True):
        found |= {f"lora/{name}/A": torch.diag(w) @ a[name], f"lora/{name}/B": b[name]}
    return found


def fit(
    run: tiny.Federation, start: Values, scores: Tensor, steps: Sequence[np.ndarray], size: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """A, B and λ after AdamW on them; ``size``: training rows, None = without penalties and with λ frozen."""
    m = run.method
    assert isinstance(m, FedP2EFT)
    head = {k: v for k, v in start.items() if k.startswith("head/")}
    a, b = ({n: start[f"lora/{n}/{x}"].clone().requires_grad_() for n in linears(run)} for x in "AB")
    scores = scores.clone().requires_grad_(size is not None)
    groups: list[dict[str, Any]] = [{"params": [*a.values(), *b.values()], "lr": m.optim.lr}]
    if size is not None:
        groups.append({"params": [scores], "lr": m.score_lr})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for rows in steps:
        optimizer.zero_grad()
        z = by_hand.logits(run, put_together(run, a, b, scores, head), rows, SCALE)
        F.cross_entropy(z, by_hand.labels(run, rows)).backward()
        if size is not None:
            inside = scores.detach().clamp(LOW, HIGH).requires_grad_()
            columns = torch.cat([v.abs().sum(0) for v in b.values()])
            ((m.sparsity * columns / inside + m.prior * (inside.log() + 100 * inside)).sum() / size).backward()
            assert scores.grad is not None
            scores.grad += inside.grad  # straight through the clamp
        optimizer.step()
    return *({n: v.detach() for n, v in x.items()} for x in (a, b)), scores.detach()


def turn(run: tiny.Federation, phi: Values, k: int, t: int) -> tuple[dict[str, Tensor], list[float], Tensor]:
    """φ after a client's turn, its L1 distance before every step of stage 2, and λ as learnt."""
    m, start = run.method, by_hand.start_of(run, k, t)
    assert isinstance(m, FedP2EFT)
    s, made = described(run, k), network(phi)
    scores = made(s).detach().clamp(LOW, HIGH)
    _, _, learnt = fit(run, start, scores, by_hand.steps_of(run, k, t), len(run.clients[k].data.train))
    target = learnt.clamp(LOW, HIGH)
    optimizer, distances = torch.optim.Adam(made.parameters(), lr=m.generator.lr), []
    for _ in range(m.generator_steps):
        optimizer.zero_grad()
        raw = made(s)
        gap = raw.detach().clamp(LOW, HIGH) - target
        distances.append(float(gap.abs().sum()))
        raw.backward(gap.sign())  # of |gap|, straight through the clamp
        optimizer.step()
    return weights_of(made), distances, learnt


def own_model_of(run: tiny.Federation, k: int, rows: np.ndarray) -> Tensor:
    """A client's own logits: the largest λ alone, their A and B tuned on its rows."""
    m, t = run.method, run.server.round.index
    assert isinstance(m, FedP2EFT)
    start, steps = by_hand.start_of(run, k, t), by_hand.steps_of(run, k, t)
    scores = network(by_hand.shared(run))(described(run, k)).detach().clamp(LOW, HIGH)
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    keep = torch.zeros_like(scores)
    keep[order[: m.budget * len(scores) // m.rank]] = 1
    a, b, scores = fit(run, start, scores * keep, steps, None)
    head = {n: v for n, v in start.items() if n.startswith("head/")}
    return by_hand.logits(run, put_together(run, a, b, scores, head), rows, SCALE).detach()


def head_of(run: tiny.Federation) -> dict[str, Tensor]:
    return {n: v.double() for n, v in by_hand.shared(run).items() if n.startswith("head/")}


# a run --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SMALL, BALANCED], ids=["defaults", "balanced"])
def test_three_rounds_by_hand_with_a_client_that_is_away_and_comes_back(method: FedP2EFT) -> None:
    run = tiny.federation(method, **ABOUT)
    sizes = [6, 5, 7]
    opened = False  # λ comes away from its bound
    for t, present in enumerate(cohorts.ABSENT[:3]):
        phi = {n: v for n, v in by_hand.shared(run).items() if n.startswith("generator/")}
        ends = []
        for k in present:
            end, distances, learnt = turn(run, phi, k, t)
            ends.append(end)
            opened |= bool((learnt > 10 * LOW).any())
            assert distances[-1] < distances[0]
        cohorts.play(run, t, present)
        total = sum(sizes[k] for k in present)
        for name in phi:
            wanted = sum(sizes[k] / total * e[name] for k, e in zip(present, ends, strict=True))
            assert isinstance(wanted, Tensor)
            by_hand.close(by_hand.shared(run)[name], wanted, by_hand.ADAM)
            assert not torch.equal(wanted, phi[name]) or name.endswith("slope")  # idle where all hidden units are positive
    assert opened
    rows = {c.id: c.data.test for c in run.clients}
    found = run.personal_logits("personal", rows, torch.float64)
    for k, client in enumerate(run.clients):
        by_hand.close(found[client.id], own_model_of(run, k, client.data.test), by_hand.ADAM)
        bare = by_hand.logits(run, head_of(run), client.data.test).detach()
        assert not torch.allclose(found[client.id], bare, rtol=0, atol=100 * by_hand.ADAM) or method is SMALL


@pytest.mark.parametrize("law", ["pack", "sites", "scores", "single precision", "return"])
def test_laws_hold_at_the_papers_own_prior_too(law: str) -> None:
    """It presses λ against its bound, where the target of stage 2 lies too: what is there has to be there exactly."""
    laws.check(FedP2EFT(), law)


def test_nothing_but_the_generator_changes_and_nothing_else_leaves_a_client() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    before, base, lora = by_hand.shared(run), frozen_fingerprint(run.bench.backbone), lora_of(run.pack())
    seen = by_hand.record(run)
    run.run()
    after = by_hand.shared(run)
    assert {n.split("/")[0] for n in after} == {"generator", "head"}
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("head/")
    assert frozen_fingerprint(run.bench.backbone) == base
    assert not any(by_hand.kept(run).values())
    assert all(torch.equal(v, lora[n]) for n, v in lora_of(run.pack(t=2)).items())
    generator = {n for n in after if n.startswith("generator/")}
    assert all(set(u.tensors) == generator and not u.facts for updates in seen for u in updates)
    assert {len(updates) for updates in seen} == {3}


def lora_of(pack: Pack) -> dict[str, Tensor]:
    found = {n: v.detach().clone() for n, v in pack.params("lora").items()}
    for name, value in found.items():  # every client has the same seeded A, and B = 0
        assert torch.equal(value, value[:1].expand_as(value))
        assert bool(value.any()) == name.endswith("/A")
    return found


# statistics ---------------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_a_clients_rows_whatever_the_pack_the_passes_and_their_order() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    together = fedp2eft.statistics(run.pack(), 3)
    for k, client in enumerate(run.clients):
        by_hand.close(together[k], described(run, k), 1e-11)
        for size in (1, 4, 50):
            by_hand.close(fedp2eft.statistics(run.pack([k], t=size), size)[0], together[k], 1e-11)
        before = client.data
        client.data = replace(before, train=before.train[::-1].copy())
        by_hand.close(fedp2eft.statistics(run.pack([k]), 3)[0], together[k], 1e-11)
        client.data = before
    assert not torch.allclose(together[0], together[1], rtol=1e-3)
    assert len({int(n) for n in run.bench.table.lengths}) > 5, "clients pad each other's rows"


def test_statistics_do_not_begin_behind_the_cached_blocks_nor_see_the_lora() -> None:
    top = replace(SMALL, sites="names:bert.encoder.layer.2.output.dense")
    plain, cached = (tiny.federation(top, **ABOUT, prefix=p) for p in (False, True))
    packs = [run.pack() for run in (plain, cached)]
    for pack in packs:
        for name, value in pack.params("lora").items():
            pack.tensors[name] = value + 1.0
    found = [fedp2eft.statistics(pack, 3) for pack in packs]
    assert torch.equal(found[0], found[1])
    by_hand.close(found[0][1], described(plain, 1), 1e-11)


def test_clients_with_the_same_rows_get_the_same_pattern_and_others_another() -> None:
    run = tiny.federation(BALANCED, **ABOUT).run()
    run.clients[1].data = run.clients[0].data
    pack = run.pack(t=2)
    run.method.personalise(pack)
    same, other = pack.tensors[SCORES][:2], pack.tensors[SCORES][2]
    by_hand.close(same[0], same[1], 1e-10)
    assert torch.equal(same[0] > 0, same[1] > 0)
    assert not torch.allclose(same[0], other)


# the generator ------------------------------------------------------------------------------------------------------------


def test_at_the_start_every_score_of_every_client_is_1e_4() -> None:
    run = tiny.federation(FedP2EFT(), **ABOUT)
    pack = run.pack()
    raw = fedp2eft.Generator.read({n.rsplit("/", 1)[1]: w for n, w in pack.params("generator").items()}, statistics(pack))
    scores = run.method.scores(pack, statistics(pack))  # type: ignore[attr-defined]
    assert scores.shape == (3, 32 * 20)
    assert float((raw - LOW).abs().max()) < 1e-6
    assert 0 < float((scores - LOW).abs().max()) < 1e-6
    w = {n.rsplit("/", 1)[1]: v[0] for n, v in pack.params("generator").items()}
    for name, (rows, columns) in (("in", (80, 40)), ("out", (640, 80))):
        wanted = torch.empty(rows, columns, dtype=torch.float64)
        nn.init.xavier_normal_(wanted, gain=1e-6, generator=torch.Generator().manual_seed(0))
        assert w[name].shape == wanted.shape
        assert abs(float(w[name].std() / wanted.std()) - 1) < 0.05
    assert float(w["slope"]) == nn.PReLU().weight.item()
    for name in ("in_bias", "out_bias"):
        by_hand.close(w[name], torch.full_like(w[name], LOW), 1e-10)


def statistics(pack: Pack) -> Tensor:
    return fedp2eft.statistics(pack, 3)


def test_the_clamp_is_exact_and_its_gradient_is_one_everywhere() -> None:
    x = torch.tensor([-3.0, -1e-9, 5e-5, LOW, 0.3, 1.0, HIGH, 2e7], dtype=torch.float64, requires_grad=True)
    y = fedp2eft.through(x)
    assert torch.equal(y, x.detach().clamp(LOW, HIGH))
    y.square().sum().backward()
    assert torch.equal(x.grad, 2 * y.detach())


def test_stage_two_is_still_where_scores_and_target_lie_at_one_bound() -> None:
    """In a turn of one step the prior alone moves λ, down to the bound; where the generator is there already, φ stays."""
    run = tiny.federation(replace(SMALL, steps=1), **ABOUT)
    cohorts.play(run, 0, (0,))
    assert float(raw_scores(run, 0).max()) < LOW
    before = by_hand.shared(run)
    cohorts.play(run, 1, (0,))
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def raw_scores(run: tiny.Federation, k: int) -> Tensor:
    return network(by_hand.shared(run))(described(run, k)).detach()


# what is kept -------------------------------------------------------------------------------------------------------------


def kept(run: tiny.Federation, budget: int) -> Tensor:
    """[K, layers, r] bool."""
    pack = run.pack(t=2)
    replace(run.method, budget=budget, rank=4).personalise(pack)  # type: ignore[arg-type]
    return pack.tensors[SCORES].unflatten(1, (len(linears(run)), -1)) > 0


@pytest.mark.parametrize("rounds", [0, 3])
def test_budgets_are_nested_and_their_ranks_add_up_over_all_layers(rounds: int) -> None:
    run = tiny.federation(replace(BALANCED, rank=4), **ABOUT).run(rounds)
    smaller = torch.zeros(3, len(linears(run)), 4, dtype=torch.bool)
    for budget in (1, 2, 3, 4):
        found = kept(run, budget)
        assert found.sum((1, 2)).tolist() == [budget * len(linears(run))] * 3
        assert bool((found | ~smaller).all())
        if budget in (1, 2):
            assert len(set(found.sum(2)[0].tolist())) > 1, "ranks differ from layer to layer"
        smaller = found
    assert bool(smaller.all())


def test_what_is_not_kept_can_be_cut_off_and_the_scale_stays() -> None:
    """Rows of A and columns of B with λ = 0 are deleted; α/r is of the whole."""
    run = tiny.federation(BALANCED, **ABOUT).run()
    pack = run.pack([0], t=2)
    run.method.personalise(pack)
    values = {n: pack.tensors[n][0].detach() for n in pack.tensors if n.startswith(("head/", "lora/"))}
    mask = (pack.tensors[SCORES][0] > 0).unflatten(0, (len(linears(run)), -1))
    cut = {n: v for n, v in values.items() if n.startswith("head/")}
    for name, keep in zip(linears(run), mask, strict=True):
        cut |= {f"lora/{name}/A": values[f"lora/{name}/A"][keep], f"lora/{name}/B": values[f"lora/{name}/B"][:, keep]}
    assert not mask.any(1).all(), "a layer is left out altogether"
    rows = run.clients[0].data.test
    found = pack.predict(lambda p, b: run.method.forward(p, b), [rows], dtype=torch.float64)[0]
    by_hand.close(found, by_hand.logits(run, cut, rows, SCALE), 1e-12)


def test_the_head_takes_in_what_is_kept_of_its_own_lora() -> None:
    """An export writes a head whole, and no LoRA beside it."""
    run = tiny.federation(replace(BALANCED, budget=2), **ABOUT).run(1)
    pack = run.pack(t=0)
    run.method.personalise(pack)
    for k in range(3):
        assert bool((pack.tensors[SCORES][k].unflatten(0, (len(linears(run)), -1))[-1] > 0).any())
        assert not torch.allclose(pack.tensors["head/classifier/weight"][k], head_of(run)["head/classifier/weight"], atol=1e-3)
        assert torch.equal(pack.tensors["head/classifier/bias"][k], head_of(run)["head/classifier/bias"])
    assert not pack.tensors["lora/classifier/B"].any()
    rows = {c.id: c.data.test for c in run.clients}
    found = run.personal_logits("personal", rows, torch.float64)
    for k, client in enumerate(run.clients):
        by_hand.close(found[client.id], own_model_of(run, k, client.data.test), by_hand.ADAM)


def test_with_scores_of_one_it_is_plain_lora_and_with_none_the_backbone() -> None:
    run = tiny.federation(BALANCED, **ABOUT)
    pack = run.pack([0])
    g = torch.Generator().manual_seed(2)
    for name, value in pack.params("lora/*/B").items():
        pack.tensors[name] = torch.randn(value.shape, generator=g, dtype=value.dtype)
    values = {n: v[0] for n, v in pack.tensors.items()}
    head = {n: v for n, v in values.items() if n.startswith("head/")}
    lora = {n: v for n, v in values.items() if n.startswith("lora/")}
    rows = run.clients[0].data.test
    for scores, wanted in ((torch.ones, head | lora), (torch.zeros, head)):
        pack.tensors[SCORES] = scores(1, pack.tensors[SCORES].shape[1], dtype=torch.float64)
        with pack.values(fedp2eft.weighted(pack)):
            found = pack.predict(lambda p, b: run.method.forward(p, b), [rows], dtype=torch.float64)[0]
        by_hand.close(found, by_hand.logits(run, wanted, rows, SCALE), 1e-11)


def test_a_client_without_training_rows_predicts_as_the_backbone_and_one_that_never_trained_as_the_others() -> None:
    run = tiny.federation(BALANCED, rounds=2, model="bert", start=START)  # the fifth client has no rows
    cohorts.play(run, 0, (0, 3))
    cohorts.play(run, 1, (0, 5))
    rows = run.clients[0].data.test
    found = run.personal_logits("personal", {"client-4": rows, "client-1": rows}, torch.float64)
    by_hand.close(found["client-4"], by_hand.logits(run, head_of(run), rows), 1e-12)
    by_hand.close(found["client-1"], own_model_of(run, 1, rows), by_hand.ADAM)


def test_scoring_leaves_nothing_behind() -> None:
    plain, scored = (tiny.federation(SMALL, **ABOUT) for _ in range(2))
    for t in range(3):
        plain.simulation.round(t)
        scored.simulation.round(t)
        scored.personal_logits("personal")
    found = by_hand.shared(scored)
    assert all(torch.equal(v, found[n]) for n, v in by_hand.shared(plain).items())


def test_a_clients_model_is_exported_as_one_lora_for_peft(tmp_path: Path) -> None:
    run = tiny.federation(BALANCED, **ABOUT | {"precision": "float32"}).run()
    texts, rows = tiny.rows(len(run.bench.table), labels=run.bench.table.labels.tolist()).texts, np.arange(len(run.bench.table))
    assert texts is not None
    for client in (run.clients[0], run.clients[2]):
        folder = tmp_path / client.id
        folder.mkdir()
        run.simulation.setup.store.load(client)
        assert exported(run, folder, client=client).notes == []
        assert (folder / "adapter_config.json").exists()
        found = load(folder, device="cpu", precision="float32").logits(texts)
        torch.testing.assert_close(found, run.personal_logits("personal", {client.id: rows})[client.id], **RUN_CLOSE)


# on what, and how much ----------------------------------------------------------------------------------------------------


def test_a_model_that_writes_is_tuned_and_its_output_layer_is_left_alone() -> None:
    run = tiny.federation(replace(BALANCED, rank=2), "llama", task=GENERATION, rounds=2)
    layers = 3 * 7
    before = by_hand.shared(run)
    assert tuple(before["generator/values/in"].shape) == (4 * layers, 2 * layers)
    assert len(before["generator/values/out"]) == layers * 2
    run.run()
    assert not any(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())
    pack = run.pack(t=1)
    s, client = fedp2eft.statistics(pack, 3), run.clients[1]
    model, seen = own_model(run.bench.backbone), []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().flatten()))
    for row in client.data.train:
        model(**run.bench.table.collate(np.array([row])))
    place = [s.name for s in run.bench.backbone.linears].index("model.layers.1.mlp.down_proj")
    by_hand.close(s[1, [place, layers + place]], torch.stack([torch.cat(seen).mean(), by_spread(torch.cat(seen))]), 1e-11)
    run.method.personalise(pack)
    assert all(bool(torch.isfinite(v).all()) for v in pack.tensors.values())
    assert any(bool(v.any()) for v in pack.params("lora/*/B").values())
    with pytest.raises(UserError, match="fedp2eft describes rows") as caught:
        tiny.federation(FedP2EFT(), "t5", task=GENERATION)
    assert "\n" not in str(caught.value)


def by_spread(x: Tensor) -> Tensor:
    return (x.var(correction=0) + 1e-5).sqrt()


def test_layers_that_see_more_than_rows_are_tuned_and_not_described() -> None:
    run = tiny.federation(replace(SMALL, rank=2), "deberta-v2", sizes=(4, 3), pack=1)
    backbone = run.bench.backbone
    odd = [s for s in backbone.linears if not s.per_row]
    assert odd
    layers = len(backbone.linears) + len(backbone.outer) + len(backbone.heads)
    before = by_hand.shared(run)
    assert before["generator/values/in"].shape[1] == 2 * (layers - len(odd))
    assert len(before["generator/values/out"]) == 2 * layers
    assert {f"lora/{s.name}/A" for s in odd} <= set(run.pack([0]).tensors)
    run.run()
    assert not torch.equal(by_hand.shared(run)["generator/values/out"], before["generator/values/out"])


def mbert() -> Backbone:
    """Multilingual BERT with all its shapes and none of its 178 million numbers."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=119_547, num_labels=3))
        found = by_hand.shapes("mbert", model, {"input_ids": torch.ones(5, 3, dtype=torch.long)})
    return replace(found, outer=describe.outer_sites(model, found.blocks, {h.name for h in found.heads}))


def formula(described: int, tuned: int, rank: int) -> list[int]:
    features, entries = 2 * described, tuned * rank
    hidden = 2 * features
    return [hidden * features, hidden, 1, entries * hidden, entries]


def test_the_network_of_multilingual_bert_has_747_401_numbers() -> None:
    backbone, method = mbert(), FedP2EFT()
    assert sum(formula(74, 74, 32)) == 747_401
    assert by_hand.elements(method, backbone, Scope.UP, 3) == {"generator": 747_401}
    assert by_hand.elements(method, backbone, Scope.DOWN, 3) == {"generator": 747_401, "head": 3 * 768 + 3}
    assert not by_hand.elements(method, backbone, Scope.KEEP, 3)
    # whatever the rows of the LoRA are cut to, and however wide the layers
    assert by_hand.elements(replace(method, budget=16, alpha=1.0), backbone, Scope.UP, 3) == {"generator": 747_401}
    half = by_hand.elements(replace(method, rank=16), backbone, Scope.UP, 3)
    assert half == {"generator": sum(formula(74, 74, 16))}
    few = by_hand.elements(replace(method, sites="q,v"), backbone, Scope.UP, 3)
    assert few == {"generator": sum(formula(74, 26, 32))}


def test_defaults_are_the_codes() -> None:
    method = FedP2EFT()
    assert (method.rank, method.alpha, method.sites) == (32, 64.0, "all")
    assert (method.sparsity, method.prior, method.score_lr) == (100.0, 0.01, 1e-2)
    assert method.generator_steps == 10
    assert (method.epochs, method.batch, method.weighting) == (2.0, 32, "examples")
    assert method.optim == method.generator == Optim("adamw", lr=1e-4, weight_decay=0.0, schedule="constant")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"budget": 33}, "a budget of 33 ranks a layer is more than the 32 that there are"),
        ({"rank": 4, "budget": 5}, "choose a smaller method.budget, or a larger method.rank"),
        ({"budget": 0}, "budget ≥ 1, not 0"),
        ({"prior": -0.1}, "prior ≥ 0, not -0.1"),
        ({"score_lr": -1.0}, "score_lr ≥ 0"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        registry.build("fedp2eft", settings)
    assert "\n" not in str(caught.value)


# what other tests ask of this method --------------------------------------------------------------------------------------


def generator(turn: Turn) -> Sizes:
    """Of rank 2 at "q,ffn.in" of the tiny BERT; its pooler and classifier are described and tuned as well."""
    assert (D, WIDE) == (32, 64)  # on which nothing depends
    return {"generator": formula(LAYERS * 6 + 2, LAYERS * 2 + 2, 2)}


BYTES = Case({"rank": 2, **SITES}, generator, generator, head=False)
TINY = {"prior": 1e-12}  # after two steps λ is back from no stronger push of it, and φ stays where it is
