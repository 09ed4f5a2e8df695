"""Several tasks: what is predicted in a row, its loss, scores of each task and their mean, and what sites tell of them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from weft.backbones.token_table import Tokens
from weft.communication.strict import Refused
from weft.data.rows import Rows
from weft.errors import UserError
from weft.methods import FedAvg
from weft.tasks.classification import Classification, observed_of
from weft.tasks.kinds import SEVERAL, make, suits
from weft.tasks.observed import Observed
from weft.tasks.outputs import Output
from weft.tasks.several_tasks import Several
from weft.tasks.tagging import Tagging
from weft.testing.data import TAGS, names_of_several, rows, several_of

CLASSES = names_of_several(3)
MORE = ("find:entity_f1", "find:macro_f1", "sort:accuracy", "sort:f1:class 1")


def drawn(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, list[bool]]:
    """Logits [n, 4, C], labels and mask [n, 4] of rows of both tasks, the second in every third row."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 4, len(CLASSES), generator=g)
    y, mask = torch.zeros(n, 4, dtype=torch.long), torch.zeros(n, 4, dtype=torch.bool)
    whole = [i % 3 == 2 for i in range(n)]
    for i, sentence in enumerate(whole):
        if sentence:
            y[i, 0], mask[i, 0] = len(TAGS) + int(torch.randint(3, (), generator=g)), True
        else:
            words = 1 + i % 3
            y[i, 1 : 1 + words], mask[i, 1 : 1 + words] = torch.randint(len(TAGS), (words,), generator=g), True
    return z, y, mask, whole


def seen(task: Several, z: Tensor, y: Tensor, mask: Tensor) -> Observed:
    return task.observe(Output(z), y, mask)


def alone(z: Tensor, y: Tensor, mask: Tensor, whole: list[bool]) -> dict[str, Any]:
    """The scores of each task by the task itself, on its own rows and logits."""
    sentences = torch.tensor(whole)
    find, sort = (
        Tagging(TAGS, ("entity_f1", "macro_f1")),
        Classification(tuple(f"class {c}" for c in range(3)), ("accuracy", "f1:class 1")),
    )
    tags = find.observe(Output(z[~sentences][..., : len(TAGS)]), y[~sentences], mask[~sentences])
    labels = (y[sentences][:, 0] - len(TAGS)).numpy()
    classes = observed_of(sort, z[sentences][:, 0, len(TAGS) :], labels)
    return {f"find:{s.metric}": s for s in find.score(tags)} | {f"sort:{s.metric}": s for s in sort.score(classes)}


def test_the_scores_of_each_task_are_its_own_and_the_headline_is_their_mean() -> None:
    z, y, mask, whole = drawn(40)
    task = Several(CLASSES, ("mean", *MORE))
    found = {s.metric: s for s in task.score(seen(task, z, y, mask))}
    wanted = alone(z, y, mask, whole)
    for metric in MORE:
        assert found[metric].value == wanted[metric].value, metric
        assert (found[metric].low, found[metric].high) == (wanted[metric].low, wanted[metric].high)
        assert found[metric].n == (sum(whole) if metric.startswith("sort") else 40 - sum(whole))
    assert found["sort:accuracy"].low is not None
    assert found["mean"].value == pytest.approx((wanted["find:entity_f1"].value + wanted["sort:accuracy"].value) / 2)
    n = sum(whole)
    loss = ((40 - n) * wanted["find:loss"].value + n * wanted["sort:loss"].value) / 40
    assert found["loss"].value == pytest.approx(loss)
    assert task.headline(seen(task, z, y, mask)).value == pytest.approx(found["mean"].value)


def test_the_order_of_tasks_does_not_matter() -> None:
    z, y, mask, _ = drawn(20)
    tags = len(TAGS)
    other = Several((*CLASSES[tags:], *CLASSES[:tags]), ("mean", *MORE))
    turned = torch.where(y < tags, y + 3, y - tags).masked_fill(~mask, 0)  # as targets have it where nothing is predicted
    found = other.score(other.observe(Output(torch.cat([z[..., tags:], z[..., :tags]], -1)), turned, mask))
    wanted = Several(CLASSES, ("mean", *MORE))
    assert {s.metric: s.value for s in found} == pytest.approx(
        {s.metric: s.value for s in wanted.score(seen(wanted, z, y, mask))}
    )


