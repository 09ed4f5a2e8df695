"""How good generated texts are: against the packages of the metrics, and against loops of our own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from weft.errors import UserError
from weft.tasks import judging

WORDS = [
    "the",
    "The",
    "a",
    "cat",
    "sat",
    "mat,",
    "on",
    "running",
    "runs",
    "ran!",
    "don't",
    "3.5",
    "(big)",
    "--",
    "é",
    "漢字",
    "of",
]


def texts(n: int, seed: int, most: int = 12) -> list[str]:
    """Some are empty."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(0, most))) for _ in range(n)]


GIVEN, WANTED = ["", "a b c d", *texts(40, 0)], ["", "", *texts(40, 1)]


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


# sums of texts ------------------------------------------------------------------------------------------------------------


def test_rouge_is_the_f_measure_of_its_package_with_stems() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = judging.judge(tuple(judging.ROUGE), GIVEN, WANTED)
    for metric, name in judging.ROUGE.items():
        np.testing.assert_array_equal(
            found[metric], [scorer.score(w, g)[name].fmeasure for g, w in zip(GIVEN, WANTED, strict=True)]
        )
        assert found[metric].dtype == np.float64
    assert judging.judge(["rouge_1"], ["cats running"], ["cat runs"])["rouge_1"].tolist() == [1.0]


def test_rouge_by_hand() -> None:
    given, wanted = ["dog", "bites", "man", "and", "runs"], ["man", "bites", "dog"]
    found = judging.judge(tuple(judging.ROUGE), [" ".join(given)], [" ".join(wanted)])
    common = longest_common(given, wanted)
    assert found["rouge_l"][0] == pytest.approx(2 * common / (len(given) + len(wanted)))
    assert found["rouge_1"][0] == pytest.approx(2 * 3 / 8)
    assert found["rouge_2"][0] == 0.0


@pytest.mark.parametrize(("seed", "most"), [(0, 12), (1, 12), (2, 12), (3, 30), (4, 4)])
def test_sums_of_counts_give_the_score_of_the_corpus_to_the_last_digit(seed: int, most: int) -> None:
    given, wanted = texts(30, seed, most), texts(30, seed + 100, most)
    found = judging.judge(["bleu", "chrf"], given, wanted)
    assert {m: c.shape for m, c in found.items()} == {m: (30, width) for m, width in judging.CORPUS.items()}
    assert all(column.dtype == np.int64 for column in found.values())
    score = {m: judging.of_corpus(m, column.sum(0).tolist()) for m, column in found.items()}
    assert score["bleu"] == sacrebleu.corpus_bleu(given, [wanted]).score
    assert score["chrf"] == sacrebleu.corpus_chrf(given, [wanted]).score
    assert 0 < score["bleu"] < 100
    assert 0 < score["chrf"] < 100


def test_texts_that_are_alike_have_full_marks_and_empty_ones_none() -> None:
    full = judging.judge(["bleu", "chrf"], WORDS, WORDS)
    long = judging.judge(["bleu", "chrf"], ["one two three four five"], ["one two three four five"])
    assert judging.of_corpus("chrf", full["chrf"].sum(0).tolist()) == pytest.approx(100)
    assert judging.of_corpus("bleu", long["bleu"].sum(0).tolist()) == pytest.approx(100)
    for metric, width in judging.CORPUS.items():
        assert judging.of_corpus(metric, [0] * width) == 0.0
    short = judging.judge(["bleu"], ["a b c"], ["a b c"])["bleu"].sum(0).tolist()
    assert judging.of_corpus("bleu", short) == sacrebleu.corpus_bleu(["a b c"], [["a b c"]]).score == 0.0, "no run of four words"


def test_no_texts_have_columns_without_rows_and_texts_of_two_lengths_are_refused() -> None:
    assert {m: c.shape for m, c in judging.judge(judging.TEXT, [], []).items()} == {
        m: (0, judging.CORPUS[m]) if m in judging.CORPUS else (0,) for m in judging.TEXT
    }
    for metric in judging.TEXT:
        with pytest.raises(ValueError, match="argument 2"):
            judging.judge([metric], ["a", "b"], ["a"])


# answers to questions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted", "match", "f1"),
    [
        ("The  Eiffel Tower.", "eiffel tower", True, 1.0),
        ("an apple", "the apple", True, 1.0),
        ("Tower Eiffel", "Eiffel Tower", False, 1.0),
        ("the big red cat", "red cat sat", False, 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)),
        ("cat cat cat", "cat", False, 2 * (1 / 3) / (1 / 3 + 1)),
        ("dog", "cat", False, 0.0),
        ("theatre", "atre", False, 0.0),
        ("", "", True, 0.0),  # v1.1 divides by nothing here, and gives none
    ],
)
def test_questions_are_judged_as_squad_does(given: str, wanted: str, match: bool, f1: float) -> None:
    found = judging.judge(["exact_match", "token_f1"], [given], [wanted])
    assert found["exact_match"].tolist() == [match]
    assert found["token_f1"].tolist() == [pytest.approx(f1)]


