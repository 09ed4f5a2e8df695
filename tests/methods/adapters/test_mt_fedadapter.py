"""MT-FedAdapter against its card: an adapter and a head for each task, beside a loop in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import HEAD, LAYERS, Case, D, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.message import ClientInfo
from weft.federation.scope import Scope
from weft.methods import FedAvg, MTFedAdapter
from weft.methods.adapters.mt_fedadapter import relations, task_of, tasks_of
from weft.tasks.several_tasks import Several
from weft.testing.data import TAGS, TASKS, names_of_several

SMALL = replace(MTFedAdapter(), reduction=4, batch=4, optim=Optim("sgd", lr=0.3, schedule="constant"))
ROLES = ("down", "down_bias", "up", "up_bias")
Values = dict[str, Tensor]


def several(method: MTFedAdapter = SMALL, **more: object) -> tiny.Federation:
    return tiny.federation(method, "bert", task="several", **more)  # type: ignore[arg-type]


def part(values: Values, name: str) -> Values:
    """The tensors of a part without its name: site/role."""
    return {n.removeprefix(f"{name}/"): v for n, v in values.items() if n.startswith(f"{name}/")}


def logits(run: tiny.Federation, adapter: Values, head: Values, rows: np.ndarray) -> Tensor:
    """[n, T, own classes] of the tagger with bottlenecks after each feed-forward and a head of one task."""
    model = copy.deepcopy(run.bench.backbone.model)
    sites = {n.rpartition("/")[0] for n in adapter}

    def behind(site: str) -> Callable[..., Tensor]:
        down, down_bias, up, up_bias = (adapter[f"{site}/{role}"] for role in ROLES)
        return lambda _m, _a, out: out + F.linear(torch.relu(F.linear(out, down, down_bias)), up, up_bias)

    for site in sites:
        model.get_submodule(site).register_forward_hook(behind(site))
    hidden = model.bert(**run.bench.table.collate(rows)).last_hidden_state
    (site,) = {n.rpartition("/")[0] for n in head}
    return F.linear(hidden, head[f"{site}/weight"], head[f"{site}/bias"])


def of_task(run: tiny.Federation, rows: np.ndarray, name: str) -> np.ndarray:
    first, end = run.bench.task.spans[name]  # type: ignore[attr-defined]
    own = run.bench.table.labels[rows]
    return rows[(own >= first) & (own < end)]


def a_turn(run: tiny.Federation, values: Values, position: int, t: int, rate: float) -> Values:
    """One client's turn: a pass over its rows of each task, of the task's own tensors alone."""
    found = {n: v.clone() for n, v in values.items()}
    client = run.clients[position]
    for name, (first, _) in run.bench.task.spans.items():  # type: ignore[attr-defined]
        own = of_task(run, client.data.train, name)
        if not len(own):
            continue
        which = np.zeros(len(run.bench.table), dtype=bool)
        which[own] = True
        steps = [b.index[0] for b in run.pack([position], t).limited(which).batches(run.method.epochs, None, run.method.batch)]
        assert sorted(i for rows in steps for i in rows.tolist()) == sorted(own.tolist())
        for rows in steps:
            mine = {n: found[n].requires_grad_(True) for n in found if n.split("/")[0] in (f"adapter.{name}", f"head.{name}")}
            z = logits(run, part(mine, f"adapter.{name}"), part(mine, f"head.{name}"), rows)
            tags = torch.from_numpy(run.bench.table.tags_of(rows))  # type: ignore[union-attr]
            loss = F.cross_entropy(z[tags >= 0], tags[tags >= 0] - first)
            slopes = torch.autograd.grad(loss, list(mine.values()))
            for (n, value), slope in zip(mine.items(), slopes, strict=True):
                found[n] = (value - rate * slope).detach()
    return found


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_rounds_are_the_cards_with_clients_away_and_tasks_that_some_lack(weighting: str) -> None:
    run = several(replace(SMALL, weighting=weighting), rounds=3, participation=0.67)
    wanted = by_hand.start_of(run)
    for t in range(3):
        played = run.simulation.round(t)
        assert played is not None
        sums: dict[str, tuple[Tensor, float]] = {}
        for i, client in enumerate(run.clients):
            if client.id not in played["cohort"] or client.n == 0:
                continue
            own = client.facts["tasks"]
            after = a_turn(run, wanted, i, t, 0.3)
            for name, value in after.items():
                n = own.get(task_of(name), 0)
                if n:
                    weight = float(n) if weighting == "examples" else 1.0
                    total, weights = sums.get(name, (torch.zeros_like(value), 0.0))
                    sums[name] = total + weight * value, weights + weight
        wanted |= {n: total / weights for n, (total, weights) in sums.items()}
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, wanted[name], 1e-10)
    assert len({len(c.facts["tasks"]) for c in run.clients}) > 1


def test_one_task_alone_is_federated_averaging_of_adapters() -> None:
    """Not several: the same tensors under the name of the part, and the same numbers as fedavg's."""
    from weft.adaptation.tune import Tune

    own = replace(SMALL, weighting="examples")
    tune = Tune(kind="bottleneck", reduction=4, placement="ffn", up_std=0.0)
    other = FedAvg(tune=tune, epochs=own.epochs, batch=own.batch, optim=own.optim)
    mine, theirs = tiny.federation(own, rounds=2), tiny.federation(other, rounds=2)
    with_same = {n.replace("adapter/", "bottleneck/"): v for n, v in by_hand.start_of(mine).items()}
    start = {n: v for n, v in with_same.items() if n in by_hand.start_of(theirs)}
    assert start.keys() == with_same.keys()
    theirs = tiny.federation(other, rounds=2, start=start)
    mine = tiny.federation(own, rounds=2, start=by_hand.start_of(mine))
    mine.run(), theirs.run()
    found = by_hand.shared(theirs)
    for name, value in by_hand.shared(mine).items():
        by_hand.close(value, found[name.replace("adapter/", "bottleneck/")], 1e-12)


