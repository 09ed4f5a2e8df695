"""PFCR against its card: rounds of both stages by PyTorch's own layers, what travels, and the codecs that it must not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import cohorts
import sequences_by_hand
import tiny
import weft
from bytes_of import CLASSES, Case, Sizes, Turn
from weft.adaptation.optim import Optim
from weft.data.rows import Rows
from weft.errors import UserError
from weft.federation.scope import Scope
from weft.methods import PFCR, FedIT
from weft.tensors import response
from weft.testing import laws
from weft.testing.models import ITEMS

E, OWN, GRADIENT = "codes/code/weight", "own/code/weight", "gradient/own/code/weight"
D, ROWS = ITEMS["hidden_size"], ITEMS["slots"] * (ITEMS["centroids"] + 1)
Prompts = Literal["full", "light", "none"]
OPTIM = Optim("adamw", lr=0.02, eps=1e-6, schedule="constant")
SMALL = PFCR(length=5, tuning=2, batch=4, server_lr=0.3, optim=OPTIM)
PLAIN = replace(SMALL, prompts="none")

test_laws = laws.over(
    PFCR(length=6, prompts="light"), PFCR(prompts="none"), PFCR(length=6, codec="unbiased"), PFCR(length=6, codec="paper-code")
)


# by hand --------------------------------------------------------------------------------------------------------------


def codes_of(run: tiny.Federation) -> Tensor:
    """[C, S] rows of E of each item."""
    model = run.bench.backbone.model
    found: Tensor = model.rows[model.item]
    return found


def encoder(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the sequence encoder, by their own names."""
    found = {n.removeprefix("encoder/").replace("/", "."): v for n, v in values.items() if n.startswith("encoder/")}
    return {n.removeprefix("encoder."): v for n, v in found.items()}


