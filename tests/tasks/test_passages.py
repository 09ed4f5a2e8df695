"""What sites tell of a test of a language model: sums that give the scores of all rows, and sums that can't be."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.communication.strict import Refused, write_json
from weft.tasks import judging
from weft.tasks.generation import METRICS, Generation
from weft.tasks.observed import Observed
from weft.tasks.passages import Passages, summed

TASK = Generation(("answer",), METRICS)
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "8", "####", "$9"]


def texts(n: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    boxes = [f"[0, 0, {side}, 4] " for side in draw.integers(1, 5, n)]
    return [box + " ".join(draw.choice(WORDS, draw.integers(1, 9))) for box in boxes]


def seen(n: int, seed: int = 0, written: int | None = None) -> Observed:
    """Rows with texts for the first ones (all), some of which are right."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, 9, n)
    some = Observed(
        {
            "nll": draw.exponential(size=n) * tokens,
            "tokens": tokens,
            "right": draw.integers(0, tokens + 1),
            "finite": np.ones(n, bool),
        }
    )
    m = n if written is None else written
    mine, own = texts(m, seed), texts(m, seed + 1)
    mine[::3] = own[::3]
    return TASK.with_texts(some, np.arange(n) < m, mine, own)


def answers(part: Observed) -> Passages:
    """As they come out of a message."""
    return TASK.read(json.loads(write_json(TASK.tell(part, False))), False)


def test_sums_of_sites_give_the_scores_of_all_their_rows_together() -> None:
    whole = seen(40, written=30)
    parts = [whole.take(np.arange(a, b)) for a, b in ((0, 5), (5, 6), (6, 40))]
    pooled, alone = TASK.pool([answers(p) for p in parts]), TASK.score(whole)
    exact = {"token_accuracy", "exact_match", "final_answer", "bleu", "chrf"}  # of whole numbers
    assert [s.metric for s in pooled] == [*METRICS, "loss"]
    for mine, own in zip(pooled, alone, strict=True):
        assert mine.value == (own.value if own.metric in exact else pytest.approx(own.value, rel=1e-14)), own.metric
        assert (mine.low, mine.high, mine.n) == (own.low, own.high, own.n)
    assert len({s.value for s in alone}) >= len(alone) - 1, "scores that are alike tell nothing"


def test_scores_of_sums_by_hand() -> None:
    some = Passages(3, 10, 4, 20.0, 2, {"rouge_l": (1.5,), "exact_match": (1,)})
    assert {m: some.score(m) for m in ("perplexity", "token_accuracy", "loss", "rouge_l", "exact_match")} == {
        "perplexity": math.exp(2), "token_accuracy": 0.4, "loss": 2.0, "rouge_l": 0.75, "exact_match": 0.5,
    }  # fmt: skip


