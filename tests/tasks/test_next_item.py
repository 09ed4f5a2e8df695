"""Next item: its loss and rankings by hand, ties and masks, what sites tell, and runs that learn what comes next."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tiny
import weft
from weft.adaptation.tune import Tune
from weft.communication.strict import Refused
from weft.errors import UserError
from weft.methods import FedAvg
from weft.tasks import ranks
from weft.tasks.kinds import NEXT_ITEM, make, suits
from weft.tasks.next_item import METRICS, NextItem
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.testing.data import rows, sequenced

ITEMS = tuple(f"shop/{i}: thing {i}" for i in range(60))


def seen(z: torch.Tensor, y: torch.Tensor, *metrics: str) -> Observed:
    task = NextItem(ITEMS[: z.shape[1]], metrics or METRICS)
    return task.observe(Output(z.unsqueeze(1)), y.unsqueeze(1), torch.ones(len(y), 1, dtype=torch.bool))


def drawn(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of which many are equal, and labels."""
    draw = np.random.default_rng(seed)
    z = torch.from_numpy(draw.normal(size=(n, len(ITEMS))).round(1)).float()
    return z, torch.from_numpy(draw.integers(len(ITEMS), size=n))


def test_the_loss_is_the_mean_cross_entropy_of_each_client_over_its_own_rows() -> None:
    z = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    y, mask = torch.tensor([[0, 4, 2], [1, 3, 0]]), torch.tensor([[True, True, True], [True, False, False]])
    found = NextItem(ITEMS[:5]).loss(Output(z), y, mask)
    assert found.tolist() == pytest.approx([float(F.cross_entropy(z[0], y[0])), float(F.cross_entropy(z[1, :1], y[1, :1]))])


def test_rankings_without_ties_are_those_of_sorting() -> None:
    draw = np.random.default_rng(1)
    z = torch.from_numpy(np.stack([draw.permutation(len(ITEMS)) for _ in range(200)])).float()
    y = torch.from_numpy(draw.integers(len(ITEMS), size=200))
    place = [row.tolist().index(int(label)) + 1 for row, label in zip(z.argsort(1, descending=True), y, strict=True)]
    wanted = ("ndcg@10", "recall@3", "recall@60", "ndcg@1")
    found = {s.metric: s.value for s in NextItem(ITEMS, wanted).score(seen(z, y))}
    assert found["recall@3"] == pytest.approx(np.mean([p <= 3 for p in place]))
    assert found["ndcg@10"] == pytest.approx(np.mean([p <= 10 and 1 / math.log2(1 + p) for p in place]))
    assert found["ndcg@1"] == pytest.approx(np.mean([p == 1 for p in place]))
    assert found["recall@60"] == 1.0


@pytest.mark.parametrize("metric", ["recall@1", "recall@2", "recall@3", "ndcg@1", "ndcg@2", "ndcg@4"])
def test_items_of_equal_score_are_in_every_order_alike(metric: str) -> None:
    """Against the mean over all orders of four items, the second of which is the right one."""
    scores, name, k = [3.0, 1.0, 1.0, 1.0], *(ranks.split(metric) or ("", 0))
    each = []
    for order in itertools.permutations(range(4)):
        place = sorted(range(4), key=lambda i: (-scores[i], order.index(i))).index(1) + 1
        each.append((1.0 if name == "recall" else 1 / math.log2(1 + place)) if place <= k else 0.0)
    some = seen(torch.tensor([scores]), torch.tensor([1]), metric)
    assert (some["above"].tolist(), some["tied"].tolist()) == ([1], [2])
    assert NextItem(ITEMS[:4], (metric,)).score(some)[0].value == pytest.approx(np.mean(each))


