"""Powder against its card: prompts, matching and distillation row by row on transformers' own ViT, with plain Adam."""

from __future__ import annotations

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
import images_by_hand as hand
import tiny
from bytes_of import CLASSES, Bits, Case, D, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.backbones.backbone import frozen_fingerprint
from weft.errors import UserError
from weft.methods import Powder
from weft.testing import laws

M, L, BLOCKS = 2, 3, (1, 2)
FAST = Optim("adamw", lr=0.02, schedule="constant")
SMALL = Powder(components=M, tokens=L, epochs=2.0, batch=4, power=2.0, class_power=2.0, optim=FAST)
PERIODS, ROUNDS = 2, 6

Slice = dict[str, Tensor]
Id = tuple[str, int]


def played(method: Powder = SMALL, **more: Any) -> tiny.Federation:
    settings: dict[str, Any] = {"rounds": ROUNDS, "periods": PERIODS, "known": True, "classes": 6} | more
    return tiny.federation(method, **settings)


# the card, one row at a time --------------------------------------------------------------------------------------------


def query(run: tiny.Federation, row: int) -> Tensor:
    found: Tensor = hand.vit(run.bench.backbone.path)(hand.pictures(run, np.array([row]))).last_hidden_state[0, 0]
    return found


def attention(q: Tensor, pool: Slice, block: int) -> list[Tensor]:
    """a_m of one row."""
    return [F.cosine_similarity(q * a, k, dim=0) for a, k in zip(pool[f"A.{block}"], pool[f"K.{block}"], strict=True)]


def logits(run: tiny.Federation, row: int, pools: list[Slice], head: Slice) -> Tensor:
    """[C] of one picture with the pools of the tasks that are nearest to its own."""
    model, q = hand.vit(run.bench.backbone.path), query(run, row)
    x = model.embeddings(hand.pictures(run, np.array([row])))
    patches = x.shape[1] - 1
    for block, layer in enumerate(model.layers):
        if block in BLOCKS:
            tokens = sum(
                a * p for pool in pools for a, p in zip(attention(q, pool, block), pool[f"P.{block}"], strict=True)
            ) / len(pools)
            assert isinstance(tokens, Tensor)
            x = torch.cat([x[:, :1], tokens[None], x[:, 1:]], 1)
        x = layer(x, None)
        x = x[0] if isinstance(x, tuple) else x
    assert x.shape[1] == 1 + patches + len(BLOCKS) * L, "the class token is the first of all"
    return head["head/classifier/weight"] @ model.layernorm(x)[0, 0] + head["head/classifier/bias"]


def average(some: list[Any]) -> list[list[Tensor]]:
    """Entry by entry, of vectors by block."""
    return [[sum(entry) / len(some) for entry in zip(*blocks, strict=True)] for blocks in zip(*some, strict=True)]  # type: ignore[misc]