def test_corpus_scores_are_those_of_sacrebleu_whoever_holds_the_texts() -> None:
    mine, own = texts(30, 5), texts(30, 6)
    empty = Observed({"nll": np.ones(30), "tokens": np.ones(30, int), "right": np.ones(30, int), "finite": np.ones(30, bool)})
    whole = TASK.with_texts(empty, np.ones(30, bool), mine, own)
    parts = [answers(whole.take(np.arange(a, b))) for a, b in ((0, 10), (10, 11), (11, 30))]
    found = {s.metric: s.value for s in TASK.pool(parts)}
    assert found["bleu"] == sacrebleu.corpus_bleu(mine, [own]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(mine, [own]).score


def test_sites_that_wrote_nothing_weigh_nothing_in_the_scores_of_texts() -> None:
    silent, speaking = answers(seen(9, 1, written=0)), answers(seen(6, 2))
    assert silent.sums == {}
    pooled, alone = ({s.metric: s for s in TASK.pool(some)} for some in ([silent, speaking], [speaking]))
    for metric in judging.TEXT:
        assert pooled[metric] == alone[metric]
    assert pooled["perplexity"] != alone["perplexity"]
    assert [s.metric for s in TASK.pool([silent])] == ["perplexity", "token_accuracy", "loss"]


def test_a_site_whose_outputs_are_not_finite_has_no_say_in_the_scores_of_the_others() -> None:
    finite, blank = answers(seen(6)), TASK.read({"n": 9, "loss": None, "written": 0}, False)
    assert blank.blank
    assert TASK.pool([finite, blank]) == TASK.pool([finite])
    assert [s.metric for s in TASK.pool([blank, blank])] == ["perplexity", "token_accuracy", "loss"]
    assert all(math.isnan(s.value) for s in TASK.pool([blank]))
    spoke = TASK.read({"n": 9, "loss": None, "written": 2}, False)
    assert [s.metric for s in TASK.pool([spoke])] == [s.metric for s in TASK.pool([spoke, blank])] == [*METRICS, "loss"]
    assert TASK.pool([]) == []


def test_tokens_of_no_rows_and_likelihoods_beyond_floats_have_no_score() -> None:
    assert math.isnan(Passages(1, 0, 0, 0.0).score("perplexity"))
    assert math.isnan(Passages(1, 0, 0, 0.0).score("token_accuracy"))
    assert math.isnan(Passages(1, 1, 0, 1e4).score("perplexity"))
    assert Passages(1, 1, 0, 1e4).score("loss") == 1e4
    assert summed([Passages(1, 2, 1, 3.0), Passages(4, 5, 2, 6.0)]) == Passages(5, 7, 3, 9.0)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0}, {"n": True}, {"n": 6.0}, {"n": None}, {"n": 10**16},
        {"written": 7}, {"written": -1}, {"written": None}, {"written": True}, {"n": 7, "loss": None, "written": 8},
        {"tokens": -1}, {"tokens": 1.5}, {"tokens": None}, {"tokens": 0, "right": 0},
        {"right": 10**6}, {"right": -1}, {"right": False},
        {"loss": -1.0}, {"loss": 1e16}, {"loss": math.nan}, {"loss": "1"},
        {"sums": None}, {"sums": []}, {"sums": {}},
    ],
)  # fmt: skip
def test_counts_that_can_not_be_are_refused(change: dict[str, Any]) -> None:
    honest = TASK.tell(seen(6), True)
    assert TASK.read(honest, True).n == 6
    with pytest.raises(Refused, match=r"^The sums are not those of a test of a language model"):
        TASK.read(honest | change, True)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("rouge_l", [6.1]), ("rouge_l", [-0.1]), ("rouge_l", [math.nan]), ("rouge_l", []), ("rouge_l", 1.0), ("rouge_l", [True]),
        ("token_f1", ["1"]), ("exact_match", [1.5]), ("exact_match", [7]), ("final_answer", [-1]), ("final_answer", None),
        ("bleu", [9, 9, 4, 3, 2, 1, 9, 7, 5]),
        ("bleu", [9, 9, 4, 3, 2, 1.0, 9, 7, 5, 3]),
        ("bleu", [9, 9, 4, 3, 2, -1, 9, 7, 5, 3]),
        ("bleu", [9, 9, 4, 3, 2, 1, 8, 7, 5, 3]),  # words given that are no runs of one
        ("bleu", [9, 3, 4, 3, 2, 1, 9, 7, 5, 3]),  # more matches than words wanted
        ("bleu", [9, 9, 3, 4, 2, 1, 9, 7, 5, 3]),  # more matches of two words than of one
        ("bleu", [9, 9, 4, 3, 2, 1, 9, 7, 8, 3]),
        ("bleu", [9, 9, 4, 3, 3, 3, 9, 7, 5, 2]),  # more matches than runs
        ("bleu", [10**16, 9, 4, 3, 2, 1, 10**16, 7, 5, 3]),
        ("chrf", [9, 9, 10] + [0] * 15), ("chrf", [9, 8, 9] + [0] * 15), ("chrf", [0] * 17), ("chrf", [-1] * 18),
    ],
)  # fmt: skip
def test_sums_of_texts_that_can_not_be_are_refused(metric: str, told: Any) -> None:
    honest = TASK.tell(seen(6), True)
    with pytest.raises(Refused, match=r"^The sums are not those of a test of a language model"):
        TASK.read(honest | {"sums": honest["sums"] | {metric: told}}, True)


def test_counts_that_can_be_are_read_and_what_was_not_asked_for_is_not() -> None:
    told = TASK.tell(seen(6), True)
    told["sums"] |= {"bleu": [9, 9, 4, 3, 2, 1, 9, 7, 5, 3], "chrf": [9, 9, 9] * 6}
    assert TASK.read(told, True).sums["bleu"] == (9, 9, 4, 3, 2, 1, 9, 7, 5, 3)
    one = Generation(("answer",), ("rouge_l",))
    assert list(one.read(told | {"more": [1]}, True).sums) == ["rouge_l"]
    assert Generation(("answer",), ("perplexity",)).read(told | {"sums": None}, True).sums == {}


ANY = st.none() | st.integers() | st.floats() | st.booleans() | st.lists(st.integers(0, 9) | st.floats(), max_size=18)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["n", "loss", "tokens", "right", "written"]), ANY | st.integers(0, 9)), ANY)
def test_what_a_stranger_says_is_refused_or_can_be_true(said: dict[str, Any], sums: Any) -> None:
    try:
        told = TASK.read(said | {"sums": dict.fromkeys(judging.TEXT, sums)}, True)
    except Refused:
        return
    assert told.n > 0
    for score in TASK.pool([told]):
        assert math.isnan(score.value) or score.value >= 0