def test_a_model_that_scores_all_items_alike_is_worth_what_guessing_is() -> None:
    some = seen(torch.zeros(7, len(ITEMS)), torch.arange(7))
    found = {s.metric: s.value for s in NextItem(ITEMS).score(some)}
    assert found["recall@10"] == pytest.approx(10 / 60)
    assert found["recall@50"] == pytest.approx(50 / 60)
    assert found["loss"] == pytest.approx(math.log(60))


def test_items_of_other_domains_are_neither_above_nor_in_the_loss() -> None:
    z, y = drawn(20)
    allowed = torch.arange(len(ITEMS)).expand(20, -1).remainder(2) == y[:, None].remainder(2)
    out = Output(z.unsqueeze(1)).within(allowed.unsqueeze(1))
    task = NextItem(ITEMS)
    some = task.observe(out, y.unsqueeze(1), torch.ones(20, 1, dtype=torch.bool))
    for i in range(20):
        own = z[i][allowed[i]]
        assert some["above"][i] == int((own > z[i, y[i]]).sum())
        assert some["tied"][i] == int((own == z[i, y[i]]).sum()) - 1
        assert some["loss"][i] == pytest.approx(float(torch.logsumexp(own.double(), 0) - z[i, y[i]]), rel=1e-6)


def test_outputs_that_are_not_finite_give_no_score_and_no_rows_give_none() -> None:
    z, y = drawn(3)
    z[1, 5] = math.nan
    task, some = NextItem(ITEMS), seen(z, y)
    assert all(math.isnan(s.value) for s in (*task.score(some), task.headline(some)))
    assert task.read(json.loads(json.dumps(task.tell(some, False))), False).blank
    assert task.score(some.take(np.zeros(0, np.int64))) == []
    assert math.isnan(task.headline(some.take(np.zeros(0, np.int64))).value)


def test_sums_of_sites_give_the_scores_of_all_their_rows_together() -> None:
    task, whole = NextItem(ITEMS), seen(*drawn(40))
    parts = [whole.take(np.arange(a, b)) for a, b in ((0, 5), (5, 6), (6, 40))]
    told = [task.read(json.loads(json.dumps(task.tell(p, False))), False) for p in parts]
    found, wanted = task.pool(told), task.score(whole)
    assert [s.metric for s in found] == [*METRICS, "loss"]
    assert [s.value for s in found] == pytest.approx([s.value for s in wanted])
    assert [(s.low, s.high) for s in found] == [(s.low, s.high) for s in wanted]
    assert found[0].low < found[0].value < found[0].high  # type: ignore[operator]
    blank = ranks.Ranks(3, math.nan)
    assert [s.value for s in task.pool([blank, told[2]])] == pytest.approx([s.value for s in task.score(parts[2])])
    assert all(math.isnan(s.value) for s in task.pool([blank]))
    assert task.headline(whole).value == wanted[0].value
    assert task.headline(whole).low is None


@given(
    st.dictionaries(
        st.sampled_from(["n", "loss", "sums"]),
        st.none()
        | st.integers()
        | st.floats()
        | st.dictionaries(st.sampled_from(METRICS), st.floats() | st.integers() | st.none()),
    )
)
def test_what_a_stranger_says_is_refused_or_can_be_true(said: dict[str, Any]) -> None:
    task = NextItem(ITEMS)
    try:
        told = task.read(said, False)
    except Refused:
        return
    assert told.n > 0
    assert told.blank or all(-1e-5 <= s.value <= 1 + 1e-5 for s in task.pool([told])[:-1])


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": True},
        {"n": 2.0},
        {"loss": -1.0},
        {"loss": math.inf},
        {"sums": None},
        {"recall@10": 5.0},
        {"recall@10": -0.1},
        {"recall@10": None},
        {"recall@10": 3.5},  # more than within the first fifty
        {"ndcg@10": 2.5},  # more than there are
        {"ndcg@50": 1.0},  # less than within the first ten
    ],
)
def test_sums_that_can_t_be_true_are_refused(change: dict[str, Any]) -> None:
    good = {"n": 4, "loss": 8.0, "sums": {"recall@10": 2.0, "ndcg@10": 1.5, "recall@50": 3.0, "ndcg@50": 1.7}}
    task = NextItem(ITEMS)
    assert task.read(good, False).sums == good["sums"]
    inner = {n: v for n, v in change.items() if n in METRICS}
    wrong = good | {n: v for n, v in change.items() if n not in METRICS}
    if inner:
        wrong["sums"] = {**good["sums"], **inner}  # type: ignore[dict-item]
    with pytest.raises(Refused, match="not those of a test of rankings"):
        task.read(wrong, False)