class Card:
    """The whole federation, with dictionaries."""

    def __init__(self, run: tiny.Federation):
        assert isinstance(run.method, Powder)
        self.run, self.method = run, run.method
        self.slices: dict[Id, Slice] = {}
        self.order: list[Id] = []
        self.W: dict[tuple[Id, Id], float] = {}
        self.seen: dict[Id, list[list[Tensor]]] = {}
        self.of_class: dict[tuple[Id, int], list[list[Tensor]]] = {}
        start = run.pack([0]).params("head")
        self.heads = {c.id: {n: v[0].detach().clone() for n, v in start.items()} for c in run.clients}

    def begin(self, period: int) -> None:
        """Tasks of a period, with the values that the server drew."""
        names = [f"{role}.{block}" for block in BLOCKS for role in "PKA"]
        self.run.method.book(self.run.server)  # type: ignore[attr-defined]
        for client in self.run.clients:
            g = (client.id, period)
            self.order.append(g)
            self.slices[g] = {n: self.run.server.memo[f"{n}/{g[0]}/{g[1]}"].clone() for n in names}

    def w(self, u: Id, v: Id) -> float:
        return self.W.get((u, v), float(u == v))

    def pool(self, i: Id, mine: Id | None = None, own: Slice | None = None) -> Slice:
        """P̄_i, K̄_i, Ā_i; the tensors of ``mine`` are ``own``, and no gradient flows through others."""
        found: Slice = {}
        for name in self.slices[i]:
            found[name] = sum(self.w(i, j) * (own[name] if j == mine and own else self.slices[j][name]) for j in self.order)  # type: ignore[assignment]
        return found

    def nearest(self, g: Id) -> list[Id]:
        return sorted(self.order, key=lambda i: (-self.w(g, i), self.order.index(i)))[: min(self.method.top, len(self.order))]

    def match(self, period: int) -> None:
        pools = {i: self.pool(i) for i in self.order}
        for client in self.run.clients:
            rows = self.rows(client.id, period)
            if not len(rows):
                continue
            g, by_class = (client.id, period), {}
            for row in rows:
                q = query(self.run, row)
                one = [[a for i in self.order for a in attention(q, pools[i], block)] for block in BLOCKS]
                by_class.setdefault(int(by_hand.labels(self.run, np.array([row]))[0]), []).append(one)
            mean = {y: average(some) for y, some in by_class.items()}
            self.of_class |= {(g, y): v for y, v in mean.items()}
            self.seen[g] = average(list(mean.values()))
        for u in self.order:
            raw = {v: self.near(self.seen.get(u), self.seen.get(v), self.method.power) if u != v else 1.0 for v in self.order}
            for v in self.order:
                self.W[u, v] = raw[v] / sum(raw.values())

    @staticmethod
    def near(u: list[list[Tensor]] | None, v: list[list[Tensor]] | None, power: float) -> float:
        if u is None or v is None:
            return 0.0
        n = min(len(u[0]), len(v[0]))
        cosines = [F.cosine_similarity(torch.stack(a[:n]), torch.stack(b[:n]), dim=0) for a, b in zip(u, v, strict=True)]
        return float(max(sum(cosines) / len(cosines), torch.tensor(0.0)) ** power)

    def known(self, g: Id, y: int) -> float:
        """1 - the largest entry of a class in its row of the matrix of classes."""
        row = [
            1.0 if key == (g, y) else 0.0 if key[0] == g else self.near(self.of_class[g, y], v, self.method.class_power)
            for key, v in self.of_class.items()
        ]
        best = sorted(row, reverse=True)[: self.method.class_top]
        return 1 - best[0] / sum(best)

    def rows(self, client: str, period: int) -> np.ndarray:
        data = next(c for c in self.run.clients if c.id == client).data
        every = data.train if data.every is None else data.every
        return every[self.run.bench.table.labels[every] % PERIODS == period]

    def task_logits(self, row: int, g: Id, own: Slice, head: Slice) -> Tensor:
        z = logits(self.run, row, [self.pool(i, g, own) for i in self.nearest(g)], head)
        return z[[c for c in range(6) if c % PERIODS == g[1]]]  # those of the task alone

    def turn(self, k: int, t: int, period: int) -> tuple[Slice, Slice]:
        client = self.run.clients[k].id
        g, method = (client, period), self.method
        own = {n: v.clone().requires_grad_(True) for n, v in self.slices[g].items()}
        head = {n: v.clone().requires_grad_(True) for n, v in self.heads[client].items()}
        adam = torch.optim.Adam([*own.values(), *head.values()], lr=method.optim.lr)
        for batch in self.run.pack([k], t).batches(method.epochs, method.steps, method.batch):
            rows = batch.index[0]
            y = by_hand.labels(self.run, rows)
            z = torch.stack([self.task_logits(row, g, own, head) for row in rows])
            loss = F.cross_entropy(z, y // PERIODS)
            if t > 1:
                with torch.no_grad():
                    teacher = [self.task_logits(row, g, self.slices[g], self.heads[client]) for row in rows]
                w = torch.softmax(torch.tensor([self.known(g, int(c)) for c in y], dtype=z.dtype), 0)
                for share, one, other, c in zip(w, teacher, z, y // PERIODS, strict=True):
                    rest = [i for i in range(3) if i != c]
                    p, q = F.softmax(one[rest] / method.tau, 0), F.softmax(other[rest] / method.tau, 0)
                    loss = loss + method.distil * method.tau**2 * share * (p * (p / q).log()).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return {n: v.detach() for n, v in own.items()}, {n: v.detach() for n, v in head.items()}


@pytest.mark.parametrize("method", [SMALL, replace(SMALL, top=2, distil=0.5, tau=2.0)])
def test_rounds_of_drawn_clients_in_two_periods_are_the_cards(method: Powder) -> None:
    run = played(method, participation=0.5, pack=3, seed=2, sizes=(6, 3, 0, 4, 2, 5))
    card = Card(run)
    drawn = []
    for t in range(ROUNDS):
        period = t // 3
        if t % 3 == 0:
            run.server.round = replace(run.server.round, index=t, period=period)
            card.begin(period)
        steps = {k: card.turn(k, t, period) for k, c in enumerate(run.clients) if t % 3 and len(card.rows(c.id, period))}
        cohort = run.simulation.round(t)
        assert cohort is not None
        if t % 3 == 0:
            assert len(cohort["cohort"]) == 6
            card.match(period)
        else:
            drawn.append(set(cohort["cohort"]))
            for k, (own, head) in steps.items():
                if (name := run.clients[k].id) in cohort["cohort"]:
                    card.slices[name, period], card.heads[name] = own, head
        for i, u in enumerate(card.order):
            for j, v in enumerate(card.order):
                if "W" in run.server.memo:
                    assert float(run.server.memo["W"][i, j]) == pytest.approx(card.w(u, v), abs=1e-9)
            for name, value in card.slices[u].items():
                by_hand.close(run.server.memo[f"{name}/{u[0]}/{u[1]}"], value, 1e-7)
    assert any(0.01 < card.w(u, v) < 0.9 for u in card.order for v in card.order if u[1] != v[1]), "tasks know each other"
    assert drawn[0] != drawn[1]
    rows = np.arange(12)
    found = run.personal_logits("personal", {c.id: rows for c in run.clients})
    for client in run.clients[:2]:
        for row in rows:
            g = (client.id, int(run.bench.table.labels[row]) % PERIODS)
            wanted = logits(run, row, [card.pool(i) for i in card.nearest(g)], card.heads[client.id])
            by_hand.close(found[client.id][row], wanted.float(), 1e-5)


# invariants of the card -------------------------------------------------------------------------------------------------


def test_neither_the_backbone_nor_tasks_of_others_nor_head_rows_of_other_classes_move() -> None:
    run = played()
    before = frozen_fingerprint(run.bench.backbone)
    heads = {n: v[0].clone() for n, v in run.pack([0]).params("head").items()}
    for t in range(2):
        run.simulation.round(t)
    kept = dict(run.server.memo)
    pack = run.pack([0], 2)
    list(run.method.train(pack))
    assert all(torch.equal(v, run.server.memo[n]) for n, v in kept.items() if isinstance(v, Tensor))
    for name, value in pack.params("head").items():
        moved = [c for c in range(6) if not torch.equal(value[0, c], heads[name][c])]
        assert moved
        assert {c % PERIODS for c in moved} == {0}
    assert frozen_fingerprint(run.bench.backbone) == before


def test_rows_of_w_sum_to_one_and_a_task_knows_itself_best() -> None:
    run = played().run()
    w = run.server.memo["W"]
    assert w.shape == (12, 12)
    assert torch.allclose(w.sum(1), torch.ones(12, dtype=w.dtype))
    assert (w >= 0).all()
    assert (w.diagonal() == w.amax(1)).all()


def test_alone_with_itself_a_task_has_codas_prompts() -> None:
    run = played(replace(SMALL, top=1), sizes=(6,), periods=1, known=False)
    run.simulation.round(0)
    pack = run.pack([0], 1)
    batch = next(iter(pack.batches(1.0, None, 4)))
    method = run.method
    assert isinstance(method, Powder)
    own = {n.rsplit("/", 1)[1]: v[0] for n, v in pack.params("own").items()}
    found = method.prompts(pack, batch)
    for i, row in enumerate(batch.index[0]):
        q = query(run, row)
        for block in BLOCKS:
            wanted = sum(a * p for a, p in zip(attention(q, own, block), own[f"P.{block}"], strict=True))
            by_hand.close(found[block][0, i], wanted, 1e-10)  # type: ignore[arg-type]


def distilled(change: Mapping[int, float], allowed: list[bool] | None = None, same: bool = False) -> Tensor:
    """L_ntd of a batch whose student's logits of true classes are changed."""
    run = played(sizes=(4,), periods=1, known=False)
    run.simulation.round(0)
    pack = run.pack([0], 1)
    batch = next(iter(pack.batches(1.0, None, 4)))
    g = torch.Generator().manual_seed(1)
    n = batch.labels.shape[1]
    z, teacher = (torch.randn(1, n, 6, generator=g, dtype=torch.float64) for _ in range(2))
    for i, by in change.items():
        z[0, i, batch.labels[0, i]] += by
    if allowed is not None:
        only = F.one_hot(batch.labels, 6).bool() if not any(allowed) else torch.tensor(allowed).expand(1, n, 6)
        batch = replace(batch, allowed=only)
    method = run.method
    assert isinstance(method, Powder)
    student: Any = SimpleNamespace(logits=teacher if same else z)
    return method.not_true(pack, batch, student, SimpleNamespace(logits=teacher))  # type: ignore[arg-type]


def test_distillation_is_nothing_where_student_and_teacher_agree_and_knows_nothing_of_the_true_class() -> None:
    assert distilled({}, same=True).abs().max() < 1e-14
    by_hand.close(distilled({0: 5.0, 2: -3.0}), distilled({}), 1e-12)
    assert float(distilled({})) > 0.1


def test_a_task_with_one_class_is_not_distilled() -> None:
    assert float(distilled({}, [False] * 6)) == 0.0


def test_the_first_round_that_trains_has_no_teacher() -> None:
    ends = []
    for distil in (0.0, 50.0):
        run = played(replace(SMALL, distil=distil))
        for t in range(3):
            run.simulation.round(t)
            ends.append({n: v for n, v in run.server.memo.items() if n.startswith("P.")})
    first, second = ends[1], ends[4]
    assert all(torch.equal(v, second[n]) for n, v in first.items())
    assert not all(torch.equal(v, ends[5][n]) for n, v in ends[2].items())


def test_tasks_begin_orthogonal_to_all_that_there_are() -> None:
    run = played(replace(SMALL, components=1), sizes=(6, 5, 4))
    for t in range(4):
        run.simulation.round(t)
    for name, width in (("P.1", L * D), ("K.2", D), ("A.1", D)):
        of = {(c.id, p): run.server.memo[f"{name}/{c.id}/{p}"].reshape(1, width) for c in run.clients for p in range(2)}
        new = torch.cat([v for (_, p), v in of.items() if p == 1])
        old = torch.cat([v for (_, p), v in of.items() if p == 0])
        by_hand.close(new @ new.T, torch.eye(3, dtype=new.dtype), 1e-10)
        assert (new @ old.T).abs().max() < 1e-10
        assert not torch.allclose(old.norm(dim=1), torch.ones(3, dtype=old.dtype), atol=1e-6), "trained meanwhile"


def test_the_present_task_is_told_first_and_is_that_of_rows_of_which_nothing_is_known() -> None:
    run = played().run()
    info = run.clients[0].info(run.method.info.asks)
    message = run.method.send_to_test(run.server, info)
    assert message.facts["periods"] == [1, 0]
    rows = np.arange(12)
    known = run.personal_logits("personal", {run.clients[0].id: rows})[run.clients[0].id]
    assert run.bench.arrivals is not None
    of = run.bench.arrivals.of_row
    present = of[rows] == 1
    of[rows] = -1
    found = run.personal_logits("personal", {run.clients[0].id: rows})[run.clients[0].id]
    assert torch.equal(found[present], known[present])
    assert not torch.allclose(found[~present], known[~present])


def test_a_client_uploads_its_own_prompts_and_the_cards_number_of_them() -> None:
    backbone = by_hand.vit_base(20)
    assert Powder().at(backbone) == (4, 5, 6)
    assert sum(int(np.prod(shape)) for shape in Powder().shapes(backbone).values()) == 230_400


def test_a_client_that_was_away_in_a_round_leaves_its_task_as_it_was() -> None:
    run = played(participation=0.5, seed=2)
    run.simulation.round(0)
    before = dict(run.server.memo)
    cohort = run.simulation.round(1)
    assert cohort is not None
    for client in run.clients:
        same = torch.equal(run.server.memo[f"P.1/{client.id}/0"], before[f"P.1/{client.id}/0"])
        assert same == (client.id not in cohort["cohort"] or not client.n)


@pytest.mark.parametrize(
    ("depth", "wanted"), [(12, (4, 5, 6)), (24, (8, 10, 12)), (6, (2, 3)), (3, (1, 2)), (2, (1,)), (1, (0,))]
)
def test_the_codes_blocks_are_scaled_to_the_backbones_depth(depth: int, wanted: tuple[int, ...]) -> None:
    backbone: Any = SimpleNamespace(blocks=[f"layer.{i}" for i in range(depth)], name="some")
    assert Powder().at(backbone) == wanted


@pytest.mark.parametrize("blocks", [(), (1, 1), (2, 1), (0, 3)])
def test_blocks_that_are_none_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"of 0 to 2: set method\.blocks to such as 0,1"):
        tiny.federation(replace(SMALL, blocks=blocks))


def test_periods_whose_tasks_are_not_known_are_refused() -> None:
    with pytest.raises(UserError, match="give --incremental task"):
        played(known=False)


def test_periods_with_one_exchange_are_refused() -> None:
    with pytest.raises(UserError, match="5 rounds leave none to train in some of 3; give 6 or more"):
        played(rounds=5, periods=3)


@pytest.mark.parametrize("law", ["pack", "return"])
def test_laws_hold_over_periods(law: str) -> None:
    one, other = (played(SMALL, pack=pack) for pack in (1, 3))
    for run in (one, other):
        run.run()
    assert laws.LAWS
    if law == "pack":
        for name, value in one.server.memo.items():
            if isinstance(value, Tensor):
                by_hand.close(value, other.server.memo[name], 1e-9)
    else:
        again = played(SMALL, pack=1).run()
        assert all(torch.equal(v, again.server.memo[n]) for n, v in one.server.memo.items() if isinstance(v, Tensor))


TASKS = len(tiny.SIZES)
OWN = [M * L * D, M * D, M * D] * len(BLOCKS)
TINY = {"components": M, "tokens": L}


def down(turn: Turn) -> Sizes:
    return {"own": OWN, "rest": [3 * n for n in OWN], "known": [CLASSES], "share": [3]}


def up(turn: Turn) -> Sizes:
    if turn.t:
        return {"own": OWN}
    seen = len(BLOCKS) * TASKS * M
    there = sum(map(bool, turn.counts))
    return {"match": [seen], "match by class": [there * seen], "classes": [Bits(2 * there)]}


BYTES = Case(
    TINY,
    down,
    up,
    first=lambda turn: {"pool": [TASKS * M * D] * 2 * len(BLOCKS)},
    head_stays=True,
)
