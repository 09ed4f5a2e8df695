"""The step and what stands beside it: proximal terms, offsets, single entries, values for one pass, gradients without a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weaving import CLOSE, INDEX, batch_of, grads, leaves, pack_of, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.head import Head
from weft.adaptation.lora import Delta, LoRA
from weft.adaptation.optim import Moments, Optim, Optimizer
from weft.adaptation.part import Part
from weft.errors import WeftError
from weft.federation.batch import Batch
from weft.federation.bench import Bench
from weft.federation.pack import Pack
from weft.methods.reparameterized.fedit import FedIT
from weft.tasks.kinds import GENERATION
from weft.testing import laws
from weft.testing.compare import server_state

PARTS: dict[str, Part] = {"lora": LoRA(2, 4.0, "all"), "x": Bottleneck(8), "delta": Delta("q"), "head": Head()}
EVERYBODY = {"a": torch.ones(2, dtype=torch.bool)}


def packed(bench: Bench, parts: dict[str, Part] = PARTS) -> Pack:
    return pack_of(bench, [parts] * 3, [values_for(bench, parts, seed=i) for i in range(3)])


def loss_of(pack: Pack, batch: Batch) -> Tensor:
    return pack.loss(pack(batch), batch)


# the optimizer --------------------------------------------------------------------------------------------------------


def param() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6).requires_grad_(True)


def slope(p: Tensor) -> Tensor:
    return p.detach().sin() + 0.3 * p.detach()


def stepped(settings: Optim, steps: int = 5, entries: Tensor | None = None, **more: object) -> tuple[Tensor, Optimizer]:
    p = param()
    optimizer = Optimizer({"a": p}, settings, torch.tensor([steps, steps]), **more)  # type: ignore[arg-type]
    for _ in range(steps):
        loss = (-p.cos() + 0.15 * p.square()).sum(1)
        optimizer.step(loss, None, EVERYBODY, entries=None if entries is None else {"a": entries})
    return p.detach(), optimizer


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_proximal_term_pulls_towards_where_the_optimizer_began(kind: str) -> None:
    settings = Optim(kind, lr=0.1, momentum=0.5, schedule="constant", prox=0.7)  # type: ignore[arg-type]
    found, _ = stepped(settings, anchored=["a"])
    twin, start = param(), param().detach()
    plain = torch.optim.SGD([twin], 0.1, momentum=0.5) if kind == "sgd" else torch.optim.AdamW([twin], 0.1, weight_decay=0.0)
    for _ in range(5):
        plain.zero_grad()
        (-twin.cos() + 0.15 * twin.square() + 0.35 * (twin - start).square()).sum().backward()
        plain.step()
    torch.testing.assert_close(found, twin.detach(), **CLOSE)
    assert torch.equal(stepped(replace(settings, prox=0.0), anchored=["a"])[0], stepped(replace(settings, prox=0.0))[0])
    assert torch.equal(stepped(settings)[0], stepped(replace(settings, prox=0.0))[0]), "what was not sent has no anchor"


def test_offsets_are_part_of_every_gradient_and_rates_are_summed() -> None:
    offset = torch.linspace(0.2, -0.4, 12, dtype=torch.float64).view(2, 6)
    found, optimizer = stepped(Optim("sgd", lr=0.1, schedule="linear", clip=0.5), offsets={"a": offset})
    twin = param().detach()
    for t in range(5):
        g = slope(twin) + offset
        g = g * (0.5 / (g.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        twin = twin - 0.1 * (1 - t / 5) * g
    torch.testing.assert_close(found, twin, **CLOSE)
    torch.testing.assert_close(optimizer.travelled("a"), torch.full((2,), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_corrections_are_part_of_every_step_and_not_of_its_gradient(kind: str) -> None:
    correction = torch.linspace(0.2, -0.4, 12, dtype=torch.float64).view(2, 6)
    settings = Optim(kind, lr=0.1, momentum=0.5, weight_decay=0.1, schedule="linear", clip=0.5)  # type: ignore[arg-type]
    free = torch.arange(12).view(2, 6) % 3 > 0
    for entries in (None, free):
        found, _ = stepped(settings, corrections={"a": correction}, entries=entries)
        p = param()
        optimizer = Optimizer({"a": p}, settings, torch.tensor([5, 5]))
        for t in range(5):
            given = None if entries is None else {"a": entries}
            optimizer.step((-p.cos() + 0.15 * p.square()).sum(1), None, EVERYBODY, entries=given)
            with torch.no_grad():
                p -= 0.1 * (1 - t / 5) * correction * (1 if entries is None else entries)
        torch.testing.assert_close(found, p.detach(), **CLOSE)


def test_a_client_without_the_tensor_or_out_of_the_batch_is_not_corrected_and_travels_nowhere() -> None:
    p, start = param(), param().detach()
    ones = {"a": torch.ones(2, 6, dtype=torch.float64)}
    optimizer = Optimizer({"a": p}, Optim("sgd", lr=0.1, schedule="constant"), torch.tensor([3, 3]), corrections=ones)
    optimizer.step(p.sum(1), None, {"a": torch.tensor([True, False])})
    assert torch.equal(p[1], start[1])
    optimizer.step(p[:1].sum(1), torch.tensor([0]), EVERYBODY)
    assert torch.equal(p[1], start[1])
    torch.testing.assert_close(p[0], start[0] - 2 * 0.1 * (1.0 + 1.0))
    assert optimizer.travelled("a").tolist() == [0.2, 0.0]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_moments_that_are_fixed_begin_every_step_and_stay(kind: str) -> None:
    settings = Optim(kind, lr=0.1, momentum=0.5, betas=(0.8, 0.9), schedule="constant")  # type: ignore[arg-type]
    given = tuple(torch.full((2, 6), 0.3 + i, dtype=torch.float64) for i in range(settings.moments))
    fixed = {"a": Moments(torch.tensor([4.0, 7.0]), given)}
    found, optimizer = stepped(settings, fixed=fixed, steps=3)
    twin = param().detach()
    for _ in range(3):
        g = slope(twin)
        if kind == "sgd":
            twin = twin - 0.1 * (0.5 * 0.3 + g)
            continue
        t = torch.tensor([[5.0], [8.0]], dtype=torch.float64)
        m, v = (0.8 * 0.3 + 0.2 * g) / (1 - 0.8**t), (0.9 * 1.3 + 0.1 * g * g) / (1 - 0.9**t)
        twin = twin - 0.1 * m / (v.sqrt() + 1e-8)
    torch.testing.assert_close(found, twin, **CLOSE)
    assert all(torch.equal(m, g) for m, g in zip(optimizer.moments["a"], given, strict=True))
    assert optimizer.steps.tolist() == [[4.0, 7.0]]
    with pytest.raises(WeftError, match="can't begin with"):
        stepped(settings, fixed={"a": Moments(torch.zeros(2), given[1:])})


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_entries_that_may_not_move_keep_value_and_moments(kind: str) -> None:
    settings = Optim(kind, lr=0.1, momentum=0.5, weight_decay=0.1, schedule="constant")  # type: ignore[arg-type]
    free = torch.arange(12).view(2, 6) % 3 > 0
    found, optimizer = stepped(settings, entries=free)
    whole, other = stepped(settings)
    start = param().detach()
    assert torch.equal(found[~free], start[~free])
    assert torch.equal(found[free], whole[free])
    for own, all_of in zip(optimizer.moments["a"], other.moments["a"], strict=True):
        assert torch.equal(own[free], all_of[free])
        assert not own[~free].any()


def test_a_federation_with_a_proximal_term_stays_nearer_and_keeps_the_laws() -> None:
    near = FedIT(rank=2, batch=3, optim=Optim("sgd", lr=0.1, prox=0.5))
    far = replace(near, optim=near.optim.but(prox=0.0))
    laws.check(near, "pack", "return", "sums")
    states = {method: server_state(tiny.federation(method, rounds=1).run()) for method in (near, far)}
    start = server_state(tiny.federation(near, rounds=1))
    lengths = [sum(float((states[m][n] - start[n]).square().sum()) for n in start) for m in (near, far)]
    assert lengths[0] < 0.95 * lengths[1]


def test_rates_of_patterns_are_multiples_and_the_first_that_matches_counts() -> None:
    bench = tiny.bench("bert")
    settings = Optim("adamw", lr=0.1, weight_decay=0.1, schedule="linear")

    def moved(rates: dict[str, float] | None, settings: Optim = settings) -> dict[str, torch.Tensor]:
        pack = packed(bench)
        optimizer = pack.optimizer("*", settings=settings, epochs=1.0, size=2, total=3, rates=rates)
        for _ in range(2):
            pack.step(optimizer, lambda p, b: p.loss(p(b), b), batch_of(bench, INDEX))
        return {n: v.detach() for n, v in pack.tensors.items()}

    found, plain = moved({"head": 0.0, "head/*": 9.0, "lora/*/B": 1.0}), moved(None)
    start = packed(bench).tensors
    for name, value in found.items():
        if name.startswith("head"):
            assert torch.equal(value, start[name])
    double = moved({"*": 2.0})
    twice = moved(None, settings.but(lr=0.2))
    assert all(torch.equal(double[n], twice[n]) for n in twice)
    assert not all(torch.equal(double[n], plain[n]) for n in twice)


def test_each_client_may_have_a_rate_of_its_own() -> None:
    bench = tiny.bench("bert")
    settings = Optim("adamw", lr=0.1, weight_decay=0.1, schedule="linear")
    each = torch.tensor([1.0, 0.5, 0.0])

    def moved(rates: dict[str, float | Tensor] | None, settings: Optim = settings) -> dict[str, Tensor]:
        pack = packed(bench)
        optimizer = pack.optimizer("*", settings=settings, size=2, total=3, rates=rates)
        for _ in range(2):
            pack.step(optimizer, loss_of, batch_of(bench, INDEX))
        return {n: v.detach() for n, v in pack.tensors.items()}

    found, start = moved({"lora": each, "*": each}), packed(bench).tensors
    wanted = [moved(None), moved(None, settings.but(lr=0.05)), start]
    for k, of in enumerate(wanted):
        for name, value in found.items():
            torch.testing.assert_close(value[k], of[name][k], **CLOSE)
    some = moved({"lora": each})
    assert not all(torch.equal(some[n][1], found[n][1]) for n in some if n.startswith("head"))


def test_turns_that_share_a_schedule_are_one_turn_in_parts() -> None:
    """Three clients of 6, 6 and 6 rows in batches of 2: nine steps in one go, or three times three."""
    bench = tiny.bench("bert")
    settings = Optim("sgd", lr=0.5, schedule="cosine", warmup=0.2)
    whole, parted = packed(bench), packed(bench)
    optimizer = whole.optimizer("*", settings=settings, size=2, total=9)
    for _ in range(9):
        whole.step(optimizer, loss_of, batch_of(bench, INDEX))
    assert parted.lengths(size=2).tolist() == [3, 3, 3]
    for i in range(3):
        optimizer = parted.optimizer("*", settings=settings, size=2, part=(i, 3))
        for _ in range(3):
            parted.step(optimizer, loss_of, batch_of(bench, INDEX))
    for name, value in whole.tensors.items():
        torch.testing.assert_close(parted.tensors[name], value, **CLOSE)


def test_a_pack_says_how_many_batches_each_client_has() -> None:
    run = tiny.federation(FedIT(rank=2), sizes=(9, 5, 0, 1))
    pack = run.pack()
    for turn in ({"size": 4}, {"size": 2, "epochs": 1.5}, {"steps": 7, "size": 3}, {"size": 2, "caps": [2, 1, 1, 9]}):
        counts = [0, 0, 0, 0]
        for batch in pack.batches(**turn):  # type: ignore[arg-type]
            for k in range(4) if batch.clients is None else batch.clients.tolist():
                counts[k] += 1
        assert pack.lengths(**turn).tolist() == counts  # type: ignore[arg-type]
    assert pack.of(pack.clients[1:2]).lengths(size=2).tolist() == [0, 3, 0, 0]


# values for a pass ----------------------------------------------------------------------------------------------------


def test_a_pass_reads_the_values_that_are_given_and_then_its_own_again() -> None:
    bench = tiny.bench("bert")
    pack, batch = packed(bench), batch_of(bench, INDEX)
    before, kept = pack(batch).logits, dict(pack.tensors)
    halved = {n: 0.5 * v for n, v in pack.params("lora").items()}
    other = pack_of(bench, [PARTS] * 3, [values_for(bench, PARTS, seed=i) for i in range(3)])
    other.tensors.update(halved)
    with pack.values(halved):
        found = pack(batch).logits
    assert torch.equal(found, other(batch).logits)
    assert not torch.equal(found, before)
    assert torch.equal(pack(batch).logits, before)
    with pytest.raises(RuntimeError), pack.values(halved):
        raise RuntimeError
    assert all(pack.tensors[n] is v for n, v in kept.items())


def test_values_that_stand_in_for_nothing_are_refused() -> None:
    pack = packed(tiny.bench("bert"))
    name = next(iter(pack.params("lora")))
    for given in ({"lora/nowhere/A": torch.zeros(3, 1)}, {name: torch.zeros(3, 1)}):
        with pytest.raises(WeftError, match="can stand in for no tensor of the pack"), pack.values(given):
            pass


# gradients without a step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [None, torch.tensor([[True, False, True], [False, True, False], [True, True, True]])])
@pytest.mark.parametrize("kind", ["bert", "llama", "deberta-v2"])
def test_gradients_of_rows_are_those_of_batches_of_one(kind: str, hold: Tensor | None) -> None:
    if kind == "deberta-v2" and hold is not None:
        hold = None
    bench = tiny.bench(kind)
    pack = leaves(packed(bench), "*")
    pack.hold(hold)
    found = pack.row_gradients(loss_of, batch_of(bench, INDEX), "*")
    names = [n for n in pack.tensors if n in found]
    assert set(names) == set(pack.tensors)
    for row in range(4):
        index = INDEX[:, row : row + 1]
        batch = batch_of(bench, index)
        alone = grads(pack, loss_of(pack, batch), "*")
        for name in names:
            wanted = alone.get(name, torch.zeros_like(pack.tensors[name]))
            torch.testing.assert_close(found[name][:, row], wanted, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    assert not any(bool(g[2, 3].any()) for g in found.values()), "a padding row has none"
    some = pack.row_gradients(loss_of, batch_of(bench, INDEX[[2, 0]], [2, 0]), "lora")
    assert some.keys() == pack.params("lora").keys()
    for name, value in some.items():
        torch.testing.assert_close(value, found[name][[2, 0]], **CLOSE)


def test_those_of_rows_of_a_language_model_have_the_mean_of_the_batch() -> None:
    run = tiny.federation(FedIT(rank=2), "llama", task=GENERATION, sizes=(6, 6, 6))
    parts: dict[str, Part] = {"lora": LoRA(2, 4.0, "all")}
    bench = replace(run.bench, task=replace(run.bench.task, average="examples"))  # type: ignore[type-var]
    pack = leaves(packed(bench, parts), "*")
    index = np.arange(18).reshape(3, 6)[:, :4]
    batch = batch_of(bench, index)
    rows, whole = pack.row_gradients(loss_of, batch, "*"), grads(pack, loss_of(pack, batch), "*")
    for name, value in whole.items():
        torch.testing.assert_close(rows[name].mean(1), value, **CLOSE)


def test_the_gradient_of_all_rows_is_that_of_the_mean_loss() -> None:
    bench = tiny.bench("bert")
    pack = leaves(packed(bench), "*")
    before = dict(pack.tensors)
    found = pack.gradients(loss_of, "lora", "head", size=4)  # batches of 4 and 2
    whole = batch_of(bench, np.arange(18).reshape(3, 6))
    wanted = grads(pack, loss_of(pack, whole), "lora", "head")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **CLOSE)
    assert all(pack.tensors[n] is v for n, v in before.items())


def test_each_client_has_a_gradient_of_its_own_where_all_have_received_the_same_and_some_leave_the_batch() -> None:
    run = tiny.federation(FedIT(rank=2, sites="q,v"), sizes=(9, 5, 0, 2))
    pack = run.pack()
    assert all(v.stride(0) == 0 for v in pack.tensors.values()), "one broadcast, held once"
    found = pack.gradients(loss_of, "*", size=4)
    for k in (0, 1, 3):
        alone = run.pack([k])
        for name, value in alone.gradients(loss_of, "*", size=4).items():
            torch.testing.assert_close(found[name][k], value[0], **CLOSE)
            assert "/A" in name or bool(value.any())
    assert not any(bool(v[2].any()) for v in found.values())
