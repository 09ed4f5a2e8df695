"""GF-PT against its card: the search, scikit-learn's LASSO and the steps of the prompt done again by hand in double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Lasso
from torch import Tensor

import by_hand
import tiny
from bytes_of import Bits, Case, Sizes, Turn
from filled_by_hand import logits, model_of
from weft.communication.strict import Refused
from weft.engines.scoring import Scoring
from weft.errors import UserError, WeftError
from weft.federation.batch import Batch
from weft.federation.message import Message
from weft.federation.pack import Pack
from weft.federation.robust_mean import Robust
from weft.methods import GFPT
from weft.methods.prompts.gf_pt import ATOMS, IDS, KEPT, STEPS, WEIGHTS, prompt_of, visited
from weft.tensors.integers import Integers
from weft.tensors.keyed import generator
from weft.testing import laws
from weft.testing.sites import remote

M, V, PHI = 3, 100, 2
TINY = {"tokens": M, "pairs": PHI, "evaluations": 13, "latent": 4, "population": 4}
SMALL = GFPT(tokens=M, pairs=PHI, batch=2, rows=4, candidates=3, post_tuning="never")
SIZES = (7, 5, 1, 4, 0, 3)  # the fourth has rows of one class alone, the fifth none
ABOUT: dict[str, Any] = {"sizes": SIZES, "rounds": 4, "participation": 0.5, "seed": 2}


# by hand ------------------------------------------------------------------------------------------------------------------


class Reference:
    """The card's algorithm, one client, one position and one word after another.

    Attributes:
        p: p'. e: the embedding. raised: how often a position's first visit has raised the loss.
    """

    def __init__(self, run: tiny.Federation):
        assert isinstance(run.method, GFPT)
        self.run, self.method = run, run.method
        self.p = start_of(run).numpy()
        model, tokenizer = model_of(run.bench.backbone.path)
        self.e: np.ndarray = model.get_input_embeddings().weight.numpy()
        self.words = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]

    def nearest(self, v: np.ndarray) -> list[int]:
        like = {i: float(v @ self.e[i] / np.linalg.norm(v) / np.linalg.norm(self.e[i])) for i in self.words}
        return sorted(like, key=lambda i: -like[i])

    def loss(self, prompt: np.ndarray, rows: np.ndarray) -> float:
        return float(F.cross_entropy(self.logits(prompt, rows), by_hand.labels(self.run, rows)))

    def logits(self, prompt: np.ndarray, rows: np.ndarray) -> Tensor:
        return logits(self.run, torch.from_numpy(prompt), rows, self.method.where)

    def stream(self, what: str, t: int, k: int) -> torch.Generator:
        return generator(self.run.bench.seed, what, t, self.run.clients[k].id)

    def search(self, k: int, t: int) -> list[int]:
        rows = self.run.clients[k].data.train
        if len(rows) > self.method.rows:
            rows = rows[torch.randperm(len(rows), generator=self.stream("rows", t, k)).numpy()[: self.method.rows]]
        stream, order = self.stream("positions", t, k), list[int]()
        visits = self.method.steps or max(1, round(self.method.epochs * M))
        while len(order) < visits:
            order += torch.randperm(M, generator=stream).tolist()
        prompt, ids = self.p.copy(), {}
        for at in order[:visits]:
            tried = self.nearest(prompt[at])[: self.method.candidates]
            losses = []
            for word in tried:
                prompt[at] = self.e[word]
                losses.append(self.loss(prompt, rows))
            ids[at] = tried[int(np.argmin(losses))]
            prompt[at] = self.e[ids[at]]
        return [ids.get(at, self.nearest(prompt[at])[0]) for at in range(M)]

    def step(self, found: list[list[int]]) -> list[list[tuple[int, float]]]:
        """The pairs of each position; p' moves by them."""
        if not found:
            return []
        r = np.mean([self.e[ids] for ids in found], 0) - self.p
        alpha = self.method.alpha / (1 if self.method.error == "mean" else r.shape[1])  # its error is a mean
        pairs = []
        for t in range(M):
            w = Lasso(alpha, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(self.e.T, r[t]).coef_
            kept = sorted(int(j) for j in np.argsort(-np.abs(w), kind="stable")[:PHI] if w[j])
            if self.method.refit:
                w[kept] = np.linalg.lstsq(self.e[kept].T, r[t], rcond=None)[0]
            pairs.append([(j, float(np.float16(w[j]))) for j in kept])
            self.p[t] = self.p[t] + sum((x * self.e[j] for j, x in pairs[-1]), np.zeros(r.shape[1]))
        return pairs


def ids_of(update: Any) -> list[int]:
    value = update.tensors[IDS]
    assert isinstance(value, Integers)
    return value.values.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "method",
    [
        SMALL,
        replace(SMALL, epochs=2.0, refit=True),
        replace(SMALL, steps=2, error="mean", alpha=0.01),
        replace(SMALL, where="front", phrase="w3 w40", alpha=0.6),
    ],
    ids=["plain", "two sweeps and refitted", "two visits and a mean error", "in front, from a phrase"],
)
def test_rounds_of_half_the_clients_are_those_done_by_hand(method: GFPT) -> None:
    run = tiny.federation(method, **ABOUT)
    hand, cohorts, moved = Reference(run), [], 0.0
    seen = by_hand.record(run)
    for t in range(4):
        record = run.simulation.round(t)
        assert record is not None
        cohorts.append(set(record["cohort"]))
        assert {u.client.id: ids_of(u) for u in seen[t]} == {
            f"client-{k}": hand.search(k, t) for k, n in enumerate(SIZES) if n and f"client-{k}" in record["cohort"]
        }
        before = hand.p.copy()
        wanted = hand.step([ids_of(u) for u in seen[t]])
        made, words, weights = run.server.memo[STEPS][-1]
        assert made == t
        pairs = [[(j, x) for j, x in zip(*own, strict=True) if x] for own in zip(words, numbers_of(weights), strict=True)]
        assert pairs == wanted
        by_hand.close(run.server.memo["prompt"], torch.from_numpy(hand.p), 1e-12)
        moved += float(np.abs(hand.p - before).max())
    everybody = set.union(*cohorts)
    assert {"client-3", "client-4"} <= everybody, "the one of a single class, and the one without rows"
    assert any(a in cohorts[0] and a not in cohorts[1] and a in cohorts[2] | cohorts[3] for a in everybody), "nobody comes back"
    assert moved > 0.1
    rows = np.arange(len(run.bench.table))
    by_hand.close(run.global_logits(dtype=torch.float64), hand.logits(hand.p, rows))