def test_what_is_kept_of_rows_can_be_put_together_and_taken_apart() -> None:
    z, y, mask, _ = drawn(31)
    task = Several(CLASSES)
    whole = seen(task, z, y, mask)
    parts = Observed.concatenate([seen(task, z[a:b], y[a:b], mask[a:b]) for a, b in ((0, 2), (2, 3), (3, 31))])
    assert parts.columns.keys() == whole.columns.keys()
    assert task.score(parts) == task.score(whole)
    some = task.score(whole.take(np.flatnonzero(whole["task"] == 1)))
    assert {s.metric for s in some} == {
        "mean",
        "sort:accuracy",
        "sort:macro_f1",
        "loss",
    }  # nothing is said of a task without rows
    assert some[0].value == some[1].value, "and the mean is of those that have some"
    assert task.score(whole.take(np.array([], dtype=np.int64))) == []


def test_a_row_without_anything_to_predict_is_of_no_task() -> None:
    """As one whose words have no tokens."""
    z, y, mask, whole = drawn(13)
    mask[4] = False
    task = Several(CLASSES, ("mean", *MORE))
    observed = seen(task, z, y, mask)
    assert observed["task"].tolist() == [-1 if i == 4 else int(sentence) for i, sentence in enumerate(whole)]
    there = np.arange(13) != 4
    assert task.score(observed) == task.score(seen(task, z[there], y[there], mask[there]))


def test_the_headline_of_rows_is_of_the_first_metric_that_they_have() -> None:
    task = Several(CLASSES, ("find:entity_f1", "sort:accuracy"))
    z, y, mask, whole = drawn(30)
    observed = seen(task, z, y, mask)
    wanted = alone(z, y, mask, whole)
    for some, metric in ((~np.array(whole), "find:entity_f1"), (np.array(whole), "sort:accuracy")):
        found = task.headline(observed.take(np.flatnonzero(some)))
        assert (found.metric, found.value, found.low, found.high) == (metric, wanted[metric].value, None, None)
    nothing = task.headline(observed.take(np.zeros(0, np.int64)))
    assert nothing.metric == "find:entity_f1"
    assert math.isnan(nothing.value)


def test_the_mean_is_of_all_tasks_or_there_is_none() -> None:
    """Without counts by class a site does not tell find's first metric, and the mean would be that of sort."""
    task = Several(CLASSES, ("sort:accuracy", "mean", "find:macro_f1"))
    z, y, mask, _ = drawn(30)
    observed = seen(task, z, y, mask)
    for by_class in (False, True):
        told = task.read(task.tell(observed, by_class), by_class)
        assert task.told("mean", by_class) == by_class
        metrics = ["sort:accuracy", "mean", "find:macro_f1", "loss"] if by_class else ["sort:accuracy", "loss"]
        assert [s.metric for s in task.pool([told])] == metrics


def test_sites_tell_sums_of_each_task_and_their_pool_is_the_score_of_all_rows() -> None:
    task = Several(CLASSES, ("mean", *MORE))
    z, y, mask, whole = drawn(50)
    observed = seen(task, z, y, mask)
    for by_class in (True, False):
        one = observed.take(np.flatnonzero(np.array(whole)))  # a site of one task
        other = observed.take(np.flatnonzero(~np.array(whole)))
        told = [task.read(json.loads(json.dumps(task.tell(some, by_class))), by_class) for some in (one, other)]
        pooled = {s.metric: s.value for s in task.pool(told)}
        scored = {s.metric: s.value for s in task.score(observed)}
        assert pooled.keys() == {m for m in scored if m == "loss" or task.told(m, by_class)}
        assert all(pooled[m] == pytest.approx(scored[m], rel=1e-9) for m in pooled)
    assert not task.told("find:macro_f1", False)
    assert task.told("mean", False)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"n": 3, "tasks": {}},
        {"n": 3, "tasks": {"find": 4}},
        {"n": True, "tasks": {"sort": {"n": 1, "right": 1, "loss": 0.0}}},
        {"n": 3, "tasks": {"sort": {"n": 4, "right": 1, "loss": 0.0}}},
        {"n": 3, "tasks": {"sort": {"n": 3, "right": 5, "loss": 0.0}}},
        {"n": 3, "tasks": {"sorts": {"n": 3, "right": 1, "loss": 0.0}}},
    ],
)
def test_what_can_not_be_true_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        Several(CLASSES).read(told, False)


