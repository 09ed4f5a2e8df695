"""C2A against its card: rounds in plain PyTorch, what a client's labels do, what travels, and who sees whose histogram."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DistilBertConfig

import by_hand
import tiny
from bytes_of import CLASSES, HEAD, LAYERS, Case, D, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import C2A, FedAvg
from weft.testing import laws

SGD = Optim("sgd", lr=0.2, schedule="constant")
SMALL = C2A(rank=3, factor=4, embedding=5, epochs=1.0, batch=2, optim=SGD)
SITES = [f"bert.encoder.layer.{i}.{end}" for i in range(LAYERS) for end in ("attention.output.dense", "output.dense")]
Shares = Callable[[np.ndarray], np.ndarray]
"""Rows of a step -> q."""


def uniform(rows: np.ndarray) -> np.ndarray:
    """As start values are drawn, in single precision."""
    return np.full(CLASSES, 1 / CLASSES, np.float32).astype(np.float64)


def shares_of(run: tiny.Federation, rows: np.ndarray) -> np.ndarray:
    if not len(rows):
        return uniform(rows)
    labels = run.bench.table.labels[rows]
    return np.array([np.mean(labels == c) for c in range(CLASSES)])


def predicting(q: Shares, pooled: bool = False) -> Callable[[tiny.Federation, Mapping[str, Tensor], np.ndarray], Tensor]:
    """Logits [n, C] by hooks on the Hugging Face model, each row of which is taken by itself."""

    def logits(run: tiny.Federation, values: Mapping[str, Tensor], rows: np.ndarray) -> Tensor:
        w = {n.rsplit("/", 1)[1]: v for n, v in values.items() if n.startswith("hyper/")}
        lengths = run.bench.table.collate(rows)["attention_mask"].sum(1).tolist()
        r, d, t = len(w["down_bias"]), len(w["up_bias"]), len(w["given_bias"])
        generator = (w["first"] @ w["second"]).reshape(t, r * d) + w["added"].reshape(1, r * d)
        generator = generator / generator.square().sum(1, keepdim=True).sqrt()
        given = w["given_weight"] @ torch.from_numpy(q(rows)) + w["given_bias"] + w["context_bias"]
        handles = []
        for i, site in enumerate(SITES):

            def after(_m: Any, _a: Any, out: Tensor, block: int = i // 2) -> Tensor:
                means = [row[:n].mean(0) for row, n in zip(out, lengths, strict=True)]
                u = torch.stack([m / m.square().sum().sqrt() for m in means])
                u = u.mean(0).expand_as(u) if pooled else u
                found = []
                for row, one in zip(out, u, strict=True):
                    v = (given + w["block"][block] + w["context_weight"] @ one) @ generator
                    h = row @ v.reshape(d, r) + w["down_bias"]
                    h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
                    found.append(row + h @ v.reshape(r, d) + w["up_bias"])
                return torch.stack(found)

            handles.append(run.bench.backbone.model.get_submodule(site).register_forward_hook(after))
        try:
            return by_hand.logits(run, {n: v for n, v in values.items() if n.startswith("head/")}, rows)
        finally:
            for handle in handles:
                handle.remove()

    return logits


def q_of(run: tiny.Federation, k: int, method: C2A) -> Shares:
    if method.label_stat == "batch":
        return lambda rows: shares_of(run, rows)
    whole = shares_of(run, run.clients[k].data.train)
    return lambda rows: whole


def personal(run: tiny.Federation, rows: np.ndarray) -> dict[str, Tensor]:
    return run.personal_logits("personal", {c.id: rows for c in run.clients}, torch.float64)


def rounds_by_hand(run: tiny.Federation, cohorts: list[list[int]], optimizer: Any) -> None:
    """Play rounds of these cohorts, each of which is what plain PyTorch makes of it."""
    method = run.method
    assert isinstance(method, C2A)
    shared = by_hand.shared(run)
    tolerance = 1e-11 if method.optim.kind == "sgd" else by_hand.ADAM
    for t, cohort in enumerate(cohorts):
        sums, total = {n: torch.zeros_like(v) for n, v in shared.items()}, 0
        for k in (k for k in cohort if run.clients[k].n):
            steps = by_hand.steps_of(run, k, t)
            logits = predicting(q_of(run, k, method), method.context == "batch")
            mine = by_hand.train(run, shared, steps, optimizer, only=lambda n: n != "hyper/values/given", predict=logits)
            total += run.clients[k].n
            sums = {n: v + run.clients[k].n * mine[n] for n, v in sums.items()}
        shared = {n: v / total for n, v in sums.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.cohort", lambda *_, c=[run.clients[k] for k in cohort]: c)
            run.simulation.round(t)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, shared[name], tolerance)
    rows = np.arange(8)
    by_hand.close(run.global_logits(rows, dtype=torch.float64), predicting(uniform)(run, shared, rows), 10 * tolerance)
    found = personal(run, rows)
    for client in run.clients:
        own = shares_of(run, client.data.train)
        wanted = predicting(lambda rows, own=own: own)(run, shared, rows)
        by_hand.close(found[client.id], wanted, 10 * tolerance)


COHORTS = [[0, 1, 2, 3, 4], [0, 2, 4], [1, 3], [0, 1, 2]]


@pytest.mark.parametrize("context", ["row", "batch"])
@pytest.mark.parametrize("label_stat", ["client", "batch"])
def test_rounds_are_those_of_plain_pytorch(label_stat: Any, context: Any) -> None:
    """Clients are away for a while; the fifth has no rows, the fourth rows of one class."""
    run = tiny.federation(
        replace(SMALL, label_stat=label_stat, context=context), "bert", sizes=(9, 5, 1, 7, 0), pack=2, rounds=len(COHORTS)
    )
    assert len(set(run.bench.table.labels[run.clients[3].data.train].tolist())) == 1
    rounds_by_hand(run, COHORTS, lambda values: torch.optim.SGD(values, lr=0.2))


def test_the_default_optimizer_is_pytorchs_adamw() -> None:
    method = replace(SMALL, optim=C2A().optim)
    run = tiny.federation(method, "bert", sizes=(6, 5), rounds=2)
    rounds_by_hand(run, [[0, 1], [1]], lambda values: torch.optim.AdamW(values, lr=3e-4))


def test_one_client_is_trained_as_in_one_place() -> None:
    run = tiny.federation(SMALL, "bert", sizes=(7,), rounds=1)
    shared, steps = by_hand.shared(run), by_hand.steps_of(run, 0, 0)
    logits = predicting(q_of(run, 0, SMALL))
    wanted = by_hand.train(
        run, shared, steps, lambda v: torch.optim.SGD(v, lr=0.2), only=lambda n: not n.endswith("given"), predict=logits
    )
    run.run()
    for name, value in by_hand.shared(run).items():
        by_hand.close(value, wanted[name], 1e-11)
        assert torch.equal(value, shared[name]) == name.endswith("given"), name


# who is told what -------------------------------------------------------------------------------------------------------


def test_the_histogram_stays_at_the_client() -> None:
    run = tiny.federation(SMALL, "bert", rounds=3)
    updates = by_hand.record(run)
    run.run()
    for some in updates:
        for update in some:
            assert not update.facts
            assert "hyper/values/given" not in update.tensors
            assert {n.rsplit("/", 1)[1] for n in update.tensors if n.startswith("hyper/")} == set(ROLES)
    assert torch.equal(run.server.shared["hyper/values/given"], torch.full((CLASSES,), 1 / CLASSES).double())  # type: ignore[arg-type]
    assert not run.method.info.asks
    assert all(not client.memo and not client.kept for client in run.clients)


def test_two_clients_of_the_same_rows_have_the_same_adapters_and_of_other_labels_others() -> None:
    run = tiny.federation(SMALL, "bert", sizes=(6, 5, 0), rounds=1).run()
    rows = np.arange(4)
    found = personal(run, rows)
    assert not torch.allclose(found["client-0"], found["client-1"], rtol=0, atol=1e-7)
    by_hand.close(found["client-2"], run.global_logits(rows, dtype=torch.float64), 1e-12)
    run.clients[1].data = run.clients[0].data
    found = personal(run, rows)
    assert torch.equal(found["client-0"], found["client-1"])


def test_a_client_without_rows_keeps_the_shares_that_it_was_given() -> None:
    run = tiny.federation(SMALL, "bert", sizes=(6, 0), rounds=1).run()
    told = torch.tensor([0.75, 0.25, 0.0]).double()
    run.server.write("hyper/values/given", told)
    rows = np.arange(4)
    shared = by_hand.shared(run)
    by_hand.close(personal(run, rows)["client-1"], predicting(lambda rows: told.numpy())(run, shared, rows), 1e-10)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [((0, 0, 0), "adds up to 0"), ((2, -1, 0), "has an entry below 0"), ((1, torch.inf, 0), "has an entry that is not finite")],
    ids=["zeros", "negative", "infinite"],
)
def test_a_client_without_rows_refuses_a_histogram_that_is_none(given: tuple[float, ...], wrong: str) -> None:
    run = tiny.federation(SMALL, "bert", sizes=(6, 0), rounds=1)
    pack = run.pack([0, 1], 0)
    pack.tensors["hyper/values/given"] = torch.tensor(given).double().expand(2, -1)
    with pytest.raises(UserError, match=f'client "client-1" has no training rows, and the histogram .* {wrong}: write into'):
        run.method.personalise(pack)
    run.clients[1].data = run.clients[0].data
    run.method.personalise(pack)  # shares of its own rows


def test_an_update_that_tells_a_histogram_is_refused() -> None:
    run = tiny.federation(SMALL, "bert", sizes=(4, 4), rounds=1)
    pack_update = run.simulation.setup.exchange.pack_update

    def telling(server: Any, update: Any, *more: Any) -> Any:
        if update.client.id == "client-0":
            update = replace(update, tensors={**update.tensors, "hyper/values/given": torch.zeros(CLASSES).double()})
        return pack_update(server, update, *more)

    run.simulation.setup.exchange.pack_update = telling  # type: ignore[method-assign]
    record = run.simulation.round(0)
    assert record is not None
    assert list(record["refused"]) == ["client-0"]
    assert "hyper/values/given" in record["refused"]["client-0"]


def test_a_batch_of_one_tells_its_answer_only_if_that_is_asked_for() -> None:
    for stat, told in (("client", False), ("batch", True)):
        run = tiny.federation(replace(SMALL, label_stat=stat, batch=1, steps=1), "bert", sizes=(6, 5), rounds=1)
        pack = run.pack([0, 1], 0)
        seen = []

        def noted(weave: Any = None, pack: Any = pack, seen: Any = seen) -> None:
            seen.append(pack.tensors["hyper/values/given"].clone())

        call = type(pack).__call__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pack), "__call__", lambda self, *a, call=call, **m: (noted(), call(self, *a, **m))[1])
            for batch in pack.batches(steps=1, size=1):
                run.method.objective(pack, batch)
        (q,) = seen
        labels = run.bench.table.labels[batch.index[:, 0]]
        assert (q.max(1).values == 1).all().item() is told
        if told:
            assert q.argmax(1).tolist() == labels.tolist()
        else:
            wanted = np.stack([shares_of(run, c.data.train) for c in run.clients])
            by_hand.close(q, torch.from_numpy(wanted), 1e-15)


def test_predictions_do_not_depend_on_what_else_is_predicted() -> None:
    run = tiny.federation(replace(SMALL, context="batch"), "bert", rounds=1).run()
    whole = run.global_logits(np.arange(9), dtype=torch.float64)
    for i in (0, 4, 8):
        by_hand.close(run.global_logits(np.array([i]), dtype=torch.float64)[0], whole[i], 1e-11)


# packs, and rules over it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"label_stat": "batch"}, {"context": "batch"}])
def test_the_ways_of_the_code_keep_the_laws(settings: dict[str, Any]) -> None:
    laws.check(replace(SMALL, **settings), "pack", "return", "sums", "sites", "loading")


# sizes ------------------------------------------------------------------------------------------------------------------

ROLES = (
    "first",
    "second",
    "added",
    "block",
    "given_weight",
    "given_bias",
    "context_weight",
    "context_bias",
    "down_bias",
    "up_bias",
)


def formula(d: int, layers: int, classes: int, r: int = 16, c: int = 32, t: int = 8) -> int:
    """The card's |H|."""
    return t * r * c + c * d + layers * t + (classes + 1) * t + (d + 1) * t + r * d + r + d


