"""Generation: its loss and scores against plain loops, what is refused, and which rows it takes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from weft.backbones.reply_table import Replies
from weft.engines.remote import check_told
from weft.errors import UserError
from weft.tasks import judging
from weft.tasks.generation import METRICS, Generation
from weft.tasks.generation_settings import Decoding
from weft.tasks.kinds import CLASSES, GENERATION, KINDS, NUMBERS, TOKENS, make, suits
from weft.tasks.observed import Observed
from weft.tasks.outputs import Hidden, Output
from weft.tensors.output_layer import OutputLayer

TASK = Generation(("answer",), METRICS)
C = 7


def outputs(logits: Tensor, mask: Tensor) -> tuple[Output, Output]:
    """Logits [k, m, C] at hand, and those of the valid tokens alone, made when they are looked at."""
    return Output(logits), Hidden(logits[mask], mask, OutputLayer())


def drawn(seed: int, k: int, m: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [k, m, C], labels and mask."""
    draw = np.random.default_rng(seed)
    mask = torch.from_numpy(draw.random((k, m)) < 0.6)
    logits = torch.from_numpy(draw.normal(size=(k, m, C)) * 3).to(dtype)
    return logits, torch.from_numpy(draw.integers(C, size=(k, m))), mask


def nll(z: Any, y: int) -> float:
    """In plain Python."""
    return math.log(sum(math.exp(v) for v in z)) - float(z[y])


# loss ---------------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_a_clients_tokens_or_over_its_rows() -> None:
    k, b, p = 3, 4, 5
    logits, labels, mask = drawn(0, k, b * p)
    mask[0, :p] = False  # a row that is padding
    mask[1] = False  # a client that has nothing to predict in this step
    by_token, by_example = [], []
    for i in range(k):
        rows = [[nll(logits[i, m].tolist(), int(labels[i, m])) for m in range(r * p, r * p + p) if mask[i, m]] for r in range(b)]
        every, means = [v for row in rows for v in row], [sum(row) / len(row) for row in rows if row]
        by_token.append(sum(every) / len(every) if every else 0.0)
        by_example.append(sum(means) / len(means) if means else 0.0)
    assert by_token[1] == 0.0
    assert len({len(row) for row in rows}) > 1, "with rows of one length both are alike"
    examples = Generation(("answer",), average="examples")
    for out in outputs(logits, mask):
        np.testing.assert_allclose(TASK.loss(out, labels, mask, rows=b).numpy(), by_token, rtol=1e-12)
        np.testing.assert_allclose(examples.loss(out, labels, mask, rows=b).numpy(), by_example, rtol=1e-12)


def test_the_loss_of_tokens_is_that_of_transformers() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels, mask = drawn(1, 1, 12, torch.bfloat16)
    wanted = ForCausalLMLoss(logits, None, C, shift_labels=labels.masked_fill(~mask, -100))
    found = TASK.loss(outputs(logits, mask)[1], labels, mask, rows=3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0], wanted)


@pytest.mark.parametrize("average", ["tokens", "examples"])
def test_tokens_that_are_masked_have_no_gradient(average: Any) -> None:
    logits, labels, mask = drawn(2, 2, 9)
    logits.requires_grad_()
    for out in outputs(logits, mask):
        logits.grad = None
        Generation(("answer",), average=average).loss(out, labels, mask, rows=3).sum().backward()
        assert logits.grad is not None
        assert torch.equal(logits.grad.abs().sum(-1) > 0, mask)


def test_what_is_made_of_outputs_and_tensors_gets_them_in_the_order_given() -> None:
    logits, labels, mask = drawn(4, 2, 6)
    other, _, _ = drawn(5, 2, 6)
    for one, two in zip(outputs(logits, mask), outputs(other, mask), strict=True):
        found = one.each(lambda z, y, w, v: z.gather(1, y[:, None])[:, 0] + 2 * w[:, 3] + v, labels, two, mask.double())
        wanted = logits.gather(2, labels[..., None])[..., 0] + 2 * other[..., 3] + mask.double()
        torch.testing.assert_close(found[mask], wanted[mask])


def test_targets_are_the_tokens_of_answers_with_the_places_of_a_row_side_by_side() -> None:
    ids, offsets = np.array([7, 4, 0, 7, 2, 7], dtype=np.int32), np.array([0, 3, 6])
    table = Replies(
        ids, offsets, None, np.zeros(2, np.int64), np.arange(2), pad=9, answer=np.array([False, True, True, False, True, False])
    )
    labels, mask = TASK.targets(table, np.array([[0, 1], [1, -1]]))
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert labels[mask].tolist() == [4, 0, 2, 2]


# scores -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_keep_the_sums_of_their_tokens(dtype: torch.dtype) -> None:
    logits, labels, mask = drawn(3, 6, 8, dtype)
    mask[2] = False
    labels[0] = logits[0].argmax(-1)
    for out in outputs(logits, mask):
        found = TASK.observe(out, labels, mask)
        for r in range(6):
            own = [m for m in range(8) if mask[r, m]]
            z = {m: logits[r, m].double().tolist() for m in own}
            assert found["nll"][r] == pytest.approx(sum(nll(z[m], int(labels[r, m])) for m in own), rel=1e-12)
            assert found["right"][r] == sum(max(range(C), key=z[m].__getitem__) == int(labels[r, m]) for m in own)
            assert found["tokens"][r] == len(own)
        assert (found["nll"].dtype, found["finite"].tolist()) == (np.float64, [True] * 6)
        assert found["right"][0] == found["tokens"][0] > found["right"][3]


