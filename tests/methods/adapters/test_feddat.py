"""FedDAT against its card: two adapters that teach each other, phase by phase, beside a loop in plain PyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import by_hand
import tiny
from bytes_of import LAYERS, Case, D, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.federation.pack import Pack
from weft.federation.scope import Scope, matches
from weft.methods import FedDAT
from weft.tasks.losses import distillation
from weft.tasks.outputs import Output

SMALL = replace(FedDAT(), reduction=8, batch=4, optim=FedDAT().optim.but(lr=3e-2))
Weights = Mapping[str, float]


class Adapted:
    """The backbone with bottleneck adapters as the card writes them, for post-norm (BERT) and pre-norm (GPT-2) blocks.

    Call it with part -> weight; a part is ``mine`` (A_c), ``ours`` (A_s) or ``teacher`` (the frozen copy of A_s).
    """

    def __init__(self, run: tiny.Federation, values: dict[str, Tensor]):
        self.run, self.values = run, values
        self.weights: Weights = {}
        self.model = copy.deepcopy(run.bench.backbone.model)
        sites = by_hand.sites(run, "ours")
        if hasattr(self.model, "bert"):
            for site, layer in zip(sites, self.model.bert.encoder.layer, strict=True):
                layer.output.forward = partial(self.post_norm, layer.output, site)
        else:
            for site, block in zip(sites, self.model.transformer.h, strict=True):
                block.register_forward_hook(partial(self.pre_norm, site))

    def adapter(self, site: str, h: Tensor) -> Tensor:
        total = torch.zeros_like(h)
        for part, weight in self.weights.items():
            v = {role: self.values[f"{part}/{site}/{role}"] for role in ("down", "down_bias", "up", "up_bias")}
            total = total + weight * (torch.relu(h @ v["down"].T + v["down_bias"]) @ v["up"].T + v["up_bias"])
        return total

    def post_norm(self, end: Any, site: str, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        f = end.dense(hidden_states)
        z = end.LayerNorm(f + input_tensor)
        out: Tensor = end.LayerNorm(f + self.adapter(site, z) + input_tensor)
        return out

    def pre_norm(self, site: str, _module: nn.Module, _args: Any, out: Any) -> Any:
        x = out[0] if isinstance(out, tuple) else out
        y = x + self.adapter(site, x)
        return (y, *out[1:]) if isinstance(out, tuple) else y

    def __call__(self, weights: Weights, rows: np.ndarray) -> Tensor:
        self.weights = weights
        head = {n.removeprefix("head/").replace("/", "."): v for n, v in self.values.items() if n.startswith("head/")}
        out: Tensor = functional_call(self.model, head, kwargs=self.run.bench.table.collate(rows)).logits
        return out


DAT, SHARED, PERSONAL = {"mine": 0.5, "teacher": 0.5}, {"ours": 1.0}, {"mine": 1.0}


def tempered(teacher: Tensor, student: Tensor, t: float = 3.0) -> Tensor:
    """KL_T of the card: sum over classes, mean over the batch."""
    return t * t * F.kl_div(F.log_softmax(student / t, -1), F.softmax(teacher / t, -1), reduction="batchmean")


def a_turn(
    run: tiny.Federation, values: dict[str, Tensor], steps: list[np.ndarray], alpha: float, beta: float, t: float = 3.0
) -> list[float]:
    """One client's turn, in the card's steps; moves ``values``, and gives the teacher's loss in each batch."""
    for n in [n for n in values if n.startswith("ours/")]:
        values[n.replace("ours/", "teacher/")] = values[n].clone()
    groups: dict[float, list[Tensor]] = {1e-2: [], 0.0: []}
    for name, value in values.items():
        if not name.startswith("teacher/"):
            value.requires_grad_(True)
            groups[1e-2 if value.dim() == 2 else 0.0].append(value)  # none on biases
    model = Adapted(run, values)
    opt = torch.optim.AdamW([{"params": p, "weight_decay": d} for d, p in groups.items()], lr=3e-2, betas=(0.9, 0.98), eps=1e-8)
    total = 2 * len(steps)
    rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min((i + 1) / (0.1 * total), (total - i) / (0.9 * total), 1.0))

    def move(loss: Tensor, parts: tuple[str, ...]) -> None:
        opt.zero_grad(set_to_none=True)
        loss.backward()
        for name, value in values.items():
            if not name.startswith(parts):
                value.grad = None  # true exclusion: no momentum, no decay
        opt.step()
        rate.step()

    losses = []
    for rows in steps:
        y = by_hand.labels(run, rows)
        with torch.no_grad():
            z_dat = model(DAT, rows)
        z_s = model(SHARED, rows)
        move(0.5 * (F.cross_entropy(z_s, y) + alpha * tempered(z_dat, z_s, t)), ("ours/", "head/"))
        z_new = model(DAT, rows)
        dual = 0.5 * (F.cross_entropy(z_new, y) + beta * tempered(z_s.detach(), z_new, t))
        move(dual, ("mine/", "head/"))
        losses.append(float(dual.detach()))
    return losses


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature", "epochs", "steps"),
    [(1.0, 1.0, 3.0, 1.0, None), (0.0, 0.0, 3.0, 1.0, None), (0.7, 0.2, 1.5, 1.0, None), (1.0, 1.0, 3.0, 2.0, None),
     (1.0, 1.0, 3.0, 1.0, 2)],
)  # fmt: skip
def test_a_turn_is_the_cards_two_phases_under_one_adamw(
    alpha: float, beta: float, temperature: float, epochs: float, steps: int | None
) -> None:
    method = replace(SMALL, alpha=alpha, beta=beta, temperature=temperature, epochs=epochs, steps=steps)
    run = tiny.federation(method, sizes=(9,), rounds=2)
    values = by_hand.start_of(run)
    for t in range(2):
        batches = by_hand.steps_of(run, 0, t)
        assert len(batches) == (3 * epochs if steps is None else steps)
        losses = a_turn(run, values, batches, alpha, beta, temperature)
        line = run.simulation.round(t)
        assert line is not None
        assert line["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        found = by_hand.shared(run) | by_hand.kept(run)["client-0"]
        assert {n.split("/")[0] for n in found} == {"ours", "mine", "head"}
        for name, value in found.items():
            by_hand.close(value, values[name].detach(), by_hand.ADAM)
        values = {n: v.detach() for n, v in values.items()}  # adapters and head go on; the optimizer does not


def test_without_distillation_the_shared_adapter_is_tuned_as_if_it_were_alone() -> None:
    """α = β = 0 and plain SGD: A_s follows adapter tuning of A_s, apart from the head, which both phases move."""
    sgd = Optim("sgd", lr=0.1, schedule="constant")
    method = replace(SMALL, alpha=0.0, beta=0.0, steps=1, batch=16, optim=sgd)
    run = tiny.federation(method, sizes=(9,), rounds=1)
    (rows,) = by_hand.steps_of(run, 0, 0)
    values = {n: v.requires_grad_(n.startswith("ours/")) for n, v in by_hand.start_of(run).items()}
    (0.5 * F.cross_entropy(Adapted(run, values)(SHARED, rows), by_hand.labels(run, rows))).backward()
    run.run()
    for name, found in by_hand.shared(run).items():
        grad = values[name].grad
        assert grad is not None
        assert grad.norm() > 0
        by_hand.close(found, values[name].detach() - 0.1 * grad)


def test_the_teacher_stays_the_adapter_that_was_received() -> None:
    run = tiny.federation(SMALL, rounds=2).run(1)
    pack = run.pack(t=1)
    received = {n: v.clone() for n, v in pack.params("ours").items()}
    updates = list(run.method.train(pack))
    assert any(not torch.equal(pack.tensors[n], v) for n, v in received.items())
    for name, value in received.items():
        assert torch.equal(pack.tensors[name.replace("ours/", "teacher/")], value)
        assert not pack.tensors[name.replace("ours/", "teacher/")].requires_grad
    assert updates


def test_each_phase_moves_its_own_adapter_and_the_head_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(SMALL, sizes=(9, 5))
    pack = run.pack()
    phases: list[set[str]] = []
    step = Pack.step

    def watched(self: Pack, *args: Any, only: Iterable[str] = (), **more: Any) -> None:
        before = {n: v.detach().clone() for n, v in self.tensors.items()}
        step(self, *args, only=only, **more)
        moved = {n.split("/")[0] for n, v in self.tensors.items() if not torch.equal(v, before[n])}
        assert all(matches(f"{part}/x/y", only) for part in moved)
        phases.append(moved)

    monkeypatch.setattr(Pack, "step", watched)
    list(run.method.train(pack))
    assert len(phases) == 2 * math.ceil(9 / 4)
    assert all(p == {"ours", "head"} for p in phases[::2])
    assert all(p == {"mine", "head"} for p in phases[1::2])


def test_of_several_tasks_classes_of_the_others_are_not_taught() -> None:
    """One step of SGD on rows of one task leaves the head as it was for all classes that they can't have."""
    sgd = Optim("sgd", lr=0.1, schedule="constant")
    run = tiny.federation(replace(SMALL, steps=1, optim=sgd), task="several", sizes=(9,), rounds=1)
    (rows,) = by_hand.steps_of(run, 0, 0)
    own = run.bench.table.allowed[rows].any(0)
    assert 0 < own.sum() < len(own)
    before = by_hand.start_of(run)
    run.run()
    after = by_hand.kept(run)["client-0"]
    for name in ("head/classifier/weight", "head/classifier/bias"):
        moved = (after[name] != before[name]).reshape(len(own), -1).any(1)
        assert moved.tolist() == own.tolist()


def test_equal_adapters_agree_and_have_nothing_to_teach() -> None:
    run = tiny.federation(SMALL)
    pack = run.pack()
    pack.copy("ours", "mine")
    pack.copy("ours", "teacher")
    batch = next(iter(pack.batches(size=4)))
    dat, alone = (run.method.forward(pack, batch, v) for v in ("dat", "shared"))
    by_hand.close(dat.logits, alone.logits, 1e-12)
    for a, b in ((dat, alone), (alone, dat)):
        assert distillation(a, b, batch.mask, 3.0).abs().max() < 1e-12


def test_the_distillation_term_is_the_tempered_divergence_times_t_squared_and_never_negative() -> None:
    g = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 4, 7, 5, generator=g, dtype=torch.float64) * 4
    mask = torch.arange(7).expand(4, 7) < torch.tensor([[7], [3], [1], [0]])
    found = distillation(teacher, Output(student), mask, 2.5)
    assert bool((found >= 0).all())
    assert found[3] == 0
    for k in range(3):
        by_hand.close(found[k], tempered(teacher[k][mask[k]], student[k][mask[k]], 2.5), 1e-12)


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_every_view_is_the_adapter_form_of_its_kind_of_block(model: str) -> None:
    run = tiny.federation(SMALL, model)
    pack = run.pack([0])
    for name, value in pack.params("mine", "ours").items():
        pack.tensors[name] = 30 * value  # of a size at which an adapter bends what the next block makes of it
    pack.copy("ours", "teacher")
    by_name = Adapted(run, {n: v[0].detach() for n, v in pack.tensors.items()})
    rows = run.clients[0].data.train
    found = {}
    for view, weights in (("dat", DAT), ("shared", SHARED), ("personal", PERSONAL)):
        (found[view],) = pack.predict(lambda p, b, v=view: run.method.forward(p, b, v), [rows])
        by_hand.close(found[view], by_name(weights, rows).detach().float(), 1e-5)
    (plain,) = pack.predict(lambda p, b: run.method.forward(p, b, None), [rows])
    assert torch.equal(plain, found["dat"]), "the teacher is what predicts where no view is named"
    average = (found["shared"] + found["personal"]) / 2
    assert not torch.allclose(found["dat"], average, atol=1e-5), "adapters are averaged, not logits"