def distilbert(layers: int) -> Any:
    with torch.device("meta"):
        config = DistilBertConfig(num_labels=10, n_layers=layers)
        model = AutoModelForSequenceClassification.from_config(config)
        return by_hand.shapes("distilbert", model, {"input_ids": torch.ones(5, 3, dtype=torch.long)})


def test_the_hypernetwork_of_a_distilbert_has_48032_numbers_and_the_head_598282() -> None:
    found = by_hand.elements(C2A(), distilbert(6), Scope.UP, classes=10)
    assert found == {"hyper": 48_032, "head": 598_282}
    assert formula(768, 6, 10) == 48_032


def test_of_the_number_of_blocks_it_has_nothing_but_their_embeddings() -> None:
    found = [by_hand.elements(C2A(), distilbert(n), Scope.UP, classes=10)["hyper"] for n in (2, 5)]
    assert found[1] - found[0] == 3 * 8


def test_it_is_far_smaller_than_the_adapters_that_it_makes() -> None:
    from weft.contract import Tune

    plain = FedAvg(tune=Tune("bottleneck", reduction=48, placement="sublayers"))
    found = by_hand.elements(plain, distilbert(6), Scope.UP, classes=10)["bottleneck"]
    assert found == 12 * (2 * 16 * 768 + 16 + 768)
    assert found > 6 * formula(768, 6, 10)


def sizes(turn: Turn) -> Sizes:
    r, c, t = 3, 4, 5
    own = [t * r * c, c * D, r * D, LAYERS * t, t * CLASSES, t, t * D, t, r, D]
    assert sum(own) == formula(D, LAYERS, CLASSES, r, c, t)
    return {"hyper": own, "head": HEAD}


SETTINGS = {"rank": 3, "factor": 4, "embedding": 5}
BYTES = Case(SETTINGS, sizes, sizes)
BYTES_VARIANTS = {
    "the batch's labels": Case(SETTINGS | {"label_stat": "batch"}, sizes, sizes),
    "the batch's context": Case(SETTINGS | {"context": "batch"}, sizes, sizes),
}
