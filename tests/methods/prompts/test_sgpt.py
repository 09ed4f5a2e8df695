"""SGPT against its card: transformers' own ViT block by block, picks row by row, two phases of plain SGD, sums over clients."""

from __future__ import annotations

import functools
import json
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
from bytes_of import HEAD, Case, D, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.backbones.backbone import frozen_fingerprint
from weft.errors import UserError
from weft.federation.batch import Batch, make_batch
from weft.federation.pack import Pack
from weft.federation.scope import Scope
from weft.methods import SGPT

G = 3
KEYS = "keys/values/keys"
HEADS = ("head/classifier/weight", "head/classifier/bias")
FAST = Optim("sgd", lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="constant")
SMALL = SGPT(groups=G, tokens=2, epochs=2.0, batch=4, enough=9, std=0.3, optim=FAST)

Values = Mapping[str, Tensor]


# the card, one row at a time -------------------------------------------------------------------------------------------


def block_of(name: str) -> int:
    return int(name.split("/")[-1])


def behind_the_norm(run: tiny.Federation, row: int, enters: Mapping[int, list[tuple[str, Tensor]]]) -> dict[str, Tensor]:
    """What leaves the last norm of one picture, by name: ``cls``, and each token [d] that entered a block, by the name it has."""
    model = hand.vit(run.bench.backbone.path)
    x = model.embeddings(hand.pictures(run, np.array([row])))
    names = ["cls", *["patch"] * (x.shape[1] - 1)]
    for block, layer in enumerate(model.layers):
        for name, token in enters.get(block, []):
            x = torch.cat([x[:, :1], token[None, None], x[:, 1:]], 1)
            names.insert(1, name)
        x = layer(x, None)
        x = x[0] if isinstance(x, tuple) else x
    return dict(zip(names, model.layernorm(x)[0], strict=True))


def shared_tokens(values: Values) -> dict[int, list[tuple[str, Tensor]]]:
    return {block_of(n): [(f"{n} {i}", t) for i, t in enumerate(v)] for n, v in values.items() if n.startswith("shared/")}


@functools.cache
def frozen(path: str, picture: bytes, size: tuple[int, ...]) -> Tensor:
    """What the head of the frozen model reads of a picture, [d]."""
    pixels = torch.frombuffer(bytearray(picture), dtype=torch.float64).view(size)
    found: Tensor = hand.vit(path)(pixels).last_hidden_state[0, 0]
    return found


def cosines(run: tiny.Federation, row: int, values: Values) -> Tensor:
    """[G] of a picture's query and the keys."""
    pixels = hand.pictures(run, np.array([row]))
    f = frozen(run.bench.backbone.path, pixels.numpy().tobytes(), tuple(pixels.shape)).clamp(min=0)
    return torch.stack([f @ k / (f.norm() * k.norm()) for k in values[KEYS]])


def picked(run: tiny.Federation, rows: np.ndarray, values: Values, counts: list[int], method: SGPT) -> list[int]:
    """The groups that a step's rows take."""
    found = []
    for row in rows:
        score = 1 - cosines(run, row, values).detach()
        if method.balance and sum(counts):
            score = score * (torch.tensor(counts, dtype=score.dtype) / sum(counts) + 5e-4)
        found.append(int(score.argmin()))
    if method.by_batch:
        most = max(range(len(values[KEYS])), key=lambda g: (found.count(g), -g))
        return [most] * len(rows)
    return found


def group_logits(run: tiny.Federation, row: int, values: Values, g: int) -> Tensor:
    enters = shared_tokens(values)
    ours = {block_of(n): (n, v[g]) for n, v in values.items() if n.startswith("group/")}
    for block, token in ours.items():
        enters[block] = [*enters.get(block, []), token]
    states = behind_the_norm(run, row, enters)
    read = (states["cls"] + sum(states[name] for name, _ in ours.values())) / (1 + len(ours))
    return values[HEADS[0]] @ read + values[HEADS[1]]


def plain_logits(run: tiny.Federation, row: int, values: Values) -> Tensor:
    return values[HEADS[0]] @ behind_the_norm(run, row, shared_tokens(values))["cls"] + values[HEADS[1]]


def steps_of(run: tiny.Federation, k: int, t: int, stream: str) -> list[np.ndarray]:
    method = run.method
    return [b.index[0] for b in run.pack([k], t).batches(method.epochs, method.steps, method.batch, stream=stream)]


