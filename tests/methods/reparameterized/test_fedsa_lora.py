"""FedSA-LoRA against its card: A is averaged; every client has a B and a head of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import tiny
from bytes_of import SITES, Case, one_factor
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.federation.layout import Adaptation
from weft.federation.message import ClientInfo
from weft.federation.scope import SHARED, Scope
from weft.methods import FedIT, FedSALoRA
from weft.tasks.classification import Classification

SMALL = FedSALoRA(rank=2, alpha=6.0, steps=3, batch=4, welcome_steps=4, optim=Optim("sgd", lr=0.3, schedule="constant"))


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, lr=0.3)


def test_nothing_but_a_and_the_example_count_crosses_the_wire() -> None:
    run = tiny.federation(SMALL, rounds=3)
    seen = by_hand.record(run)
    run.run()
    expected = {f"lora/{site}/A" for site in by_hand.sites(run)}
    for updates in seen:
        assert updates
        assert all(set(u.tensors) == expected and not u.facts for u in updates)
    message = run.method.send(run.server, run.clients[0].info(()))
    assert set(message.tensors) == expected
    assert not message.facts
    assert by_hand.elements(SMALL, run.bench.backbone, Scope.UP) == {"lora": 6 * 2 * 32}


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_everybody_gets_the_same_mean_of_a_and_no_two_have_the_same_b_or_head(weighting: str) -> None:
    run = tiny.federation(SMALL if weighting == "uniform" else replace(SMALL, weighting=weighting), rounds=2)
    seen = by_hand.record(run)
    run.run()
    pack = run.pack(t=2)
    counts = {u.client.id: u.client.n for u in seen[1]}
    assert len(set(counts.values())) > 1
    if weighting == "uniform":
        counts = dict.fromkeys(counts, 1)
    for site in by_hand.sites(run):
        a = pack.tensors[f"lora/{site}/A"]
        assert torch.equal(a, a[:1].expand_as(a))
        wanted = torch.zeros(2, 32, dtype=torch.float64)
        for u in seen[1]:
            sent = u.tensors[f"lora/{site}/A"]
            assert isinstance(sent, Tensor)
            wanted += counts[u.client.id] / sum(counts.values()) * sent
        by_hand.close(a[0], wanted)
    own = [v for c, v in by_hand.kept(run).items() if c in counts]
    for name in own[0]:
        for i, one in enumerate(own):
            assert all(not torch.equal(one[name], other[name]) for other in own[:i])


def test_each_client_trains_its_own_factors_and_head_from_the_common_start() -> None:
    """The released simulation hands B and the head from client to client; here nobody sees another's."""
    run = tiny.federation(SMALL, sizes=(9, 5, 7), rounds=1)
    wanted = {
        c.id: by_hand.train(run, by_hand.start_of(run, k), by_hand.steps_of(run, k, 0), sgd, scale=3.0)
        for k, c in enumerate(run.clients)
    }
    run.run()
    for client, values in by_hand.kept(run).items():
        assert {n.split("/")[0] for n in values} == {"lora", "head"}
        for name, found in values.items():
            by_hand.close(found, wanted[client][name])


def test_one_client_is_plain_local_lora() -> None:
    run = tiny.federation(SMALL, sizes=(9,), rounds=3)
    steps = [rows for t in range(3) for rows in by_hand.steps_of(run, 0, t)]
    wanted = by_hand.train(run, by_hand.start_of(run), steps, sgd, scale=3.0)
    run.run()
    for name, found in (by_hand.shared(run) | by_hand.kept(run)["client-0"]).items():
        by_hand.close(found, wanted[name])


def test_b_and_head_of_a_client_that_was_not_drawn_do_not_move() -> None:
    run = tiny.federation(SMALL, rounds=4, participation=0.5)
    for client, before, after in by_hand.play_and_see_who_stays(run, 4):
        if client != "client-4":  # which has no rows
            assert all(not torch.equal(v, before[n]) for n, v in after.items())


class Averaged(FedSALoRA):
    """What it would be if B and the head were averaged too."""

    def adapt(self, backbone: Backbone, task: Classification, client: ClientInfo) -> Adaptation:
        return {name: (part, SHARED) for name, (part, _) in super().adapt(backbone, task, client).items()}


def test_averaging_b_and_head_too_would_be_fedit() -> None:
    averaged = tiny.federation(Averaged(rank=2, alpha=6.0, steps=3, batch=4, optim=SMALL.optim), rounds=2).run()
    same = FedIT(rank=2, alpha=6.0, sites="q,v", weighting="uniform", steps=3, batch=4, optim=SMALL.optim)
    fedit = tiny.federation(same, rounds=2).run()
    for name, found in by_hand.shared(fedit).items():
        by_hand.close(by_hand.shared(averaged)[name], found, 1e-12)
    personal = tiny.federation(SMALL, rounds=2).run()
    name = f"lora/{by_hand.sites(fedit)[0]}/A"
    assert not torch.allclose(by_hand.shared(personal)[name], by_hand.shared(fedit)[name])


def test_a_has_no_gradient_in_the_very_first_step_and_one_in_the_second() -> None:
    for steps in (1, 2):
        run = tiny.federation(replace(SMALL, steps=steps), rounds=1)
        drawn = by_hand.shared(run)
        run.run()
        assert all(torch.equal(v, drawn[n]) == (steps == 1) for n, v in by_hand.shared(run).items())
        own = by_hand.kept(run)["client-0"]
        assert all(v.any() for n, v in own.items() if n.endswith("/B"))


