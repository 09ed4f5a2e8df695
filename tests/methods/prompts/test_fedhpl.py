"""FedHPL against its card: VPT on every client's own backbone, and tables of class-wise logits mixed by loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import images_by_hand as hand
import tiny
from bytes_of import CLASSES, Case, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.aggregation.tables import RECEIVERS, WEIGHTINGS, contributions, mix
from weft.errors import UserError
from weft.federation.batch import make_batch
from weft.federation.message import Update
from weft.federation.scope import Scope
from weft.methods import FedHPL

C = 3
TEACHER = "teacher/values/logits"
SMALL = FedHPL(tokens=3, batch=4, epochs=2.0)


def table(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean logits of the correctly predicted examples of each class, the share of them, and their number."""
    means, accuracy, count = torch.zeros(C, C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64), torch.zeros(C)
    for c in range(C):
        own = [z[i].double() for i in range(len(z)) if int(y[i]) == c]
        right = [row for row in own if int(row.argmax()) == c]
        if right:
            means[c], accuracy[c], count[c] = sum(right) / len(right), len(right) / len(own), len(right)  # type: ignore[assignment]
    return means, accuracy, count


def mixed_by_hand(tables: Tensor, given: Tensor, k: int | None, mixing: str, receiver: str) -> tuple[Tensor, list[int]]:
    """Ẑ_k and the classes that it has a row for. ``given``: accuracies, or counts, [n, C]."""
    found, known = torch.zeros(C, C, dtype=torch.float64), []
    for c in range(C):
        weights = []
        for j in range(len(tables)):
            a = float(given[j, c])
            w = {"accuracy": a, "count": a, "uniform": 1.0, "accuracy_softmax": math.exp(a / 0.1)}[mixing] if a > 0 else 0.0
            if receiver == "leave_self_out" and j == k:
                w = 0.0
            if receiver == "similarity" and k is not None and float(given[k, c]) > 0 and w:
                one, other = tables[k, c], tables[j, c]
                w *= math.exp(float(one @ other / (one.norm() * other.norm())))
            weights.append(w)
        if sum(weights) > 0:
            known.append(c)
            found[c] = sum(w / sum(weights) * tables[j, c] for j, w in enumerate(weights))  # type: ignore[assignment]
    return found, known


def sent(updates: Sequence[Update], name: str) -> Tensor:
    values = [u.tensors[name] for u in updates]
    assert all(isinstance(v, Tensor) for v in values)
    return torch.stack(values)  # type: ignore[arg-type]


# a client's turn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_each_client_tunes_its_prompt_and_head_by_its_labels_and_from_the_second_round_on_by_the_table(deep: bool) -> None:
    run = tiny.federation(replace(SMALL, deep=deep, gamma=0.7, temperature=1.5), rounds=2)
    seen = by_hand.record(run)
    own: dict[int, dict[str, Tensor]] = {}
    for t in range(2):
        for k, client in enumerate(run.clients):
            pack = run.pack([k], t)
            known = pack.facts[0].get("known", [])
            assert bool(known) == (t > 0)
            values = by_hand.start_of(run, k, t) | own.get(k, {})  # its own go on from where they were
            if client.n:
                own[k] = hand.taught_turn(run, k, values, by_hand.steps_of(run, k, t), known, 0.7, 1.5)
        run.simulation.round(t)
        for u in seen[t]:
            k = int(u.client.id[-1])
            rows = run.clients[k].data.train
            means, accuracy, _ = table(hand.own_logits(run, k, own[k], rows), by_hand.labels(run, rows))
            by_hand.close(sent([u], "logits")[0], means, 1e-5)  # logits are kept in float32
            by_hand.close(sent([u], "accuracy")[0], accuracy, 1e-6)
    for k, values in own.items():
        kept = by_hand.kept(run)[f"client-{k}"]
        assert kept.keys() == values.keys()
        for n, v in values.items():
            by_hand.close(kept[n], v)


def test_without_distillation_every_client_tunes_its_prompts_as_if_it_were_alone() -> None:
    run = tiny.federation(replace(SMALL, gamma=0.0), rounds=3).run()
    for k, client in enumerate(run.clients):
        alone = tiny.federation(replace(SMALL, gamma=0.0))
        values = by_hand.start_of(alone, k)
        for t in range(3):
            values |= hand.taught_turn(alone, k, values, by_hand.steps_of(alone, k, t), [], 0.0, 1.0)
        kept = by_hand.kept(run)[client.id]
        assert kept
        for n, v in kept.items():
            by_hand.close(v, values[n])


def test_distillation_makes_a_difference() -> None:
    with_it, without = (tiny.federation(replace(SMALL, gamma=g), rounds=2).run() for g in (1.0, 0.0))
    for client, values in by_hand.kept(with_it).items():
        if client != "client-4":  # it has no rows
            assert any((v - by_hand.kept(without)[client][n]).abs().max() > 1e-4 for n, v in values.items())


