"""pFedMoAP against its card: CoOp and an attention over the prompts of the nearest others, put together by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import images_by_hand as hand
import tiny
from bytes_of import JOINT, TEXT, Case, Turn
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import PFedMoAP, PromptFL
from weft.testing.sites import remote

SITE = "text_model.embeddings.token_embedding/context"
NAME, ADAPTED = f"prompt/{SITE}", f"adapted/{SITE}"
P, WIDTH, HEADS, CLASSES = 3, 8, 2, 3  # tokens; every second of 16 coordinates; heads; classes
TINY = {"width": WIDTH, "heads": HEADS}
SMALL = PFedMoAP(tokens=P, others=2, width=WIDTH, heads=HEADS, epochs=2.0, batch=4, optim=PFedMoAP().optim.but(lr=0.05))
GATE = [f"gate/values/{n}{b}" for b in ("", "_bias") for n in ("query", "key", "value", "out")]

Gate = Mapping[str, Tensor]


def pooled(z: Tensor) -> Tensor:
    return z[..., ::2]


def attended(gate: Gate, picture: Tensor, texts: Tensor, kappa: float) -> Tensor:
    """T_MoE [n] of one picture [n] and one class's text features [E, n], by PyTorch's own attention."""

    def split(x: Tensor, name: str) -> Tensor:
        found = F.linear(x, gate[f"gate/values/{name}"], gate[f"gate/values/{name}_bias"])
        return found.view(-1, HEADS, WIDTH // HEADS).transpose(0, 1)  # [h, E, n/h]

    q, k, v = split(picture[None], "query"), split(texts, "key"), split(texts, "value")
    z = F.scaled_dot_product_attention(q, k, v, scale=kappa).transpose(0, 1).reshape(WIDTH)
    return F.linear(z, gate["gate/values/out"], gate["gate/values/out_bias"])


def logits(run: tiny.Federation, prompt: Tensor, gate: Gate, others: Sequence[Tensor], rows: np.ndarray) -> Tensor:
    """[n, C], one picture and one class at a time; of the prompt alone without any others."""
    b, method = run.bench.backbone, run.method
    assert isinstance(method, PFedMoAP)
    images = F.normalize(hand.image_embedding(b, hand.pictures(run, rows)), dim=-1)
    own = hand.coop(b, run.bench.task.classes, prompt)
    scale = hand.clip(b.path).logit_scale.exp()
    if not others:
        return scale * images @ own.T
    with torch.no_grad():
        theirs = [hand.coop(b, run.bench.task.classes, p) for p in others]
    found = []
    for image in images:
        for c in range(CLASSES):
            texts = torch.stack([own[c], *(t[c] for t in theirs)])
            mixed = attended(gate, pooled(image), pooled(texts), method.kappa)
            found.append(scale * pooled(image) @ mixed + method.lam * scale * image @ own[c])
    return torch.stack(found).view(len(rows), CLASSES)


def a_turn(
    run: tiny.Federation, prompt: Tensor, gate: Gate, others: Sequence[Tensor], steps: list[np.ndarray]
) -> tuple[Tensor, dict[str, Tensor]]:
    """One client: torch's SGD at two rates; the gate stands still in a first turn."""
    prompt = prompt.clone().requires_grad_(True)
    leaves = {n: v.clone().requires_grad_(bool(others)) for n, v in gate.items()}
    groups: list[dict[str, Any]] = [{"params": [prompt], "lr": 0.05}]
    if others:
        groups.append({"params": list(leaves.values()), "lr": 0.25})
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=5e-4)
    for rows in steps:
        optimizer.zero_grad()
        F.cross_entropy(logits(run, prompt, leaves, others, rows), by_hand.labels(run, rows)).backward()
        optimizer.step()
    return prompt.detach(), {n: v.detach() for n, v in leaves.items()}


def nearest(pool: Mapping[int, Tensor], k: int, most: int) -> list[Tensor]:
    """Brute force: the others' prompts by their distance to the k-th client's."""
    if k not in pool:
        return []
    ranked = sorted((j for j in pool if j != k), key=lambda j: float(((pool[j] - pool[k]) ** 2).sum()))
    return [pool[j] for j in ranked[:most]]


