"""Token classification: its loss and scores against plain NumPy, and what sites tell of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.communication.strict import Refused
from weft.engines.remote import check_told
from weft.errors import UserError
from weft.federation.batch import Batch
from weft.tasks.entities import Entities
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.tagging import Tagging

TAGS = ("O", "B-X", "I-X", "B-Y", "I-Y")
EVERY = ("macro_f1", "entity_f1", "precision", "recall", "token_accuracy", "f1:Y", "f1:X")
TASK = Tagging(TAGS, EVERY)


def log_softmax(z: np.ndarray) -> np.ndarray:
    top = z - z.max(-1, keepdims=True)
    return top - np.log(np.exp(top).sum(-1, keepdims=True))


def drawn(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and a mask; the last row of each client is padding, and one row has no word."""
    draw = np.random.default_rng(seed)
    mask = draw.random(shape) < 0.6
    mask[..., -1] = False
    logits = torch.from_numpy(draw.normal(size=(*shape, len(TAGS))))
    return logits, torch.from_numpy(draw.integers(len(TAGS), size=shape)), torch.from_numpy(mask)


# loss -------------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_each_clients_own_words() -> None:
    logits, labels, mask = drawn(0, 3, 14)
    mask[1] = False  # a client that has nothing to predict in this step
    logp = log_softmax(logits.numpy())
    wanted = []
    for k in range(3):
        own = [-logp[k, m, labels[k, m]] for m in range(14) if mask[k, m]]
        wanted.append(sum(own) / len(own) if own else 0.0)
    assert wanted[1] == 0.0
    np.testing.assert_allclose(TASK.loss(Output(logits), labels, mask).numpy(), wanted, rtol=1e-12)


def test_words_that_are_masked_have_no_gradient_and_no_say() -> None:
    logits, labels, mask = drawn(1, 2, 9)
    logits.requires_grad_()
    TASK.loss(Output(logits), labels, mask).sum().backward()
    slope = logits.grad
    assert slope is not None
    assert torch.equal(slope.abs().sum(-1) > 0, mask)
    others = torch.where(mask, labels, (labels + 1) % len(TAGS))
    assert torch.equal(TASK.loss(Output(logits), others, mask), TASK.loss(Output(logits), labels, mask))


def within(logits: Tensor, labels: Tensor, mask: Tensor, allowed: Tensor) -> Tensor:
    return Batch(None, np.zeros((len(logits), 1)), labels, mask, allowed).within(Output(logits)).logits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_within_a_label_space_is_that_of_its_columns_alone(dtype: torch.dtype) -> None:
    logits, _, _ = drawn(2, 2, 6)
    logits = (logits * 5).to(dtype).requires_grad_()
    mask = torch.ones(2, 6, dtype=torch.bool)
    labels = torch.tensor([[0, 1, 2, 0, 0, 2], [0, 4, 3, 3, 0, 0]])
    columns = [[0, 1, 2], [0, 3, 4]]
    allowed = torch.zeros(2, 6, len(TAGS), dtype=torch.bool)
    for k, own in enumerate(columns):
        allowed[k][:, own] = True
    narrow = within(logits, labels, mask, allowed)
    loss = TASK.loss(Output(narrow), labels, mask)
    loss.sum().backward()
    assert logits.grad is not None
    for k, own in enumerate(columns):
        alone = logits.detach()[k][:, own].clone().requires_grad_()
        one = torch.nn.functional.cross_entropy(alone, torch.tensor([own.index(t) for t in labels[k].tolist()]))
        one.backward()
        assert alone.grad is not None
        torch.testing.assert_close(loss[k], one)
        torch.testing.assert_close(logits.grad[k][:, own], alone.grad)
        assert not logits.grad[k][~allowed[k]].any()
    assert bool(allowed.gather(-1, narrow.argmax(-1, keepdim=True)).all())
    assert not bool(allowed.gather(-1, logits.argmax(-1, keepdim=True)).all()), "the logits would have left it"