def turn(run: tiny.Federation, k: int, t: int, values: Values, told: list[int]) -> tuple[dict[str, Tensor], list[int]]:
    """A client's two phases; its tensors, and its picks."""
    method = run.method
    assert isinstance(method, SGPT)
    own = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    optim: dict[str, Any] = {"lr": method.optim.lr, "momentum": method.optim.momentum, "weight_decay": method.optim.weight_decay}
    counts = [0] * method.groups
    for phase in ("shared", "group"):
        moves = ("shared/", "head/") if phase == "shared" else ("group/", "keys/", "head/")
        optimizer = torch.optim.SGD([v for n, v in own.items() if n.startswith(moves)], **optim)
        for rows in steps_of(run, k, t, phase):
            y = by_hand.labels(run, rows)
            if phase == "shared":
                loss = F.cross_entropy(torch.stack([plain_logits(run, row, own) for row in rows]), y)
            else:
                groups = picked(run, rows, own, told, method)
                z = torch.stack([group_logits(run, row, own, g) for row, g in zip(rows, groups, strict=True)])
                near = [cosines(run, row, own)[g] for row, g in zip(rows, groups, strict=True)]
                loss = F.cross_entropy(z, y) - method.key_weight * sum(near) / len(near)
                for g in groups:
                    counts[g] += 1
            for v in own.values():
                v.grad = None
            loss.backward()
            optimizer.step()
    return {n: v.detach() for n, v in own.items()}, counts


def joined(method: SGPT, old: Values, sent: list[tuple[float, dict[str, Tensor], list[int]]], evenly: list[bool]) -> Values:
    """The server's step. ``evenly``: notes of each key whether it was averaged without its picks."""
    total = sum(n for n, _, _ in sent)
    new = {name: sum(n / total * v[name] for n, v, _ in sent) for name in old}
    keys = []
    for g in range(method.groups):
        picks = [c[g] for _, _, c in sent]
        evenly.append(sum(picks) <= method.enough)
        r = [1 / len(sent)] * len(sent) if evenly[-1] else [p / sum(picks) for p in picks]
        assert abs(sum(r) - 1) < 1e-12
        keys.append(sum(share * v[KEYS][g] for share, (_, v, _) in zip(r, sent, strict=True)))
    new[KEYS] = torch.stack(keys)  # type: ignore[arg-type]
    for name in new:
        share = method.momentum if name.startswith("group/") else method.key_momentum if name == KEYS else 0.0
        new[name] = share * old[name] + (1 - share) * new[name]
    return new  # type: ignore[return-value]


@pytest.mark.parametrize(
    "method",
    [
        SMALL,
        replace(SMALL, by_batch=True, key_weight=0.3, momentum=0.8, key_momentum=0.0),
        replace(SMALL, balance=False, tokens=1, shared_blocks=(0, 1), group_blocks=(1, 2), momentum=0.0),
    ],
)
def test_rounds_of_drawn_clients_are_the_cards(method: SGPT) -> None:
    run = tiny.federation(method, rounds=4, participation=0.5, pack=3, seed=2)
    values, counts, drawn = by_hand.shared(run), [0] * G, []
    evenly: list[bool] = []
    for t in range(4):
        told = [dict(run.pack([k], t).facts[0]) for k in range(len(run.clients))]
        assert all(f == ({"counts": counts} if t and method.balance else {}) for f in told), "all have the same of the round"
        cohort = run.simulation.round(t)
        assert cohort is not None
        drawn.append(set(cohort["cohort"]))
        sent = []
        for k, client in enumerate(run.clients):
            if client.id in cohort["cohort"] and client.n:
                own, mine = turn(run, k, t, values, counts if method.balance else [0] * G)
                assert sum(mine) == client.n * 2, "each row is counted in each epoch"
                sent.append((client.n, own, mine))
        if sent:
            values = joined(method, values, sent, evenly)
        counts = [a + sum(c[g] for _, _, c in sent) for g, a in enumerate(counts)]
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, values[name], 1e-7)
        assert run.server.memo["counts"] == counts
    assert (drawn[0] - drawn[1]) & (drawn[2] | drawn[3]), "one is away and comes back"
    assert set(evenly) == {True, False}
    rows = range(len(run.bench.table))
    wanted = [group_logits(run, row, values, int(cosines(run, row, values).argmax())) for row in rows]
    by_hand.close(run.global_logits(), torch.stack(wanted).float(), 1e-5)


# phases and picks -------------------------------------------------------------------------------------------------------


def batch_of(run: tiny.Federation, rows: list[list[int]]) -> Batch:
    return make_batch(run.bench.task, run.bench.table, np.array(rows), None, run.bench.backbone.device)


