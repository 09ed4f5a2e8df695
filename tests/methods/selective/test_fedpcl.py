"""FedPCL against its card: transformers' own features, losses row by row, and dictionaries of prototypes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import encoders
import images_by_hand as hand
import tiny
from bytes_of import Case, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.pixels import Pixels
from weft.backbones.run_table import tabulate
from weft.backbones.views import Views
from weft.errors import UserError
from weft.federation.batch import Batch, make_batch
from weft.federation.client import ClientState
from weft.methods import FedPCL
from weft.methods.selective.fedpcl import LOCAL, MEANS, NEVER, Told
from weft.testing import plays
from weft.testing.laws import LAWS

W = 12
SMALL = FedPCL(width=W, batch=4, epochs=2.0, optim=Optim("adamw", lr=0.01, weight_decay=1e-2, schedule="constant"))

Prototypes = Mapping[int, Tensor]


# the card, one row at a time -------------------------------------------------------------------------------------------


def features(run: tiny.Federation, rows: np.ndarray) -> Tensor:
    """[n, d] that the head of the frozen model reads."""
    backbone = run.bench.backbone
    inputs = run.bench.table.collate(rows)
    if backbone.encoders:
        values = [inputs[n].double() for n in ("pixel_values", "pixel_values_1")]
        each = [encoders.read(e.kind, encoders.plain(e.kind)[0], x) for e, x in zip(backbone.encoders, values, strict=True)]
        return torch.cat(each, 1)
    if backbone.kind == "vit":
        read: Tensor = hand.vit(backbone.path)(inputs["pixel_values"].double()).last_hidden_state[:, 0]
    elif backbone.kind == "clip":
        read = hand.image_embedding(backbone, inputs["pixel_values"])
    elif backbone.kind == "bert":
        read = by_hand.own_copy(backbone.model).bert(**inputs).pooler_output
    else:
        hidden = by_hand.own_copy(backbone.model).base_model(**inputs).last_hidden_state
        read = torch.stack([h[int(n) - 1] for h, n in zip(hidden, inputs["attention_mask"].sum(1), strict=True)])
    return read.detach()


def model_of(name: str) -> Backbone | str:
    """Of ``a+b`` both side by side."""
    return encoders.backbone(*name.split("+")) if "+" in name else name


def represented(run: tiny.Federation, rows: np.ndarray, own: Mapping[str, Tensor]) -> Tensor:
    z = torch.relu(features(run, rows) @ own["weight"].T + own["bias"])
    return z / z.norm(dim=1, keepdim=True).clamp(min=1e-12)  # a row can have nothing above 0


def means_by_hand(table: Mapping[str, tuple[Prototypes, Mapping[int, int]]], by_examples: bool) -> dict[int, Tensor]:
    found = {}
    for c in sorted({c for own, _ in table.values() for c in own}):
        have = [(own[c], counts[c] if by_examples else 1) for own, counts in table.values() if c in own]
        found[c] = sum(n * p for p, n in have) / sum(n for _, n in have)
    return found  # type: ignore[return-value]


def against(z: Tensor, y: int, prototypes: Prototypes, method: FedPCL) -> Tensor:
    """-log of the share of the own prototype."""
    scores = {c: z @ p / method.tau for c, p in prototypes.items()}
    rest = [s for c, s in scores.items() if method.negatives == "all" or c != y]
    return torch.stack(rest).exp().sum().log() - scores[y] if rest else 0 * scores[y]


def by_prototypes(z: Tensor, twin: Tensor, y: list[int], means: Prototypes, clients: list[Prototypes], method: FedPCL) -> Tensor:
    each = []
    for row, c in zip([*z, *twin], [*y, *y], strict=True):
        if c in means:
            local = [against(row, c, {**means, **own}, method) for own in clients]
            each.append(against(row, c, means, method) + sum(local) / len(local))
    return sum(each) / max(len(each), 1)  # type: ignore[return-value]


def by_rows(z: Tensor, twin: Tensor, y: list[int], means: Prototypes, clients: list[Prototypes], method: FedPCL) -> Tensor:
    """The code's ConLoss of both views, stacked."""
    kept = [i for i, c in enumerate(y) if c in means]
    if not kept:
        return torch.zeros(())
    z, y = torch.cat([z[kept], twin[kept]]), [y[i] for i in kept] * 2
    total = torch.zeros((), dtype=z.dtype)
    for own in clients:
        whole = {**means, **own}
        for i, c in enumerate(y):
            scores = {j: whole[c] @ z[j] / method.tau for j in range(len(z)) if j != i}
            all_of_them = torch.stack(list(scores.values())).exp().sum().log()
            like = [s - all_of_them for j, s in scores.items() if y[j] == c]
            total = total - sum(like) / len(like) / len(y)
    return total / len(clients)


