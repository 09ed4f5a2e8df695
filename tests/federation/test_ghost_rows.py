"""DP-SGD on whole weights where gradients of single rows do not fit together: the same sums as of rows one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.contract import SHARED, Batch, LoRA
from weft.federation import ghost_rows, hidden_rows
from weft.federation.hidden_rows import HiddenRows
from weft.federation.hidden_turn import trained
from weft.federation.message import Message
from weft.federation.pack import Pack
from weft.federation.rounds import enter
from weft.federation.turn import Turn
from weft.methods import FedAvg
from weft.privacy.hiding import Privacy, mechanisms
from weft.tensors.ghost_book import Book
from weft.testing.compare import equal, state

SGD = Optim("sgd", lr=0.5, schedule="constant")
PRIVACY = Privacy(mechanisms("dp-sgd:noise=0,clip=0.05"), insecure=True, rounds=2)


def packed(run: tiny.Federation, clients: int | None = None) -> Pack:
    """Clients before their first turn, in one pack though they hold whole weights."""
    own = {c.id: run.method.adapt(run.bench.backbone, run.bench.task, c) for c in run.clients}
    turns = [Turn(c, own[c.id], run.server.held_by(c, own[c.id], Message())) for c in run.clients[:clients]]
    return enter(run.method, run.bench, turns, run.server.round, hides=True)


def moved(pack: Pack) -> None:
    """Give each client weights of its own."""
    g = torch.Generator().manual_seed(5)
    for name in pack.shapes:
        value = pack.tensors[name].detach()
        pack.tensors[name] = value + 0.05 * torch.randn(value.shape, generator=g, dtype=value.dtype)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass that shares weights and was finished, from here on."""
    found: list[int] = []
    inner = ghost_rows.GhostRows._of_client

    def noted(self: Any, pack: Pack, objective: Any, k: int, rows: Batch, *args: Any) -> Any:
        sums = inner(self, pack, objective, k, rows, *args)
        found.append(len(rows.index))
        return sums

    monkeypatch.setattr(ghost_rows.GhostRows, "_of_client", noted)
    return found


def own_numbers(pack: Pack, names: Sequence[str]) -> int:
    return sum(pack.tensors[n][0].numel() for n in names)


def both(
    run: tiny.Federation, pack: Pack, monkeypatch: pytest.MonkeyPatch, rows: int = 9, names: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor], HiddenRows]:
    """The sums of a step in which all gradients fit, and of the same step where one row's fewer do."""
    names = list(names) or [n for n in pack.params("*") if n in pack.shapes]
    hidden = HiddenRows(pack, run.bench.privacy, [0.0] * len(pack.clients))
    (batch,) = list(hidden.over(pack).batches(size=rows))
    assert batch.behind is not None
    args = (pack, run.method.objective, batch.behind, names, torch.arange(len(pack.clients)))
    made, short = hidden._clipped(*args)
    assert hidden.ghosts.numbers == 0, "nothing is asked for where gradients fit"
    count = int((batch.behind.index >= 0).sum())
    monkeypatch.setattr(hidden_rows, "NUMBERS", (count - 1) * own_numbers(pack, names))
    unmade, short_too = hidden._clipped(*args)
    assert short_too == short
    return made, unmade, hidden


def assert_same(made: dict[str, Tensor], unmade: dict[str, Tensor]) -> None:
    assert made.keys() == unmade.keys()
    largest = max(float(v.abs().max()) for v in made.values())
    assert largest > 1e-4
    for name, value in made.items():  # keys have biases without any slope, whose gradients are rounding alone
        torch.testing.assert_close(unmade[name], value, rtol=1e-10, atol=1e-11 * largest, msg=lambda m, n=name: f"{n}: {m}")


KINDS = (
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "modernbert",
    "gpt2",
    "llama",
    "qwen3",
    "gpt_neox",
    "bloom",
    "opt",
    "vit",
    "dinov2",
)