def test_without_a_label_space_logits_stay_as_they_are() -> None:
    logits, labels, mask = drawn(3, 1, 5)
    assert Batch(None, np.zeros((1, 1)), labels, mask).within(Output(logits)).logits is logits


# scores -----------------------------------------------------------------------------------------------------------------


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """By looking at all stretches of words there are."""
    found = set()
    for start in range(len(tags)):
        kind = tags[start][2:]
        if not kind or (tags[start][0] == "I" and start and tags[start - 1][2:] == kind):
            continue
        end = start + 1
        while end < len(tags) and tags[end] == f"I-{kind}":
            end += 1
        found.add((kind, start, end))
    return found


def by_hand(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """All scores of b rows, in plain loops."""
    hit, given, have = (dict.fromkeys("XY", 0) for _ in range(3))
    loss: list[float] = []
    right = 0
    for z, y, valid in zip(logits, labels, mask, strict=True):
        guess = [TAGS[z[p].argmax()] for p in range(len(y)) if valid[p]]
        truth = [TAGS[y[p]] for p in range(len(y)) if valid[p]]
        right += sum(a == b for a, b in zip(guess, truth, strict=True))
        loss += [-log_softmax(z[p])[y[p]] for p in range(len(y)) if valid[p]]
        for counts, some in ((hit, entities(guess) & entities(truth)), (given, entities(guess)), (have, entities(truth))):
            for kind, _, _ in some:
                counts[kind] += 1

    def f1(kinds: str) -> float:
        h, g, t = (sum(counts[kind] for kind in kinds) for counts in (hit, given, have))
        precision, recall = h / g if g else 0.0, h / t if t else 0.0
        return 2 * precision * recall / (precision + recall) if h else 0.0

    there = [kind for kind in "XY" if have[kind]]
    return {
        "macro_f1": sum(map(f1, there)) / len(there) if there else 0.0,
        "entity_f1": f1("XY"),
        "precision": sum(hit.values()) / max(sum(given.values()), 1),
        "recall": sum(hit.values()) / max(sum(have.values()), 1),
        "token_accuracy": right / max(len(loss), 1),
        "f1:Y": f1("Y"),
        "f1:X": f1("X"),
        "loss": sum(loss) / max(len(loss), 1),
    }


def rows(seed: int, n: int = 12, places: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that are right more often than not."""
    logits, labels, mask = drawn(seed, n, places)
    mask[0] = False
    return logits + 2.5 * torch.nn.functional.one_hot(labels, len(TAGS)), labels, mask


def scores(observed: Observed, task: Tagging = TASK) -> dict[str, float]:
    return {score.metric: score.value for score in task.score(observed)}


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_that_a_person_would_count(seed: int) -> None:
    logits, labels, mask = rows(seed)
    found = scores(TASK.observe(Output(logits.float()), labels, mask))
    assert list(found) == [*EVERY, "loss"]
    wanted = by_hand(logits.float().numpy(), labels.numpy(), mask.numpy())
    assert found == {name: pytest.approx(value, rel=1e-6) for name, value in wanted.items()}
    assert 0 < found["entity_f1"] < 1
    assert found["macro_f1"] != pytest.approx(found["entity_f1"], rel=1e-6)
    headline = TASK.headline(TASK.observe(Output(logits.float()), labels, mask))
    assert (headline.metric, headline.value) == ("macro_f1", found["macro_f1"])


def observe(truth: Sequence[str], guess: Sequence[str], task: Tagging = TASK) -> Observed:
    """Of sentences written as tags with blanks between."""
    width = max(len(row.split()) for row in truth)
    labels, guesses, mask = np.zeros((3, len(truth), width), dtype=np.int64)
    for r, (own, said) in enumerate(zip(truth, guess, strict=True)):
        n = len(own.split())
        labels[r, :n] = [task.classes.index(t) for t in own.split()]
        guesses[r, :n] = [task.classes.index(t) for t in said.split()]
        mask[r, :n] = 1
    z = 8.0 * torch.nn.functional.one_hot(torch.from_numpy(guesses), len(task.classes)).float()
    return task.observe(Output(z), torch.from_numpy(labels), torch.from_numpy(mask.astype(bool)))


@pytest.mark.parametrize(
    ("truth", "guess", "precision", "recall", "accuracy"),
    [
        ("B-X I-X O", "B-X I-X O", 1, 1, 1),
        ("B-X I-X O", "B-X O O", 0, 0, 2 / 3),  # it ends too early
        ("B-X I-X O", "O B-X O", 0, 0, 1 / 3),  # it begins too late
        ("B-X I-X O", "B-Y I-Y O", 0, 0, 1 / 3),
        ("B-X B-X O", "B-X I-X O", 0, 0, 2 / 3),
        ("B-X I-X O", "I-X I-X O", 1, 1, 2 / 3),  # the same span, by a tag that breaks the scheme
        ("B-X O B-Y", "B-X B-Y B-Y", 2 / 3, 1, 2 / 3),
        ("B-X O B-Y", "O O B-Y", 1, 1 / 2, 2 / 3),
        ("O O O", "O O O", 0, 0, 1),
        ("O O O", "B-X O O", 0, 0, 2 / 3),
    ],
)
def test_an_entity_counts_if_its_type_and_all_its_words_are_found(
    truth: str, guess: str, precision: float, recall: float, accuracy: float
) -> None:
    found = scores(observe([truth], [guess]))
    assert (found["precision"], found["recall"]) == (precision, recall)
    assert found["token_accuracy"] == pytest.approx(accuracy)
    assert found["entity_f1"] == pytest.approx(2 * precision * recall / max(precision + recall, 1))


def test_an_entity_ends_with_its_row_and_words_between_masks_are_next_to_each_other() -> None:
    """The places of a row are its tokens, of which only first ones of words have tags."""
    labels = torch.tensor([[0, 1, 0, 2], [2, 0, 0, 0]])
    mask = torch.tensor([[False, True, False, True], [True, True, False, False]])
    seen = TASK.observe(Output(8.0 * torch.nn.functional.one_hot(labels, len(TAGS)).float()), labels, mask)
    assert seen["entities"].tolist() == [[[1, 1, 1], [0, 0, 0]]] * 2
    assert seen["words"].tolist() == [2, 2]


def test_micro_is_over_all_entities_and_macro_the_mean_of_types_that_occur() -> None:
    truth = ["B-X", "B-X", "B-X", "B-Y"]
    found = scores(observe(truth, ["B-X", "B-X", "B-X", "O"]))
    assert found["entity_f1"] == pytest.approx(6 / 7)
    assert found["macro_f1"] == pytest.approx(1 / 2)
    assert (found["f1:X"], found["f1:Y"]) == (1, 0)
    assert scores(observe(truth[:3], ["B-X", "B-X", "B-Y"]))["macro_f1"] == pytest.approx(4 / 5), "Y does not occur"
    assert scores(observe(["O"], ["B-X"]))["macro_f1"] == 0.0


def test_rows_without_words_or_entities_have_scores_and_no_rows_have_none() -> None:
    logits, labels, _ = drawn(4, 2, 3)
    nothing = TASK.observe(Output(logits.float()), labels, torch.zeros(2, 3, dtype=torch.bool))
    assert scores(nothing) == {**dict.fromkeys(EVERY, 0.0), "loss": 0.0}
    assert TASK.score(nothing.take(np.zeros(0, dtype=np.int64))) == []
    assert math.isnan(TASK.headline(nothing.take(np.zeros(0, dtype=np.int64))).value)
    assert TASK.pool([]) == []


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_make_every_score_nan_if_they_are_of_a_word(odd: float) -> None:
    logits, labels, mask = rows(5)
    logits = logits.float()
    row, place = (int(i) for i in mask.nonzero()[3])
    logits[row, place, 1] = odd
    seen = TASK.observe(Output(logits), labels, mask)
    found = scores(seen)
    assert list(found) == [*EVERY, "loss"]
    assert all(math.isnan(value) for value in found.values())
    assert math.isnan(TASK.headline(seen).value)
    assert TASK.tell(seen, True) == {"n": len(mask), "loss": None}
    assert TASK.read(TASK.tell(seen, True), True).blank
    assert not math.isnan(scores(seen.take(np.delete(np.arange(len(mask)), row)))["entity_f1"])


def test_an_output_that_is_not_finite_and_of_no_word_says_nothing() -> None:
    logits, labels, mask = rows(6)
    logits = logits.float()
    wanted = scores(TASK.observe(Output(logits), labels, mask))
    logits[~mask] = math.nan
    assert scores(TASK.observe(Output(logits), labels, mask)) == wanted


# what sites tell --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_class", [True, False])
def test_pooled_over_clients_scores_are_those_of_all_rows_together(by_class: bool) -> None:
    logits, labels, mask = rows(7, 30)
    seen = TASK.observe(Output(logits.float()), labels, mask)
    whole = scores(seen)
    shares = [np.arange(30)[cut] for cut in (slice(0, 3), slice(3, 19), slice(19, 30))]
    told = [TASK.read(TASK.tell(seen.take(share), by_class), by_class) for share in shares]
    assert [one.n for one in told] == [3, 16, 11]
    found = {score.metric: score.value for score in TASK.pool(told)}
    names = [name for name in whole if by_class or not name.startswith(("macro", "f1"))]
    assert found == {name: pytest.approx(whole[name], rel=1e-12) for name in names}
    blank = Entities(5, 0, 0, math.nan)
    assert {s.metric: s.value for s in TASK.pool([*told, blank])} == found, "who has diverged is left out"
    assert all(math.isnan(s.value) for s in TASK.pool([blank]))


def test_types_are_told_only_if_asked_for_and_read_only_then() -> None:
    seen = observe(["B-X O", "B-Y I-Y"], ["B-X O", "O O"])
    assert TASK.tell(seen, False) == {"n": 2, "words": 4, "right": 2, "loss": pytest.approx(16, abs=0.1), "all": [1, 1, 2]}
    assert TASK.tell(seen, True)["types"] == [[1, 1, 1], [0, 0, 1]]
    assert TASK.read(TASK.tell(seen, True), False).types is None
    mixed = [TASK.read(TASK.tell(seen, True), True), TASK.read(TASK.tell(seen, False), False)]
    assert "macro_f1" not in {score.metric for score in TASK.pool(mixed)}


def test_an_honest_site_may_find_more_entities_than_tags() -> None:
    """I-X where it should say B-X: the same span, and not the tag."""
    told = TASK.tell(observe(["B-X O"], ["I-X B-Y"]), True)
    assert (told["right"], told["all"]) == (0, [1, 2, 1])
    assert TASK.read(told, True).all == (1, 2, 1)


GOOD: dict[str, Any] = {
    "n": 6,
    "words": 40,
    "right": 31,
    "loss": 12.5,
    "all": [4, 7, 6],
    "types": [[1, 3, 1], [3, 4, 5]],
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.floats(allow_nan=True, allow_infinity=True).filter(lambda v: v != int(v) if math.isfinite(v) else True),
    st.integers(max_value=-1),
    st.integers(min_value=10**15),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.text(max_size=1), st.integers(), max_size=1),
)


def test_the_answer_that_false_ones_are_made_of_is_fine() -> None:
    assert TASK.read(GOOD, True) == Entities(6, 40, 31, 12.5, (4, 7, 6), ((1, 3, 1), (3, 4, 5)))


@settings(max_examples=120)
@given(st.data())
def test_no_false_answer_of_a_site_is_taken(data: st.DataObject) -> None:
    told = GOOD | {"all": list(GOOD["all"]), "types": [list(three) for three in GOOD["types"]]}
    where = data.draw(st.sampled_from(["n", "words", "right", "loss", "all", "types", "in all", "in types", "sum", "without"]))
    odd = data.draw(ODD)
    if where == "without":
        del told[data.draw(st.sampled_from(["n", "words", "right", "all", "types"]))]
    elif where == "sum":  # plausible by itself, but the types no longer add up to all
        kind, column = data.draw(st.sampled_from([(0, 1), (1, 1), (0, 2), (1, 2)]))
        told["types"][kind][column] += data.draw(st.integers(1, 20))
    elif where == "in all":
        told["all"][data.draw(st.integers(0, 2))] = odd
    elif where == "in types":
        told["types"][data.draw(st.integers(0, 1))][data.draw(st.integers(0, 2))] = odd
    elif where == "loss":
        told["loss"] = data.draw(st.sampled_from([math.nan, math.inf, 1e15, -1e15, "1", [1], True]))
    elif where == "n":
        told["n"] = data.draw(st.one_of(ODD, st.just(0)))
    else:
        told[where] = odd
    with pytest.raises(Refused):
        TASK.read(told, True)


@pytest.mark.parametrize(
    "change",
    [
        {"right": 41},
        {"all": [5, 4, 6]},
        {"all": [5, 7, 4]},
        {"all": [4, 41, 6]},
        {"all": [4, 7, 41]},
        {"all": [4, 7]},
        {"all": [4, 7, 6, 0]},
        {"all": {"0": 1}},
        {"types": [[4, 7, 6]]},
        {"types": [[1, 3, 1], [3, 4, 5], [0, 0, 0]]},
        {"types": [[4, 3, 1], [0, 4, 5]]},
        {"types": [[-1, 3, 1], [5, 4, 5]]},
        {"types": [[1, 3, 1], 3]},
        {"words": 0},
    ],
)
def test_counts_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        TASK.read(GOOD | change, True)


@pytest.mark.parametrize(
    ("metrics", "fine"),
    [(("entity_f1", "macro_f1"), True), (("token_accuracy",), True), (("macro_f1",), False), (("f1:X",), False)],
)
def test_a_headline_of_types_needs_sites_that_tell_them(metrics: tuple[str, ...], fine: bool) -> None:
    task = Tagging(TAGS, metrics)
    check_told(task, by_class=True)
    if fine:
        check_told(task, by_class=False)
    else:
        with pytest.raises(UserError, match="set class_counts = true"):
            check_told(task, by_class=False)


# names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("entityf1", 'unknown metric "entityf1": use entity_f1, .* or f1:TYPE. Did you mean "entity_f1"'),
        ("accuracy", 'unknown metric "accuracy"'),
        ("f1", "or f1:TYPE"),
        ("precision:X", 'unknown metric "precision:X"'),
        ("f1:Z", 'metric "f1:Z" is of entities "Z", which the data do not have'),
        ("f1:B-X", 'is of entities "B-X"'),
    ],
)
def test_a_metric_that_there_is_not_is_one_sentence(metric: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Tagging(TAGS, ("entity_f1", metric))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [("B-X", "I-X"), ("O",), ("O", "X"), ("O", "B-X", "S-X"), ("O", "B-X", "B-"), ("yes", "no")])
def test_classes_that_are_no_tags_are_one_sentence(classes: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="the classes of tokens are tags: O, and B-X and I-X for each type X of entities"):
        Tagging(classes)


def test_types_come_in_the_order_of_the_classes_wherever_o_is() -> None:
    task = Tagging(("I-b-c", "B-a", "O", "B-b-c"))
    assert task.types == ("b-c", "a")
    seen = observe(["B-b-c I-b-c O B-a"], ["B-b-c I-b-c B-a O"], task)
    assert seen["entities"].tolist() == [[[1, 1, 1], [0, 1, 1]]]