def test_four_rounds_of_some_clients_are_the_algorithm_of_the_paper() -> None:
    run = tiny.federation(SMALL, rounds=4, participation=0.5, pack=2)
    start = by_hand.start_of(run)
    prompt, fresh = start[NAME], {n: start[n] for n in GATE}
    pool: dict[int, Tensor] = {}
    gates: dict[int, dict[str, Tensor]] = {}
    own: dict[int, Tensor] = {}
    mixing, away = 0, set[int]()
    for t in range(4):
        steps = {k: by_hand.steps_of(run, k, t) for k, n in enumerate(tiny.SIZES) if n}
        record = run.simulation.round(t)
        assert record is not None
        sent = {}
        for k in (k for k in steps if f"client-{k}" in record["cohort"]):
            others = nearest(pool, k, 2)
            sent[k], gates[k] = a_turn(run, prompt, gates.get(k, fresh), others, steps[k])
            mixing += bool(others)
            own[k] = sent[k]
        away |= own.keys() - sent.keys()
        pool |= sent
        total = sum(tiny.SIZES[k] for k in sent)
        prompt = sum((tiny.SIZES[k] / total * v for k, v in sent.items()), torch.zeros_like(prompt))
        by_hand.close(by_hand.shared(run)[NAME], prompt)
        for k, kept in enumerate(by_hand.kept(run).values()):
            if k in own:
                by_hand.close(kept[ADAPTED], own[k])
                for n, v in gates[k].items():
                    by_hand.close(kept[n], v)
    assert mixing >= 3
    assert away & {k for k in own if f"client-{k}" in run.simulation.last_cohort}, "somebody was away and came back"
    personal, common = by_hand.personal_logits(run), run.global_logits()
    rows = np.arange(len(run.bench.table))
    by_hand.close(common, logits(run, prompt, fresh, [], rows).float(), 1e-5)
    for k, client in enumerate(run.clients):
        if not client.n:
            continue
        wanted = logits(run, own.get(k, prompt), gates.get(k, fresh), nearest(pool, k, 2), client.data.test)
        by_hand.close(personal[client.id], wanted.float(), 1e-5)


def test_a_first_round_is_the_rounds_of_coop_weighted_by_examples_and_leaves_gates_alone() -> None:
    plain = PromptFL(tokens=P, weighting="examples", epochs=2.0, batch=4, optim=SMALL.optim)
    ours, theirs = tiny.federation(SMALL, rounds=1), tiny.federation(plain, rounds=1)
    theirs.server.write(f"context/{SITE}", ours.server.shared[NAME])
    before = {n: by_hand.start_of(ours)[n] for n in GATE}
    ours.run()
    theirs.run()
    assert torch.equal(by_hand.shared(ours)[NAME], by_hand.shared(theirs)[f"context/{SITE}"])
    for kept in by_hand.kept(ours).values():
        assert all(torch.equal(kept[n], before[n]) for n in GATE if n in kept)


def test_the_gate_starts_as_pytorchs_linear_layers_do() -> None:
    run = tiny.federation(PFedMoAP(width=16, heads=2))
    start = by_hand.start_of(run)
    bound = 1 / 4
    for n in GATE:
        assert start[n].shape == ((16,) if n.endswith("bias") else (16, 16))
        assert 0.7 * bound < start[n].abs().max() <= bound
    assert len({float(start[n].flatten()[0]) for n in GATE}) == len(GATE)


def noted(run: tiny.Federation, seed: int = 0, clients: Sequence[int] = range(6)) -> dict[int, Tensor]:
    """Prompts made up for the pool."""
    g = torch.Generator().manual_seed(seed)
    pool = {k: torch.randn(P, TEXT, generator=g, dtype=torch.float64) for k in clients}
    for k, prompt in pool.items():
        run.server.notes.put(f"client-{k}", {"prompt": prompt})
    return pool


@pytest.mark.parametrize("most", [1, 3, 9])
def test_the_nearest_prompts_of_others_go_down_in_order(most: int) -> None:
    run = tiny.federation(replace(SMALL, others=most))
    pool = noted(run, clients=(0, 1, 3, 4))
    for k in range(6):
        message = run.method.send(run.server, run.clients[k].info(()))
        wanted = nearest(pool, k, most)
        assert ("others" in message.tensors) == (k in pool)
        if k in pool:
            found = message.tensors["others"]
            assert isinstance(found, Tensor)
            assert len(found) == min(most, 3)
            assert torch.equal(found, torch.stack(wanted))
            assert not any(torch.equal(prompt, pool[k]) for prompt in found)


def test_random_others_are_never_ones_own_and_change_from_round_to_round() -> None:
    run = tiny.federation(replace(SMALL, selection="random"))
    pool = noted(run)
    drawn = set[tuple[int, ...]]()
    for t in range(12):
        run.server.round = run.method.plan(run.server, 0) or run.server.round
        run.server.round = replace(run.server.round, index=t)
        found = run.method.send(run.server, run.clients[2].info(())).tensors["others"]
        assert isinstance(found, Tensor)
        ids = tuple(next(k for k, p in pool.items() if torch.equal(p, prompt)) for prompt in found)
        assert len(set(ids)) == 2
        assert 2 not in ids
        drawn.add(ids)
    assert len(drawn) > 4


def test_neighbours_are_of_the_round_before_for_every_client_of_a_round() -> None:
    run = tiny.federation(SMALL, rounds=3, pack=1)
    run.run(2)
    pool = {k: run.server.notes.get(f"client-{k}").get("prompt") for k in range(6)}
    pool = {k: v for k, v in pool.items() if v is not None}
    assert len(pool) == 5
    sent: dict[str, Tensor] = {}
    download = run.simulation._download

    def spied(server: Any, client: Any, phase: Any) -> Any:
        job = download(server, client, phase)
        if "others" in job.beside:
            sent[client.id] = job.beside["others"]
        return job

    run.simulation._download = spied  # type: ignore[method-assign]
    run.simulation.round(2)
    assert len(sent) == 5
    for k in pool:
        assert torch.equal(sent[f"client-{k}"], torch.stack(nearest(pool, k, 2)))
        assert not torch.equal(run.server.notes.get(f"client-{k}")["prompt"], pool[k]), "the pool has moved on since"