def numbers_of(weights: list[list[int]]) -> list[list[float]]:
    """By their bits, the sign apart."""
    found = []
    for own in weights:
        bits = np.array([c if c < 0x7C00 else 0x8000 | (c - 0x7C00) for c in own], dtype=np.uint16)
        found.append(bits.view(np.float16).astype(float).tolist())
    return found


# p' -----------------------------------------------------------------------------------------------------------------------


def held(run: tiny.Federation) -> dict[str, Tensor]:
    """The prompt that each client is scored with."""
    owner = {c.id: run.server for c in run.clients}
    models = Scoring(run.simulation.setup, 2).models(owner, run.clients)
    return {c.id: pack.value(k, prompt_of(pack)) for part, pack in models for k, c in enumerate(part)}


def start_of(run: tiny.Federation) -> Tensor:
    """p' before the first round."""
    (found,) = by_hand.start_of(run).values()
    return found


def check_same(run: tiny.Federation) -> None:
    """Server and clients hold the same bits."""
    wanted = run.server.memo["prompt"]
    pack = run.server.pack()
    assert torch.equal(pack.value(0, prompt_of(pack)), wanted)
    for client, prompt in held(run).items():
        assert torch.equal(prompt, wanted), client


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_whoever_was_away_failed_or_was_refused_holds_the_servers_prompt_bit_for_bit(precision: str) -> None:
    run = tiny.federation(SMALL, **ABOUT | {"rounds": 8}, precision=precision, dropout=0.3, codec_name="quant8")
    exchange, refused = run.simulation.setup.exchange, list[str]()
    read: Callable[..., Any] = exchange.read_update

    def strict(server: Any, turn: Any, data: bytes, round: Any) -> Any:
        if (server.round.index + int(turn.client.id[-1])) % 4 == 3:
            refused.append(turn.client.id)
            raise Refused("It is unlucky.")
        return read(server, turn, data, round)

    exchange.read_update = strict  # type: ignore[method-assign]
    lost = []
    for t in range(8):
        record = run.simulation.round(t)
        assert record is not None
        lost += record["lost"]
        check_same(run)
    assert len(run.server.memo[STEPS]) > 5
    assert lost
    assert refused
    assert run.server.memo["prompt"].dtype == run.bench.dtype