def test_a_token_that_is_certain_is_right_and_one_that_can_not_be_is_not_finite() -> None:
    sure = torch.full((1, 3, C), -1e4)
    sure[0, :, 2] = 1e4
    mask = torch.tensor([[True, True, False]])
    for out in outputs(sure, mask):
        found = TASK.observe(out, torch.full((1, 3), 2), mask)
        assert (found["nll"].tolist(), found["right"].tolist(), found["finite"].tolist()) == ([0.0], [2], [True])
    for value in (math.nan, math.inf, -math.inf):
        odd = torch.zeros(2, 3, C)
        odd[0, 1, 2] = odd[1, 2, 2] = value
        for out in outputs(odd, mask.expand(2, 3)):
            seen = TASK.observe(out, torch.full((2, 3), 2), mask.expand(2, 3))
            assert seen["finite"].tolist() == [False, True], "what is masked is not looked at"


def observed(n: int, seed: int = 0) -> Observed:
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, 9, n)
    columns = {"nll": draw.exponential(size=n) * tokens, "tokens": tokens, "right": draw.integers(0, tokens + 1)}
    return Observed(columns | {"finite": np.ones(n, bool)})


GIVEN, WANTED = ["#### 1", "two cats", "", "z b c d e"], ["#### 1.0", "Two cats!", "x", "b c d e"]


def written(n: int = 9) -> Observed:
    """Texts of four rows that lie apart."""
    return TASK.with_texts(observed(n), np.isin(np.arange(n), (0, 3, 4, 8)), GIVEN, WANTED)


def test_scores_of_tokens_are_over_all_rows_and_those_of_texts_over_rows_that_have_one() -> None:
    some = written()
    found = {s.metric: s for s in TASK.score(some)}
    assert list(found) == [*METRICS, "loss"]
    n, tokens = sum(some["nll"]), sum(some["tokens"])
    assert found["loss"].value == pytest.approx(n / tokens)
    assert found["perplexity"].value == pytest.approx(math.exp(n / tokens))
    assert found["token_accuracy"].value == sum(some["right"]) / tokens
    alone = judging.judge(judging.TEXT, GIVEN, WANTED)
    for metric in judging.TEXT:
        column = alone[metric]
        wanted = judging.of_corpus(metric, column.sum(0).tolist()) if metric in judging.CORPUS else column.sum() / 4
        assert found[metric].value == pytest.approx(wanted)
        assert found[metric].n == 4
    assert [found[m].n for m in ("perplexity", "token_accuracy", "loss")] == [None] * 3
    assert (found["exact_match"].value, found["final_answer"].value) == (0.25, 0.25)


def test_shares_of_right_texts_have_the_interval_of_wilson() -> None:
    found = {s.metric: s for s in TASK.score(written())}
    z, n = 1.959963984540054, 4
    for metric, score in found.items():
        share = 0.0 if metric in ("box_accuracy", "choice_accuracy") else 0.25  # no text has a box, or names a choice
        middle, half = (
            (share + z * z / (2 * n)) / (1 + z * z / n),
            z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n),
        )
        wanted = (pytest.approx(middle - half), pytest.approx(middle + half)) if metric in judging.HITS else (None, None)
        assert (score.low, score.high) == wanted, metric


def test_texts_lie_at_their_rows_and_are_taken_and_joined_with_them() -> None:
    some = written()
    assert some["text"].tolist() == ["#### 1", "", "", "two cats", "", "", "", "", "z b c d e"]
    assert some["written"].tolist() == [True, False, False, True, True, False, False, False, True]
    assert some["bleu"].shape == (9, 10)
    assert not some["bleu"][~some["written"]].any()
    assert not some["rouge_1"][~some["written"]].any()
    both = Observed.concatenate([some.take(np.array([8, 1])), some.take(np.array([3]))])
    assert both["text"].tolist() == ["z b c d e", "", "two cats"]
    assert "written" not in observed(3).columns
    none = TASK.with_texts(observed(9), np.zeros(9, bool), [], [])
    assert set(none.columns) == set(some.columns)
    assert {n: c.shape for n, c in none.columns.items()} == {n: c.shape for n, c in some.columns.items()}
    Observed.concatenate([none, some])
    for mask, texts in ((np.ones(9, bool), GIVEN), (np.zeros(9, bool), GIVEN)):
        with pytest.raises(ValueError, match=r"NumPy|array"):
            TASK.with_texts(observed(9), mask, texts, WANTED)