def one_of_each(run: tiny.Federation) -> Any:
    """A batch of one client with an example of every class."""
    labels = run.bench.table.labels
    rows = np.array([[int(np.flatnonzero(labels == c)[0]) for c in range(C)]])
    return make_batch(run.bench.task, run.bench.table, rows, None, run.bench.backbone.device)


def test_a_teacher_that_agrees_costs_nothing_whatever_is_added_to_its_logits() -> None:
    run = tiny.federation(SMALL)
    pack, batch = run.pack([0]), one_of_each(run)
    z = run.method.forward(pack, batch).logits
    plain = pack.loss(run.method.forward(pack, batch), batch)
    for shift in (0.0, 5.0):
        pack.tensors[TEACHER] = (z + shift).detach()
        pack.facts[0]["known"] = [0, 1, 2]
        by_hand.close(run.method.objective(pack, batch), plain, 1e-12)
    pack.tensors[TEACHER] = (z * 3).detach()
    assert float(run.method.objective(pack, batch) - plain) > 1e-3


def test_a_class_without_a_row_in_the_table_is_not_distilled() -> None:
    run = tiny.federation(SMALL)
    pack, batch = run.pack([0]), one_of_each(run)
    optimizer = pack.optimizer("prompt", "head", settings=SMALL.optim)

    def slope(known: list[int], filler: float) -> tuple[Tensor, ...]:
        teacher = torch.full((1, C, C), filler, dtype=torch.float64)
        teacher[0, 1] = torch.tensor([1.0, 4.0, -2.0])
        pack.tensors[TEACHER], pack.facts[0]["known"] = teacher, known
        return torch.autograd.grad(run.method.objective(pack, batch).sum(), list(optimizer.params.values()))

    for a, b in zip(slope([1], 0.0), slope([1], 9.0), strict=True):
        assert torch.equal(a, b)
    plain = torch.autograd.grad(pack.loss(run.method.forward(pack, batch), batch).sum(), list(optimizer.params.values()))
    for a, b in zip(slope([], 9.0), plain, strict=True):
        by_hand.close(a, b, 1e-12)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(slope([1], 0.0), plain, strict=True))