def answers(run: tiny.Federation, others: Tensor | None, change: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits of client 0 on its training rows, which received these prompts."""
    pool = noted(run, clients=() if others is None else (0,))
    assert len(pool) <= 1
    pack = run.pack([0])
    if others is not None:
        pack.received[0]["others"] = others
        run.method.load(pack)
    for name, value in (change or {}).items():
        pack.tensors[name] = value[None]
    return pack.predict(run.method.forward, [run.clients[0].data.train], dtype=torch.float64)[0]


def prompts(n: int, seed: int = 3) -> Tensor:
    return torch.randn(n, P, TEXT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_order_of_the_others_does_not_matter_and_their_number_does() -> None:
    run, some = tiny.federation(replace(SMALL, others=4)), prompts(3)
    found = answers(run, some)
    by_hand.close(answers(run, some[[2, 0, 1]]), found, 1e-12)
    assert (answers(run, some[:2]) - found).abs().max() > 1e-3
    assert (answers(run, None) - found).abs().max() > 1e-3


def test_without_an_output_projection_only_the_clients_own_prompt_counts() -> None:
    run = tiny.federation(SMALL)
    zeros = {"gate/values/out": torch.zeros(WIDTH, WIDTH), "gate/values/out_bias": torch.zeros(WIDTH)}
    zeros = {n: v.double() for n, v in zeros.items()}
    by_hand.close(answers(run, prompts(2), zeros), 0.5 * answers(run, None), 1e-12)


def test_equal_others_of_the_clients_own_features_leave_no_choice_to_the_attention() -> None:
    run = tiny.federation(replace(SMALL, others=3))
    own = by_hand.start_of(run)[NAME]
    one, three = (answers(run, own.expand(n, P, TEXT)) for n in (1, 3))
    by_hand.close(one, three, 1e-12)


def test_others_are_read_once_a_turn_and_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(SMALL, rounds=2, sizes=(9, 5))
    run.run(1)
    calls: list[bool] = []
    embed = run.bench.backbone.model.embed_texts

    def counted(*given: Any) -> Tensor:
        found: Tensor = embed(*given)
        calls.append(found.requires_grad)
        return found

    monkeypatch.setattr(run.bench.backbone.model, "embed_texts", counted)
    before = run.server.notes.get("client-1")["prompt"]
    pack = run.pack([0], 1)
    assert calls == [False]
    received = pack.tensors["experts/values/texts"].clone()
    list(run.method.train(pack))
    assert calls == [False] + [True] * 6
    assert torch.equal(pack.tensors["experts/values/texts"], received)
    assert not pack.tensors["experts/values/texts"].requires_grad
    assert torch.equal(run.server.notes.get("client-1")["prompt"], before)


def test_only_the_prompt_is_sent_and_what_an_absent_client_keeps_stays() -> None:
    run = tiny.federation(SMALL, rounds=4, participation=0.5)
    seen = by_hand.record(run)
    returned = by_hand.play_and_see_who_stays(run, 4)
    assert any(not torch.equal(before[n], after[n]) for _, before, after in returned for n in GATE)
    assert all(set(u.tensors) == {NAME} and not u.facts for updates in seen for u in updates)
    b = tiny.backbone("clip")
    assert by_hand.elements(SMALL, b, Scope.UP, classes=3) == {"prompt": P * TEXT}
    assert by_hand.elements(SMALL, b, Scope.KEEP, classes=3) == {"adapted": P * TEXT, "gate": 4 * (WIDTH**2 + WIDTH)}


def test_sites_get_the_same_others_by_messages_alone() -> None:
    here = tiny.federation(SMALL, rounds=3).run()
    there, _ = remote(SMALL, rounds=3)
    for t in range(3):
        there.simulation.round(t)
    by_hand.close(by_hand.shared(there)[NAME], by_hand.shared(here)[NAME], 1e-12)
    for k in (0, 1, 2, 3, 5):
        a, b = (run.server.notes.get(f"client-{k}")["prompt"] for run in (here, there))
        by_hand.close(a, b, 1e-12)


def test_heads_have_to_share_the_width() -> None:
    with pytest.raises(UserError, match="3 heads, which can't share 8 coordinates"):
        tiny.federation(replace(SMALL, heads=3))


def downloaded(turn: Turn) -> dict[str, list[int]]:
    """P_g, and those of the others that a client gets from its second turn on: here four of five that have rows, at most two."""
    knows = turn.t > 0 and tiny.SIZES[turn.k] > 0
    return {"prompt": [P * TEXT], **({"others": [2 * P * TEXT]} if knows else {})}


assert JOINT == 2 * WIDTH
BYTES = Case(
    {"tokens": P, "others": 2, **TINY},
    downloaded,
    lambda turn: {"prompt": [P * TEXT]},
    head=False,
)
