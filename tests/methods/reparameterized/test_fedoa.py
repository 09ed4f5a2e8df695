"""FedOA against its card: the common LoRA as in FedIT, and each client's own one, whose features stay near the common one's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import SITES, Case, factors_and_head
from weft.contract import Optim, Scope, Update
from weft.errors import UserError
from weft.federation.batch import Batch, make_batch
from weft.federation.pack import Pack
from weft.methods import FedIT, FedOA

SCALE, RATE = 3.0, 0.3
SMALL = FedOA(rank=2, alpha=6.0, sites="q", steps=2, batch=3, optim=Optim("sgd", lr=RATE, schedule="constant"))
SAME = FedIT(rank=2, alpha=6.0, sites="q", steps=2, batch=3, weighting="uniform", optim=SMALL.optim)
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}
Values = dict[str, Tensor]


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, RATE)


def parts(values: Values, *names: str) -> Values:
    return {n: v for n, v in values.items() if n.split("/")[0] in names}


def own_phase(run: tiny.Federation, received: Values, own: Values, steps: list[np.ndarray], pull: float) -> Values:
    """p after its steps; the common LoRA and the head stand still."""
    leaves = {n: v.clone().requires_grad_(True) for n, v in own.items()}
    opt = sgd(list(leaves.values()))
    head = parts(received, "head")
    for rows in steps:
        opt.zero_grad()
        _, common = by_hand.seen(run, parts(received, "lora") | head, rows, SCALE)
        logits, features = by_hand.seen(run, leaves | head, rows, SCALE)
        apart = torch.linalg.matrix_norm(features - common.detach(), "fro")
        (F.cross_entropy(logits, by_hand.labels(run, rows)) + pull * apart).backward()
        opt.step()
    return {n: v.detach() for n, v in leaves.items()}


@pytest.mark.parametrize("pull", [0.5, 0.0])
def test_four_rounds_by_hand_with_clients_that_are_away(pull: float) -> None:
    run = tiny.federation(replace(SMALL, pull=pull), **ABOUT)
    own = {k: parts(by_hand.start_of(run, k), "mine") for k in range(3)}
    for t, present in enumerate(cohorts.ABSENT):
        received = by_hand.shared(run)
        assert {n.split("/")[0] for n in received} == {"lora", "head"}
        ends = []
        for k in present:
            steps = by_hand.steps_of(run, k, t)
            if t > 0:
                own[k] = own_phase(run, received, own[k], steps, pull)
            ends.append(by_hand.train(run, received, steps, sgd, scale=SCALE))
        cohorts.play(run, t, present)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, sum(e[name] for e in ends) / len(ends))  # type: ignore[arg-type]
        for k, client in enumerate(run.clients):
            found = by_hand.kept(run)[client.id]
            assert found.keys() == own[k].keys()
            for name, value in found.items():
                by_hand.close(value, own[k][name])
    received = by_hand.shared(run)
    rows = {c.id: c.data.test for c in run.clients}
    for k, client in enumerate(run.clients):
        for view, part in (("personal", own[k]), ("global", parts(received, "lora"))):
            wanted = by_hand.logits(run, part | parts(received, "head"), client.data.test, SCALE)
            found_logits = run.personal_logits(view, rows, torch.float64)[client.id]
            by_hand.close(found_logits, wanted.detach())


@pytest.mark.parametrize("present", [cohorts.ABSENT, ((0, 1), (1, 2), (0, 2), (0, 1, 2))])
def test_the_common_lora_and_the_head_are_fedits_to_the_last_bit(present: tuple[tuple[int, ...], ...]) -> None:
    run, plain = (tiny.federation(m, **ABOUT) for m in (replace(SMALL, pull=5.0), SAME))
    for t, some in enumerate(present):
        cohorts.play(run, t, some)
        cohorts.play(plain, t, some)
        found, wanted = by_hand.shared(run), by_hand.shared(plain)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(v, wanted[n]) for n, v in found.items())


def test_each_phase_leaves_the_lora_of_the_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(SMALL, **ABOUT).run(1)
    pack = run.pack(t=1)
    received = {n: v.clone() for n, v in pack.tensors.items()}
    between: Values = {}
    fit = FedOA.fit

    def watched(self: FedOA, pack: Pack, *args: Any) -> Iterable[Update]:
        between.update({n: v.detach().clone() for n, v in pack.tensors.items()})
        return fit(self, pack, *args)

    monkeypatch.setattr(FedOA, "fit", watched)
    list(run.method.train(pack))
    for name, value in received.items():
        mine = name.startswith("mine/")
        assert torch.equal(between[name], value) != mine
        assert torch.equal(pack.tensors[name], between[name]) == mine


def test_there_is_no_own_lora_yet_in_the_first_round() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    drawn = {k: parts(by_hand.start_of(run, k), "mine") for k in range(3)}
    run.run(1)
    for k, client in enumerate(run.clients):
        assert all(torch.equal(v, drawn[k][n]) for n, v in by_hand.kept(run)[client.id].items())


def a_pack(run: tiny.Federation) -> Pack:
    """Clients in the second round, whose own LoRAs are unlike the common one."""
    pack = run.pack(t=1)
    g = torch.Generator().manual_seed(3)
    for name, value in pack.params("mine").items():
        pack.tensors[name] = value + 0.3 * torch.randn(value.shape, generator=g, dtype=value.dtype)
    return pack


def near_of(run: tiny.Federation) -> Callable[[Pack, Batch], Tensor]:
    """The loss of the personal phase."""
    assert isinstance(run.method, FedOA)
    return run.method.near


def batch_of(run: tiny.Federation, index: list[list[int]]) -> Batch:
    return make_batch(run.bench.task, run.bench.table, np.array(index), None, run.bench.backbone.device)


def test_the_distance_is_the_frobenius_norm_over_a_clients_rows_and_leaves_padding_out() -> None:
    # of a row that is all padding, queries change nothing
    run = tiny.federation(replace(SMALL, pull=1.0, sites="q,v"), **ABOUT).run(1)
    pack, index = a_pack(run), [[0, 1, 2, 3], [11, 12, -1, -1], [21, -1, -1, -1]]
    batch = batch_of(run, index)
    found = near_of(run)(pack, batch) - pack.loss(pack(batch, use={"mine": 1.0}), batch)
    for k, row in enumerate(index):
        values = {n: v[k] for n, v in pack.tensors.items()}
        rows = np.array([i for i in row if i >= 0])
        _, own = by_hand.seen(run, parts(values, "mine", "head"), rows, SCALE)
        _, common = by_hand.seen(run, parts(values, "lora", "head"), rows, SCALE)
        by_hand.close(found[k], (own - common).square().sum().sqrt())


def test_the_distance_grows_as_the_root_of_the_number_of_equal_rows() -> None:
    run = tiny.federation(replace(SMALL, pull=1.0), **ABOUT).run(1)
    pack = a_pack(run)

    def apart(times: int) -> Tensor:
        batch = batch_of(run, [[0] * times, [11] * times, [21] * times])
        return near_of(run)(pack, batch) - pack.loss(pack(batch, use={"mine": 1.0}), batch)

    assert float(apart(1).min()) > 1e-3
    by_hand.close(apart(9), 3 * apart(1))


def test_equal_loras_are_nothing_apart_and_the_norm_has_no_slope_there() -> None:
    run = tiny.federation(replace(SMALL, pull=1e6), **ABOUT).run(1)
    pack = run.pack(t=1)
    pack.copy("lora", "mine")
    batch = next(iter(pack.batches(size=4)))
    for name, value in pack.params("mine").items():
        pack.tensors[name] = value.requires_grad_(True)
    plain = pack.loss(pack(batch, use={"mine": 1.0}), batch)
    loss = near_of(run)(pack, batch)
    assert torch.equal(loss, plain)
    leaves = list(pack.params("mine").values())
    slopes, wanted = (torch.autograd.grad(value.sum(), leaves) for value in (loss, plain))
    assert any(bool(w.any()) for w in wanted)
    for found, slope in zip(slopes, wanted, strict=True):
        by_hand.close(found, slope, 1e-12)


def test_no_gradient_reaches_the_common_lora_or_the_backbone() -> None:
    run = tiny.federation(replace(SMALL, pull=2.0), **ABOUT).run(1)
    pack = a_pack(run)
    for name, value in pack.params("*").items():
        pack.tensors[name] = value.detach().clone().requires_grad_(True)
    batch = next(iter(pack.batches(size=4)))
    own, common = pack.params("mine"), pack.params("lora")
    leaves = [*own.values(), *common.values()]
    slopes = torch.autograd.grad(near_of(run)(pack, batch).sum(), leaves, allow_unused=True)
    assert all(g is not None and bool(g.any()) for g in slopes[: len(own)])
    assert all(g is None for g in slopes[len(own) :])
    assert not any(p.requires_grad for p in run.bench.backbone.model.parameters())


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_without_a_pull_the_own_lora_knows_nothing_of_the_common_one(pull: float) -> None:
    found = []
    for factor in (1.0, 5.0):
        run = tiny.federation(replace(SMALL, pull=pull), **ABOUT).run(1)
        pack = run.pack(t=1)
        for name, value in pack.params("lora").items():
            pack.tensors[name] = factor * value
        list(run.method.train(pack))
        found.append(pack.params("mine"))
    assert all(torch.equal(v, found[1][n]) for n, v in found[0].items()) == (pull == 0)


def test_a_strong_pull_brings_the_features_to_those_of_the_common_lora() -> None:
    optim, left = Optim("adamw", lr=0.02), {}
    for pull in (0.0, 1e3):
        run = tiny.federation(replace(SMALL, pull=pull), **ABOUT).run(1)
        pack = run.pack(t=1)
        rows = batch_of(run, [list(c.data.train[:5]) for c in run.clients])
        before = between(pack, rows)
        pack.minimise(near_of(run), ("mine",), optim, 1.0, 60, 3)
        left[pull] = between(pack, rows) / before
    assert left[1e3] < 0.3 < left[0.0]


@torch.no_grad()
def between(pack: Pack, rows: Batch) -> float:
    """How far the features of both LoRAs are apart."""
    own, common = (pack.with_features(rows, use={part: 1.0})[1] for part in ("mine", "lora"))
    return float((own - common).norm())


def test_what_goes_up_is_what_fedit_sends() -> None:
    run, plain = (tiny.federation(m, **ABOUT) for m in (SMALL, SAME))
    found, wanted = by_hand.record(run), by_hand.record(plain)
    run.run(3)
    plain.run(3)
    for mine, theirs in zip(found, wanted, strict=True):
        assert [set(u.tensors) for u in mine] == [set(u.tensors) for u in theirs]
        assert not any(u.facts for u in mine)
    backbone = by_hand.roberta_base()
    sent = by_hand.elements(FedOA(), backbone, Scope.UP)
    assert sent == by_hand.elements(FedOA(), backbone, Scope.DOWN)
    assert sent == {"lora": 12 * 2 * 8 * (768 + 768), "head": 592_130}
    assert by_hand.elements(FedOA(), backbone, Scope.KEEP) == {"mine": sent["lora"]}


def test_defaults_are_the_codes() -> None:
    method = FedOA()
    # Lydia-yang/FedOA, code/main.py: lora_r 8, lora_alpha 16, q_proj and v_proj, regular_weight 0.5, local_num_epochs 3,
    # local_micro_batch_size 8, over which the trainer takes the norm
    assert (method.rank, method.alpha, method.sites, method.pull) == (8, 16.0, "q,v", 0.5)
    assert (method.epochs, method.batch, method.weighting) == (3.0, 8, "uniform")
    assert method.optim == by_hand.trainer(3e-4)
    assert method.info.views == ("personal", "global")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pull": -0.5}, "pull ≥ 0, not -0.5"),
        ({"rank": 0}, "rank ≥ 1, not 0"),
        ({"alpha": 0.0}, "alpha > 0, not 0.0"),
        ({"weighting": "unifrom"}, 'Did you mean "uniform"'),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        FedOA(**settings)
    assert "\n" not in str(caught.value)


# what other tests ask of this method --------------------------------------------------------------------------------------

BYTES = Case({"rank": 2, **SITES}, factors_and_head, factors_and_head)
BYTES_VARIANTS = {"without a pull": Case({"rank": 2, "pull": 0.0, **SITES}, factors_and_head, factors_and_head)}
PAGE_SAYS = {"optim": "it clips gradients at a norm of 1"}
