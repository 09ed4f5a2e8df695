"""MPFT against its card: prototypes of transformers' own embeddings, and a residual adapter tuned on them in plain PyTorch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import images_by_hand as hand
import tiny
from bytes_of import JOINT, Case, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.backbones.backbone import frozen_fingerprint
from weft.errors import UserError
from weft.federation.message import Update
from weft.federation.scope import Scope
from weft.methods import MPFT
from weft.tensors.keyed import generator

WIDTH, HIDDEN = 16, 4  # of the tiny CLIP's embedding; of the adapter's inner layer
DOWN, UP = (f"adapter/image_embedding/{role}" for role in ("down", "up"))
SMALL = MPFT(server_epochs=6, server_batch=4, settled=0.0, optim=MPFT().optim.but(lr=1e-2))


def names_of(run: tiny.Federation) -> tuple[str, ...]:
    return run.bench.task.classes


def head(run: tiny.Federation) -> Tensor:
    """The frozen text head: features [C, e] of the class names in CLIP's template."""
    return hand.zero_shot(run.bench.backbone, names_of(run), "a photo of a {}.")


def predict(run: tiny.Federation, z: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """z + ReLU(W2·ReLU(W1·z)) under the text head."""
    return hand.similarity(run.bench.backbone, z + F.relu(F.relu(z @ down.T) @ up.T), head(run))


def embeddings(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    return hand.image_embedding(run.bench.backbone, hand.pictures(run, rows))


class Tuning:
    """Plain AdamW with a norm of at most 1, a rate that rises over a share of the steps and falls as a cosine."""

    def __init__(self, down: Tensor, up: Tensor, steps: int, lr: float, warmup: float = 0.05):
        self.weights = [w.clone().requires_grad_(True) for w in (down, up)]
        self.optimizer = torch.optim.AdamW(self.weights, lr=lr, weight_decay=0.01)

        def share(i: int) -> float:
            rise = (i + 1) / max(warmup * steps, 1)
            return rise if rise < 1 else 0.5 * (1 + math.cos(math.pi * max(i / steps - warmup, 0) / (1 - warmup)))

        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)

    def step(self, loss: Tensor) -> float:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.rate.step()
        return float(loss.detach())


def server_by_hand(run: tiny.Federation, down: Tensor, up: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
    """The card's server step on prototypes in the order that they are put together; W1, W2 and the number of epochs."""
    method = run.method
    assert isinstance(method, MPFT)
    order = torch.randperm(len(z), generator=generator(0, "shuffle", 0))
    size = min(method.server_batch, len(z))
    batches = [order[i : i + size] for i in range(0, len(z) - size + 1, size)]  # drop the remainder
    warmup = method.optim.warmup
    tuning = Tuning(down, up, len(batches) * method.server_epochs, method.optim.lr, warmup)
    losses: list[float] = []
    for epoch in range(method.server_epochs):
        losses += [tuning.step(F.cross_entropy(predict(run, z[b], *tuning.weights), y[b])) for b in batches]
        recent = torch.tensor(losses[-20:], dtype=torch.float64)
        if epoch >= warmup * method.server_epochs and len(losses) > 20 and recent.std(correction=0) < method.settled:
            break
    found = [w.detach() for w in tuning.weights]
    return found[0], found[1], len(losses) // len(batches)


def together(updates: Sequence[Update]) -> tuple[Tensor, Tensor]:
    """All prototypes of a round, client by client and class by class, and their classes."""
    z, y = [], []
    for u in updates:
        for name in sorted(u.tensors):
            value = u.tensors[name]
            assert isinstance(value, Tensor)
            z.append(value)
            y += [int(name.removeprefix("prototype/"))] * len(value)
    return torch.cat(z), torch.tensor(y)


# prototypes -----------------------------------------------------------------------------------------------------------


def some(n: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_with(method: MPFT, **more: object) -> tuple[tiny.Federation, list[Update]]:
    """A run after its first round, and what clients sent."""
    run = tiny.federation(method, rounds=2, **more)  # type: ignore[arg-type]
    seen = by_hand.record(run)
    run.run(1)
    return run, seen[0]


def test_each_client_sends_the_mean_embedding_of_every_class_that_it_has_and_of_no_other() -> None:
    run, updates = run_with(SMALL)
    assert [u.client.id for u in updates] == [f"client-{k}" for k, n in enumerate(tiny.SIZES) if n]
    lacking = 0
    for u in updates:
        rows = run.clients[int(u.client.id[-1])].data.train
        y = run.bench.table.labels[rows]
        assert set(u.tensors) == {f"prototype/{c}" for c in set(y.tolist())}
        assert not u.facts
        lacking += len(set(y.tolist())) < 3
        for c in set(y.tolist()):
            found = u.tensors[f"prototype/{c}"]
            assert isinstance(found, Tensor)
            by_hand.close(found, embeddings(run, rows[y == c]).mean(0, keepdim=True), 1e-10)
    assert lacking, "a client without one of the classes"


@pytest.mark.parametrize(("how", "share"), [("random", 1.0), ("cluster", 1.0)])
def test_with_a_share_of_one_all_embeddings_are_sent(how: str, share: float) -> None:
    run, updates = run_with(replace(SMALL, prototypes=how, share=share))
    for u in updates:
        rows = run.clients[int(u.client.id[-1])].data.train
        z, y = together([u])
        wanted = embeddings(run, rows)
        assert len(z) == len(rows)
        which = torch.cdist(z, wanted).argmin(1)
        assert sorted(which.tolist()) == list(range(len(rows)))
        by_hand.close(z, wanted[which], 1e-10)
        assert y.tolist() == run.bench.table.labels[rows][which.numpy()].tolist()


@pytest.mark.parametrize(("how", "share"), [("mean", 0.5), ("random", 0.5), ("cluster", 0.4)])
def test_a_client_sends_p_numbers_for_each_prototype_and_gets_the_adapter_once(how: str, share: float) -> None:
    run, updates = run_with(replace(SMALL, prototypes=how, share=share))
    ledger = run.simulation.setup.exchange.ledger
    total = 0
    for u in updates:
        y = run.bench.table.labels[run.clients[int(u.client.id[-1])].data.train]
        counts = np.bincount(y)[np.unique(y)]
        total += WIDTH * sum(1 if how == "mean" else math.ceil(share * n) for n in counts.tolist())
    assert ledger.totals(round=0, direction="up").payload == 8 * total  # float64
    assert ledger.totals(round=0, direction="down").payload == 0
    assert run.simulation.round(1) is not None
    assert ledger.totals(round=1, direction="up").messages == 0
    assert ledger.totals(round=1, direction="down").payload == len(run.clients) * 8 * 2 * WIDTH**2 // 4
    assert run.simulation.round(2) is None, "one exchange, and no more"
    assert by_hand.elements(SMALL, run.bench.backbone, Scope.DOWN) == {"adapter": 2 * WIDTH**2 // 4}
    assert by_hand.elements(SMALL, run.bench.backbone, Scope.UP) == {}


def test_noise_has_the_standard_deviation_that_was_asked_for_and_none_changes_no_bit() -> None:
    method = MPFT(prototypes="random", share=1.0, server_epochs=1)
    plain, again, noisy = (
        together(run_with(replace(method, noise=e), sizes=(700, 40), prefix=True)[1])[0] for e in (0.0, 0.0, 0.3)
    )
    assert plain.numel() > 10_000
    assert torch.equal(plain, again)
    noise = noisy - plain
    assert math.isclose(float(noise.std()), 0.3, rel_tol=0.05)
    assert abs(float(noise.mean())) < 0.3 * 4 / math.sqrt(noise.numel())
    assert abs(float(np.corrcoef(noise[:40].flatten(), noise[-40:].flatten())[0, 1])) < 0.2, "no two clients draw the same"


# the server -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "batch"),
    [("mean", 4), ("mean", 50), ("random", 4), ("cluster", 3)],
    ids=["mean", "fewer prototypes than a batch holds", "random", "cluster"],
)
def test_the_server_tunes_the_adapter_on_all_prototypes_without_averaging_any(how: str, batch: int) -> None:
    run = tiny.federation(replace(SMALL, prototypes=how, share=0.5, server_batch=batch), rounds=2)
    before = by_hand.shared(run)
    seen = by_hand.record(run)
    run.run()
    down, up, epochs = server_by_hand(run, before[DOWN], before[UP], *together(seen[0]))
    assert epochs == 6
    by_hand.close(by_hand.shared(run)[DOWN], down, by_hand.ADAM)
    by_hand.close(by_hand.shared(run)[UP], up, by_hand.ADAM)
    assert (down - before[DOWN]).abs().max() > 1e-3


def test_one_client_that_sends_all_its_embeddings_is_adapter_tuning_on_cached_features() -> None:
    run = tiny.federation(replace(SMALL, prototypes="random", share=1.0), sizes=(9,), rounds=2)
    before = by_hand.shared(run)
    rows = run.clients[0].data.train
    y = run.bench.table.labels[rows]
    ordered = np.concatenate([rows[y == c] for c in np.unique(y)])
    down, up, _ = server_by_hand(run, before[DOWN], before[UP], embeddings(run, ordered), torch.from_numpy(np.sort(y)))
    run.run()
    by_hand.close(by_hand.shared(run)[DOWN], down, by_hand.ADAM)
    by_hand.close(by_hand.shared(run)[UP], up, by_hand.ADAM)


@pytest.mark.parametrize(
    ("settled", "warmup", "earliest", "latest"),
    [(0.0, 0.05, 60, 60), (0.1985, 0.05, 12, 59), (1e9, 0.05, 11, 11), (1e9, 0.5, 31, 31)],
    ids=["never", "in between", "as soon as there are 21 losses", "but not before the rate has risen"],
)
def test_training_ends_when_the_last_twenty_losses_agree(settled: float, warmup: float, earliest: int, latest: int) -> None:
    method = replace(SMALL, server_epochs=60, settled=settled, optim=SMALL.optim.but(lr=3e-3, warmup=warmup))
    run = tiny.federation(method, rounds=1)
    before = by_hand.shared(run)
    seen = by_hand.record(run)
    run.run()
    z, y = together(seen[0])
    assert len(z) // 4 == 2, "two steps an epoch"
    down, up, epochs = server_by_hand(run, before[DOWN], before[UP], z, y)
    assert earliest <= epochs <= latest
    by_hand.close(by_hand.shared(run)[DOWN], down, 1e-5)
    by_hand.close(by_hand.shared(run)[UP], up, 1e-5)


def test_it_does_not_matter_which_client_a_prototype_came_from() -> None:
    results = []
    for owners in ((0, 0, 1, 1, 1, 2), (2, 1, 0, 1, 2, 0), (0, 0, 0, 0, 0, 0)):
        run = tiny.federation(replace(SMALL, server_batch=50))  # one batch: the order within it changes rounding alone
        sent: dict[int, dict[str, list[Tensor]]] = {}
        for i, (owner, row) in enumerate(zip(owners, some(6), strict=True)):
            sent.setdefault(owner, {}).setdefault(f"prototype/{i % 3}", []).append(row)
        updates = [by_hand.update(run, k, {n: torch.stack(v) for n, v in own.items()}, 9.0) for k, own in sorted(sent.items())]
        run.method.aggregate(run.server, updates)
        results.append(by_hand.shared(run))
    for other in results[1:]:
        for name in (DOWN, UP):
            by_hand.close(other[name], results[0][name], by_hand.ADAM)


def test_the_example_count_of_a_client_weighs_nothing() -> None:
    results = []
    for weights in ((1.0, 1.0), (99.0, 1.0)):
        run = tiny.federation(SMALL)
        updates = [by_hand.update(run, k, {f"prototype/{k}": some(4, k)}, w) for k, w in enumerate(weights)]
        run.method.aggregate(run.server, updates)
        results.append(by_hand.shared(run))
    assert all(torch.equal(v, results[1][n]) for n, v in results[0].items())


@pytest.mark.parametrize("sent", [{}, {"prototype/1": torch.zeros(0, WIDTH, dtype=torch.float64)}])
def test_without_a_single_prototype_the_adapter_stays_as_it_was(sent: dict[str, Tensor]) -> None:
    run = tiny.federation(SMALL)
    before = by_hand.shared(run)
    run.method.aggregate(run.server, [by_hand.update(run, 0, sent, 9.0)] if sent else [])
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())


def test_a_second_layer_of_zeros_is_zero_shot() -> None:
    run = tiny.federation(SMALL)
    rows = np.arange(len(run.bench.table))
    trained = run.global_logits()
    run.server.write(UP, torch.zeros(WIDTH, HIDDEN, dtype=torch.float64))
    wanted = hand.similarity(run.bench.backbone, embeddings(run, rows), head(run)).float()
    by_hand.close(run.global_logits(), wanted, 1e-5)
    assert (trained - wanted).abs().max() > 1e-2


def test_every_client_predicts_with_the_one_adapter_of_the_server() -> None:
    run = tiny.federation(SMALL, rounds=2).run()
    shared, rows = by_hand.shared(run), np.arange(len(run.bench.table))
    wanted = predict(run, embeddings(run, rows), shared[DOWN], shared[UP]).float()
    by_hand.close(run.global_logits(), wanted, 1e-5)
    for found in by_hand.personal_logits(run, rows=rows).values():  # no shots: nothing is adapted
        by_hand.close(found, wanted, 1e-5)
    assert not any(by_hand.kept(run).values())


def test_the_encoder_and_the_text_head_stay_and_nothing_but_the_adapter_has_a_gradient() -> None:
    run = tiny.federation(replace(SMALL, shots=2, adapt_steps=2), rounds=2)
    before, texts = frozen_fingerprint(run.bench.backbone), run.bench.backbone.class_inputs()["text_embeds"].clone()
    run.run()
    run.simulation.evaluate(1)
    assert frozen_fingerprint(run.bench.backbone) == before
    assert torch.equal(run.bench.backbone.class_inputs()["text_embeds"], texts)
    bench = run.server.pack()
    assert set(bench.optimizer("*", settings=SMALL.optim, total=1).params) == {
        f"{part}/image_embedding/{role}" for part in ("adapter", "mine") for role in ("down", "up")
    }
    assert set(run.pack().optimizer("*", settings=SMALL.optim).params) == {f"mine/image_embedding/{r}" for r in ("down", "up")}
    for role in (DOWN, UP):
        assert not by_hand.shared(run)[role].requires_grad


# adaptation to a client's own domain -------------------------------------------------------------------------------------


def shots_of(run: tiny.Federation, k: int, count: int) -> np.ndarray:
    """Rows of the first ``count`` examples of each class in the client's order."""
    rows = run.clients[k].data.train
    order = rows[torch.randperm(len(rows), generator=generator(0, "shots", 1, run.clients[k].id)).numpy()]
    y = run.bench.table.labels[order]
    return np.concatenate([order[:0], *(order[y == c][:count] for c in np.unique(y))])


def adapted(run: tiny.Federation, rows: np.ndarray, kd: float) -> tuple[Tensor, Tensor]:
    """The card's few-shot adaptation, the KL as PyTorch's mean over all B·C elements."""
    method, shared = run.method, by_hand.shared(run)
    assert isinstance(method, MPFT)
    tuning = Tuning(shared[DOWN], shared[UP], method.adapt_steps, method.optim.lr)
    z, y = embeddings(run, rows), by_hand.labels(run, rows)
    common = predict(run, z, shared[DOWN], shared[UP]).softmax(-1)
    for _ in range(method.adapt_steps):
        found = predict(run, z, *tuning.weights)
        apart = F.kl_div(F.log_softmax(found, -1), common, reduction="none").sum() / found.numel()
        tuning.step(F.cross_entropy(found, y) + kd * apart)
    return tuning.weights[0].detach(), tuning.weights[1].detach()


@pytest.mark.parametrize("kd", [0.0, 10.0, 1000.0])
def test_a_client_adapts_with_a_few_examples_of_each_class_held_near_the_common_adapter(kd: float) -> None:
    run = tiny.federation(replace(SMALL, shots=2, kd=kd, adapt_steps=12), rounds=2).run()
    found = by_hand.personal_logits(run)
    shared = by_hand.shared(run)
    for k, client in enumerate(run.clients):
        if client.n:
            rows = shots_of(run, k, 2)
            assert max(np.bincount(run.bench.table.labels[rows])) <= 2
            z = embeddings(run, client.data.test)
            by_hand.close(found[client.id], predict(run, z, *adapted(run, rows, kd)).float(), 1e-4)
            assert (found[client.id] - predict(run, z, shared[DOWN], shared[UP]).float()).abs().max() > 1e-4


def test_the_stronger_the_distillation_the_nearer_a_client_stays_to_the_common_adapter() -> None:
    distances = []
    for kd in (0.0, 1e2, 1e4, 1e6):
        run = tiny.federation(replace(SMALL, shots=2, kd=kd, adapt_steps=100), rounds=2).run()
        pack = run.pack([0], 1)
        run.method.personalise(pack)
        z = torch.stack(pack.embed([shots_of(run, 0, 2)]))
        with torch.no_grad():
            common, own = (pack.tail(z, use={part: 1.0}).logits.log_softmax(-1) for part in ("adapter", "mine"))
        distances.append(float(F.kl_div(own, common, log_target=True, reduction="sum")))
    assert all(b < a / 50 for a, b in itertools.pairwise(distances))
    assert distances[-1] < 1e-8


def test_at_the_first_step_there_is_nothing_to_distil() -> None:
    """The divergence starts at 0 and at its minimum, so that the first step is the same for every λ."""
    results = []
    for kd in (0.0, 1e6):
        run = tiny.federation(replace(SMALL, shots=2, kd=kd, adapt_steps=1), rounds=2).run()
        pack = run.pack(None, 1)
        run.method.personalise(pack)
        results.append(pack.params("mine"))
    for name, value in results[0].items():
        by_hand.close(results[1][name], value.detach())


def test_an_adapted_adapter_is_thrown_away_after_the_test() -> None:
    run = tiny.federation(replace(SMALL, shots=2, adapt_steps=5), rounds=2).run()
    first, before = by_hand.personal_logits(run), run.global_logits()
    second = by_hand.personal_logits(run)
    assert all(torch.equal(v, second[c]) for c, v in first.items())
    assert torch.equal(run.global_logits(), before)
    assert not any(by_hand.kept(run).values())


def test_a_client_without_rows_keeps_the_common_adapter_in_whatever_pack_it_is() -> None:
    run = tiny.federation(replace(SMALL, shots=2, adapt_steps=5), rounds=2).run()
    pack = run.pack([0, 4], 1)
    run.method.personalise(pack)
    for role in ("down", "up"):
        mine, common = (pack.tensors[f"{part}/image_embedding/{role}"] for part in ("mine", "adapter"))
        assert torch.equal(mine[1], common[1])
        assert not torch.equal(mine[0], common[0])


# settings -------------------------------------------------------------------------------------------------------------


def test_unknown_prototypes_are_refused_with_the_nearest_and_a_share_must_be_one() -> None:
    with pytest.raises(UserError, match=r'unknown prototypes "clusters".*Did you mean "cluster"'):
        MPFT(prototypes="clusters")
    for share in (0.0, 1.1):
        with pytest.raises(UserError, match=f"0 < share ≤ 1, not {share}"):
            MPFT(share=share)
    for name, least in {"noise": 0, "server_epochs": 1, "server_batch": 1, "shots": 0, "kd": 0, "adapt_steps": 0}.items():
        with pytest.raises(UserError, match=f"{name} ≥ {least}, not {least - 1}"):
            MPFT(**{name: least - 1})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ratio ≥ 1"):
        tiny.federation(MPFT(ratio=0))


@pytest.mark.parametrize("model", ["vit", "bert"])
def test_a_backbone_without_a_joint_embedding_is_refused(model: str) -> None:
    with pytest.raises(UserError, match="no joint embedding of images and texts"):
        tiny.federation(SMALL, model)


def test_defaults_are_the_codes() -> None:
    method = MPFT()
    # ntu-zjy/DomainFL, core/ours.py: sample_ratio_method "cluster", sample_ratio 0.1, diff_privacy 0; "W1: p→p/4"
    assert (method.prototypes, method.share, method.noise, method.ratio) == ("cluster", 0.1, 0.0, 4)
    # the same: batchsize=10, global_rounds 200 (max_epochs), threshold=0.001 over num_losses=20
    assert (method.server_batch, method.server_epochs, method.settled) == (10, 200, 1e-3)
    # the same: AdamW, lr 1e-3, clip 1, warm_up 10 (of 200 epochs), then a cosine; 0.01 is torch.optim.AdamW's own decay
    assert method.optim == Optim("adamw", lr=1e-3, weight_decay=0.01, clip=1.0, schedule="cosine", warmup=10 / 200)
    # "After the server step, optional"; "the runs try 0, 10, 100, 1000"
    assert (method.shots, method.kd) == (0, 10.0)
    assert method.info.views == ("global", "personal")


# what other tests ask of this method --------------------------------------------------------------------------------------


def prototype_bytes(turn: Turn) -> Sizes:
    """p·n_c of each class, n_c = ⌈ρ·N_c⌉ with ρ = ½."""
    return {"prototype": [math.ceil(n / 2) * JOINT for n in turn.counts if n]}


def residual_bytes(turn: Turn) -> Sizes:
    """W1 and W2, p²/4 each, once, after the only upload."""
    return {"adapter": [JOINT * JOINT // 4] * 2} if turn.t == 1 else {}


BYTES = Case(
    {"prototypes": "random", "share": 0.5, "server_epochs": 2},
    residual_bytes,
    prototype_bytes,
    head=False,
    answers=(True, False, False),
    rounds=2,
)