def prompts(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = ("prompt", "context", "join")
    return {n.replace("/values/", "/"): v for n, v in values.items() if n.split("/")[0] in parts}


def logits(run: tiny.Federation, rows: Rows, values: Mapping[str, Tensor], index: np.ndarray, kind: Prompts) -> Tensor:
    """[n, C], without hope for items of another domain than that of the next one."""
    assert rows.items is not None
    histories = [rows.items[i] for i in index]
    z = sequences_by_hand.logits(
        histories, codes_of(run), values[OWN], encoder(values), prompts=kind, own=prompts(values), prompt_heads=SMALL.heads
    )
    domains = torch.tensor([name.startswith("a/") for name in run.bench.task.classes])
    own = domains[torch.from_numpy(rows.labels[index])]
    return z.masked_fill(own[:, None] != domains, -torch.inf)


def turn(
    run: tiny.Federation,
    rows: Rows,
    values: Mapping[str, Tensor],
    steps: Sequence[np.ndarray],
    only: Sequence[str],
    kind: Prompts,
) -> tuple[dict[str, Tensor], Tensor]:
    """What a client's tensors become in its steps, and the sum of the gradients by its E on the way."""
    leaves = {n: v.clone().requires_grad_(n.split("/")[0] in only) for n, v in values.items()}
    o = SMALL.optim
    adam = torch.optim.AdamW([v for v in leaves.values() if v.requires_grad], o.lr, o.betas, o.eps, 0.0)
    total = torch.zeros_like(leaves[OWN])
    for index in steps:
        adam.zero_grad()
        z = logits(run, rows, leaves, index, kind)
        F.cross_entropy(z, torch.from_numpy(rows.labels[index])).backward()
        assert leaves[OWN].grad is not None
        total += leaves[OWN].grad
        adam.step()
    return {n: v.detach() for n, v in leaves.items()}, total


def table_of(run: tiny.Federation) -> Rows:
    """The rows of the federation, back from its table."""
    t = run.bench.table
    items = [tuple((t.ids[a:b] - 1).tolist()) for a, b in zip(t.offsets[:-1], t.offsets[1:], strict=True)]  # type: ignore[union-attr]
    return Rows(items=items, labels=t.labels)


@pytest.mark.parametrize("kind", ["full", "light", "none"])
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_both_stages_are_the_papers_with_clients_of_unequal_size_that_are_away_and_come_back(
    kind: Prompts, weighting: Any
) -> None:
    method = replace(SMALL, prompts=kind, weighting=weighting)
    run = tiny.federation(method, sizes=(9, 5, 1), rounds=6)
    rows = table_of(run)
    values = [by_hand.start_of(run, k) for k in range(3)]
    e = by_hand.shared(run)[E]
    assert any(len(set(c.data.train)) != 9 for c in run.clients)
    for t, present in enumerate(cohorts.ABSENT):
        steps = {k: by_hand.steps_of(run, k, t) for k in present}
        gradients = {}
        for k in present:
            values[k], gradients[k] = turn(run, rows, values[k] | {OWN: e}, steps[k], ("own", "encoder"), "none")
        cohorts.play(run, t, present)
        shares = {k: float(run.clients[k].n) if weighting == "examples" else 1.0 for k in present}
        e = e - 0.3 * sum(shares[k] * gradients[k] for k in present) / sum(shares.values())
        by_hand.close(by_hand.shared(run)[E], e, by_hand.ADAM)
        kept = by_hand.kept(run)
        for k in range(3):
            for name, value in kept[f"client-{k}"].items():
                by_hand.close(value, values[k][name], by_hand.ADAM)
    for k in range(3):
        values[k] |= {OWN: e}
    for t in (4, 5):
        for k in range(3):
            steps_of = by_hand.steps_of(run, k, t)
            values[k], _ = turn(run, rows, values[k], steps_of, ("own", "prompt", "context", "join"), kind)
        record = run.simulation.round(t)
        assert record is not None
        assert record["cohort"] == ["client-0", "client-1", "client-2"]  # all, whoever was there before
        by_hand.close(by_hand.shared(run)[E], e, by_hand.ADAM)
        kept = by_hand.kept(run)
        for k in range(3):
            for name, value in kept[f"client-{k}"].items():
                wanted = torch.ones(1) if name.startswith("stage/") else values[k][name]
                by_hand.close(value, wanted.to(value), by_hand.ADAM)
    scored = by_hand.personal_logits(run)
    for k, client in enumerate(run.clients):
        z = logits(run, rows, values[k], client.data.test, kind)
        found = scored[client.id].double()
        by_hand.close(found[torch.isfinite(z)], z[torch.isfinite(z)], 1e-4)  # scores are taken in single precision


def test_one_client_and_one_batch_are_one_step_of_sgd_on_the_table() -> None:
    method = replace(PLAIN, steps=1, batch=50)
    run = tiny.federation(method, sizes=(7,), rounds=1)
    e, values, rows = by_hand.shared(run)[E], by_hand.start_of(run), table_of(run)
    leaf = (values | {OWN: e})[OWN].clone().requires_grad_(True)
    index = run.clients[0].data.train
    F.cross_entropy(logits(run, rows, values | {OWN: leaf}, index, "none"), torch.from_numpy(rows.labels[index])).backward()
    assert leaf.grad is not None
    run.run()
    by_hand.close(by_hand.shared(run)[E], e - 0.3 * leaf.grad)


def test_the_server_s_rate_is_the_clients_own_unless_it_has_one() -> None:
    ends = {}
    for rate in (None, OPTIM.lr, 0.7):
        run = tiny.federation(replace(PLAIN, server_lr=rate), sizes=(7, 5), rounds=1).run()
        ends[rate] = by_hand.shared(run)[E]
    assert torch.equal(ends[None], ends[OPTIM.lr])
    assert not torch.equal(ends[None], ends[0.7])


# invariants of the card -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "light", "none"])
def test_nothing_goes_up_but_a_tensor_of_the_tables_shape_and_nothing_in_the_second_stage(kind: Prompts) -> None:
    run = tiny.federation(replace(SMALL, prompts=kind), rounds=4)
    seen = by_hand.record(run)
    run.run()
    assert [len(updates) for updates in seen] == [5, 5, 0, 0]
    for updates in seen[:2]:
        assert all({n: v.shape for n, v in u.tensors.items()} == {GRADIENT: (ROWS, D)} for u in updates)
    ledger = run.simulation.setup.exchange.ledger
    down = [ledger.totals(round=t, phase="train", direction="down").parts.get("codes", 0) for t in range(4)]
    assert down == [0, 6 * ROWS * D * 8, 6 * ROWS * D * 8, 0]  # the last table comes with the first round of the second stage
    scopes = {n.split("/")[0]: s for n, _, s in by_hand.named(run.server.adaptation, run.bench.backbone)}
    assert {part for part, scope in scopes.items() if Scope.DOWN in scope or Scope.UP in scope} == {"codes"}


def entering(run: tiny.Federation, k: int, t: int) -> dict[str, Tensor]:
    """What a client enters round t with, of what it remembers and has received."""
    run.simulation.setup.store.load(run.clients[k])
    return by_hand.start_of(run, k, t)


def test_everybody_begins_a_round_with_one_table_and_an_encoder_of_its_own_that_stays() -> None:
    run = tiny.federation(PLAIN, sizes=(6, 5), rounds=6)
    for t in range(3):
        begun = [entering(run, k, t) for k in range(2)]
        assert torch.equal(begun[0][OWN], begun[1][OWN])
        assert torch.equal(begun[0][OWN], by_hand.shared(run)[E])
        names = [n for n in begun[0] if n.startswith("encoder/")]
        assert all(torch.equal(begun[0][n], begun[1][n]) for n in names) == (t == 0)
        for k in range(2):
            kept = by_hand.kept(run)[f"client-{k}"]
            assert all(torch.equal(begun[k][n], kept[n]) for n in names if t)
        run.simulation.round(t)


@pytest.mark.parametrize(
    ("kind", "moves"),
    [("full", {"own", "prompt", "context", "join", "stage"}), ("light", {"own", "prompt", "stage"}), ("none", {"own", "stage"})],
)
def test_the_second_stage_moves_prompts_and_the_own_table_and_leaves_the_encoder_as_it_is(kind: Prompts, moves: set[str]) -> None:
    run = tiny.federation(replace(SMALL, prompts=kind), sizes=(6, 5), rounds=4).run(2)
    before = by_hand.kept(run)["client-0"]
    run.simulation.round(2)
    run.simulation.round(3)
    after = by_hand.kept(run)["client-0"]
    assert {n.split("/")[0] for n, v in after.items() if not torch.equal(v, before[n])} == moves
    assert all(torch.equal(v, before[n]) for n, v in after.items() if n.startswith("encoder/"))


def test_light_prompts_whose_projection_is_zero_are_none_and_full_ones_see_the_items_themselves() -> None:
    run = tiny.federation(replace(SMALL, prompts="light"), sizes=(6, 5), rounds=4).run(3)
    plain = tiny.federation(PLAIN, sizes=(6, 5), rounds=4).run(2)
    for one in (run, plain):
        one.simulation.setup.store.load(one.clients[0])
    pack, other = run.pack([0], 3), plain.pack([0], 3)
    for name in ("prompt/values/out.weight", "prompt/values/out.bias"):
        pack.tensors[name] = torch.zeros_like(pack.tensors[name])
    for name in other.tensors:
        other.tensors[name] = pack.tensors[name]
    rows = [run.clients[0].data.test]
    with_prompts, without = (p.predict(p_run.method.forward, rows)[0] for p, p_run in ((pack, run), (other, plain)))
    by_hand.close(with_prompts, without, 1e-6)
    assert float(pack.tensors["stage/values/second"]) == 1.0


def test_items_of_equal_codes_score_equally_without_an_embedding_of_their_own_and_padding_has_no_gradient() -> None:
    for kind in ("light", "full"):
        run = tiny.federation(replace(SMALL, prompts=kind), sizes=(6, 5), classes=40, rounds=4).run()  # type: ignore[arg-type]
        item = run.bench.backbone.model.item
        same = next((i, j) for i in range(40) for j in range(i) if item[i] == item[j])
        for z in by_hand.personal_logits(run).values():
            assert torch.equal(z[:, same[0]], z[:, same[1]])
    seen = by_hand.record(again := tiny.federation(SMALL, sizes=(6, 5), rounds=2))
    again.run(1)
    padding = torch.arange(ITEMS["slots"]) * (ITEMS["centroids"] + 1)
    for update in seen[0]:
        gradient = update.tensors[GRADIENT]
        assert isinstance(gradient, Tensor)
        assert gradient.any()
        assert not gradient[padding].any()


def test_a_sum_of_gradients_grows_with_the_steps() -> None:
    sent = []
    for epochs in (1.0, 3.0):
        run = tiny.federation(replace(PLAIN, epochs=epochs, optim=OPTIM.but(lr=1e-9)), sizes=(8,), rounds=2)
        seen = by_hand.record(run)
        run.run(1)
        sent.append(seen[0][0].tensors[GRADIENT])
    by_hand.close(sent[1], 3 * sent[0], 1e-6)  # type: ignore[arg-type,operator]


def test_rounds_that_nobody_takes_part_in_change_nothing() -> None:
    run = tiny.federation(SMALL, sizes=(0, 0), rounds=4)
    before = by_hand.shared(run)[E]
    run.run()
    assert torch.equal(by_hand.shared(run)[E], before)


@pytest.mark.parametrize(("rounds", "tuning", "second"), [(10, 10, 5), (10, 3, 3), (3, 10, 1), (1, 10, 0), (4, 0, 0)])
def test_the_last_rounds_are_the_second_stage_and_half_of_them_at_most(rounds: int, tuning: int, second: int) -> None:
    run = tiny.federation(replace(PLAIN, tuning=tuning), sizes=(2,), rounds=rounds)
    plans = [run.method.plan(run.server, t) for t in range(rounds + 1)]
    assert [p is not None and p.kind == "tune" for p in plans[:-1]] == [False] * (rounds - second) + [True] * second
    assert plans[-1] is None


def test_a_run_that_goes_on_federated_after_its_second_stage_begins_anew_from_the_table() -> None:
    run = tiny.federation(SMALL, sizes=(6, 5), rounds=4).run()
    run.server.rounds = 8
    sent = []
    for reset in (False, True):  # what is sent is of steps from the table, whatever the client's own has become
        pack = run.pack([0], 4)
        assert not torch.equal(pack.tensors[OWN][0], by_hand.shared(run)[E])
        if reset:
            pack.copy("codes", "own")
        (update,) = run.method.train(pack)
        sent.append(update.tensors)
    assert all(torch.equal(v, sent[1][n]) for n, v in sent[0].items())  # type: ignore[arg-type]
    run.simulation.round(4)  # the first of four more, federated again
    run.server.rounds = 10
    pack = run.pack([0], 5)
    assert torch.equal(pack.tensors[OWN][0], by_hand.shared(run)[E])


# codecs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["unbiased", "paper-code"])
def test_levels_of_a_byte_travel_and_the_server_reads_them(codec: Any) -> None:
    method = replace(PLAIN, codec=codec, epsilon=3.0, clip=0.5)
    run = tiny.federation(method, sizes=(6, 9), rounds=2)
    seen = by_hand.record(run)
    before = by_hand.shared(run)[E]
    run.run(1)
    read = []
    for update in seen[0]:
        levels = update.tensors[GRADIENT]
        assert isinstance(levels, Tensor)
        assert torch.equal(levels, levels.round().clamp(0, 255))
        read.append(response.read(levels, 3.0, 0.5) if codec == "unbiased" else (levels - 0.5) * 0.5 / 256)
    by_hand.close(by_hand.shared(run)[E], before - 0.3 * (6 * read[0] + 9 * read[1]) / 15)


def test_with_an_ample_epsilon_the_server_learns_what_it_would_without_and_by_the_published_code_it_does_not() -> None:
    moves: dict[str, Tensor] = {}
    for codec in ("none", "unbiased", "paper-code"):
        clip = float(moves["none"].abs().max()) / 0.3 if moves else 1.0  # wide enough for the mean of all
        method = replace(PLAIN, codec=codec, epsilon=12.0, clip=2 * clip)  # type: ignore[arg-type]
        run = tiny.federation(method, sizes=(9, 7), rounds=2)
        before = by_hand.shared(run)[E]
        run.run(1)
        moves[codec] = (by_hand.shared(run)[E] - before).flatten()
    alike = {
        codec: float(torch.cosine_similarity(move - move.mean(), moves["none"] - moves["none"].mean(), 0))
        for codec, move in moves.items()
    }
    assert alike["unbiased"] > 0.95
    assert abs(alike["paper-code"]) < 0.5


# settings -------------------------------------------------------------------------------------------------------------


def test_what_it_can_t_work_on_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"pfcr learns the rows of a table .* and backbone .* has none: choose --model vq-rec"):
        tiny.federation(PFCR(), tiny.backbone("bert"))
    with pytest.raises(UserError, match="3 heads do not divide the hidden size 8"):
        tiny.federation(PFCR(heads=3))
    tiny.federation(PFCR(heads=3, prompts="none"))  # which has none
    with pytest.raises(
        UserError, match="the data are texts, and pfcr is for sequences of items: choose other --data, such as shops"
    ):
        weft.run("pfcr", data="pydocs", model="minilm", limit=20, clients=2, rounds=1)
    with pytest.raises(UserError, match="no tensor that clients receive and send back"):
        weft.run("pfcr", rule="scaffold", clients=2, rounds=1)


def test_defaults_are_those_of_the_card() -> None:
    method = PFCR()
    # "P ∈ R^{1024×300} (Xavier) and a 4-head attention"; "batch (1024 sequences)"; "Adam lr 0.001"; "one round = 1 local epoch"
    assert (method.length, method.heads, method.batch, method.epochs) == (1024, 4, 1024, 1.0)
    assert method.optim == Optim("adamw", lr=1e-3, schedule="constant")
    assert method.optim.weight_decay == 0
    # "η = 0.001 (client lr)"; "c=0.12", "ε=0.3"; "Weights: interaction-file size share"
    assert (method.server_lr, method.clip, method.epsilon, method.weighting) == (None, 0.12, 0.3, "examples")
    assert (method.codec, method.prompts) == ("none", "full")
    assert "titles" in method.info.deviations
    assert FedIT().info.needs != method.info.needs == ("items",)


# what other tests ask of this method ----------------------------------------------------------------------------------

TINY = {"length": 6}


def down(turn: Turn) -> Sizes:
    return {"codes": [ROWS * D]}


def up(turn: Turn) -> Sizes:
    return {"gradient": [ROWS * D]}


BYTES = Case({"length": 6}, down, up, head=False, answers=(True, True, False))
assert CLASSES == 3
