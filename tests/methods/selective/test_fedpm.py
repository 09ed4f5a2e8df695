"""FedPM against its card: rounds done again by hand, weights that nobody sends, bits, the posterior, and three views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import exporting
import tiny
from bytes_of import CLASSES, LAYERS, Bits, Case, D, Sizes, Turn
from bytes_of import F as WIDE
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.errors import UserError
from weft.export import load
from weft.federation.message import Update
from weft.federation.pack import Pack
from weft.federation.robust_mean import Robust
from weft.federation.server_step import ServerStep
from weft.methods import FedPM
from weft.methods.selective.fedpm import majority
from weft.tasks.outputs import Output
from weft.tensors.integers import Integers
from weft.tensors.keyed import generator
from weft.testing import laws

SMALL = FedPM(batch=3, epochs=1.0)
LORA = replace(SMALL, tune=Tune("lora", rank=2, alpha=6.0, at="q,ffn.in"))
THREE: dict[str, Any] = {"sizes": (9, 5, 3), "rounds": 4, "participation": 0.6, "seed": 8}
Named = dict[str, Tensor]


# by hand ------------------------------------------------------------------------------------------------------------------


def own(name: str) -> str:
    """theta/values/head>classifier>bias is of head/classifier/bias."""
    return name.split("/")[2].replace(">", "/")


def thetas(run: tiny.Federation) -> Named:
    """θ at the server, by the names of the weights."""
    return {own(n): v for n, v in by_hand.shared(run).items()}


class Bern(torch.autograd.Function):
    """A mask of given uniform numbers; θ times its gradient goes back, or that gradient itself."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, uniform: Tensor, scaled: bool) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.scaled = scaled
        return torch.where(uniform.double() < theta, 1.0, 0.0).double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        return grad * theta if ctx.scaled else grad, None, None


def fan_in(name: str, shapes: Mapping[str, torch.Size]) -> int:
    """Of the tiny models: the last side of a matrix, or of the weight that a bias belongs to."""
    return shapes[name.removesuffix("bias") + "weight" if name.endswith("bias") else name][-1]


def weights_of(run: tiny.Federation) -> Named:
    """w of every tensor that has a θ, in double precision, from the run's seed alone or from the model."""
    assert isinstance(run.method, FedPM)
    shapes = {n: v.shape for n, v in thetas(run).items()}
    model, found = dict(run.bench.backbone.model.named_parameters()), dict[str, Tensor]()
    for name, shape in shapes.items():
        part, site, role = name.split("/")
        if run.method.pretrained and part == "weights":
            found[name] = model[f"{site}.{role}"].double()
            continue
        frozen = "frozen/values/" + name.replace("/", ">")
        negative = torch.rand(shape, generator=generator(run.bench.seed, "start", frozen)) * 2 - 1 < 0
        c = math.e * math.sqrt(1 / fan_in(name, shapes))
        found[name] = torch.where(negative, torch.tensor(-c, dtype=torch.float64), torch.tensor(c, dtype=torch.float64))
    return found