def test_a_client_moves_the_tensors_of_its_own_tasks_and_sends_no_others() -> None:
    run = several(facts=[{} for _ in tiny.SIZES], rounds=1)
    seen = by_hand.record(run)
    before = by_hand.start_of(run)
    run.run()
    for update in seen[0]:
        trained = {t for t, n in update.client.facts["tasks"].items() if n}
        assert {task_of(n) for n in update.tensors} == trained
        assert not update.facts
        for name, value in update.tensors.items():
            assert isinstance(value, Tensor)
            assert name in before
    alone = next(u for u in seen[0] if u.client.facts["tasks"].get("sort") == 0)
    assert {task_of(n) for n in alone.tensors} == {"find"}


def test_what_is_sent_is_the_sum_over_a_clients_tasks() -> None:
    """|A| = L·s·(2 d m + m + d) and a head of d·C + C for each task; nothing without tasks."""
    task = Several(names_of_several())
    backbone = several().bench.backbone
    d, m, blocks = 32, 8, 3

    def sent(tasks: dict[str, int]) -> int:
        adaptation = SMALL.adapt(backbone, task, ClientInfo("c", 5, {"tasks": tasks}))
        from weft.federation.layout import named

        return sum(init.numel for _, init, scope in named(adaptation, backbone) if Scope.UP in scope)

    adapter = blocks * (2 * d * m + m + d)
    assert sent({"find": 3}) == adapter + (d + 1) * len(TAGS)
    assert sent({"find": 3, "sort": 1}) == 2 * adapter + (d + 1) * (len(TAGS) + 3)
    assert sent({}) == 0
    big = replace(MTFedAdapter(), personal_head=True)
    assert by_hand.elements(big, by_hand.roberta_base(), Scope.UP) == {"adapter": 12 * 99_136}


def test_personal_heads_stay_where_they_are() -> None:
    run = several(replace(SMALL, personal_head=True), rounds=2)
    seen = by_hand.record(run)
    run.run()
    assert run.method.views == ("personal",)
    assert all(n.startswith("adapter.") for updates in seen for u in updates for n in u.tensors)
    heads = [kept for kept in by_hand.kept(run).values() if any(n.startswith("head.") for n in kept)]
    assert len(heads) > 1
    name = next(n for n in heads[0] if n.endswith("weight"))
    assert not torch.equal(heads[0][name], heads[1][name])


# relations --------------------------------------------------------------------------------------------------------------