@pytest.mark.parametrize("kind", KINDS)
def test_clipped_sums_are_those_of_rows_one_by_one(kind: str, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(FedAvg(optim=SGD), kind, sizes=(9,), privacy=PRIVACY)
    pack = packed(run)
    moved(pack)
    made, unmade, _ = both(run, pack, monkeypatch)
    assert passes[0] == 1, "the first pass tells how much a row holds"
    assert sum(passes) == 9
    assert max(passes) > 1
    assert_same(made, unmade)


@pytest.mark.parametrize("share", [0.9, 2.0])
def test_rows_below_the_norm_are_left_as_they_are(share: float, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At nine tenths of the largest row's norm and at twice of it, where none is clipped."""
    run = tiny.federation(FedAvg(optim=SGD), "bert", sizes=(9,), privacy=PRIVACY)
    pack = packed(run)
    moved(pack)
    rows = run.clients[0].data.train[:, None]
    grads = pack.gradients_of_rows(run.method.objective, torch.zeros(9, dtype=torch.long), rows, None, list(pack.params("*")))
    norms = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt()  # type: ignore[union-attr]
    assert bool((norms < 0.9 * norms.max()).any())
    run.bench = replace(
        run.bench, privacy=Privacy(mechanisms(f"dp-sgd:noise=0,clip={share * float(norms.max())}"), insecure=True)
    )
    made, unmade, _ = both(run, pack, monkeypatch)
    assert sum(passes) == 9
    assert_same(made, unmade)
    whole = math.sqrt(sum(float((grads[n].sum(0) - v[0]).square().sum()) for n, v in unmade.items()))
    assert (whole < 1e-9) == (share > 1)


@pytest.mark.parametrize("kind", ["t5", "gemma", "beit", "resnet", "deberta-v2", "clip"])
def test_backbones_with_unknown_uses_have_rows_one_by_one(kind: str, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of places that rows share (T5), norms at 1 + w, indexed parameters, batch norms, a scale that is one number."""
    run = tiny.federation(FedAvg(optim=SGD), kind, sizes=(5,), privacy=PRIVACY)
    made, unmade, hidden = both(run, packed(run), monkeypatch, 5)
    assert not hidden.ghosts.shares
    assert max(passes, default=0) <= 1
    assert_same(made, unmade)


def test_written_answers_have_rows_one_by_one(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss over a vocabulary is a function of its own, with a gradient of its own."""
    run = tiny.federation(FedAvg(optim=SGD), "llama", task="generation", sizes=(5,), privacy=PRIVACY)
    made, unmade, hidden = both(run, packed(run), monkeypatch, 5)
    assert not hidden.ghosts.shares
    assert not passes
    assert_same(made, unmade)


def test_clients_of_several_sizes_have_their_own_weights_and_rows(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(FedAvg(optim=SGD), "bert", sizes=(9, 4, 6), privacy=PRIVACY)
    pack = packed(run)
    moved(pack)
    made, unmade, _ = both(run, pack, monkeypatch, 9)
    assert sum(passes) == 19
    assert_same(made, unmade)
    alone = packed(run, 1)
    alone.tensors.update({n: v[:1] for n, v in pack.tensors.items()})
    monkeypatch.undo()
    first, _, _ = both(run, alone, monkeypatch)
    for name, value in first.items():
        torch.testing.assert_close(unmade[name][0], value[0], rtol=1e-9, atol=1e-12)


def test_a_step_of_some_clients_and_without_rows(passes: list[int]) -> None:
    """Poisson batches are ragged, and may be empty."""
    run = tiny.federation(FedAvg(optim=SGD), "bert", sizes=(9, 4, 6), privacy=PRIVACY)
    pack = packed(run)
    moved(pack)
    names = list(pack.params("*"))
    hidden = HiddenRows(pack, run.bench.privacy, [0.0] * 3)
    rows = [c.data.train for c in run.clients]
    who = torch.tensor([0, 2])
    for taken in ([np.arange(5), None, np.arange(2)], [np.arange(0), None, np.arange(3)], [np.arange(0), None, np.arange(0)]):
        batch, count = pack.assembled(taken, rows, "main", 0), sum(0 if t is None else len(t) for t in taken)
        made, short = hidden._clipped(pack, run.method.objective, batch, names, who)
        passes.clear()
        at, where = np.nonzero(batch.index >= 0)
        each, index = who[torch.from_numpy(at)], batch.index[at, where][:, None]
        told = hidden.ghosts.sums(pack, run.method.objective, each, index, None, names, [0.05] * 3, 1 << 20)
        assert told is not None
        unmade = told[0]
        assert told[1] == short
        assert sum(passes) == count
        for name in names:
            torch.testing.assert_close(unmade[name], made[name], rtol=1e-10, atol=1e-12)
            assert not made[name][1].any()
            assert count or not unmade[name].any()


@pytest.mark.parametrize("which", ["*.layer.2.*", "blocks", "*.word_embeddings.*", "*.bias"])
@pytest.mark.parametrize("prefix", [False, True])
def test_some_of_the_weights_above_what_is_kept(
    which: str, prefix: bool, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = FedAvg(tune=Tune("weights", weights=which), optim=SGD)
    run = tiny.federation(method, "bert", sizes=(9,), privacy=PRIVACY, prefix=prefix)
    made, unmade, _ = both(run, packed(run), monkeypatch)
    assert sum(passes) == 9
    assert_same(made, unmade)


def test_a_step_of_some_of_the_tensors(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(FedAvg(optim=SGD), "bert", sizes=(9,), privacy=PRIVACY)
    pack = packed(run)
    names = [n for n in pack.params("*") if "layer.1" in n or n.startswith("head/")]
    made, unmade, _ = both(run, pack, monkeypatch, names=names)
    assert sum(passes) == 9
    assert_same(made, unmade)


class WithLoRA(FedAvg):
    """Factors beside whole weights."""

    info: ClassVar = replace(FedAvg.info, slug="with-lora")

    def adapt(self, backbone: Any, task: Any, client: Any) -> Any:
        return {**super().adapt(backbone, task, client), "lora": (LoRA(2, 4.0, "q", dropout=0.3), SHARED)}


def test_other_parts_of_a_step_count_in_the_same_norm(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(WithLoRA(optim=SGD), "bert", sizes=(9,), privacy=PRIVACY)
    pack = packed(run)
    moved(pack)
    made, unmade, _ = both(run, pack, monkeypatch)
    assert sum(passes) == 9
    assert_same(made, unmade)
    assert any(n.startswith("lora/") and bool(v.any()) for n, v in unmade.items())


class Near(FedAvg):
    """A loss that looks at the weights themselves: what it adds to a row's gradient goes through no layer."""

    info: ClassVar = replace(FedAvg.info, slug="near")

    def objective(self, pack: Pack, batch: Batch) -> Tensor:
        loss = super().objective(pack, batch)
        return loss + sum((v - 1).square().flatten(1).sum(1) for v in pack.params("weights").values())


def test_a_loss_that_looks_at_weights_has_rows_one_by_one(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(Near(optim=SGD), "bert", sizes=(5,), privacy=PRIVACY)
    made, unmade, hidden = both(run, packed(run), monkeypatch, 5)
    assert not hidden.ghosts.shares
    assert not passes
    assert_same(made, unmade)


def test_blocks_that_are_computed_once_more_have_rows_one_by_one(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(FedAvg(optim=SGD), "bert", sizes=(5,), privacy=PRIVACY)
    run.bench = replace(run.bench, recompute=True)
    made, unmade, _ = both(run, packed(run), monkeypatch, 5)
    assert not passes
    assert_same(made, unmade)


def test_no_more_is_held_than_fits_and_a_pass_with_no_room_for_two_rows_is_none(
    passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.federation(FedAvg(optim=SGD), "bert", sizes=(9,), privacy=PRIVACY)
    pack = packed(run)
    made, _, hidden = both(run, pack, monkeypatch)
    held, names = hidden.ghosts.numbers, list(pack.params("*"))
    (batch,) = list(hidden.over(pack).batches(size=9))
    for rows in (4, 3, 2, 1):
        passes.clear()
        index = batch.behind.index.reshape(-1, 1)  # type: ignore[union-attr]
        each = torch.zeros(len(index), dtype=torch.long)
        sums = hidden.ghosts.sums(pack, run.method.objective, each, index, None, names, [0.05] * len(run.clients), held * rows)
        if rows == 1:
            assert sums is None
            assert not hidden.ghosts.shares
        else:
            assert sums is not None
            assert passes == [rows] * (9 // rows) + [9 % rows] * bool(9 % rows)
            assert_same(made, sums[0])


@pytest.mark.parametrize("method", [FedAvg, Near])
def test_runs_are_the_same_but_for_rounding_and_so_is_what_they_count(
    method: type[FedAvg], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations too, where it turns out in the middle of a pass that rows have to be taken one by one."""
    runs, work = [], []
    for numbers in (1 << 26, 1 << 15):
        monkeypatch.setattr(hidden_rows, "NUMBERS", numbers)
        run = tiny.federation(method(batch=4, epochs=1.0, optim=SGD), "bert", sizes=(9, 5), privacy=PRIVACY)
        pack = packed(run, 1)
        pack.count_flops()
        list(trained(run.method, pack))
        work.append(pack.work)
        runs.append(run.run())
    assert bool(passes) == (method is FedAvg)
    assert work[0] == work[1]
    assert all(w.backward for w in work[0].values())
    assert equal(state(runs[0]), state(runs[1]), 1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_with_one_of_no_norm_are_taken_one_by_one(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(FedAvg(optim=SGD), "bert", sizes=(4,), privacy=PRIVACY)
    pack = packed(run)
    squares = Book.squares
    monkeypatch.setattr(Book, "squares", lambda self: squares(self).index_fill(0, torch.tensor([0]), bad))
    hidden, index = HiddenRows(pack, run.bench.privacy, [0.0]), run.clients[0].data.train[:, None]
    each, names = torch.zeros(4, dtype=torch.long), list(pack.params("*"))
    assert hidden.ghosts.sums(pack, run.method.objective, each, index, None, names, [0.05], 1 << 30) is None
    assert not hidden.ghosts.shares