def test_one_site_that_has_diverged_is_left_out_of_its_tasks() -> None:
    task = Several(CLASSES)
    z, y, mask, whole = drawn(12)
    well = task.read(task.tell(seen(task, z, y, mask), False), False)
    blank = task.read(task.tell(seen(task, z * math.nan, y, mask), False), False)
    assert blank.blank
    assert not well.blank
    assert task.pool([well, blank]) == task.pool([well])
    found = {s.metric: s.value for s in task.pool([blank])}
    assert found.keys() == {*task.metrics, "loss"}
    assert all(map(math.isnan, found.values()))
    odd = z.clone()
    odd[torch.tensor(whole)] *= math.nan
    half = task.read(task.tell(seen(task, odd, y, mask), False), False)
    assert half.blank, "also where it has diverged in one task"
    both, one = ({s.metric: s for s in task.pool(some)} for some in ([well, half], [well]))
    assert (both["sort:accuracy"], both["find:entity_f1"].n) == (one["sort:accuracy"], 2 * one["find:entity_f1"].n)


def test_the_loss_is_the_mean_over_what_there_is_to_predict_in_a_row() -> None:
    z, y, mask, _ = drawn(3)
    flat = Output(z.reshape(1, 12, -1))
    found = Several(CLASSES).loss(flat, y.reshape(1, 12), mask.reshape(1, 12))
    assert float(found) == pytest.approx(float(F.cross_entropy(z[mask], y[mask])))


def test_metrics_that_there_are_not() -> None:
    for metric, words in (("men", "mean or TASK:METRIC"), ("sort:acuracy", "unknown metric"), ("sorts:accuracy", "mean or TASK")):
        with pytest.raises(UserError, match=words):
            Several(CLASSES, (metric,))
    with pytest.raises(UserError, match="called TASK/CLASS"):
        Several(("a/x", "b/y", "a/z"))
    assert Several(CLASSES).metrics[0] == "mean"
    assert [type(part) for part in Several(CLASSES).parts.values()] == [Tagging, Classification]


@pytest.mark.parametrize(
    ("own", "kind"),
    [(("O", "B-X", "I-X"), Tagging), (("O", "A", "B", "AB"), Classification), (("B-X", "I-X"), Classification),
     (("O",), Classification), (("O", "B-X", "X"), Classification), (("a/b", "a/c"), Classification)],
)  # fmt: skip
def test_a_task_tags_words_if_its_classes_are_o_and_beginnings_and_insides(own: tuple[str, ...], kind: type) -> None:
    part = Several(tuple(f"task/{label}" for label in own)).parts["task"]
    assert (type(part), part.classes) == (kind, own)


def test_rows_of_several_tasks_are_for_no_other_task() -> None:
    own = several_of(rows(9))
    suits(SEVERAL, own)
    with pytest.raises(UserError, match="--task several learns them"):
        suits("tokens", own)
    with pytest.raises(UserError, match=r"give --data a .toml file"):
        suits(SEVERAL, rows(9))


