"""Preference: its loss and scores against plain Python, what sites tell, and what is refused."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weft.communication.strict import Refused
from weft.engines.remote import check_told
from weft.errors import UserError
from weft.tasks.choices import Choices
from weft.tasks.kinds import CLASSES, GENERATION, KINDS, PREFERENCE, make, suits
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.preference import METRICS, Preference

TASK = Preference(("answer",))
K, B, P, C = 3, 4, 5, 7


def drawn(seed: int = 0) -> tuple[Output, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    mask = torch.from_numpy(draw.random((K, B, 2, P)) < 0.6)
    mask[..., 0] = True
    mask[0, 0] = False  # a row that is padding
    mask[1] = False  # a client that has nothing to predict in this step
    logits = torch.from_numpy(draw.normal(size=(K, B * 2 * P, C)) * 3)
    labels = torch.from_numpy(draw.integers(C, size=(K, B * 2 * P)))
    return Output(logits), labels, mask.view(K, -1), torch.from_numpy(10 * draw.normal(size=(K, B, 2)) - 9)


def trl(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, beta: float) -> tuple[float, float]:
    """Loss and margin as TRL's DPOTrainer writes them (loss_type = "sigmoid")."""
    logratios, ref_logratios = chosen - rejected, ref_chosen - ref_rejected
    logits = logratios - ref_logratios
    margin = beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)
    return -math.log(1 / (1 + math.exp(-beta * logits))), margin


def by_hand(beta: float) -> list[list[tuple[float, float] | None]]:
    out, labels, mask, reference = drawn()
    z = out.logits.view(K, B, 2, P, C)
    y, valid = labels.view(K, B, 2, P), mask.view(K, B, 2, P)
    found: list[list[tuple[float, float] | None]] = []
    for k in range(K):
        found.append([])
        for b in range(B):
            sums = []
            for side in range(2):
                own = [
                    float(z[k, b, side, p, y[k, b, side, p]]) - math.log(sum(map(math.exp, z[k, b, side, p].tolist())))
                    for p in range(P)
                    if valid[k, b, side, p]
                ]
                sums.append(sum(own))
            found[k].append(trl(*sums, *reference[k, b].tolist(), beta) if valid[k, b].any() else None)
    return found


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_loss_is_that_of_the_published_formula(beta: float) -> None:
    out, labels, mask, reference = drawn()
    rows = [[row[0] for row in own if row is not None] for own in by_hand(beta)]
    wanted = [sum(own) / len(own) if own else 0.0 for own in rows]
    assert [len(own) for own in rows] == [3, 0, 4]
    found = Preference(("answer",), beta=beta).loss(out, labels, mask, B, reference)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


def test_its_gradient_is_that_of_the_formula_and_none_where_nothing_is_to_predict() -> None:
    out, labels, mask, reference = drawn()
    z = out.logits.clone().requires_grad_()
    TASK.loss(Output(z), labels, mask, B, reference).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad.abs().sum(-1) > 0, mask)
    margin = torch.tensor([[row[1] if row else 0.0 for row in own] for own in by_hand(0.1)], dtype=torch.float64)
    weight = 0.1 * torch.sigmoid(-margin) / torch.tensor([3, 1, 4])[:, None]  # of each client's mean
    sign = torch.tensor([-1, 1]).view(1, 1, 2, 1, 1)
    slope = F.one_hot(labels, C) - out.logits.softmax(-1)  # of log π
    wanted = slope.view(K, B, 2, P, C) * sign * weight.view(K, B, 1, 1, 1)
    torch.testing.assert_close(z.grad, wanted.view_as(z) * mask[..., None], rtol=1e-10, atol=1e-12)


def test_rows_keep_their_margin_and_are_scored_by_it() -> None:
    out, labels, mask, reference = drawn()
    hand = [row for row in by_hand(0.1)[2] if row is not None]
    own = Output(out.logits[2].view(B, 2 * P, C))
    seen = TASK.observe(own, labels[2].view(B, -1), mask[2].view(B, -1), reference[2])
    np.testing.assert_allclose(seen["margin"], [row[1] for row in hand], rtol=1e-10)
    np.testing.assert_allclose(seen["loss"], [row[0] for row in hand], rtol=1e-10)
    assert 0 < sum(row[1] > 0 for row in hand) < B
    found = {s.metric: s for s in TASK.score(seen)}
    assert list(found) == ["reward_accuracy", "reward_margin", "loss"]
    won = sum(row[1] > 0 for row in hand)
    assert found["reward_accuracy"].value == won / B == TASK.headline(seen).value
    z, share = 1.959963984540054, won / B
    middle = (share + z * z / (2 * B)) / (1 + z * z / B)
    half = z * math.sqrt(share * (1 - share) / B + z * z / (4 * B * B)) / (1 + z * z / B)
    assert (found["reward_accuracy"].low, found["reward_accuracy"].high) == (
        pytest.approx(middle - half),
        pytest.approx(middle + half),
    )
    assert found["reward_margin"].value == pytest.approx(sum(row[1] for row in hand) / B)
    assert found["loss"].value == pytest.approx(sum(row[0] for row in hand) / B)
    assert [s.low for s in (found["reward_margin"], TASK.headline(seen))] == [None, None]