def test_in_one_pre_norm_block_the_teachers_output_is_the_mean_of_both_adapters_outputs() -> None:
    run = tiny.federation(SMALL, tiny.backbone("gpt2", n_layer=1))
    pack = run.pack([0])
    pack.copy("ours", "teacher")
    batch = next(iter(pack.batches(size=16)))
    seen: list[Tensor] = []
    handle = run.bench.backbone.module("transformer.ln_f").register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    try:
        for view in ("dat", "shared", "personal"):
            run.method.forward(pack, batch, view)
    finally:
        handle.remove()
    dat, shared, personal = seen
    assert (shared - personal).abs().max() > 1e-4
    by_hand.close(dat, (shared + personal) / 2, 1e-12)


def test_only_the_shared_adapter_is_sent() -> None:
    run = tiny.federation(SMALL, rounds=2)
    seen = by_hand.record(run)
    run.run()
    m = 32 // 8
    for updates in seen:
        for u in updates:
            assert {n.split("/")[0] for n in u.tensors} == {"ours"}
            assert not u.facts
            assert sum(v.numel() for v in u.tensors.values() if isinstance(v, Tensor)) == 3 * (2 * 32 * m + m + 32)


def test_the_head_is_sent_and_averaged_only_if_asked_for() -> None:
    parts = by_hand.elements(SMALL, tiny.backbone("bert"), Scope.UP)
    assert set(parts) == {"ours"}
    run = tiny.federation(replace(SMALL, share_head=True), rounds=1)
    seen = by_hand.record(run)
    run.run()
    name = "head/classifier/weight"
    sent = [u.tensors[name] for u in seen[0]]
    by_hand.close(by_hand.shared(run)[name], torch.stack([s for s in sent if isinstance(s, Tensor)]).mean(0))