class Reference:
    """The card's algorithm in plain PyTorch and NumPy, one client after another.

    Attributes:
        w: frozen. theta: θ. alpha, beta: of the posterior.
    """

    def __init__(self, run: tiny.Federation, every: int):
        assert isinstance(run.method, FedPM)
        self.run, self.method, self.every = run, run.method, every
        self.w, self.rounds = weights_of(run), 0
        self.theta = {n: v.numpy() for n, v in thetas(run).items()}
        self.alpha: dict[str, np.ndarray] = {}
        self.beta: dict[str, np.ndarray] = {}

    def logits(self, masks: Mapping[str, Tensor], rows: np.ndarray | None = None) -> Tensor:
        return by_hand.logits(self.run, {n: self.w[n] * m for n, m in masks.items()}, rows, 3.0)

    def turn(self, k: int, t: int, steps: list[np.ndarray]) -> dict[str, np.ndarray]:
        """How many ones a client sends."""
        seed, who = self.run.bench.seed, self.run.clients[k].id
        scores = {}
        for n, theta in self.theta.items():
            inside = np.clip(theta, 0.01, 0.99)
            scores[n] = torch.tensor(np.log(inside) - np.log1p(-inside)).requires_grad_(True)
        adam = torch.optim.Adam(scores.values(), lr=self.method.optim.lr, eps=self.method.optim.eps)
        stream = generator(seed, "mask", t, who)
        for rows in steps:
            masks: Named = {}
            for n, s in scores.items():
                uniform = torch.rand(s.shape, generator=stream)
                masks[n] = Bern.apply(1 / (1 + torch.exp(-s)), uniform, self.method.gradient == "scaled")
            adam.zero_grad()
            F.cross_entropy(self.logits(masks, rows), by_hand.labels(self.run, rows)).backward()
            adam.step()
        stream = generator(seed, "upload", t, who)
        found = {}
        for n, s in scores.items():
            p = 1 / (1 + np.exp(-s.detach().numpy()))
            drawn = torch.rand((self.method.samples, *s.shape), generator=stream).numpy().astype(np.float64)
            found[n] = (drawn < p).sum(0)
        return found

    def aggregate(self, masks: list[dict[str, np.ndarray]], weights: list[int]) -> None:
        prior, m = self.method.prior, self.method.samples
        shares = np.array(weights) / sum(weights) * len(weights)
        for n in self.theta:
            if self.rounds % self.every == 0:
                self.alpha[n], self.beta[n] = np.full(self.w[n].shape, prior), np.full(self.w[n].shape, prior)
            for u, share in zip(masks, shares, strict=True):
                self.alpha[n] = self.alpha[n] + share * u[n]
                self.beta[n] = self.beta[n] + share * (m - u[n])
            mode = (self.alpha[n] - 1) / (self.alpha[n] + self.beta[n] - 2)
            self.theta[n] = np.minimum(np.maximum(mode, 0.01), 0.99)
        self.rounds += 1


def bits_of(update: Update) -> dict[str, np.ndarray]:
    """What an update holds, by the name of the weights."""
    found = {}
    for name, value in update.tensors.items():
        assert isinstance(value, Integers)
        found[own(name)] = value.values.numpy()
    return found


@pytest.mark.parametrize(
    ("method", "every"),
    [
        (SMALL, 1),
        (replace(SMALL, gradient="straight", prior=2.0, reset=3), 3),
        (replace(SMALL, pretrained=True, kept=0.9, reset=None, samples=3), 2),  # ⌈3 clients / 2⌉
        (replace(LORA, reset=None), 2),
        (replace(LORA, prior=1.5, weighting="examples"), 1),
    ],
    ids=["plain", "straight through, a prior, every 3 rounds", "pretrained, 3 samples", "lora", "lora by examples"],
)
def test_rounds_of_two_of_three_clients_are_the_cards_algorithm(method: FedPM, every: int) -> None:
    run = tiny.federation(method, **THREE)
    steps = {(k, t): by_hand.steps_of(run, k, t) for k in range(3) for t in range(4)}
    assert len({len(steps[k, 0]) for k in range(3)}) == 3, "unequal numbers of steps"
    hand, cohorts = Reference(run, every), []
    seen = by_hand.record(run)
    for t in range(4):
        record = run.simulation.round(t)
        assert record is not None
        cohort = [int(c[-1]) for c in record["cohort"]]
        cohorts.append(set(cohort))
        wanted = [hand.turn(k, t, steps[k, t]) for k in cohort]
        for update, bits in zip(seen[t], wanted, strict=True):
            found = bits_of(update)
            assert found.keys() == bits.keys()
            for n, u in bits.items():
                assert np.array_equal(found[n], u), f"{n} of {update.client.id} in round {t}"
        weights = [run.clients[k].n if method.weighting == "examples" else 1 for k in cohort]
        hand.aggregate(wanted, weights)
        for n, theta in thetas(run).items():
            by_hand.close(theta, torch.from_numpy(hand.theta[n]), 1e-12)
    assert all(len(c) == 2 for c in cohorts), "one is always absent"
    assert any(k in cohorts[0] and k not in cohorts[1] and k in cohorts[2] | cohorts[3] for k in range(3)), "nobody comes back"
    kept = {n: torch.from_numpy(theta > 0.5) for n, theta in hand.theta.items()}
    by_hand.close(run.global_logits(dtype=torch.float64), hand.logits(kept), 1e-10)