def test_a_batch_is_of_one_task_and_an_epoch_sees_every_row_once() -> None:
    run = tiny.federation(FedAvg(batch=2, epochs=1.0), "bert", task="several", sizes=(9, 5, 1))
    table = run.bench.table
    assert table.groups is not None
    pack = run.pack()
    seen_rows: dict[int, list[int]] = {0: [], 1: [], 2: []}
    steps = 0
    for batch in pack.batches(1.0, None, 2):
        steps += 1
        for client, own in batch.own(3):
            assert len(set(table.groups[own].tolist())) <= 1
            seen_rows[client] += own.tolist()
    for i, client in enumerate(run.clients):
        assert sorted(seen_rows[i]) == sorted(client.data.train.tolist())
    assert pack.lengths(1.0, None, 2).tolist() == [
        sum(-(-n // 2) for n in np.unique(table.groups[c.data.train], return_counts=True)[1].tolist()) for c in run.clients
    ]
    assert steps == int(pack.lengths(1.0, None, 2).max())


def test_sentences_are_read_as_they_are_and_words_one_by_one() -> None:
    own = several_of(rows(12, seed=3))
    backbone = tiny.backbone("bert", classes=len(CLASSES), task="tokens")
    from weft.backbones.run_table import tabulate

    table = tabulate(backbone, own, 32)
    tags = table.tags_of(np.arange(12))  # type: ignore[union-attr]
    for i in range(12):
        assert own.words is not None
        assert own.tags is not None
        if own.words[i]:
            assert tags[i, 0] == -1
            assert [t for t in tags[i].tolist() if t >= 0] == own.tags[i].tolist()
        else:
            assert tags[i, 0] == own.labels[i]
            assert (tags[i, 1:] == -1).all()
        inputs = table.collate(np.array([i]))
        assert own.texts is not None
        assert inputs["input_ids"][0].tolist() == backbone.tokenizer(own.texts[i])["input_ids"]
    assert table.groups is not None
    assert table.groups.tolist() == [i % 3 // 2 for i in range(12)]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_rows_of_three_tasks_are_each_what_the_tokenizer_makes_of_them(kind: str) -> None:
    """Words, pairs and sentences in turn, some of which are cut."""
    from weft.backbones.run_table import tabulate

    backbone = tiny.backbone(kind, classes=5, task="tokens")
    texts = ["w1 w2", "w3 w4 w5", "w6", "w7 " * 9, "w9 " * 9, "w10"]
    pairs, labels = ["", "w11 w12", "", "", "w13", ""], [0, 2, 4, 1, 3, 4]
    words = [("w1", "w2"), (), (), ("w7",) * 9, (), ()]
    allowed = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]] * 2, dtype=bool)
    own = Rows(
        texts=texts, pairs=pairs, labels=np.array(labels), ids=np.arange(6) * 10, words=words, allowed=allowed,
        tags=[np.arange(len(some)) % 2 for some in words], tasks=["tag", "pair", "one"] * 2,
    )  # fmt: skip
    table = tabulate(backbone, own, 9)
    assert isinstance(table, Tokens)
    tokenizer = backbone.tokenizer
    for i, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        given = ([words[i]], None) if words[i] else ([text], [pair] if pair else None)
        wanted = tokenizer(*given, is_split_into_words=bool(words[i]), truncation=True, max_length=9)
        inputs = table.collate(np.array([i]))
        assert inputs["input_ids"].tolist() == wanted["input_ids"]
        if kind == "bert":
            assert inputs["token_type_ids"].tolist() == wanted["token_type_ids"]
            assert inputs["token_type_ids"].any() == bool(pair)
    assert (table.row_ids.tolist(), table.labels.tolist()) == ([0, 10, 20, 30, 40, 50], labels)
    assert table.groups is not None
    assert table.behind is not None
    assert table.groups.tolist() == [0, 1, 2] * 2
    assert (table.pairs, table.pad, table.before) == (True, tokenizer.pad_token_id, 1)
    assert table.behind.tolist() == [1] * 6
    assert np.array_equal(table.allowed, allowed)  # type: ignore[arg-type]
    assert table.widths[4] == 9
    assert table.notes == (
        "2 of 11 words lie beyond 9 tokens of their sentence: they are neither trained on nor scored (--set max_length).",
    )


def test_make_knows_it() -> None:
    assert make(CLASSES, SEVERAL).kind == "several"