@pytest.mark.parametrize(("shift", "won"), [(0.0, 0), (1e-7, 0), (-1e-7, 0), (5e-6, 0), (2e-5, 1), (1e-3, 1)])
def test_a_tie_is_not_won_nor_is_what_may_be_rounding(shift: float, won: int) -> None:
    z = torch.zeros(1, 4, C)
    labels, mask = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)
    reference = torch.full((1, 2), -2 * math.log(C)) - torch.tensor([[shift * 4 * math.log(C), 0.0]])
    seen = TASK.observe(Output(z), labels, mask, reference.double())
    assert int(seen["won"].sum()) == won


def test_outputs_that_are_not_finite_and_no_rows_have_no_score() -> None:
    columns = {
        "margin": np.array([0.5, math.nan]),
        "won": np.array([True, False]),
        "loss": np.ones(2),
        "finite": np.array([1, 0]),
    }
    odd = Observed(columns | {"finite": columns["finite"].astype(bool)})
    assert [s.metric for s in TASK.score(odd)] == [*METRICS, "loss"]
    assert all(math.isnan(s.value) for s in (*TASK.score(odd), TASK.headline(odd)))
    assert TASK.read(TASK.tell(odd, False), False).blank
    none = odd.take(np.zeros(0, np.int64))
    assert TASK.score(none) == []
    assert math.isnan(TASK.headline(none).value)


# sites --------------------------------------------------------------------------------------------------------------------


def observed(margins: list[float]) -> Observed:
    m = np.array(margins)
    return Observed({"margin": m, "won": m > 0, "loss": np.logaddexp(0, -m), "finite": np.ones(len(m), bool)})


def test_what_sites_tell_is_pooled_to_the_scores_of_all_rows() -> None:
    parts = [[0.3, -0.2, 1.5], [0.0], [-4.0, 2.0]]
    told = [TASK.read(TASK.tell(observed(part), False), False) for part in parts]
    whole = TASK.score(observed([m for part in parts for m in part]))
    assert [(s.metric, pytest.approx(s.value), s.low) for s in TASK.pool(told)] == [(s.metric, s.value, s.low) for s in whole]
    blank = Choices(3, 0, math.nan, math.nan)
    assert TASK.pool([*told, blank]) == TASK.pool(told)
    assert all(math.isnan(s.value) for s in TASK.pool([blank]))
    for metric in METRICS:
        check_told(Preference(("answer",), (metric,)), by_class=False)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0}, {"n": True}, {"n": 2.0}, {"won": 4}, {"won": -1}, {"won": 1.0}, {"margin": math.inf}, {"margin": math.nan},
        {"margin": None}, {"margin": 1e16}, {"loss": -0.1}, {"loss": math.nan}, {"loss": "1"},
        {"loss": 0.5}, {"margin": -30.0},  # less than any rows with this margin lose
    ],
)  # fmt: skip
def test_what_can_not_be_true_is_refused(change: dict[str, Any]) -> None:
    told = TASK.tell(observed([0.3, -0.2, 1.5]), False)
    assert TASK.read(told, False).won == 2
    with pytest.raises(Refused):
        TASK.read(told | change, False)


# what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("a", "b")}, "^preference compares answers of one kind, and 2 classes are declared: give its name alone.$"),
        ({"metrics": ("accuracy",)}, '^unknown metric "accuracy": use reward_accuracy, reward_margin'),
        ({"beta": 0.0}, "^Preference: it needs beta > 0, not 0.0.$"),
    ],
)
def test_what_is_no_preference_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Preference(**({"classes": ("answer",)} | change))


def test_rows_with_two_answers_go_with_preference_and_their_chosen_ones_with_generation() -> None:
    def rows(**more: Any) -> Any:
        nothing = dict.fromkeys(("answers", "rejected", "tags", "numbers", "items", "tasks", "texts", "images"))
        return SimpleNamespace(**(nothing | {"answers": ["a"]} | more))

    assert KINDS[PREFERENCE] is Preference
    assert make(["answer"], PREFERENCE, beta=0.3) == Preference(("answer",), beta=0.3)
    suits(PREFERENCE, rows(rejected=["b"]))
    suits(GENERATION, rows(rejected=["b"]))
    with pytest.raises(UserError, match=r"^--task preference needs two answers in each row.*choose other --data.$"):
        suits(PREFERENCE, rows())
    with pytest.raises(UserError, match=r"two answers each: --task preference learns from that.$"):
        suits(CLASSES, rows(rejected=["b"]))