def turn(
    run: tiny.Federation, k: int, t: int, own: Mapping[str, Tensor], table: Mapping[str, tuple[Prototypes, Mapping[int, int]]]
) -> dict[str, Tensor]:
    """A client's projection after its steps."""
    method = run.method
    assert isinstance(method, FedPCL)
    leaves = {n: v.clone().requires_grad_(True) for n, v in own.items()}
    means, clients = means_by_hand(table, method.weighting == "examples"), [p for p, _ in table.values()]
    optimizer = torch.optim.AdamW(list(leaves.values()), lr=method.optim.lr, weight_decay=method.optim.weight_decay)
    for rows in by_hand.steps_of(run, k, t) if table else []:
        z, y = represented(run, rows, leaves), by_hand.labels(run, rows).tolist()
        table_ = run.bench.table
        twin = represented(run, table_.another(rows), leaves) if isinstance(table_, Pixels) else z
        loss = (by_rows if method.loss == "rows" else by_prototypes)(z, twin, y, means, clients, method)
        optimizer.zero_grad()
        (loss + 0 * z.sum()).backward()
        optimizer.step()
    return {n: v.detach() for n, v in leaves.items()}


def prototypes_of(run: tiny.Federation, k: int, own: Mapping[str, Tensor]) -> tuple[dict[int, Tensor], dict[int, int]]:
    rows = run.clients[k].data.train
    z, y = represented(run, rows, own), by_hand.labels(run, rows)
    present = sorted(set(y.tolist()))
    return {c: z[y == c].mean(0) for c in present}, {c: int((y == c).sum()) for c in present}


def logits_by_hand(run: tiny.Federation, rows: np.ndarray, own: Mapping[str, Tensor], prototypes: Prototypes) -> Tensor:
    z = represented(run, rows, own)
    found = torch.full((len(z), len(run.bench.task.classes)), -100.0, dtype=z.dtype)
    for c, p in prototypes.items():
        found[:, c] = -((z - p) ** 2).mean(1)
    return found


def projection(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: values[f"projection/values/{n}"].clone() for n in ("weight", "bias")}


@pytest.mark.parametrize(
    ("method", "model", "views"),
    [
        (SMALL, "vit", 0),
        (replace(SMALL, negatives="others", weighting="examples", tau=0.5), "bert", 0),
        (replace(SMALL, loss="rows"), "vit", 0),
        (SMALL, "vit", 3),
        (replace(SMALL, loss="rows"), "vit", 2),
        (SMALL, "vit+clip", 0),
        (replace(SMALL, loss="rows"), "clip+vit", 2),
    ],
)
def test_rounds_of_drawn_clients_are_the_cards(method: FedPCL, model: str, views: int) -> None:
    run = tiny.federation(method, model_of(model), rounds=4, participation=0.5, pack=3, seed=2)
    if views:
        labels = run.bench.table.labels.tolist()
        rows = tiny.rows(len(labels), 3, 0, labels, reads="images")
        run.bench.table = tabulate(run.bench.backbone, rows, 32, Views(views, 0.2, True, 0))
    before = frozen_fingerprint(run.bench.backbone)
    seen = by_hand.record(run)
    own = {k: projection(by_hand.start_of(run, k)) for k in range(len(run.clients))}
    last: dict[int, Prototypes] = {}
    table: dict[str, tuple[Prototypes, Mapping[int, int]]] = {}
    drawn = []
    for t in range(4):
        told = dict(sorted(table.items()))
        for k, client in enumerate(run.clients):
            found = turn(run, k, t, own[k], told) if client.n else own[k]
            if t == 0 or not told:
                assert all(torch.equal(v, own[k][n]) for n, v in found.items())
            client.facts["after"] = found
        record = run.simulation.round(t)
        assert record is not None
        drawn.append(set(record["cohort"]))
        assert record["kind"] == ("train" if t else "prototypes")
        updates = {u.client.id: u for u in seen[t]}
        for k, client in enumerate(run.clients):
            found = client.facts.pop("after")
            if client.id not in record["cohort"] or not client.n:
                assert client.id not in updates
                continue
            own[k] = found
            prototypes, counts = prototypes_of(run, k, found)
            last[k], table[client.id] = prototypes, (prototypes, counts)
            update = updates[client.id]
            assert update.tensors.keys() == {f"prototypes/{c}" for c in prototypes}
            assert update.facts == ({"counts": list(counts.values())} if method.weighting == "examples" else {})
            for c, p in prototypes.items():
                sent = update.tensors[f"prototypes/{c}"]
                assert isinstance(sent, Tensor)
                by_hand.close(sent, p, by_hand.ADAM)
        kept = by_hand.kept(run)
        for k, client in enumerate(run.clients):
            if kept[client.id]:
                for n, v in projection(kept[client.id]).items():
                    by_hand.close(v, own[k][n], by_hand.ADAM)
        message = run.method.send(run.server, run.server.clients[0])
        ordered = [own_ for _, (own_, _) in sorted(table.items())]
        assert message.facts == {"classes": [list(p) for p in ordered]}
        local, means = message.tensors[LOCAL], message.tensors[MEANS]
        assert isinstance(local, Tensor)
        assert isinstance(means, Tensor)
        by_hand.close(local, torch.stack([p for own_ in ordered for p in own_.values()]), by_hand.ADAM)
        wanted = torch.stack(list(means_by_hand(table, method.weighting == "examples").values()))
        by_hand.close(means, wanted, by_hand.ADAM)
    assert (drawn[0] - drawn[1]) & drawn[2], "one is away and comes back"
    assert frozen_fingerprint(run.bench.backbone) == before
    rows = np.arange(len(run.bench.table))
    for name, found in by_hand.personal_logits(run, rows=rows).items():
        k = int(name[-1])
        if run.clients[k].n:  # one that was never drawn has the means of its rows as they are at the start
            prototypes = last.get(k) or prototypes_of(run, k, own[k])[0]
            by_hand.close(found, logits_by_hand(run, rows, own[k], prototypes).float(), 1e-5)
    assert set(range(len(run.clients))) - last.keys() == {1, 4}


