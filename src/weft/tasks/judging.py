"""How good generated texts are: a column of each metric, made so that its sums over rows tell the score of all of them.

Texts are compared with one reference each. Shares are from 0 to 1, BLEU and chrF from 0 to 100, as their papers report them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from weft import distribution
from weft.errors import UserError, printable
from weft.tasks import boxes
from weft.words import count

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Metric -> its name in rouge-score."""

HITS = ("exact_match", "final_answer", "choice_accuracy", "box_accuracy")
"""Metrics that are 0 or 1 for each row."""

BOXES = ("iou", "box_accuracy")
"""Metrics of boxes on pictures."""

CORPUS = {"bleu": 2 + 2 * 4, "chrf": 3 * 6}
"""Metrics that are no mean of rows -> whole numbers of each row that sacrebleu makes them of.

BLEU: words given and wanted, then of 1 to 4 words the matches, and those given; chrF: of 1 to 6 characters those given, those
wanted, and the matches.
"""

TEXT = (*ROUGE, *HITS, "token_f1", "iou", *CORPUS)
"""All metrics of generated texts."""


def judge(metrics: Sequence[str], given: Sequence[str], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """What is kept of n generated texts: for each metric asked for (of :data:`TEXT`) a column.

    * ``rouge_1``, ``rouge_2``, ``rouge_l``: F-measures of rouge-score with Porter's stemmer, as the scripts of papers on
      summaries and instructions call it (``use_stemmer=True``), which knows letters from a to z and digits alone; ``rouge_l``
      takes a text as one sentence. float64 [n].
    * ``exact_match``, ``token_f1``: of SQuAD v1.1 (Rajpurkar et al., 2016), see :func:`words`. bool and float64 [n].
    * ``final_answer``: of GSM8K and MATH, see :func:`final_answer`. bool [n].
    * ``choice_accuracy``: of ScienceQA, see :func:`choice`. bool [n].
    * ``iou``, ``box_accuracy``: of boxes on pictures, see :mod:`weft.tasks.boxes`. float64 and bool [n].
    * ``bleu``, ``chrf``: sacrebleu's counts of each row with its defaults (13a; chrF2), int64 [n, 10] and [n, 18].

    Raises:
        UserError: the packages for it are not installed.
    """
    pairs = list(zip(given, wanted, strict=True))
    return {metric: _column(metric, pairs) for metric in metrics}


def check_installed(metrics: Sequence[str]) -> None:
    """The packages that metrics need are there.

    Raises:
        UserError: one is not.
    """
    for metric in metrics:
        if metric in ROUGE:
            _rouge(metric)
        elif metric in CORPUS:
            _sacrebleu(metric)


def check_wanted(metrics: Sequence[str], wanted: Sequence[str]) -> None:
    """The answers of the data are what metrics speak of.

    Raises:
        UserError: one is not.
    """
    for metric in metrics:
        if metric in BOXES:
            boxes.check_wanted(metric, wanted)
        if metric == "choice_accuracy" and (lacking := [text for text in wanted if _letter(text) is None]):
            raise UserError(
                f"the metric {metric} is of letters, and {len(lacking)} of {count(len(wanted), 'answer')} name none, such as "
                f"{printable(lacking[0])[:40]!r}: give a column of choices, or leave the metric out."
            )


def of_corpus(metric: str, sums: Sequence[int]) -> float:
    """``bleu`` or ``chrf`` of summed columns, as ``sacrebleu.corpus_bleu`` and ``corpus_chrf`` have it.

    Raises:
        UserError: sacrebleu is not installed.
    """
    return float(_sacrebleu(metric)._compute_score_from_stats(list(sums)).score)


def _column(metric: str, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    if metric in CORPUS:
        counter = _sacrebleu(metric)
        counts = [counter._extract_corpus_statistics([given], [[wanted]])[0] for given, wanted in pairs]
        return np.array(counts, dtype=np.int64).reshape(-1, CORPUS[metric])
    each = _rouge(metric) if metric in ROUGE else OWN[metric]
    return np.array([each(given, wanted) for given, wanted in pairs], dtype=bool if metric in HITS else np.float64)


def _rouge(metric: str) -> Callable[[str, str], float]:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError(f"the metric {metric} needs the package rouge-score: {distribution.install('language')}.") from None
    name = ROUGE[metric]
    scorer = RougeScorer([name], use_stemmer=True)
    return lambda given, wanted: float(scorer.score(wanted, given)[name].fmeasure)


def _sacrebleu(metric: str) -> Any:
    """The object of sacrebleu that counts for a metric, and scores counts. Only its inner methods do so row by row."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError(f"the metric {metric} needs the package sacrebleu: {distribution.install('language')}.") from None
    return BLEU(tokenize="13a", force=True) if metric == "bleu" else CHRF()  # force: no warning of texts that look tokenised


# answers to questions -----------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words that SQuAD v1.1 compares: small letters, without punctuation and articles."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact_match(given: str, wanted: str) -> bool:
    return words(given) == words(wanted)


def token_f1(given: str, wanted: str) -> float:
    """F1 of the words that both have, each as often as both have it; 0 where they share none, also of two empty texts."""
    mine, own = words(given), words(wanted)
    common = (Counter(mine) & Counter(own)).total()
    return 2 * common / (len(mine) + len(own)) if common else 0.0


CHOICE = re.compile(r"([A-Z])(?:\. .*)?", re.DOTALL)
SAID = re.compile(r"The answer is ([A-Z])\.")


def choice(given: str, wanted: str) -> bool:
    """Whether a text names the letter of the right choice.

    As LLaVA's evaluation of ScienceQA reads it: the text is a letter, or begins with one, a full stop and a blank, or says once
    "The answer is A."; whatever else is wrong.
    """
    answer = _letter(wanted)
    return answer is not None and _letter(given) == answer


def _letter(text: str) -> str | None:
    text = text.strip()
    if found := CHOICE.fullmatch(text):
        return found.group(1)
    said = SAID.findall(text)
    return said[0] if len(said) == 1 else None


# answers to problems in mathematics ---------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")  # the hyphen of 7-3 is no sign
MARK = "####"
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def final_answer(given: str, wanted: str) -> bool:
    r"""Whether a text ends in the answer that another ends in.

    The answer is what stands in the last ``\boxed{…}`` (MATH, Hendrycks et al., 2021), compared as a number where it is one, else
    as LaTeX without what makes no difference to it; without a box, the number that follows the first ``####`` (GSM8K, Cobbe et
    al., 2021), or else the last number there is. Commas between thousands and signs of dollars do not count.
    """
    answer = answer_of(wanted)
    return answer is not None and answer_of(given) == answer


def answer_of(text: str) -> Decimal | str | None:
    """The answer that a text ends in: a number, or LaTeX; None if there is none."""
    box = _boxed(text)
    if box is not None:
        latex = _latex(box)
        return Decimal(latex) if NUMBER.fullmatch(latex) else latex
    text = _plain(text)
    _, mark, rest = text.partition(MARK)
    found = NUMBER.search(rest) if mark else None
    number = found.group() if found else next(reversed(NUMBER.findall(text)), None)
    return None if number is None else Decimal(number)


def _plain(text: str) -> str:
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", re.sub(r"\\?\$", "", text.replace("−", "-")))


def _boxed(text: str) -> str | None:
    """What stands in the last box whose braces close."""
    for found in reversed(list(BOX.finditer(text))):
        depth = 1
        for place in range(found.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[found.end() : place]
    return None


SAME = (  # what stands for what in LaTeX, in this order
    (r"\\[!,;: ]|\\(?:left|right|displaystyle)(?![a-z])|\^\{?\\circ\}?|\\?%", ""),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\(?:text|mbox|mathrm)\{\s[^{}]*\}\s*$", ""),  # a unit
    (r"\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}", r"\1"),
    (r"\s", ""),
    (r"^[A-Za-z]=", ""),  # x = 5
    (r"\\frac([0-9A-Za-z])", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]*\})([0-9A-Za-z])", r"\1{\2}"),
    (r"\\sqrt([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"^(-?)([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),
    (r"\.$", ""),
)


def _latex(text: str) -> str:
    """LaTeX of an answer in one spelling: without spacing, units and signs of percent or degrees; fractions with braces."""
    text = _plain(text)
    for pattern, other in SAME:
        text = re.sub(pattern, other, text)
    return text


OWN: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "final_answer": final_answer,
    "choice_accuracy": choice,
    "iou": boxes.overlap,
    "box_accuracy": boxes.found,
}