def test_distillation_is_the_mean_over_the_taught_rows_and_not_over_all() -> None:
    """Two clients side by side, with other tables and other known classes; each has rows that nobody teaches."""
    method = replace(SMALL, gamma=0.7, temperature=3.0)
    run = tiny.federation(method)
    labels = run.bench.table.labels
    one, two, three = (np.flatnonzero(labels == c)[:3] for c in range(C))
    rows = np.array([[*one, *two, *three], [*one[:2], *two[:2], *three[:2], -1, -1, -1]])
    pack, batch = run.pack([0, 1]), make_batch(run.bench.task, run.bench.table, rows, None, run.bench.backbone.device)
    teacher = torch.randn(2, C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    known = [[1], [0, 2]]
    pack.tensors[TEACHER] = teacher
    for facts, classes in zip(pack.facts, known, strict=True):
        facts["known"] = classes  # type: ignore[index]
    logits = method.forward(pack, batch).logits
    plain = pack.loss(method.forward(pack, batch), batch)
    for k in range(2):
        apart = []
        for j, row in enumerate(rows[k]):
            if row >= 0 and int(labels[row]) in known[k]:
                p, q = (torch.softmax(z / 3.0, -1) for z in (teacher[k, int(labels[row])], logits[k, j]))
                apart.append((p * (p / q).log()).sum())
        assert len(apart) == (3, 4)[k] < int((rows[k] >= 0).sum())
        by_hand.close(method.objective(pack, batch)[k], plain[k] + 0.7 * 9.0 * sum(apart) / len(apart), 1e-12)


# tables ---------------------------------------------------------------------------------------------------------------


def random_tables(n: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tables and accuracies of n clients, of whom the first and the last lack a class."""
    g = torch.Generator().manual_seed(seed)
    accuracy = torch.rand(n, C, generator=g, dtype=torch.float64)
    accuracy[0, 2] = accuracy[-1, 0] = 0.0
    tables = torch.randn(n, C, C, generator=g, dtype=torch.float64) * (accuracy > 0).unsqueeze(-1)
    return tables, accuracy


@pytest.mark.parametrize("receiver", RECEIVERS)
@pytest.mark.parametrize("mixing", WEIGHTINGS)
def test_a_mixed_table_is_the_cards_sum_for_every_receiver(mixing: str, receiver: str) -> None:
    tables, given = random_tables()
    given = (given * 10).ceil() if mixing == "count" else given
    for k in (None, 0, 1, 2, 3):
        found, known = mix(tables, contributions(given, mixing), k, receiver)
        wanted, classes = mixed_by_hand(tables, given, k, mixing, receiver)
        by_hand.close(found, wanted, 1e-12)
        assert known.nonzero().flatten().tolist() == classes


@pytest.mark.parametrize("mixing", WEIGHTINGS)
def test_weights_are_zero_without_a_correct_example_and_grow_with_accuracy(mixing: str) -> None:
    given = torch.tensor([[0.0], [0.2], [0.6], [1.0]], dtype=torch.float64) * (10 if mixing == "count" else 1)
    w = contributions(given, mixing).flatten()
    assert w[0] == 0
    assert bool((w[1:] > 0).all())
    grows = bool((w[1:].diff() > 0).all())
    assert grows == (mixing != "uniform")
    equal = contributions(torch.full((5, C), 0.7), mixing)
    assert torch.equal(equal, equal[:1].expand(5, C)), "equal accuracies weigh the same"


@pytest.mark.parametrize("receiver", RECEIVERS)
@pytest.mark.parametrize("mixing", WEIGHTINGS)
def test_if_all_tables_are_equal_so_is_what_everybody_gets(mixing: str, receiver: str) -> None:
    given = random_tables()[1].clamp(min=0.1)
    same = torch.randn(C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).expand(4, C, C)
    for k in range(4):
        found, known = mix(same, contributions(given, mixing), k, receiver)
        by_hand.close(found, same[0], 1e-12)
        assert bool(known.all())


@pytest.mark.parametrize("mixing", WEIGHTINGS)
def test_one_client_gets_its_own_table_back_or_none_if_it_is_left_out(mixing: str) -> None:
    tables, given = (x[:1] for x in random_tables())
    for receiver in RECEIVERS:
        found, known = mix(tables, contributions(given, mixing), 0, receiver)
        assert known.tolist() == ([False] * 3 if receiver == "leave_self_out" else [True, True, False])
        if receiver != "leave_self_out":
            assert torch.equal(found, tables[0])


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_permuting_clients_permutes_what_they_get(receiver: str) -> None:
    tables, given = random_tables()
    order = [2, 0, 3, 1]
    weights = contributions(given, "accuracy")
    for k in range(4):
        plain, _ = mix(tables, weights, k, receiver)
        moved, _ = mix(tables[order], weights[order], order.index(k), receiver)
        by_hand.close(moved, plain, 1e-12)


def test_rows_of_every_table_are_highest_at_their_own_class_and_so_is_every_mixture() -> None:
    for receiver in RECEIVERS:
        run = tiny.federation(replace(SMALL, receiver=receiver, epochs=4.0), rounds=2)
        seen = by_hand.record(run)
        run.run()
        for updates in seen:
            for u in updates:
                for c in range(C):
                    if sent([u], "accuracy")[0][c] > 0:
                        assert int(sent([u], "logits")[0][c].argmax()) == c
                    else:
                        assert not sent([u], "logits")[0][c].any(), "a row without a correct example stays empty"
        for client in run.clients:
            message = run.method.send(run.server, client.info(()))
            found = message.tensors[TEACHER]
            assert isinstance(found, Tensor)
            assert message.facts["known"]
            for c in message.facts["known"]:
                assert int(found[c].argmax()) == c


# messages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("receiver", RECEIVERS)
@pytest.mark.parametrize("mixing", WEIGHTINGS)
def test_each_client_is_sent_the_mixture_of_what_clients_sent(mixing: str, receiver: str) -> None:
    run = tiny.federation(replace(SMALL, mixing=mixing, receiver=receiver), rounds=1)
    seen = by_hand.record(run)
    run.run()
    kind = "count" if mixing == "count" else "accuracy"
    assert all(set(u.tensors) == {"logits", kind} and not u.facts for u in seen[0])
    ids = [u.client.id for u in seen[0]]
    tables, given = sent(seen[0], "logits"), sent(seen[0], kind)
    for client in run.clients:  # client 4 has no rows, and gets a table all the same
        message = run.method.send(run.server, client.info(()))
        wanted, known = mixed_by_hand(tables, given, ids.index(client.id) if client.id in ids else None, mixing, receiver)
        assert set(message.tensors) == {TEACHER}
        assert message.facts == {"known": known}
        by_hand.close(message.tensors[TEACHER], wanted, 1e-12)  # type: ignore[arg-type]


def test_counts_travel_instead_of_accuracies_if_they_are_the_weights() -> None:
    run = tiny.federation(replace(SMALL, mixing="count"), rounds=1)
    seen = by_hand.record(run)
    run.run()
    for u in seen[0]:
        k = int(u.client.id[-1])
        rows = run.clients[k].data.train
        _, _, count = table(hand.own_logits(run, k, by_hand.kept(run)[u.client.id], rows), by_hand.labels(run, rows))
        assert sent([u], "count")[0].tolist() == count.tolist()


def test_nothing_is_sent_before_there_is_a_table_and_nothing_but_tables_at_all() -> None:
    run = tiny.federation(SMALL)
    first = run.method.send(run.server, run.clients[0].info(()))
    assert not first.tensors
    assert not first.facts
    assert by_hand.elements(SMALL, tiny.backbone("vit"), Scope.UP, classes=C) == {}
    assert by_hand.elements(SMALL, tiny.backbone("vit"), Scope.DOWN, classes=C) == {"teacher": C * C}


def test_only_tables_of_the_last_cohort_count_unless_older_ones_are_kept() -> None:
    for stale in (False, True):
        run = tiny.federation(replace(SMALL, stale=stale), rounds=4, participation=0.5)
        seen = by_hand.record(run)
        run.run()
        newest: dict[str, Update] = {}
        for updates in seen if stale else seen[-1:]:
            newest |= {u.client.id: u for u in updates}
        chosen = [newest[c] for c in sorted(newest)]
        assert (len(chosen) > len(seen[-1])) == stale
        assert run.server.memo["ids"] == sorted(newest)
        wanted, known = mixed_by_hand(sent(chosen, "logits"), sent(chosen, "accuracy"), None, "accuracy", "none")
        message = run.method.send(run.server, run.clients[0].info(()))
        by_hand.close(message.tensors[TEACHER], wanted, 1e-12)  # type: ignore[arg-type]
        assert message.facts["known"] == known


def test_a_round_without_any_update_leaves_the_former_tables() -> None:
    run = tiny.federation(SMALL, rounds=1).run()
    before = {n: run.server.memo[n].clone() for n in ("logits", "accuracy")}
    run.method.aggregate(run.server, [])
    assert all(torch.equal(run.server.memo[n], v) for n, v in before.items())


def test_in_eight_bits_a_class_that_nobody_has_stays_without_a_row() -> None:
    run = tiny.federation(SMALL, sizes=(0, 0, 0, 7), rounds=1, codec_name="quant8").run()  # the fourth has a single class
    labels = run.bench.table.labels[run.clients[3].data.train]
    assert len(set(labels.tolist())) == 1
    assert run.method.send(run.server, run.clients[0].info(())).facts["known"] in ([], [int(labels[0])])


def test_prompts_and_head_of_an_absent_client_stay() -> None:
    run = tiny.federation(SMALL, rounds=3, participation=0.5)
    by_hand.play_and_see_who_stays(run, 3)


# settings -------------------------------------------------------------------------------------------------------------


def test_unknown_mixing_and_receiver_are_refused_with_the_nearest_word() -> None:
    with pytest.raises(UserError, match=r'unknown mixing "acuracy".*Did you mean "accuracy"'):
        FedHPL(mixing="acuracy")
    with pytest.raises(UserError, match='unknown receiver "nobody": use none, leave_self_out, similarity'):
        FedHPL(receiver="nobody")
    for wrong, words in (({"gamma": -1.0}, "gamma ≥ 0, not -1"), ({"temperature": 0.0}, "temperature > 0, not 0")):
        with pytest.raises(UserError, match=words):
            FedHPL(**wrong)  # type: ignore[arg-type]


def test_defaults_are_the_cards_fillings_and_the_card_says_reconstructed() -> None:
    method = FedHPL()
    # "default: shallow, 10 tokens", "γ = 1, τ = 2", "accuracy (default)", "none (default)", "participants only (default)"
    assert (method.tokens, method.deep, method.gamma, method.temperature) == (10, False, 1.0, 2.0)
    assert (method.mixing, method.receiver, method.stale) == ("accuracy", "none", False)
    # "E = 1, SGD lr 0.05 momentum 0.9", "batch 64", "default fresh per round"
    assert (method.epochs, method.steps, method.batch) == (1.0, None, 64)
    assert method.optim == Optim("sgd", lr=0.05, momentum=0.9, schedule="constant")
    assert (method.info.evidence, method.info.views) == ("reconstructed", ("personal",))


# what other tests ask of this method --------------------------------------------------------------------------------------


def table_bytes(turn: Turn) -> Sizes:
    return {"logits": [CLASSES * CLASSES], "accuracy": [CLASSES]}


def teacher_bytes(turn: Turn) -> Sizes:
    return {"teacher": [CLASSES * CLASSES]}


BYTES = Case({"tokens": 4}, teacher_bytes, table_bytes, head_stays=True)
BYTES_VARIANTS = {"deep": Case({"tokens": 4, "deep": True}, teacher_bytes, table_bytes, head_stays=True)}