# frozen weights -----------------------------------------------------------------------------------------------------------


def frozen_of(pack: Pack) -> Named:
    return {own(n): pack.value(0, n) for n in pack.params("frozen")}


def test_weights_are_the_same_bits_everywhere_in_all_rounds_and_are_made_again_from_the_seed() -> None:
    run = tiny.federation(SMALL, **THREE)
    wanted, seen = weights_of(run), []
    for t in range(3):
        seen += [frozen_of(run.pack([k], t)) for k in range(3)] + [frozen_of(run.server.pack())]
        run.simulation.round(t)
    for found in seen:
        assert found.keys() == wanted.keys()
        assert all(torch.equal(v, wanted[n]) for n, v in found.items())
    other = weights_of(tiny.federation(SMALL, **THREE | {"seed": 9}))
    shares = []
    for n, w in wanted.items():
        size = float(w.flatten()[0].abs())
        assert bool((w.abs() == size).all())
        if w.numel() > 1000:
            shares.append(float((w > 0).double().mean()))
            assert float((w == other[n]).double().mean()) == pytest.approx(0.5, abs=0.1), "of another seed they are others"
    assert min(shares) > 0.45
    assert max(shares) < 0.55
    assert float(wanted["weights/bert.encoder.layer.0.output.dense/weight"].abs().max()) == pytest.approx(
        math.e / math.sqrt(WIDE)
    )
    assert float(wanted["weights/bert.encoder.layer.0.output.dense/bias"].abs().max()) == pytest.approx(math.e / math.sqrt(WIDE))


def test_what_is_beside_no_matrix_stays_as_it_is_and_all_else_has_a_mask() -> None:
    run = tiny.federation(SMALL, **THREE).run()
    pack = run.server.pack()
    masked = thetas(run).keys()
    rest = {n for n in pack.tensors if n.split("/")[0] in ("weights", "head")} - masked
    assert rest
    assert all("LayerNorm" in n for n in rest)
    model = dict(run.bench.backbone.model.named_parameters())
    for name in rest:
        _, site, role = name.split("/")
        assert torch.equal(pack.value(0, name), model[f"{site}.{role}"].double())
    assert sum(v.numel() for v in thetas(run).values()) == sum(p.numel() for n, p in model.items() if "LayerNorm" not in n)


def test_kernels_and_tables_of_pictures_have_the_fan_in_of_theirs() -> None:
    run = tiny.federation(SMALL, "vit", sizes=(3, 2), rounds=1)
    w = frozen_of(run.server.pack())
    for name, fan in (
        ("embeddings.patch_embeddings.projection/weight", 3 * 4 * 4),
        ("embeddings.patch_embeddings.projection/bias", 3 * 4 * 4),
        ("embeddings/cls_token", D),
        ("embeddings/position_embeddings", 5 * D),
    ):
        (found,) = (v for n, v in w.items() if n.endswith(name))
        assert float(found.abs().max()) == pytest.approx(math.e / math.sqrt(fan)), name
    assert run.run().global_logits().isfinite().all()


def test_pretrained_weights_begin_whole_and_a_fresh_head_is_random() -> None:
    run = tiny.federation(replace(SMALL, pretrained=True), **THREE)
    w, theta = weights_of(run), thetas(run)
    for n, v in w.items():
        start = theta[n]
        if n.startswith("weights/"):
            assert bool((start == torch.tensor(0.99).double()).all())
        else:
            assert 0 <= float(start.min()) <= float(start.max()) < 1
            assert float(v.abs().max()) == pytest.approx(math.e / math.sqrt(D))
    kept = {n: v * (theta[n] > 0.5) if n.startswith("head/") else v for n, v in w.items()}
    head = {n: v for n, v in kept.items() if n.startswith("head/")}
    by_hand.close(run.global_logits(dtype=torch.float64), by_hand.logits(run, head), 1e-10)


# masks and bits -----------------------------------------------------------------------------------------------------------