@pytest.mark.parametrize("model", ["bert", "gpt2", "clip", "dinov2+swin"])
def test_prototypes_are_of_what_any_head_would_read(model: str) -> None:
    run = tiny.federation(SMALL, model_of(model), rounds=1)
    seen = by_hand.record(run)
    own = projection(by_hand.start_of(run))
    run.run()
    assert len(seen[0]) == 5
    for u in seen[0]:
        for c, p in prototypes_of(run, int(u.client.id[-1]), own)[0].items():
            sent = u.tensors[f"prototypes/{c}"]
            assert isinstance(sent, Tensor)
            by_hand.close(sent, p, 1e-9)


@pytest.mark.parametrize("law", ["pack", "return", "sites", "scores", "ledger", "resuming", "backbone", "loading"])
def test_with_two_encoders_it_keeps_the_laws(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plays, "shallow", lambda *_args, **_more: encoders.backbone("vit", "clip"))
    method = replace(SMALL, width=W + 1)  # no other test has the runs of this one
    LAWS[law](method)
    assert plays.plays(method).packed.run.bench.backbone.encoders


@pytest.mark.parametrize("model", ["vit", "vit+clip"])
def test_features_that_are_kept_give_what_computing_them_anew_gives(model: str) -> None:
    runs = [tiny.federation(SMALL, model_of(model), rounds=3, prefix=prefix).run() for prefix in (False, True)]
    for a, b in zip(*(by_hand.kept(run).values() for run in runs), strict=True):
        for name, value in a.items():
            by_hand.close(value, b[name], by_hand.ADAM)


# losses -------------------------------------------------------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.rand(*shape, generator=draw, dtype=torch.float64), dim=-1)


ALL = torch.ones(3, dtype=torch.bool)
Y = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])


def test_the_papers_loss_is_no_less_than_zero_and_twice_log_c_where_all_prototypes_are_one() -> None:
    method, z = replace(SMALL, tau=0.5), random(2, 4, W)
    assert bool((method.by_prototypes(z, Y, random(4, 3, W, seed=1), ALL) >= 0).all())
    one = random(1, 1, W, seed=2).expand(4, 3, W)
    by_hand.close(method.by_prototypes(z, Y, one, ALL), torch.full((2, 4), 2 * math.log(3), dtype=torch.float64), 1e-12)
    two = method.by_prototypes(z, Y.clamp(max=1), one, torch.tensor([True, True, False]))
    by_hand.close(two, torch.full((2, 4), 2 * math.log(2), dtype=torch.float64), 1e-12)


def test_where_all_clients_have_the_same_prototypes_both_terms_are_equal() -> None:
    z, one = random(2, 4, W), random(1, 3, W, seed=1)
    alone = SMALL.by_prototypes(z, Y, one.expand(2, 3, W), ALL)
    by_hand.close(SMALL.by_prototypes(z, Y, one.expand(6, 3, W), ALL), alone, 1e-12)
    other = torch.cat([one, random(5, 3, W, seed=2)])
    assert (SMALL.by_prototypes(z, Y, other, ALL) - alone).abs().max() > 0.1