# answers to problems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He has 3 + 4 = 7 apples.\n#### 7", 7),
        ("#### $1,234,567.50", Decimal("1234567.5")),
        ("#### 42\n\nQuestion: 5 more?\n#### 17", 42),  # what a model goes on with is not its answer
        ("so 2 of 3 are left, #### none", 3),
        ("It is 12, then 30.", 30),
        ("The loss is -5", -5),
        ("x=-5", -5),
        ("\N{MINUS SIGN}5", -5),
        ("7-3", 3),
        ("10 - 4", 4),
        ("costs $.50", Decimal("0.5")),
        ("12,34", 34),
        ("no number", None),
        ("", None),
        (r"thus \boxed{12} and 13", 12),
        (r"\boxed{1} or \boxed{2}", 2),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \dfrac12 }", r"\frac{1}{2}"),
        (r"\boxed{1/2}", r"\frac{1}{2}"),
        (r"\boxed{\sqrt3}", r"\sqrt{3}"),
        (r"\boxed{x = 5}", 5),
        (r"\boxed{\$1{,}000}", "1{,}000"),
        (r"\boxed{1,000\text{ cm}}", 1000),
        (r"\boxed{\text{Evelyn}}", "Evelyn"),
        (r"\boxed{\left(3, \, 4\right)}", "(3,4)"),
        (r"\boxed{90^\circ}", 90),
        (r"\boxed{50\%}", 50),
        (r"\boxed{5.}", 5),
        (r"\fbox{7} of 8", 7),
        (r"\boxed{\textbf{(A)}}", "(A)"),
        (r"\boxed{a \leftarrow b}", r"a\leftarrowb"),
        (r"\boxed{\{1\}} \boxed{not closed", r"\{1\}"),
    ],
)
def test_the_answer_that_a_text_ends_in(text: str, answer: object) -> None:
    assert judging.answer_of(text) == answer


def test_answers_are_compared_as_numbers_or_as_latex_and_none_is_never_right() -> None:
    pairs = [
        ("I think 72.0", "… #### 72", True),
        ("#### 1000", "#### 1,000", True),
        ("#### 71", "#### 72", False),
        ("nothing", "#### 72", False),
        ("nothing", "nothing", False),
        (r"\boxed{72}", "#### 72", True),
        (r"so \boxed{\tfrac34}.", r"\boxed{\frac{3}{4}}", True),
        (r"\frac{3}{4}", r"\boxed{\frac{3}{4}}", False),
    ]
    given, wanted, right = zip(*pairs, strict=True)
    found = judging.judge(["final_answer"], given, wanted)["final_answer"]
    assert found.dtype == bool
    assert found.tolist() == list(right)


# packages that are not there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "package", "module"),
    [("rouge_l", "rouge-score", "rouge_score.rouge_scorer"), ("bleu", "sacrebleu", "sacrebleu.metrics.bleu"),
     ("chrf", "sacrebleu", "sacrebleu.metrics.chrf")],
)  # fmt: skip
def test_a_package_that_is_not_installed_is_named(
    metric: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging.check_installed(judging.TEXT)
    monkeypatch.setitem(sys.modules, module, None)
    judging.check_installed(["exact_match", "token_f1", "final_answer"])
    for asked in (lambda: judging.check_installed([metric]), lambda: judging.judge([metric], ["a"], ["b"])):
        with pytest.raises(UserError, match=rf"^the metric {metric} needs the package {package}: .*\[language\]'\.$"):
            asked()


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("B", True),
        (" B\n", True),
        ("B. the sky", True),
        ("It is blue. The answer is B.", True),
        ("A", False),
        ("b", False),
        ("B.", False),
        ("B the sky", False),
        ("The answer is B. The answer is A.", False),
        ("the sky", False),
        ("", False),
    ],
)
def test_the_letter_of_a_choice_is_read_as_llava_s_evaluation_does(given: str, right: bool) -> None:
    column = judging.judge(["choice_accuracy"], [given], ["B"])["choice_accuracy"]
    assert (column.dtype, column.tolist()) == (bool, [right])


def test_the_letter_a_is_no_article() -> None:
    """Words as SQuAD compares them have no articles: nothing would match A."""
    assert judging.judge(["choice_accuracy"], ["", "A"], ["A", "A"])["choice_accuracy"].tolist() == [False, True]


def test_letters_are_not_scored_where_answers_are_none() -> None:
    judging.check_wanted(["choice_accuracy"], ["A", "B"])
    with pytest.raises(UserError, match=r"the metric choice_accuracy is of letters, and 1 of 2 answers name none, such as 'cat'"):
        judging.check_wanted(["choice_accuracy"], ["A", "cat"])