def test_a_client_is_sent_exactly_the_steps_that_it_has_missed() -> None:
    run = tiny.federation(SMALL, **ABOUT | {"rounds": 8}, dropout=0.3)
    sent: dict[str, Message] = {}
    send = GFPT.send

    def noted(self: GFPT, server: Any, client: Any) -> Message:
        message = send(self, server, client)
        sent[client.id] = message
        return message

    had: dict[str, int] = {}  # steps, of whoever has finished a turn
    everything = missed = 0
    for t in range(8):
        sent.clear()
        GFPT.send = noted  # type: ignore[method-assign]
        try:
            record = run.simulation.round(t)
        finally:
            GFPT.send = send  # type: ignore[method-assign]
        assert record is not None
        steps = [s for s in run.server.memo[STEPS] if s[0] < t]
        for client in record["cohort"]:
            tensors = {n: v.values.tolist() for n, v in sent[client].tensors.items() if isinstance(v, Integers)}
            kept = had.get(client, 0)
            assert tensors.get(KEPT, [0]) == [kept]
            assert tensors.get(ATOMS, []) == [s[1] for s in steps[kept:]]
            assert tensors.get(WEIGHTS, []) == [s[2] for s in steps[kept:]]
            everything += client not in had and len(steps) > 1
            missed += kept > 0 and len(steps) - kept > 1
            if client not in record["lost"] and SIZES[int(client[-1])]:
                had[client] = len(steps)
    assert everything
    assert missed


def test_what_a_client_learnt_in_turns_that_do_not_count_is_left_out_again() -> None:
    """A server that has gone back says how far it knows the client; or that it knows nothing."""
    run = tiny.federation(SMALL, **ABOUT | {"rounds": 4, "participation": 1.0})
    tensors, plain = None, None
    for t in range(3):
        run.simulation.round(t)
        if t == 0:
            tensors, plain = run.server.tensors_and_json()
            tensors, plain = {n: v.clone() for n, v in tensors.items()}, dict(plain)
    first = run.server.memo["prompt"].clone()
    run.server.counted["client-0"] = 1  # the others' last turn counted, and its own did not
    check_same(run)
    assert tensors is not None
    assert plain is not None
    run.server.roll_back(tensors, plain)
    check_same(run)
    assert not torch.equal(run.server.memo["prompt"], first)
    run.simulation.round(1)
    check_same(run)


def test_a_client_that_has_lost_its_steps_says_so() -> None:
    run = tiny.federation(SMALL, **ABOUT | {"participation": 1.0}).run(2)
    store = run.simulation.setup.store
    store.load(run.clients[0])
    assert len(run.clients[0].memo[STEPS]) == 1
    run.clients[0].memo[STEPS] = []
    store.save(run.clients[0])
    with pytest.raises(WeftError, match="client-0 has 0 steps of the prompt and is told to keep 1"):
        run.simulation.round(2)
    run.server.synced["client-0"] = 0  # what becomes of a site that says that it is behind
    check_same(run)


def test_to_score_clients_changes_nothing_that_they_remember() -> None:
    run = tiny.federation(SMALL, **ABOUT).run(2)

    def memories() -> list[Any]:
        found = []
        for c in run.clients:
            run.simulation.setup.store.load(c)
            found.append((c.memo, c.rounds_seen))
            run.simulation.setup.store.forget(c)
        return found

    before, counted = memories(), dict(run.server.counted)
    run.simulation.evaluate(1)
    assert memories() == before
    assert run.server.counted == counted
    check_same(run)


@pytest.mark.parametrize("codec", ["quant8", "topk:share=0.2"])
def test_no_codec_touches_words_or_weights(codec: str) -> None:
    plain = tiny.federation(SMALL, **ABOUT).run()
    coded = tiny.federation(SMALL, **ABOUT, codec_name=codec, download_codec="quant8").run()
    assert coded.server.memo[STEPS] == plain.server.memo[STEPS]
    assert torch.equal(coded.server.memo["prompt"], plain.server.memo["prompt"])


def test_sites_hold_the_same_prompt_and_are_fitted_to_their_rows_as_in_the_simulation() -> None:
    method = replace(SMALL, post_tuning="last", evaluations=9, latent=4, population=4)
    about = ABOUT | {"rounds": 3}
    here, (there, _) = tiny.federation(method, **about).run(), remote(method, **about)
    there.run()
    assert here.server.memo[STEPS] == there.server.memo[STEPS]
    mine, theirs = (
        {(e.view, e.pooling): e.value for e in r.simulation.evaluate(2) if (e.metric, e.people) == ("loss", "own test")}
        for r in (here, there)
    )
    assert mine.keys() & theirs.keys()
    for key in mine.keys() & theirs.keys():
        assert mine[key] == pytest.approx(theirs[key], rel=1e-6)