def test_one_class_alone_contrasts_with_nothing() -> None:
    for negatives in ("all", "others"):
        z = random(1, 4, W).requires_grad_(True)
        only = torch.tensor([False, True, False])
        loss = replace(SMALL, negatives=negatives).by_prototypes(z, torch.ones(1, 4, dtype=torch.long), random(3, 3, W), only)  # type: ignore[arg-type]
        loss.sum().backward()
        assert z.grad is not None
        assert not loss.any()
        assert not z.grad.any()


def test_in_the_codes_loss_rows_that_take_no_part_are_no_negatives_either() -> None:
    z, told = random(1, 4, W), Told(random(3, 3, W, seed=1), random(3, W), ALL)
    y, mask = torch.tensor([[0, 1, 0, 2]]), torch.tensor([[True, True, True, False]])
    twin = random(1, 4, W, seed=2)
    both, three = torch.cat([z, twin], 1), torch.cat([z[:, :3], twin[:, :3]], 1)
    found = SMALL.by_rows(both, y, mask, told)[:, :3]
    by_hand.close(found, SMALL.by_rows(three, y[:, :3], mask[:, :3], told), 1e-12)
    everybody = SMALL.by_rows(both, y, torch.ones_like(mask), told)[:, :3]
    assert (found - everybody).abs().max() > 1e-3


def of_rows(run: tiny.Federation, rows: list[list[int]]) -> Batch:
    return make_batch(run.bench.task, run.bench.table, np.array(rows), None, run.bench.backbone.device)


def test_rows_of_a_class_that_nobody_knows_take_no_part() -> None:
    for loss in ("prototypes", "rows"):
        run = tiny.federation(replace(SMALL, loss=loss), "vit")  # type: ignore[arg-type]
        labels = run.bench.table.labels
        a, b, c = (np.flatnonzero(labels == i)[:2].tolist() for i in range(3))
        pack = run.pack([0], 1)
        pack.received = [{LOCAL: random(3, W), MEANS: random(2, W, seed=1)}]
        pack.facts = [{"classes": [[0, 1], [1]]}]
        known = run.method.objective(pack, of_rows(run, [[*a, *b]]))
        by_hand.close(run.method.objective(pack, of_rows(run, [[*a, *b, *c]])), known, 1e-12)
        assert float(known) > 0


# what is kept, told and predicted -------------------------------------------------------------------------------------------


def test_representations_are_of_unit_length_and_nowhere_negative_and_means_of_them_no_longer() -> None:
    run = tiny.federation(SMALL, "vit", rounds=2)
    method = run.method
    assert isinstance(method, FedPCL)
    z = method.represent(run.pack([0, 3]), of_rows(run, [list(range(12))] * 2))
    by_hand.close(z.norm(dim=-1), torch.ones(2, 12, dtype=torch.float64), 1e-12)
    assert float(z.min()) >= 0
    run.run()
    assert float(run.server.memo[LOCAL].norm(dim=1).max()) <= 1 + 1e-12


def test_a_client_predicts_a_class_of_its_own_rows_always() -> None:
    run = tiny.federation(SMALL, "vit", rounds=2, classes=4).run()
    rows = np.arange(len(run.bench.table))
    for name, logits in by_hand.personal_logits(run, rows=rows).items():
        has = set(run.bench.table.labels[run.clients[int(name[-1])].data.train].tolist())
        if has:
            assert set(logits.argmax(1).tolist()) <= has
            assert all(bool((logits[:, c] == NEVER).all()) == (c not in has) for c in range(4))


def test_of_one_client_the_means_are_its_own_and_of_all_its_state_nothing_else_leaves_it() -> None:
    run = tiny.federation(SMALL, "vit", sizes=(9,), rounds=2)
    seen = by_hand.record(run)
    run.run()
    assert torch.equal(run.server.memo[LOCAL], run.server.memo[MEANS])
    assert by_hand.shared(run) == {}
    assert {n.split("/")[0] for updates in seen for u in updates for n in u.tensors} == {"prototypes"}


def test_who_is_away_keeps_all_it_has_and_is_there_with_its_last_prototypes() -> None:
    run = tiny.federation(SMALL, "vit", rounds=4, participation=0.5, seed=2)
    assert any(any((a[n] - v).abs().max() > 1e-5 for n, v in b.items()) for _, b, a in by_hand.play_and_see_who_stays(run, 4))
    assert run.server.memo["ids"] == [f"client-{k}" for k in (0, 2, 3, 5)]