def test_without_texts_there_are_no_scores_of_texts_and_the_headline_is_the_first_that_there_is() -> None:
    silent, speaking = TASK.with_texts(observed(9), np.zeros(9, bool), [], []), written()
    for some in (silent, observed(9)):
        assert [s.metric for s in TASK.score(some)] == ["perplexity", "token_accuracy", "loss"]
    wanted = {s.metric: s.value for s in TASK.score(speaking)}
    for metrics, with_text, without in (
        (("perplexity", "bleu"), "perplexity", "perplexity"),
        (("rouge_l", "token_accuracy"), "rouge_l", "token_accuracy"),
        (("exact_match",), "exact_match", "loss"),
    ):
        task = Generation(("answer",), metrics)
        for some, metric in ((speaking, with_text), (silent, without)):
            one = task.headline(some)
            assert (one.metric, one.value, one.low) == (metric, wanted[metric], None)
            assert task.score(some)[0].metric == metric


def test_outputs_that_are_not_finite_and_no_rows_have_no_score() -> None:
    some = written()
    odd = Observed(dict(some.columns) | {"finite": np.arange(9) != 4})
    assert [s.metric for s in TASK.score(odd)] == [*METRICS, "loss"]
    assert all(math.isnan(s.value) and s.low is None for s in (*TASK.score(odd), TASK.headline(odd)))
    assert TASK.read(TASK.tell(odd, False), False).blank
    none = some.take(np.zeros(0, np.int64))
    assert TASK.score(none) == []
    assert math.isnan(TASK.headline(none).value)
    far = Observed(dict(observed(2).columns) | {"nll": np.array([1e4, 1e5])})
    values = {s.metric: s.value for s in TASK.score(far)}
    assert math.isnan(values["perplexity"])
    assert math.isfinite(values["loss"])


@pytest.mark.parametrize("by_class", [True, False])
def test_sites_tell_enough_for_every_metric_and_no_histogram(by_class: bool) -> None:
    for metric in METRICS:
        check_told(Generation(("answer",), (metric,)), by_class)
    told = TASK.tell(written(), by_class)
    assert set(told) == {"n", "tokens", "right", "loss", "written", "sums"}
    assert set(told["sums"]) == set(judging.TEXT)
    assert not any("cats" in str(value) for value in told.values()), "texts stay where they are"


# what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("a", "b")}, "^generation has one kind of answer, and 2 classes are declared: give its name alone.$"),
        ({"metrics": ("rougeL",)}, '^unknown metric "rougeL": use perplexity, .*chrf. Did you mean "rouge_l"\\?$'),
        ({"samples": -1}, "^Generation: it needs samples ≥ 0, not -1.$"),
        ({"average": "rows"}, '^Generation: unknown average "rows": use tokens, examples.$'),
        ({"decoding": 3}, "^Generation: .*decoding.*, not 3.$"),
    ],
)
def test_what_is_no_generation_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Generation(**({"classes": ("answer",)} | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new_tokens": 0}, "new_tokens ≥ 1, not 0"),
        ({"beams": 0}, "beams ≥ 1, not 0"),
        ({"temperature": -0.5}, "temperature ≥ 0, not -0.5"),
        ({"temperature": math.inf}, '"temperature" must be a number'),
        ({"top_p": 0.0}, "0 < top_p ≤ 1, not 0.0"),
        ({"top_p": 1.1}, "0 < top_p ≤ 1, not 1.1"),
        ({"beams": 2, "temperature": 0.7}, "^beams look for the likeliest answer, and a temperature of 0.7 draws one: set"),
    ],
)
def test_what_is_no_decoding_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Decoding(**change)


def test_greedy_search_beams_and_draws_are_decodings() -> None:
    assert Decoding() == Decoding(64, 1, 0.0, 1.0)
    for more in ({"beams": 4}, {"temperature": 0.7, "top_p": 0.9}, {"new_tokens": 1}):
        Decoding(**more)


def test_tasks_are_made_by_name_with_what_else_they_can_be_told() -> None:
    assert KINDS[GENERATION] is Generation
    assert make(("answer",), GENERATION) == Generation(("answer",))
    more = {"average": "examples", "samples": 0, "decoding": Decoding(beams=3)}
    assert make(["answer"], GENERATION, ["bleu"], **more) == Generation(("answer",), ("bleu",), **more)
    assert make("ab", CLASSES).metrics == ("accuracy", "macro_f1")


@pytest.mark.parametrize("kind", [CLASSES, TOKENS, NUMBERS])
def test_prompts_with_answers_go_with_generation_only(kind: str) -> None:
    def rows(**more: Any) -> Any:
        nothing = dict.fromkeys(("answers", "rejected", "tags", "numbers", "items", "tasks", "texts", "images"))
        return SimpleNamespace(**(nothing | {"answers": None} | more))

    suits(GENERATION, rows(answers=["yes"]))
    with pytest.raises(
        UserError, match=r"^the rows of these data are prompts with answers.*--task generation learns from that.$"
    ):
        suits(kind, rows(answers=["yes"]))
    for other in (rows(), rows(tags=[0]), rows(numbers=[1.0])):
        with pytest.raises(UserError, match=r"^--task generation needs an answer in each row.*choose other --data.$"):
            suits(GENERATION, other)
    suits(CLASSES, rows())