# the search ---------------------------------------------------------------------------------------------------------------


def test_no_gradient_is_ever_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    objective = GFPT.objective

    def watched(self: GFPT, pack: Pack, batch: Batch) -> Tensor:
        loss = objective(self, pack, batch)
        seen.append(loss.requires_grad or torch.is_grad_enabled() or pack.tensors[prompt_of(pack)].requires_grad)
        return loss

    monkeypatch.setattr(GFPT, "objective", watched)
    run, loop = remote(replace(SMALL, post_tuning="last", evaluations=9, latent=4, population=4), sizes=(3, 2), rounds=1)
    run.run()
    before = len(seen)
    run.simulation.evaluate(0)
    assert len(seen) > before, "nobody was fitted"
    assert not any(seen)
    assert loop.sites


def test_what_goes_up_are_words_that_are_no_special_tokens_and_local_prompts_are_their_embeddings_bit_for_bit() -> None:
    run = tiny.federation(SMALL, **ABOUT | {"participation": 1.0})
    pack = run.pack()
    updates = {u.client.id: u for u in run.method.train(pack)}
    weight = run.bench.backbone.model.get_input_embeddings().weight
    special = run.bench.backbone.tokenizer.all_special_ids
    assert set(updates) == {f"client-{k}" for k, n in enumerate(SIZES) if n}
    for k, client in enumerate(run.clients):
        if client.n:
            ids = ids_of(updates[client.id])
            assert not set(ids) & set(special)
            assert max(ids) < V
            assert torch.equal(pack.value(k, prompt_of(pack)), weight[ids])


def losses_of(method: GFPT, k: int, **about: Any) -> list[float]:
    """Of a client's visits, one after another."""
    run = tiny.federation(method, **ABOUT | about)
    pack, found = run.pack([k]), list[float]()
    pack.listener = lambda pack, batch, loss: found.extend(loss.tolist())
    list(run.method.train(pack))
    return found


def test_once_every_position_is_a_word_the_loss_does_not_rise() -> None:
    fell = 0
    for k in (0, 1, 3):
        found = losses_of(replace(SMALL, epochs=4.0), k)
        assert len(found) == 4 * M
        later = found[M - 1 :]
        assert all(b <= a for a, b in pairwise(later))
        fell += later[-1] < later[0]
    assert fell


def test_candidates_are_compared_on_the_same_rows_however_these_are_cut_into_passes() -> None:
    whole, cut = (losses_of(replace(SMALL, rows=64, batch=b), 0) for b in (64, 2))
    assert whole == pytest.approx(cut, rel=1e-12)


def test_a_client_with_many_rows_takes_some_other_ones_in_each_round() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    own = set(run.clients[0].data.train.tolist())
    seen = []
    for t in range(3):
        batches = run.method._batches(run.pack([0, 1], t))  # type: ignore[attr-defined]
        mine = {int(i) for b in batches for i in b.index[0] if i >= 0}
        assert len(mine) == SMALL.rows
        assert mine < own
        seen.append(mine)
    assert any(a != seen[0] for a in seen)
    few = run.method._batches(run.pack([3], 0))  # type: ignore[attr-defined]
    assert sorted(int(i) for b in few for i in b.index[0] if i >= 0) == sorted(run.clients[3].data.train.tolist())


def test_every_position_is_visited_before_any_is_visited_again() -> None:
    order = visited(5, 13, torch.Generator().manual_seed(0)).tolist()
    assert len(order) == 13
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert len(set(order[10:])) == 3


# the step -----------------------------------------------------------------------------------------------------------------


def given(run: tiny.Federation, *prompts: list[int]) -> list[Any]:
    """Updates of words."""
    return [by_hand.update(run, k, {IDS: Integers(torch.tensor(ids), V)}, 1.0 + 7 * k) for k, ids in enumerate(prompts)]