def test_a_client_that_was_never_trained_compares_with_the_means_of_its_rows_and_leaves_them_nowhere() -> None:
    run = tiny.federation(SMALL, "vit")
    rows = np.arange(len(run.bench.table))
    own = projection(by_hand.start_of(run))
    for name, found in by_hand.personal_logits(run, rows=rows).items():
        if run.clients[int(name[-1])].n:
            wanted = logits_by_hand(run, rows, own, prototypes_of(run, int(name[-1]), own)[0])
            by_hand.close(found, wanted.float(), 1e-5)
    assert not any(by_hand.kept(run).values())


def test_personalising_leaves_those_that_were_trained_with_what_they_keep() -> None:
    run = tiny.federation(SMALL, "vit", rounds=2).run()
    pack = run.pack([0, 1], 2)
    new: ClientState = pack.clients[1]
    new.rounds_seen = 0
    y = run.bench.table.labels[new.data.train]
    new.data = replace(new.data, train=new.data.train[y == y[0]])
    pack.tensors["projection/values/weight"] = pack.tensors["projection/values/weight"].flip(1)
    before = pack.tensors["own/values/prototypes"].clone()
    run.method.personalise(pack)
    after = pack.tensors["own/values/prototypes"]
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
    assert len(set(y.tolist())) > 1
    assert pack.tensors["own/values/has"][1].nonzero().flatten().tolist() == [y[0]], "of no class that it has no rows of"


@pytest.mark.parametrize("told", [None, [1], [1, 0], [1, 2.0], [True, 1], "ab", [1, 10**30]])
def test_an_update_whose_counts_are_none_counts_for_nothing(told: object) -> None:
    run = tiny.federation(replace(SMALL, weighting="examples"), "vit")
    sent = [by_hand.update(run, k, {f"prototypes/{c}": random(W, seed=k + c) for c in (0, 2)}, 9.0) for k in (0, 1)]
    sent[0].facts["counts"], sent[1].facts["counts"] = [3, 1], told
    run.method.aggregate(run.server, sent)
    assert run.server.memo["ids"] == ["client-0"]
    assert torch.equal(run.server.memo[LOCAL], torch.stack([random(W, seed=0), random(W, seed=2)]))


def test_means_are_by_rows_of_the_class_where_that_is_asked_for() -> None:
    for weighting, share in (("uniform", 0.5), ("examples", 0.75)):
        run = tiny.federation(replace(SMALL, weighting=weighting), "vit")  # type: ignore[arg-type]
        one, two = random(W, seed=1), random(W, seed=2)
        sent = [by_hand.update(run, 0, {"prototypes/1": one}, 99.0), by_hand.update(run, 1, {"prototypes/1": two}, 1.0)]
        sent[0].facts["counts"], sent[1].facts["counts"] = [3], [1]
        run.method.aggregate(run.server, sent)
        by_hand.close(run.server.memo[MEANS], (share * one + (1 - share) * two).unsqueeze(0), 1e-12)


def test_without_an_update_there_is_nothing_to_tell() -> None:
    run = tiny.federation(SMALL, "vit")
    run.method.aggregate(run.server, [])
    message = run.method.send(run.server, run.server.clients[0])
    assert not message.tensors
    assert not message.facts


def test_a_task_without_classes_is_refused() -> None:
    task: Any = SimpleNamespace(kind="regression", classes=("value",))
    with pytest.raises(UserError, match="prototypes of classes, and this task has none"):
        SMALL.adapt(tiny.backbone("bert"), task, ClientState("client-0"))


def test_defaults_are_the_papers_and_the_codes() -> None:
    method = FedPCL()
    assert (method.width, method.tau, method.epochs, method.batch) == (256, 0.07, 1.0, 32)
    assert (method.loss, method.negatives, method.weighting) == ("prototypes", "all", "uniform")
    assert method.optim == Optim("adamw", lr=1e-3, weight_decay=1e-4, schedule="constant")
    backbone = by_hand.vit_base(10)
    sizes = by_hand.elements(method, backbone, by_hand.Scope.KEEP, classes=10)
    assert sizes["projection"] == 256 * 768 + 256


# what other tests ask of this method --------------------------------------------------------------------------------------


def down(turn: Turn) -> Sizes:
    """The prototypes that there are, and the means of the classes that somebody has."""
    lists = turn.told["classes"]
    return {"prototypes": [W * sum(map(len, lists)), W * len({c for classes in lists for c in classes})]}


def up(turn: Turn) -> Sizes:
    """256 numbers for each class that the client has."""
    return {"prototypes": [W for n in turn.counts if n]}


BYTES = Case({"width": W}, down, up, head=False)
