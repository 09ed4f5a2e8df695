"""Preferences in federations: the laws, loss and gradient against two explicit models, and what the reference is."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from every_method import short
from run_laws import LAWS, Law, keep
from weft.adaptation.optim import Optim
from weft.data import Rows
from weft.experiment import Experiment
from weft.federation.batch import make_batch
from weft.methods import FedIT, FLoRA
from weft.runs.prepare import bench_of, told
from weft.testing.federation import Federation
from weft.testing.plays import Plays

BETA = 0.1


@pytest.fixture(scope="module", params=[("fedit", "llama"), ("flora", "t5")], ids="-".join)
def played(request: pytest.FixtureRequest) -> Plays:
    slug, kind = request.param
    return Plays(short(slug), task="preference", kind=kind)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_federations_that_learn_preferences_keep_the_laws(law: Law, played: Plays) -> None:
    keep(law, played)


def tuned(kind: str, rounds: int) -> Federation:
    method = FedIT(rank=4, alpha=8.0, batch=4, sites="all", epochs=3.0, optim=Optim("adamw", lr=1e-2))
    return tiny.federation(method, kind, task="preference", rounds=rounds)


def scores(run: Federation, rows: np.ndarray) -> dict[str, float]:
    seen = run.server.pack().observe(lambda p, b: run.method.forward(p, b, "global"), [rows])[0]
    assert seen is not None
    return {s.metric: s.value for s in run.bench.task.score(seen)}


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_nothing_is_won_before_training_and_nearly_all_after_three_rounds(kind: str) -> None:
    run = tuned(kind, 3)
    rows = np.concatenate([client.data.train for client in run.clients])
    pack = run.pack()
    batch = next(iter(pack.batches(size=4)))
    losses = pack.loss(run.method.forward(pack, batch), batch)
    np.testing.assert_allclose(losses.detach().numpy(), math.log(2), rtol=0, atol=1e-14)
    first = scores(run, rows)
    assert (first["reward_accuracy"], first["loss"]) == (0.0, pytest.approx(math.log(2), abs=1e-14))
    run.run()
    last = scores(run, rows)
    assert last["reward_accuracy"] > 0.8
    assert last["reward_margin"] > 0
    assert last["loss"] < first["loss"]


def test_a_pack_observes_what_each_client_observes_alone() -> None:
    run = tuned("llama", 1).run()
    rows = [np.array([3, 9]), np.array([20, 0, 4]), np.array([1])]
    packed = run.pack([0, 1, 3]).observe(run.method.forward, rows)
    for k, own, seen in zip((0, 1, 3), rows, packed, strict=True):
        alone = run.pack([k]).observe(run.method.forward, [own])[0]
        assert seen is not None
        assert alone is not None
        np.testing.assert_allclose(seen["margin"], alone["margin"], rtol=1e-9, atol=1e-12)
        assert np.abs(alone["margin"]).min() > 1e-4


# against two models ---------------------------------------------------------------------------------------------------------


class LoRA(nn.Module):
    """W x + s B A x, in plain PyTorch."""

    def __init__(self, frozen: nn.Linear, a: Tensor, b: Tensor, scale: float):
        super().__init__()
        self.frozen, self.scale = frozen, scale
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x) + self.scale * (x @ self.a.mT @ self.b.mT)
        return out


def plain_log_probability(model: Any, run: Federation, prompt: str, answer: str) -> Tensor:
    """log π(answer | prompt) of one sequence by itself, of tokens that are put together here."""
    words, apart = run.bench.backbone.tokenizer, run.bench.backbone.encoder_decoder
    assert not apart
    frame = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{prompt}\n\n### Response:\n"
    )
    before = words(frame)["input_ids"]
    after = [*words(answer, add_special_tokens=False)["input_ids"], words.eos_token_id]
    z = model(input_ids=torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
    return z[len(before) - 1 : -1].gather(1, torch.tensor(after)[:, None]).sum()


def dpo(policy: Any, reference: Any, run: Federation, index: list[int], rows: Rows) -> Tensor:
    """The mean loss of rows, with both models at work."""
    losses = []
    for i in index:
        prompt, two = rows.texts[i], (rows.answers[i], rows.rejected[i])  # type: ignore[index]
        pi = [plain_log_probability(policy, run, prompt, answer) for answer in two]
        with torch.no_grad():
            ref = [plain_log_probability(reference, run, prompt, answer) for answer in two]
        losses.append(-torch.log(torch.sigmoid(BETA * ((pi[0] - ref[0]) - (pi[1] - ref[1])))))
    return torch.stack(losses).mean()


def test_loss_and_gradient_are_those_of_two_models_in_plain_pytorch() -> None:
    from weft.testing.data import states

    run = tuned("llama", 1).run()  # so that B is not zero
    rows, _, _ = states(task="preference")
    run.bench.table = bench_table(run, rows)
    pack = run.pack([0, 1, 3])
    index = np.array([[0, 4, 2], [11, -1, -1], [21, 22, -1]])
    batch = make_batch(pack.task, run.bench.table, index, None, pack.device)
    names = {name: value for name, value in pack.tensors.items() if name in pack.shapes}
    for name, value in names.items():
        pack.tensors[name] = value.detach().clone().requires_grad_()
    losses = pack.loss(run.method.forward(pack, batch), batch)
    losses.sum().backward()
    for k, own in enumerate(index):
        frozen = run.bench.backbone.model
        policy = copy.deepcopy(frozen)
        lora = {}
        for site in run.bench.backbone.sites(run.method.sites):  # type: ignore[attr-defined]
            at, _, last = site.name.rpartition(".")
            a, b = (pack.tensors[f"lora/{site.name}/{role}"][k].detach() for role in "AB")
            lora[site.name] = LoRA(policy.get_submodule(site.name), a, b, 8.0 / 4)
            setattr(policy.get_submodule(at), last, lora[site.name])
        wanted = dpo(policy, frozen, run, [int(i) for i in own if i >= 0], rows)
        wanted.backward()
        assert float(losses[k].detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
        assert abs(float(wanted.detach()) - math.log(2)) > 1e-6
        for name, module in lora.items():
            for role, there in (("A", module.a), ("B", module.b)):
                mine = pack.tensors[f"lora/{name}/{role}"].grad
                assert mine is not None
                assert there.grad is not None
                torch.testing.assert_close(mine[k], there.grad, rtol=1e-9, atol=1e-12)


def bench_table(run: Federation, rows: Rows) -> Any:
    """Of rows that are longer than others with their template: nothing is cut."""
    from weft.backbones.run_table import tabulate

    return tabulate(run.bench.backbone, rows, 60)


def test_the_reference_is_the_model_before_training_also_where_what_was_learnt_has_become_part_of_it() -> None:
    """FLoRA adds each round's update to a delta that stays on: the reference is still without it."""
    method = FLoRA(rank=2, batch=4, sites="q,v", epochs=3.0, optim=Optim("adamw", lr=1e-2))
    run = tiny.federation(method, "llama", task="preference", rounds=2).run()
    pack, table = run.server.pack(), run.bench.table
    rows = np.arange(6)
    batch = make_batch(pack.task, table, rows[None], None, pack.device)
    with torch.no_grad():
        off, now = (pack(batch, use).cross_entropy(batch.labels) for use in ({}, None))
    sums = {name: -each.view(6, 2, -1).sum(-1) for name, each in (("off", off), ("now", now))}
    fresh = bench_reference(run, rows)
    assert float((sums["off"] - fresh).abs().max()) > 1e-3, "with its parts off the server's model is no longer the first one"
    seen = pack.observe(lambda p, b: method.forward(p, b), [rows])[0]
    assert seen is not None
    reward = BETA * (sums["now"] - fresh)
    np.testing.assert_allclose(seen["margin"], (reward[:, 0] - reward[:, 1]).numpy(), rtol=1e-8)