def after(method: GFPT, *prompts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """p' before and after a round of these words, and the embedding."""
    run = tiny.federation(method, **ABOUT)
    before = start_of(run)
    run.method.aggregate(run.server, given(run, *prompts))
    return before, run.server.memo["prompt"], run.bench.backbone.model.get_input_embeddings().weight.detach()


def test_one_client_whose_words_may_all_be_used_gives_its_prompt() -> None:
    ids = [40, 41, 42]
    _, p, e = after(replace(SMALL, pairs=V, alpha=1e-9), ids)
    torch.testing.assert_close(p, e[ids], rtol=0, atol=5e-3)  # weights are of 16 bits


def test_the_mean_is_of_embeddings_and_uniform() -> None:
    """Of the clients one has eight times the rows of the other."""
    _, p, e = after(replace(SMALL, pairs=V, alpha=1e-9), [40, 41, 42], [50, 41, 60])
    torch.testing.assert_close(p, (e[[40, 41, 42]] + e[[50, 41, 60]]) / 2, rtol=0, atol=5e-3)


def test_identical_uploads_are_one_and_the_order_of_clients_is_nothing() -> None:
    one, same = after(SMALL, [40, 41, 42])[1], after(SMALL, *[[40, 41, 42]] * 3)[1]
    torch.testing.assert_close(one, same, rtol=0, atol=1e-12)
    there, back = after(SMALL, [40, 41, 42], [50, 51, 52])[1], after(SMALL, [50, 51, 52], [40, 41, 42])[1]
    assert torch.equal(there, back)
    assert not torch.equal(one, there)


def test_from_the_largest_inner_product_on_nothing_moves() -> None:
    before, _, e = after(SMALL, [40, 41, 42])
    edges = (e @ (e[[40, 41, 42]] - before).T).abs().max(0).values
    for share, still in ((1.0, [True] * 3), (0.999, [False] * 3)):
        for t in range(3):
            found = after(replace(SMALL, alpha=share * float(edges[t])), [40, 41, 42])[1]
            assert torch.equal(found[t], before[t]) == still[t]
    d = e.shape[1]
    mean = after(replace(SMALL, alpha=0.2 / d, error="mean"), [40, 41, 42])[1]
    torch.testing.assert_close(mean, after(SMALL, [40, 41, 42])[1], rtol=0, atol=1e-12)


def test_a_step_has_no_more_pairs_than_are_allowed_and_takes_as_much_room_whatever_it_holds() -> None:
    run = tiny.federation(replace(SMALL, pairs=4), **ABOUT).run()
    assert run.server.memo[STEPS]
    for _, words, weights in run.server.memo[STEPS]:
        assert [len(own) for own in words] == [len(own) for own in weights] == [4] * M
        used = [[j for j, x in zip(*own, strict=True) if x] for own in zip(words, weights, strict=True)]
        assert all(len(set(own)) == len(own) for own in used)


def test_a_robust_rule_stands_in_for_the_mean() -> None:
    """One of three clients sends something else, and the median does not see it."""
    prompts = [[40, 41, 42], [40, 41, 42], [7, 8, 9]]
    runs = [tiny.federation(SMALL, **ABOUT) for _ in range(2)]
    runs[0].server.robust = Robust("median")
    for run, some in zip(runs, (prompts, prompts[:1]), strict=True):
        run.method.aggregate(run.server, given(run, *some))
    torch.testing.assert_close(runs[0].server.memo["prompt"], runs[1].server.memo["prompt"], rtol=0, atol=1e-12)


# post-tuning --------------------------------------------------------------------------------------------------------------

FITTED = replace(SMALL, post_tuning="last", evaluations=41, latent=6, population=8, rows=64)


def scored(run: tiny.Federation, t: int) -> dict[str, Tensor]:
    """Client -> logits of all rows by its own prompt, after round t."""
    rows = {c.id: np.arange(len(run.bench.table)) for c in run.clients}
    return run.personal_logits("personal", rows, dtype=torch.float64)


def test_clients_are_fitted_after_the_last_round_each_to_its_own_rows_and_alike_whenever_they_are_asked() -> None:
    run = tiny.federation(FITTED, **ABOUT | {"rounds": 2, "participation": 1.0})
    run.simulation.round(0)
    common = run.global_logits(dtype=torch.float64)
    for z in scored(run, 0).values():  # not before the last round
        torch.testing.assert_close(z, common, rtol=0, atol=1e-12)
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr] # noqa: NPY002
    run.simulation.round(1)
    common, own = run.global_logits(dtype=torch.float64), scored(run, 1)
    better = []
    for client in run.clients:
        z, rows = own[client.id], client.data.train
        if not client.n:
            torch.testing.assert_close(z, common, rtol=0, atol=1e-12)
            continue
        mine, theirs = (float(F.cross_entropy(x[rows], by_hand.labels(run, rows))) for x in (z, common))
        assert mine <= theirs + 1e-12
        better.append(mine < theirs - 1e-6)
    assert all(better)
    assert len({z.sum().item() for z in own.values()}) == len(run.clients)
    again = scored(run, 1)
    assert all(torch.equal(z, again[c]) for c, z in own.items())
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