def test_a_client_predicts_with_its_own_b_and_head_and_the_newest_average_of_a() -> None:
    run = tiny.federation(SMALL, rounds=2)
    seen = by_hand.record(run)
    run.run()
    found = by_hand.personal_logits(run)
    kept = by_hand.kept(run)
    for client in run.clients:
        if not client.n:
            continue
        newest = by_hand.shared(run) | kept[client.id]
        by_hand.close(found[client.id], by_hand.logits(run, newest, client.data.test, 3.0).float(), 1e-5)
        (mine,) = (u.tensors for u in seen[-1] if u.client.id == client.id)
        just_trained = newest | {n: v for n, v in mine.items() if isinstance(v, Tensor)}
        other = by_hand.logits(run, just_trained, client.data.test, 3.0).float()
        assert not torch.allclose(found[client.id], other, atol=1e-4)


def test_a_client_never_trained_here_is_welcomed_with_a_few_steps_on_b_and_head_that_are_forgotten() -> None:
    run = tiny.federation(SMALL, rounds=2)
    run.clients, late = run.clients[:3], run.clients[3]
    run.simulation.setup.federations = [(run.server, run.clients)]
    run.run()
    run.clients = [late]
    start = by_hand.start_of(run)
    assert not any(v.any() for n, v in start.items() if n.endswith("/B"))
    train = replace(SMALL, steps=SMALL.welcome_steps)
    run.method, method = train, run.method
    steps = by_hand.steps_of(run, 0, run.server.round.index)
    run.method = method
    wanted = by_hand.train(run, start, steps, sgd, scale=3.0, only=lambda n: not n.endswith("/A"))
    (found,) = by_hand.personal_logits(run).values()
    by_hand.close(found, by_hand.logits(run, wanted, late.data.test, 3.0).float(), 1e-5)
    pack = run.pack([0], run.server.round.index)
    run.method.personalise(pack)
    assert all(torch.equal(pack.tensors[n][0], v) == n.endswith("/A") for n, v in start.items()), (
        "A is for all, B and head its own"
    )
    unwelcomed = by_hand.logits(run, start, late.data.test, 3.0).float()
    assert not torch.allclose(found, unwelcomed, atol=1e-4)
    assert not by_hand.kept(run)[late.id]


def test_clients_that_were_trained_are_not_fitted_again_before_a_test() -> None:
    rows = np.arange(12)
    few, many = (tiny.federation(replace(SMALL, welcome_steps=w), rounds=1).run() for w in (1, 30))
    one, other = by_hand.personal_logits(few, rows=rows), by_hand.personal_logits(many, rows=rows)
    assert all(torch.equal(one[c], other[c]) for c in one)


def test_on_roberta_base_a_client_sends_half_of_lora_and_no_head() -> None:
    sent = by_hand.elements(FedSALoRA(), by_hand.roberta_base(), Scope.UP)
    assert sent == {"lora": 12 * 2 * 8 * 768}
    assert by_hand.elements(FedSALoRA(), by_hand.roberta_base(), Scope.DOWN) == sent
    kept = by_hand.elements(FedSALoRA(), by_hand.roberta_base(), Scope.KEEP)
    assert kept == sent | {"head": 592_130}  # B is as large as A in square layers


def test_defaults_are_the_codes() -> None:
    method = FedSALoRA()
    # Pengxin-Guo/FedSA-LoRA, federatedscope/glue/yamls/fedsa-lora.yaml: r 8, lora_alpha 16, PEFT's targets of RoBERTa
    assert (method.sites, method.rank, method.alpha) == ("q,v", 8, 16.0)
    # the same: local_update_steps 10, batch_or_epoch batch, batch_size 128, lr 2e-2; core/configs: SGD, grad.grad_clip -1
    assert (method.steps, method.batch) == (10, 128)
    assert method.optim == Optim("sgd", lr=2e-2, momentum=0.0, weight_decay=0.0, schedule="constant")
    # clients_avg_aggregator.py: by ctx.num_samples, the rows that a turn has worked through (glue/trainer/trainer.py), which
    # are 10 · 128 for everybody; local_param ['lora_B', 'classifier']
    assert (method.weighting, method.info.views) == ("uniform", ("personal",))


def test_a_new_client_has_test_rows_only_and_predicts_with_the_head_it_starts_from() -> None:
    run = tiny.federation(SMALL, rounds=2)
    rows = run.clients[0].data.test
    run.simulation.setup.tests = replace(run.simulation.setup.tests, unseen={"new": rows})
    run.run()
    found = run.simulation.turns.scoring.personal("personal", 1)
    (accuracy,) = (e.value for e in found if (e.people, e.metric) == ("new clients", "accuracy"))
    start = {n: v for n, v in by_hand.start_of(tiny.federation(SMALL)).items() if n.startswith("head/")}
    says = by_hand.logits(run, start, rows).argmax(1)
    assert accuracy == float((says == by_hand.labels(run, rows)).double().mean())
    assert "B = 0 and the head's start value" in FedSALoRA.info.deviations


# what other tests ask of this method --------------------------------------------------------------------------------------


BYTES = Case(SITES | {"rank": 2}, one_factor(lambda t: "A"), one_factor(lambda t: "A"), head_stays=True)
PAGE_SAYS = {"weighting": "as in effect in the code"}