def bench_reference(run: Federation, rows: np.ndarray) -> Tensor:
    """Of a table that nobody has asked before, after training."""
    table: Any = copy.copy(run.bench.table)
    object.__setattr__(table, "known", np.full((len(table), 2), np.nan))
    found: Tensor = table.beside(rows[None])[0]
    return found


# experiments ----------------------------------------------------------------------------------------------------------------


def test_experiments_on_two_answers_are_of_preference_and_generation_learns_the_chosen_ones() -> None:
    run = tuned("llama", 1)
    rows = Rows(texts=["w1", "w2"], answers=["w3", "w4"], rejected=["w5", "w6"])
    assert told(Experiment(), rows).task == "preference"
    chosen = Experiment(task="preference", preference_beta=0.3)
    bench = bench_of(chosen, run.bench.backbone, ("answer",), rows)
    assert (bench.task.kind, bench.task.beta, bench.prefix) == ("preference", 0.3, None)  # type: ignore[attr-defined]
    assert bench.table.beside(np.array([[0]])) is not None
    plain = bench_of(Experiment(task="generation"), run.bench.backbone, ("answer",), rows)
    assert (len(plain.table), plain.table.wanted, plain.table.beside(np.array([[0]]))) == (2, ("w3", "w4"), None)  # type: ignore[union-attr]