@pytest.mark.parametrize(
    "metric", ["recall", "recall@0", "recall@-1", "recal@10", "ndcg@ten", "accuracy", "mrr@10", "recall@1e3"]
)
def test_a_metric_that_there_is_not_is_refused(metric: str) -> None:
    with pytest.raises(UserError, match=f'unknown metric "{metric}": use recall@K or ndcg@K'):
        make(ITEMS, NEXT_ITEM, (metric,))


def test_rows_of_another_kind_are_refused() -> None:
    plain = rows(6)
    with pytest.raises(UserError, match="--task next-item needs a sequence of items in each row, as shops has"):
        suits(NEXT_ITEM, plain)
    for kind in ("classification", "tokens", "generation", "regression"):
        with pytest.raises(UserError):
            suits(kind, sequenced(plain))
    suits(NEXT_ITEM, sequenced(plain))


@pytest.mark.parametrize("kind", ["weights", "lora", "bias", "bottleneck"])
def test_whatever_is_tuned_learns_what_comes_next(kind: Any) -> None:
    """The next item is the number after the last one's."""
    made = FedAvg(tune=Tune(kind, rank=4, reduction=2), epochs=10.0, batch=4)
    run = tiny.federation(
        FedAvg(tune=made.tune, epochs=10.0, batch=4, optim=made.optim.but(kind="adamw", lr=0.02)), "vq-rec", rounds=3
    )
    rows_of = run.simulation.setup.tests.test
    right = {}
    for when in ("before", "after"):
        logits = run.global_logits(rows_of, dtype=torch.float64)
        right[when] = float(F.cross_entropy(logits, torch.from_numpy(run.bench.table.labels[rows_of])))
        run.run()
    assert right["after"] < right["before"] - 0.05


@pytest.mark.parametrize("kind", ["prefix", "words", "head", "tokens", "context"])
def test_what_such_a_network_can_t_have_is_refused_in_a_sentence(kind: Any) -> None:
    with pytest.raises(UserError, match=r"backbone .* (has no|computes) .*: (choose|use)"):
        tiny.federation(FedAvg(tune=Tune(kind)), "vq-rec").run()


def test_a_run_by_name_learns_in_its_domains_and_comes_back_from_its_files(tmp_path: Path) -> None:
    run = weft.run(
        "fedavg",
        parameters={"epochs": 1, "batch": 64, "optim.kind": "adamw", "optim.lr": 3e-3},
        data="shops",
        clients=2,
        rounds=2,
        precision="float32",
        runs=tmp_path,
        metrics=["ndcg@5", "recall@10"],
    )
    top = run.summary["headline"]
    assert (top["metric"], top["n"]) == ("ndcg@5", 420)
    assert run.summary["settings"]["model"]["value"] == "vq-rec-small"
    assert run.summary["data"]["guessing_loss"] == pytest.approx((2_621 * math.log(223) + 348 * math.log(133)) / 2_969, abs=0.2)
    from weft.export.evaluate import evaluate_run

    scored = evaluate_run(run.folder, "shops")
    assert scored[0]["value"] == pytest.approx(top["value"], abs=2e-3)
    from weft.export import load

    with pytest.raises(UserError, match="ranks what comes next in a sequence of items, and these are none: use weft eval"):
        load(run.folder).logits(["a text"])