def test_each_phase_moves_its_own_tensors_and_the_head() -> None:
    run = tiny.federation(SMALL)
    pack = run.pack([0, 3])
    before = frozen_fingerprint(run.bench.backbone)
    seen: list[dict[str, Tensor]] = [{n: v.clone() for n, v in pack.params("*").items()}]
    pack.listener = lambda p, *_: seen.append({n: v.detach().clone() for n, v in p.params("*").items()})
    list(run.method.train(pack))
    half = (len(seen) - 1) // 2
    assert half == len(steps_of(run, 0, 0, "shared"))
    for phase in (seen[: half + 1], seen[half:]):
        moved = {n.split("/")[0] for n in phase[0] if not torch.equal(phase[0][n], phase[-1][n])}
        assert moved == ({"shared", "head"} if phase[0] is seen[0] else {"group", "keys", "head"})
    assert frozen_fingerprint(run.bench.backbone) == before


def test_the_model_picks_by_the_direction_of_keys_alone_and_the_same_for_every_client() -> None:
    run = tiny.federation(replace(SMALL, groups=8), rounds=2).run()
    method = run.method
    assert isinstance(method, SGPT)
    pack, rows = run.pack([0, 3], 2), [list(range(20))] * 2
    groups = method.pick(pack, batch_of(run, rows), training=False)[0]
    assert torch.equal(groups[0], groups[1])
    assert len(set(groups[0].tolist())) > 1
    pack.tensors[KEYS] = pack.tensors[KEYS] * torch.rand(1, 8, 1, dtype=torch.float64).add(0.1)
    assert torch.equal(method.pick(pack, batch_of(run, rows), training=False)[0], groups)


def test_a_group_that_was_never_picked_attracts_nearly_all_and_only_while_training() -> None:
    run = tiny.federation(SMALL)
    method = run.method
    assert isinstance(method, SGPT)
    pack, batch = run.pack([0, 3]), batch_of(run, [list(range(12))] * 2)
    plain = method.pick(pack, batch, training=True)[0]
    assert torch.equal(plain, method.pick(pack, batch, training=False)[0]), "before anything was picked"
    pack.facts = [{"counts": [10, 10, 0]}, {"counts": [0, 10, 10]}]
    assert (method.pick(pack, batch, training=True)[0] == torch.tensor([[2], [0]])).all()
    assert torch.equal(method.pick(pack, batch, training=False)[0], plain)


def test_in_a_step_by_batch_padding_has_no_vote() -> None:
    run = tiny.federation(replace(SMALL, by_batch=True, groups=8))
    method = run.method
    assert isinstance(method, SGPT)
    pack = run.pack([0])
    each = method.pick(pack, batch_of(run, [list(range(24))]), training=False)[0][0].tolist()
    common = max(set(each), key=each.count)
    others = [i for i, g in enumerate(each) if g != common][:1]
    found = method.pick(pack, batch_of(run, [[*others, -1, -1, -1]]), training=True)[0]
    assert found.tolist() == [[each[others[0]]] * 4]


def test_one_group_is_always_picked_and_only_the_keys_loss_moves_its_key() -> None:
    def keys(weight: float) -> tuple[Tensor, Tensor]:
        optim = SMALL.optim.but(weight_decay=0.0)
        run = tiny.federation(replace(SMALL, groups=1, key_weight=weight, key_momentum=0.0, optim=optim), rounds=1)
        before = by_hand.shared(run)[KEYS]
        run.run()
        assert run.server.memo["counts"] == [2 * sum(tiny.SIZES)]
        return before, by_hand.shared(run)[KEYS]

    assert torch.equal(*keys(0.0)) or torch.allclose(*keys(0.0), rtol=0, atol=1e-15)
    assert (keys(1.0)[0] - keys(1.0)[1]).abs().max() > 1e-4


# server -----------------------------------------------------------------------------------------------------------------


def test_at_full_momentum_group_tokens_and_keys_stay_and_at_none_they_are_the_one_clients() -> None:
    still = tiny.federation(replace(SMALL, momentum=1.0, key_momentum=1.0), rounds=1)
    before = by_hand.shared(still)
    still.run()
    for name, value in by_hand.shared(still).items():
        assert torch.equal(value, before[name]) == name.startswith(("group/", "keys/"))
    alone = tiny.federation(replace(SMALL, momentum=0.0, key_momentum=0.0), sizes=(9,), rounds=1)
    seen = by_hand.record(alone)
    alone.run()
    for name, value in by_hand.shared(alone).items():
        sent = seen[0][0].tensors[name]
        assert isinstance(sent, Tensor)
        by_hand.close(value, sent, 1e-14)


@pytest.mark.parametrize("told", [None, [1, 2], [1, 2, -1], [1, 2, 3.5], [1, 2, True], "picks", [0, 0, 10**30]])
def test_an_update_whose_picks_are_none_counts_for_nothing(told: object) -> None:
    outcomes = []
    for strange in (False, True):
        run = tiny.federation(SMALL)
        updates = by_hand.invented(run, [9.0, 5.0])
        updates[0].facts["counts"], updates[1].facts["counts"] = [20, 3, 0], told
        run.method.aggregate(run.server, updates if strange else updates[:1])
        outcomes.append(by_hand.shared(run))
        assert run.server.memo["counts"] == [20, 3, 0]
    assert all(torch.equal(v, outcomes[1][n]) for n, v in outcomes[0].items())