@pytest.mark.parametrize("off", [{"post_tuning": "never"}, {"evaluations": 1}, {"evaluations": 0}])
def test_z_of_0_is_the_common_prompt(off: dict[str, Any]) -> None:
    run = tiny.federation(replace(FITTED, **off), **ABOUT | {"rounds": 1}).run()
    check_same(run)
    common = run.global_logits(dtype=torch.float64)
    for z in scored(run, 0).values():
        torch.testing.assert_close(z, common, rtol=0, atol=1e-12)


def test_clients_may_be_fitted_at_every_evaluation() -> None:
    run = tiny.federation(replace(FITTED, post_tuning="every"), **ABOUT | {"rounds": 3})
    run.simulation.round(0)
    common = run.global_logits(dtype=torch.float64)
    assert not torch.allclose(scored(run, 0)["client-0"], common, atol=1e-3)


def test_the_projection_spreads_a_random_z_as_the_embedding_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    """BBT: entries of A are normal with the standard deviation of E's by √d_z σ."""
    seen: list[Tensor] = []
    losses = GFPT._losses

    def noted(self: GFPT, pack: Pack, batches: Any, prompts: Tensor) -> Tensor:
        seen.append(prompts - pack.tensors[prompt_of(pack)])
        return losses(self, pack, batches, prompts)

    run = tiny.federation(replace(FITTED, latent=200, population=20, sigma=2.0), **ABOUT | {"rounds": 1}).run()
    monkeypatch.setattr(GFPT, "_losses", noted)
    pack = run.pack([0])
    pack.facts = [{"last": True}]
    run.method.personalise(pack)
    assert not seen[0].any()
    weight = run.bench.backbone.model.get_input_embeddings().weight
    first = torch.stack(seen[1:21])
    assert float(first.std()) == pytest.approx(float(weight.std()), rel=0.15)


# the card -----------------------------------------------------------------------------------------------------------------


def test_backbones_that_it_can_do_nothing_with_are_refused() -> None:
    with pytest.raises(UserError, match="has a head, and gf-pt trains none: use --task fill"):
        tiny.federation(SMALL, tiny.backbone("bert"))
    two = [tiny.backbone(kind, task="fill") for kind in ("bert", "roberta")]
    with pytest.raises(UserError, match="gf-pt sends words by their ids"):
        tiny.mixed_federation(SMALL, two, **ABOUT)


def test_defaults_are_what_is_known_of_the_papers_and_bbts() -> None:
    method = GFPT()
    # "n = 50", "K = 5", "α = 0.2", "Φ = 3 or 5", uniform weights; BBT: d_z = 500, population 20
    assert (method.tokens, method.candidates, method.alpha, method.pairs, method.weighting) == (50, 5, 0.2, 5, "uniform")
    assert (method.latent, method.population, method.sigma) == (500, 20, 1.0)
    assert (method.info.views, method.info.evidence, method.sums) == (("personal", "global"), "reconstructed", False)
    assert (50_265 - 1).bit_length() == 16, "a word of RoBERTa's takes 16 bits"


def test_laws_hold_where_rows_are_drawn_and_positions_left_out() -> None:
    laws.check(replace(SMALL, steps=2, rows=3, post_tuning="every", evaluations=9, latent=4, population=4), "pack", "sites")


# what other tests ask of this method --------------------------------------------------------------------------------------


def words_of(turn: Turn) -> Sizes:
    """n ids of ⌈log₂ V⌉ bits."""
    return {"words": [Bits(M * 7)]}


def steps_of(turn: Turn) -> Sizes:
    """n·Φ pairs of a word and 16 bits for the last step and a number of those that are kept; all steps for who never sends."""
    new = 1 if sum(turn.counts) else turn.t
    kept = [Bits(32)] if turn.t > new else []
    return {"steps": [*kept, Bits(new * M * PHI * 7), Bits(new * M * PHI * 16)]}


BYTES = Case(TINY, steps_of, words_of, head=False)