def test_every_client_weighs_the_same_whatever_its_size() -> None:
    run = tiny.federation(SMALL, rounds=1)
    seen = by_hand.record(run)
    run.run()
    assert len({u.weight for u in seen[0]}) > 1
    for name, found in by_hand.shared(run).items():
        by_hand.close(found, torch.stack([v for u in seen[0] if isinstance(v := u.tensors[name], Tensor)]).mean(0))


def test_swapping_two_clients_does_not_change_the_shared_adapter() -> None:
    results = []
    for order in ((0, 1, 2), (1, 0, 2)):
        run = tiny.federation(SMALL)
        made = by_hand.invented(run, [9.0, 5.0, 1.0])
        run.method.aggregate(run.server, [made[k] for k in order])
        results.append(by_hand.shared(run))
    for name, found in results[1].items():
        by_hand.close(found, results[0][name], 1e-12)


def test_an_absent_client_keeps_its_own_adapter_and_head() -> None:
    run = tiny.federation(SMALL, rounds=2, participation=0.5)
    run.run(1)
    before = by_hand.kept(run)
    cohort = run.simulation.round(1)
    after = by_hand.kept(run)
    assert cohort is not None
    for client, values in after.items():
        if client not in cohort["cohort"]:
            assert values.keys() == before[client].keys()
            assert all(torch.equal(v, before[client][n]) for n, v in values.items())
    trained = [c for c in cohort["cohort"] if before[c] and c != "client-4"]  # client 4 has no rows
    assert trained
    assert all(not torch.equal(after[c][n], v) for c in trained for n, v in before[c].items())