def test_a_round_without_updates_changes_nothing() -> None:
    run = tiny.federation(SMALL)
    before = by_hand.shared(run)
    run.method.aggregate(run.server, [])
    assert all(torch.equal(v, before[n]) for n, v in by_hand.shared(run).items())
    assert "counts" not in run.server.memo


# where tokens enter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "shared", "group"),
    [
        (12, (0, 1, 2, 3), (4, 5, 6)),
        (24, (0, 1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13)),
        (6, (0, 1), (2, 3)),
        (4, (0,), (1,)),
        (3, (0,), (1,)),
        (2, (0,), (1,)),
        (1, (0,), (0,)),
    ],
)
def test_the_codes_blocks_are_scaled_to_the_backbones_depth(depth: int, shared: tuple[int, ...], group: tuple[int, ...]) -> None:
    backbone: Any = SimpleNamespace(blocks=[f"layer.{i}" for i in range(depth)], name="some")
    assert SGPT().at(backbone) == (shared, group)


@pytest.mark.parametrize("kind", ["shared", "group"])
def test_a_block_that_the_backbone_lacks_is_refused_with_those_that_it_has(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind} tokens into block 6, .* has blocks 0 to 2: set method.{kind}_blocks to some"):
        tiny.federation(SGPT(**{f"{kind}_blocks": (0, 6)}))  # type: ignore[arg-type]


def test_settings_that_do_not_go_together_are_refused() -> None:
    for blocks in ((), (1, 0), (2, 2)):
        with pytest.raises(UserError, match=r"set method\.group_blocks to such as 0,1,2"):
            SGPT(group_blocks=blocks)
    with pytest.raises(UserError, match=r"set method\.std above 0, or method\.tokens to 1"):
        SGPT(tokens=2, std=0.0)
    with pytest.raises(UserError, match="no picture patches"):
        tiny.federation(SMALL, "bert")


def test_keys_start_orthogonal_and_group_tokens_as_visual_prompts_do() -> None:
    values = by_hand.shared(tiny.federation(replace(SMALL, groups=6, std=0.02)))
    gram = values[KEYS].double() @ values[KEYS].double().T
    by_hand.close(gram, torch.eye(6, dtype=torch.float64), 1e-5)
    group = values["group/values/1"]
    bound = (6 / (3 * 4**2 + D)) ** 0.5
    assert 0.9 * bound < float(group.abs().max()) <= bound
    assert 0.01 < float(values["shared/values/0"].std()) < 0.03


def test_what_is_sent_is_the_cards_number() -> None:
    found = by_hand.elements(SGPT(), by_hand.vit_base(100), Scope.UP, classes=100)
    assert sum(found.values()) == 768 * (4 + 20 * 3 + 20) + 769 * 100 == 141_412
    assert found == by_hand.elements(SGPT(), by_hand.vit_base(100), Scope.DOWN, classes=100)


def test_defaults_are_the_codes() -> None:
    method = SGPT()
    assert (method.groups, method.tokens, method.enough) == (20, 1, 50)
    assert (method.momentum, method.key_momentum, method.key_weight) == (0.5, 0.5, 1.0)
    assert (method.epochs, method.batch, method.weighting) == (5.0, 40, "examples")
    assert method.optim == Optim("sgd", lr=0.01, momentum=0.9, weight_decay=1e-5, schedule="constant")


def test_a_pack_tells_each_client_its_own_rarity() -> None:
    run = tiny.federation(SMALL)
    pack: Pack = run.pack([0, 1, 3])
    pack.facts = [{}, {"counts": [6, 3, 1]}, {"counts": [0, 0, 0]}]
    method = run.method
    assert isinstance(method, SGPT)
    wanted = torch.tensor([[1.0, 1.0, 1.0], [0.6005, 0.3005, 0.1005], [1.0, 1.0, 1.0]], dtype=torch.float64)
    by_hand.close(method.rarity(pack), wanted, 1e-12)


# what other tests ask of this method --------------------------------------------------------------------------------------


def parts(turn: Turn) -> Sizes:
    """d·(S + G·|B_g| + G), and the head."""
    return {"shared": [2 * D, D], "group": [G * D], "keys": [G * D], "head": HEAD}


BYTES = Case(
    {"groups": G, "tokens": 2, "shared_blocks": (0, 1), "group_blocks": (2,)},
    parts,
    parts,
    revealed=len(json.dumps({"counts": [0] * G}, separators=(",", ":"))),
)