def test_relations_have_rows_that_sum_to_one_and_join_tasks_of_a_family() -> None:
    tags = ("O", "B-X", "I-X")
    classes = (*(f"a/{t}" for t in tags), *(f"b/{t}" for t in tags), *(f"c/{k}" for k in "xy"))
    task = Several(classes)
    for borrow in (0.0, 0.3, 1.0):
        for family in ("kind", "all"):
            gamma = relations(task, borrow, family)  # type: ignore[arg-type]
            by_hand.close(gamma.sum(1), torch.ones(3, dtype=torch.float64), 1e-15)
    assert relations(task, 0.3, "kind").tolist() == [[0.7, 0.3, 0.0], [0.3, 0.7, 0.0], [0.0, 0.0, 1.0]]
    assert relations(task, 2 / 3, "all").allclose(torch.full((3, 3), 1 / 3, dtype=torch.float64))


def test_tasks_borrow_after_the_mean_and_heads_never_do() -> None:
    plain, mixed = several(rounds=1).run(), several(replace(SMALL, borrow=0.25, family="all"), rounds=1).run()
    a, b = by_hand.shared(plain), by_hand.shared(mixed)
    for name, value in a.items():
        if name.startswith("head."):
            assert torch.equal(b[name], value)
            continue
        other = name.replace("find", "sort") if task_of(name) == "find" else name.replace("sort", "find")
        by_hand.close(b[name], 0.75 * value + 0.25 * a[other], 1e-14)
    late = several(replace(SMALL, borrow=0.25, family="all", borrow_after=1), rounds=1).run()
    assert all(torch.equal(v, a[n]) for n, v in by_hand.shared(late).items())


def test_equal_relations_make_all_adapters_equal() -> None:
    run = several(replace(SMALL, borrow=0.5, family="all"), rounds=1).run()
    held = by_hand.shared(run)
    for name in (n for n in held if n.startswith("adapter.find/")):
        by_hand.close(held[name], held[name.replace("find", "sort")], 1e-15)


# packs and words --------------------------------------------------------------------------------------------------------


def everything(run: tiny.Federation) -> Values:
    """What the server and all clients hold."""
    return by_hand.shared(run) | {f"{c} {n}": v for c, own in by_hand.kept(run).items() for n, v in own.items()}


@pytest.mark.parametrize("personal", [False, True])
def test_packs_are_their_clients_one_by_one(personal: bool) -> None:
    method = replace(SMALL, personal_head=personal, optim=MTFedAdapter().optim.but(lr=1e-2))
    one, many = several(method, pack=1, rounds=2).run(), several(method, pack=6, rounds=2).run()
    wanted, found = everything(one), everything(many)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        by_hand.close(found[name], value, by_hand.ADAM)


def test_a_new_federation_predicts_as_the_frozen_model_with_its_heads() -> None:
    run = several()
    values = by_hand.start_of(run)
    assert all(not v.any() for n, v in values.items() if n.endswith("/up"))


def test_a_task_that_the_federation_does_not_have_is_named() -> None:
    task = Several(names_of_several())
    with pytest.raises(UserError, match=r'has the task "sorts", and the federation has find, sort.*Did you mean "sort"'):
        tasks_of(task, ClientInfo("c", 3, {"tasks": {"sorts": 3}}))
    with pytest.raises(UserError, match="no tasks with numbers of rows"):
        tasks_of(task, ClientInfo("c", 3, {"tasks": ["sort"]}))
    assert tasks_of(task, ClientInfo("c", 3, {"tasks": {"sort": 1, "find": 0}})) == list(TASKS)
    assert tasks_of(task, ClientInfo("")) == list(TASKS)


def test_a_head_of_several_layers_is_refused() -> None:
    from weft.adaptation.head import TaskHead

    with pytest.raises(UserError, match="can't be taken apart by tasks"):
        TaskHead(first=0, end=2).sites(tiny.backbone("roberta"))


# what other tests ask of this method --------------------------------------------------------------------------------------


def of_one_task(turn: Turn) -> Sizes:
    m = max(D // 12, 1)
    return {"adapter": [m * D, m, D * m, D] * LAYERS, "head": HEAD}


BYTES = Case({}, of_one_task, of_one_task)
TINY = {"reduction": 4}