def test_adapters_start_random_on_both_sides_and_all_clients_start_from_the_same() -> None:
    run = tiny.federation(FedDAT(reduction=2), rounds=1)
    pack = run.pack()
    for part in ("mine", "ours"):
        for name, value in pack.params(part).items():
            assert torch.equal(value, value[:1].expand_as(value))
            if name.endswith("bias"):
                assert not value.any()
            else:
                assert 0.017 < value[0].std() < 0.023  # N(0, 0.02²), 512 numbers
    name = f"{by_hand.sites(run, 'ours')[0]}/down"
    assert not torch.equal(pack.tensors[f"mine/{name}"], pack.tensors[f"ours/{name}"])


def test_each_client_is_tested_with_its_own_adapter_and_head_and_the_newest_shared_adapter() -> None:
    run = tiny.federation(SMALL, rounds=2).run()
    kept, newest = by_hand.kept(run), by_hand.shared(run)
    for view, weights in (("dat", DAT), ("shared", SHARED), ("personal", PERSONAL)):
        found = by_hand.personal_logits(run, view)
        for client in run.clients:
            if client.n:
                values = newest | kept[client.id] | {n.replace("ours/", "teacher/"): v for n, v in newest.items()}
                wanted = Adapted(run, values)(weights, client.data.test)
                by_hand.close(found[client.id], wanted.detach().float(), 1e-5)


def test_the_ramp_rises_to_one_over_its_rounds_and_scales_both_terms() -> None:
    method = replace(SMALL, ramp_rounds=4)
    found = [method._ramp(t) for t in range(6)]
    for t, value in enumerate(found):
        assert math.isclose(value, math.exp(-5 * (1 - min(t / 4, 1)) ** 2), rel_tol=1e-6)
    ramped = tiny.federation(replace(SMALL, ramp_rounds=4), sizes=(9,), rounds=1).run()
    weight = math.exp(-5)
    plain = tiny.federation(replace(SMALL, alpha=weight, beta=weight), sizes=(9,), rounds=1).run()
    for name, value in by_hand.shared(plain).items():
        by_hand.close(by_hand.shared(ramped)[name], value, 1e-6)


def test_defaults_are_the_codes() -> None:
    method = FedDAT()
    # "reduction r = 16", "T = 3", "the code has no ramp and uses ½/½"
    assert (method.reduction, method.temperature, method.ramp_rounds) == (16, 3.0, 0)
    assert (method.alpha, method.beta) == (1.0, 1.0)  # ½·[CE + KL]: both terms alike
    # "option share_head, default off"; "sets every client's count to 1: uniform weights"
    assert (method.share_head, method.weighting) == (False, "uniform")
    # "Local epochs 1"; batch: "parser default 32"
    assert (method.epochs, method.steps, method.batch) == (1.0, None, 32)
    # "lr 1e-4, betas (0.9, 0.98), eps 1e-8, weight decay 1e-2 (none on biases); linear decay to 0, warm-up 10 %"
    assert method.optim == Optim(
        "adamw", lr=1e-4, betas=(0.9, 0.98), eps=1e-8, weight_decay=1e-2, decay_biases=False, schedule="linear", warmup=0.1
    )
    assert method.info.views == ("dat", "personal", "shared")
    # src/train/visionlanguage_tasks/task_trainer.py: one AdamW over both adapters, zero_grad() between the phases, and with
    # torch 1.10 zeros are gradients; that a phase leaves the other adapter alone is tested above
    assert "moving the idle one" in method.info.deviations


# what other tests ask of this method --------------------------------------------------------------------------------------


def adapter_bytes(turn: Turn) -> Sizes:
    m = D // 16
    return {"ours": [m * D, m, D * m, D] * LAYERS}


BYTES = Case({}, adapter_bytes, adapter_bytes, head_stays=True)
TINY = {"reduction": 2}  # with less, its two units are all idle on some clients