def test_masks_are_drawn_anew_in_each_step_and_by_each_client_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has left the batch draws no more, so that nobody's draws depend on the others'."""
    seen: list[Named] = []
    drawn = FedPM._uniform

    def noted(self: FedPM, *args: Any) -> Named:
        seen.append(drawn(self, *args))
        return seen[-1]

    monkeypatch.setattr(FedPM, "_uniform", noted)
    run = tiny.federation(LORA, sizes=(9, 5), rounds=1)
    pack = run.pack([0, 1])
    name = next(n for n in pack.params("lora") if n.endswith("/A"))
    updates = list(run.method.train(pack))
    uniform = torch.stack([step[name] for step in seen])  # [steps, K, …]
    assert len(uniform) == 3
    assert len({float(u.flatten()[0]) for u in (*uniform[:, 0], *uniform[:2, 1])}) == 5
    assert bool((uniform[2, 1] == 1).all()), "a client of two steps draws for no third one"
    bits = [bits_of(u)[name] for u in updates]
    assert not np.array_equal(bits[0], bits[1])
    alone = bits_of(next(iter(run.method.train(run.pack([1])))))[name]
    assert np.array_equal(alone, bits[1])


def test_at_a_rate_of_zero_bits_are_draws_of_what_was_received() -> None:
    run = tiny.federation(replace(LORA, optim=LORA.optim.but(lr=0.0), samples=200), sizes=(4,), rounds=1)
    (update,) = run.method.train(run.pack([0]))
    theta = {n: v.clamp(0.01, 0.99).numpy() for n, v in thetas(run).items()}
    gaps = [np.abs(u / 200 - theta[n]) / np.sqrt(theta[n] * (1 - theta[n]) / 200) for n, u in bits_of(update).items()]
    every = np.concatenate([g.ravel() for g in gaps])
    assert every.max() < 5
    assert 0.8 < np.mean(every**2) < 1.2


@pytest.mark.parametrize(("gradient", "of"), [("scaled", lambda p: p), ("straight", torch.ones_like)])
def test_the_gradient_by_theta_is_that_by_the_mask_or_theta_times_it(gradient: Any, of: Any) -> None:
    s = torch.tensor([-2.0, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    mask = replace(SMALL, gradient=gradient)._mask(s, torch.tensor([0.5, 0.2, 0.99]))
    assert mask.tolist() == [0.0, 1.0, 0.0]
    (found,) = torch.autograd.grad((mask * torch.tensor([3.0, -1.0, 2.0])).sum(), s)
    p = s.detach().sigmoid()
    by_hand.close(found, torch.tensor([3.0, -1.0, 2.0]) * of(p) * p * (1 - p), 1e-12)


# the posterior ------------------------------------------------------------------------------------------------------------


def given(run: tiny.Federation, masks: list[list[int]]) -> list[Update]:
    """Updates of which every tensor repeats a few bits."""
    shapes = {n: v.shape for n, v in by_hand.shared(run).items()}

    def filled(shape: torch.Size, bits: list[int]) -> Integers:
        return Integers(torch.tensor(bits * -(-shape.numel() // len(bits)))[: shape.numel()].view(shape), 2)

    return [by_hand.update(run, k, {n: filled(s, bits) for n, s in shapes.items()}, 1.0) for k, bits in enumerate(masks)]


def first(run: tiny.Federation, count: int) -> list[float]:
    """θ of the first weights of a tensor."""
    return next(v for n, v in by_hand.shared(run).items() if v.numel() > 10).flatten()[:count].tolist()


def test_theta_is_the_mean_of_the_bits_cut_at_both_ends_and_a_prior_adds_to_it() -> None:
    masks = [[1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1]]
    for prior, wanted in (
        (1.0, [0.99, 0.01, 2 / 3, 1 / 3]),
        (2.0, [4 / 5, 1 / 5, 3 / 5, 2 / 5]),
        (1.5, [3.5 / 4, 0.5 / 4, 2.5 / 4, 1.5 / 4]),
    ):
        run = tiny.federation(replace(LORA, prior=prior), sizes=(3, 2, 4))
        for _ in range(2):  # the second time as if there had been no first
            run.method.aggregate(run.server, given(run, masks))
            assert first(run, 4) == pytest.approx(wanted, abs=1e-12)


def test_the_posterior_is_carried_until_it_starts_anew() -> None:
    run = tiny.federation(replace(LORA, reset=2), sizes=(3, 2, 4))
    rounds = [[[1, 0], [1, 0]], [[0, 0], [1, 1]], [[0, 1]], [[1, 1]], [], [[1, 0]]]  # nobody answers in the fifth
    wants = [[0.99, 0.01], [3 / 4, 1 / 4], [0.01, 0.99], [0.5, 0.99], [0.5, 0.99], [0.99, 0.01]]
    for t, (masks, wanted) in enumerate(zip(rounds, wants, strict=True)):
        run.server.round = replace(run.server.round, index=t)
        run.method.aggregate(run.server, given(run, masks))
        assert first(run, 2) == pytest.approx(wanted, abs=1e-12)


def test_theta_is_right_on_average_and_varies_by_no_more_than_a_quarter_of_a_kth() -> None:
    run = tiny.federation(replace(LORA, optim=LORA.optim.but(lr=0.0), tune=replace(LORA.tune, rank=16)), sizes=(2,) * 5)
    own = [0.2, 0.35, 0.5, 0.6, 0.8]
    updates = []
    for k, p in enumerate(own):
        for name, value in by_hand.shared(run).items():
            run.server.write(name, torch.full_like(value, p))
        updates += list(run.method.train(run.pack([k])))
    run.method.aggregate(run.server, updates)
    theta = torch.cat([v.flatten() for v in by_hand.shared(run).values()])
    assert len(theta) > 5000
    inside = theta.clamp(0.01, 0.99)
    assert torch.equal(theta, inside)
    assert float(theta.mean()) == pytest.approx(sum(own) / 5, abs=4 * math.sqrt(0.25 / 5 / len(theta)))
    variance = sum(p * (1 - p) for p in own) / 25
    assert float(theta.var()) == pytest.approx(variance, rel=0.1)
    assert variance <= 1 / (4 * 5)


def test_with_one_client_every_theta_falls_to_one_end() -> None:
    run = tiny.federation(SMALL, sizes=(5,), rounds=1).run()
    assert {float(x) for v in by_hand.shared(run).values() for x in v.unique()} == {0.01, 0.99}


def test_robust_rules_and_server_steps_stand_where_the_mean_is_taken() -> None:
    masks = [[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]]
    run = tiny.federation(LORA, sizes=(3, 2, 4))
    run.server.robust = Robust("median")
    run.method.aggregate(run.server, given(run, masks))
    assert first(run, 4) == pytest.approx([0.99, 0.01, 0.01, 0.01], abs=1e-12)
    run.server.robust, run.server.step = Robust(), ServerStep("avgm", lr=0.5, beta1=0.0)
    before = first(run, 4)
    run.method.aggregate(run.server, given(run, masks))
    half = [(a + b) / 2 for a, b in zip(before, [2 / 3, 1 / 3, 1 / 3, 1 / 3], strict=True)]
    assert first(run, 4) == pytest.approx(half, abs=1e-12)


# views --------------------------------------------------------------------------------------------------------------------


def test_views_are_the_likely_weights_one_sampled_network_and_what_most_of_several_say() -> None:
    run = tiny.federation(replace(SMALL, votes=5), **THREE).run()
    w, theta = weights_of(run), thetas(run)
    found = {view: run.global_logits(view=view, dtype=torch.float64) for view in SMALL.views}

    def network(masks: Mapping[str, Tensor]) -> Tensor:
        return by_hand.logits(run, {n: w[n] * m for n, m in masks.items()})

    by_hand.close(found["global"], network({n: p > 0.5 for n, p in theta.items()}), 1e-10)
    sampled = []
    for i in range(5):
        stream = generator(0, "mask", i)
        sampled.append(network({n: torch.rand(p.shape, generator=stream) < p for n, p in theta.items()}))
    by_hand.close(found["global/sampled"], sampled[0], 1e-10)
    assert not torch.allclose(sampled[0], sampled[1], atol=1e-2)
    said = np.array([z.argmax(1).numpy() for z in sampled])
    counts = np.stack([np.bincount(row, minlength=CLASSES) for row in said.T])
    clear = counts.max(1) > np.sort(counts, 1)[:, -2]
    assert np.array_equal(found["global/vote"].argmax(1).numpy()[clear], counts.argmax(1)[clear])
    assert clear.any()


def test_a_vote_goes_to_the_class_of_most_and_a_tie_to_the_likeliest() -> None:
    logits = torch.tensor(
        [[[3.0, 2.9, 0.0], [9.0, 0.0, 0.0]], [[3.0, 2.9, 0.0], [0.0, 1.0, 0.0]], [[0.0, 9.0, 0.0], [0.0, 0.0, 0.1]]]
    )
    found = majority([Output(z.unsqueeze(0)) for z in logits]).logits[0]
    assert found.argmax(1).tolist() == [0, 0]
    by_hand.close(found[0].exp().floor(), torch.tensor([2.0, 1.0, 0.0]))
    by_hand.close(found.exp().sum(1), torch.tensor([4.0, 4.0]), 1e-5)
    numbers = [Output(torch.tensor([[[x]]])) for x in (1.0, 2.0, 6.0)]
    assert majority(numbers).logits.item() == 3.0


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("view", SMALL.views)
def test_what_is_exported_predicts_as_the_run_does_by_every_view(tmp_path: Path, view: str, pretrained: bool) -> None:
    run = exporting.trained(replace(SMALL, pretrained=pretrained), sizes=(5, 3), rounds=2, seed=3)
    exporting.exported(run, tmp_path, view=view)
    found = load(tmp_path, device="cpu", precision="float32").logits(list(tiny.states(sizes=(5, 3), seed=3)[0].texts))
    torch.testing.assert_close(found, run.global_logits(view=view), **exporting.RUN_CLOSE)


# the card -----------------------------------------------------------------------------------------------------------------


def test_what_has_no_matrix_and_a_prior_without_a_mode_are_refused() -> None:
    with pytest.raises(UserError, match="fedpm has masks over matrices, and what is tuned has none"):
        tiny.federation(FedPM(tune=Tune("bias", head=False)))
    with pytest.raises(UserError, match="prior ≥ 1"):
        FedPM(prior=0.5)


def test_defaults_are_the_codes() -> None:
    method = FedPM()
    # "local_epochs: 3", "batch_size: 128", Adam(lr=0.1), lambda_init = 1, reset_prior() in each round, n_test_samples: 3
    assert (method.epochs, method.batch, method.steps, method.prior, method.reset) == (3.0, 128, None, 1.0, 1)
    assert method.optim == Optim("adamw", lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, schedule="constant")
    assert (method.tune.kind, method.pretrained, method.gradient, method.samples, method.votes) == (
        "weights",
        False,
        "scaled",
        1,
        3,
    )
    assert (method.weighting, method.sums) == ("uniform", True)


@pytest.mark.parametrize("tune", [Tune("bottleneck"), Tune("lora", rank=2)], ids=["bottleneck", "lora"])
def test_laws_hold_where_several_clients_share_a_pass(tune: Tune) -> None:
    method = replace(SMALL, tune=tune, prior=2.0, reset=None, samples=3)
    laws.check(method, "pack", "return", "sums", "sites", "resuming", "counting", "single precision")


# what other tests ask of this method --------------------------------------------------------------------------------------


def sizes_of_theta() -> list[int]:
    linear = [(D, D)] * 4 + [(WIDE, D), (D, WIDE)]  # query, key, value, output; feed-forward
    block = [size for d_out, d_in in linear for size in (d_out * d_in, d_out)]
    return [100 * D, 64 * D, 2 * D, *block * LAYERS, D * D, D, CLASSES * D, CLASSES]  # tables, blocks, pooler, head


def theta_of(turn: Turn) -> Sizes:
    return {"theta": sizes_of_theta()}


def bits(turn: Turn) -> Sizes:
    """One bit of each weight: ⌈d/8⌉ bytes a tensor."""
    return {"theta": [Bits(d) for d in sizes_of_theta()]}


BYTES = Case({}, theta_of, bits, head=False)
BYTES_VARIANTS = {
    "the sum of three masks": Case(
        {"samples": 3}, theta_of, lambda turn: {"theta": [Bits(2 * d) for d in sizes_of_theta()]}, head=False
    )
}
