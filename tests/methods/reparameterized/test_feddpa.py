"""FedDPA against its card: the common LoRA as in FedIT, an own one beside it, and their mixture for every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import by_hand
import cohorts
import tiny
from bytes_of import SITES, Case, factors_and_head
from weft.contract import Optim, Scope
from weft.errors import UserError
from weft.federation.batch import Batch, make_batch
from weft.federation.pack import Pack
from weft.methods import FedDPA, FedIT
from weft.tasks.kinds import GENERATION

SCALE, RATE, MIX = 3.0, 0.3, 0.3
SMALL = FedDPA(
    rank=2, alpha=6.0, own_weight=MIX, references=7, sites="q", steps=2, batch=3, optim=Optim("sgd", lr=RATE, schedule="constant")
)
SAME = FedIT(rank=2, alpha=6.0, sites="q", steps=2, batch=3, weighting="uniform", optim=SMALL.optim)
ABOUT: dict[str, Any] = {"sizes": (6, 5, 7), "rounds": 4, "model": "bert"}
ROWS = "like/values/rows"
Values = dict[str, Tensor]


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, RATE)


def parts(values: by_hand.Values, *names: str) -> Values:
    return {n: v for n, v in values.items() if n.split("/")[0] in names}


def mixed(values: by_hand.Values, w: float | Tensor) -> Values:
    """Values whose merged weights are W0 + w·l + (1 - w)·g: the weight goes onto B."""
    of = {"mine": w, "lora": 1 - w}
    return {n: of[n.split("/")[0]] * v if n.endswith("/B") else v for n, v in parts(values, "mine", "lora", "head").items()}


def at(w: float) -> Callable[[tiny.Federation, by_hand.Values, np.ndarray], Tensor]:
    return lambda run, values, rows: by_hand.logits(run, mixed(values, w), rows, SCALE)


def own_phase(run: tiny.Federation, received: Values, own: Values, steps: list[np.ndarray], a: float) -> Values:
    """l after its steps; the common LoRA and the head stand still."""
    return parts(by_hand.train(run, received | own, steps, sgd, only=lambda n: n.startswith("mine/"), predict=at(a)), "mine")


def feature(run: tiny.Federation, values: Values, row: int) -> Tensor:
    """z [d]: what leaves the last layer at the first token of a row, with the own LoRA alone."""
    _, found = by_hand.seen(run, parts(values, "mine", "head"), np.array([row]), SCALE)
    return found[0].detach()


def share(run: tiny.Federation, values: Values, row: int, references: np.ndarray, most: float) -> Tensor:
    """w of a row: λ times the mean cosine, within [0, λ]."""
    z = feature(run, values, row)
    alike = [torch.dot(z, r) / (z.norm() * r.norm()) for r in (feature(run, values, int(i)) for i in references)]
    return (most * torch.stack(alike).mean()).clamp(0, most)


def check_views(run: tiny.Federation, own: dict[int, Values], most: float) -> None:
    """Every view of every client, row by row."""
    received = by_hand.shared(run)
    rows = {c.id: c.data.test for c in run.clients}
    found = {view: run.personal_logits(view, rows, torch.float64) for view in run.method.views}
    for k, client in enumerate(run.clients):
        values = received | own[k]
        for i, row in enumerate(client.data.test):
            weight = {"global": 0.0, "local": 1.0, "static": MIX}
            for view in run.method.views:
                w = share(run, values, int(row), client.data.train, most) if view == "dynamic" else weight[view]
                wanted = by_hand.logits(run, mixed(values, w), np.array([row]), SCALE)[0]
                by_hand.close(found[view][client.id][i], wanted.detach())


@pytest.mark.parametrize("order", ["own-first", "common-first"])
def test_four_rounds_by_hand_with_clients_that_are_away(order: Any) -> None:
    run = tiny.federation(replace(SMALL, order=order), **ABOUT)
    own = {k: parts(by_hand.start_of(run, k), "mine") for k in range(3)}
    for t, present in enumerate(cohorts.ABSENT):
        received = by_hand.shared(run)
        assert {n.split("/")[0] for n in received} == {"lora", "head"}
        ends = []
        for k in present:
            steps = by_hand.steps_of(run, k, t)
            ends.append(by_hand.train(run, received, steps, sgd, scale=SCALE))
            if t > 0:
                own[k] = own_phase(run, received if order == "own-first" else ends[-1], own[k], steps, MIX)
        cohorts.play(run, t, present)
        for name, value in by_hand.shared(run).items():
            by_hand.close(value, sum(e[name] for e in ends) / len(ends))  # type: ignore[arg-type]
        for k, client in enumerate(run.clients):
            found = by_hand.kept(run)[client.id]
            assert found.keys() == own[k].keys()
            for name, value in found.items():
                by_hand.close(value, own[k][name])
    check_views(run, own, 0.5)


def test_the_own_lora_can_be_the_common_one_tuned_on_after_the_last_round() -> None:
    run = tiny.federation(replace(SMALL, variant="F", most=0.8), **ABOUT)
    for t, present in enumerate(cohorts.ABSENT):
        cohorts.play(run, t, present)
    received = by_hand.shared(run)
    copied = {n.replace("lora/", "mine/"): v for n, v in parts(received, "lora").items()}
    last = run.server.round.index
    own = {k: own_phase(run, received, copied, by_hand.steps_of(run, k, last), 1.0) for k in range(3)}
    check_views(run, own, 0.8)
    assert not any(by_hand.kept(run).values())


def test_before_it_is_tuned_on_both_loras_of_f_predict_alike() -> None:
    still = replace(SMALL, variant="F", optim=Optim("sgd", lr=0.0))
    run = tiny.federation(SMALL, **ABOUT).run(2)
    moved = {n: v.clone() for n, v in run.server.shared.items() if isinstance(v, Tensor)}
    run = tiny.federation(still, start=moved, **ABOUT)
    rows = {c.id: c.data.test for c in run.clients}
    own, common, mixture = (run.personal_logits(view, rows, torch.float64) for view in ("local", "global", "dynamic"))
    bare = by_hand.logits(run, parts(moved, "head"), run.clients[0].data.test)
    for client, logits in own.items():
        assert torch.equal(logits, common[client])
        by_hand.close(logits, mixture[client], 1e-12)
    assert not torch.allclose(own["client-0"], bare, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"order": "common-first"}, {"variant": "F"}, {"own_weight": 1.0}])
def test_the_common_lora_and_the_head_are_fedits_to_the_last_bit(changes: dict[str, Any]) -> None:
    run, plain = (tiny.federation(m, **ABOUT) for m in (replace(SMALL, **changes), SAME))
    for t, present in enumerate(cohorts.ABSENT):
        cohorts.play(run, t, present)
        cohorts.play(plain, t, present)
        run.personal_logits("dynamic")  # scoring leaves nothing behind
        found, wanted = by_hand.shared(run), by_hand.shared(plain)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(v, wanted[n]) for n, v in found.items())


@pytest.mark.parametrize("order", ["own-first", "common-first"])
def test_each_phase_leaves_the_lora_of_the_other_alone(order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.federation(replace(SMALL, order=order), **ABOUT).run(1)
    pack = run.pack(t=1)
    phases: list[set[str]] = []
    minimise = Pack.minimise

    def watched(self: Pack, *args: Any) -> None:
        before = {n: v.detach().clone() for n, v in self.tensors.items()}
        minimise(self, *args)
        phases.append({n.split("/")[0] for n, v in self.tensors.items() if not torch.equal(v, before[n])})

    monkeypatch.setattr(Pack, "minimise", watched)
    list(run.method.train(pack))
    assert phases == [{"mine"}, {"lora", "head"}][:: 1 if order == "own-first" else -1]


def test_there_is_no_own_lora_yet_in_the_first_round() -> None:
    run = tiny.federation(SMALL, **ABOUT)
    drawn = {k: parts(by_hand.start_of(run, k), "mine") for k in range(3)}
    run.run(1)
    for k, client in enumerate(run.clients):
        assert all(torch.equal(v, drawn[k][n]) for n, v in by_hand.kept(run)[client.id].items())


def test_all_to_itself_the_own_lora_is_local_lora_and_with_nothing_it_does_not_move() -> None:
    for a in (1.0, 0.0):
        run = tiny.federation(replace(SMALL, own_weight=a), **ABOUT).run(1)
        received, start = by_hand.shared(run), {k: parts(by_hand.start_of(run, k), "mine") for k in range(3)}
        steps = {k: by_hand.steps_of(run, k, 1) for k in range(3)}
        run.simulation.round(1)
        for k, client in enumerate(run.clients):
            values, found = start[k] | parts(received, "head"), by_hand.kept(run)[client.id]
            alone = by_hand.train(run, values, steps[k], sgd, scale=SCALE, only=lambda n: n.startswith("mine/"))
            for name, value in found.items():
                by_hand.close(value, alone[name] if a else start[k][name], 1e-12 if a else 0.0)


# the mixture ------------------------------------------------------------------------------------------------------------


def scored(run: tiny.Federation) -> tuple[Pack, Batch, Tensor]:
    """Clients ready to be scored whose LoRAs are unlike, a row of each, and its z [K, d] of length 1."""
    pack = run.pack(t=2)
    g = torch.Generator().manual_seed(3)
    for name, value in pack.params("mine").items():
        pack.tensors[name] = value + 0.3 * torch.randn(value.shape, generator=g, dtype=value.dtype)
    run.method.personalise(pack)
    index = np.array([[c.data.test[0]] for c in run.clients])
    z = [feature(run, {n: v[k] for n, v in pack.tensors.items()}, int(row)) for k, (row,) in enumerate(index)]
    batch = make_batch(run.bench.task, run.bench.table, index, None, run.bench.backbone.device)
    return pack, batch, torch.stack([one / one.norm() for one in z])


@pytest.mark.parametrize("most", [0.0, 0.3, 1.0])
def test_a_row_like_all_references_gives_the_own_lora_the_largest_weight_and_an_unlike_one_none(most: float) -> None:
    run = tiny.federation(replace(SMALL, most=most), **ABOUT).run(2)
    pack, batch, z = scored(run)
    pack.tensors["like/values/has"] = torch.ones_like(pack.tensors["like/values/has"])
    for sign, w in ((1.0, most), (-1.0, 0.0)):
        pack.tensors[ROWS] = (sign * z[:, None]).expand_as(pack.tensors[ROWS])
        found = run.method.forward(pack, batch, "dynamic").logits
        by_hand.close(found, pack(batch, use={"mine": w, "lora": 1 - w}).logits, 1e-12)
    own, common = (run.method.forward(pack, batch, view).logits for view in ("local", "global"))
    assert not torch.allclose(own, common, atol=1e-4)


def test_references_are_rows_of_the_clients_own_training_and_no_two_the_same() -> None:
    run = tiny.federation(replace(SMALL, references=3), **ABOUT).run(2)
    pack, _, _ = scored(run)
    assert bool(pack.tensors["like/values/has"].all())
    for k, client in enumerate(run.clients):
        values = {n: v[k] for n, v in pack.tensors.items()}
        own = torch.stack([feature(run, values, int(row)) for row in client.data.train])
        alike = pack.tensors[ROWS][k] @ (own / own.norm(dim=1, keepdim=True)).mT
        which = (alike > 1 - 1e-12).nonzero()
        assert which[:, 0].tolist() == [0, 1, 2]
        assert len(set(which[:, 1].tolist())) == 3


@pytest.mark.parametrize("pack", [1, 3])
def test_a_client_that_has_trained_no_own_lora_yet_predicts_with_the_common_one(pack: int) -> None:
    run = tiny.federation(SMALL, **ABOUT, pack=pack)
    cohorts.play(run, 0, (0, 1))
    cohorts.play(run, 1, (0, 2))
    rows = {c.id: c.data.test for c in run.clients}
    wanted = run.personal_logits("global", rows, torch.float64)
    for view in ("dynamic", "static", "local"):
        found = run.personal_logits(view, rows, torch.float64)
        by_hand.close(found["client-1"], wanted["client-1"], 1e-12)
        assert not any(torch.allclose(found[c], wanted[c], atol=1e-6) for c in ("client-0", "client-2"))


def test_a_client_without_training_rows_predicts_with_the_common_lora() -> None:
    run = tiny.federation(SMALL, rounds=2, model="bert").run()  # the fifth client has none
    rows = {"client-4": run.clients[0].data.test}
    (found,), (wanted,) = (run.personal_logits(view, rows, torch.float64).values() for view in ("dynamic", "global"))
    by_hand.close(found, wanted, 1e-12)


# what it sends, and what it is set to -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["T", "F"])
def test_nothing_of_the_own_lora_or_of_the_references_is_sent(variant: Any) -> None:
    run = tiny.federation(replace(SMALL, variant=variant), **ABOUT)
    seen = by_hand.record(run)
    run.run(3)
    expected = {n for n in by_hand.shared(run) if n.split("/")[0] in ("lora", "head")}
    for updates in seen:
        assert updates
        assert all(set(u.tensors) == expected and not u.facts for u in updates)
    message = run.method.send(run.server, run.clients[0].info(()))
    assert set(message.tensors) <= expected
    backbone, method = by_hand.roberta_base(), FedDPA(variant=variant)
    sent = by_hand.elements(method, backbone, Scope.UP)
    assert sent == by_hand.elements(method, backbone, Scope.DOWN) == {"lora": 12 * 2 * 8 * (768 + 768), "head": 592_130}
    assert by_hand.elements(method, backbone, Scope.KEEP) == ({"mine": sent["lora"]} if variant == "T" else {})


def test_defaults_are_the_codes() -> None:
    method = FedDPA()
    # Lydia-yang/FedDPA, code/main.py: lora_r 8, lora_alpha 16, q_proj and v_proj, local_weight 0.5, and its local phase comes
    # first; code/GlobalModel_generated.py: half, instance_num 5
    assert (method.rank, method.alpha, method.sites, method.own_weight, method.order) == (8, 16.0, "q,v", 0.5, "own-first")
    assert (method.variant, method.most, method.references) == ("T", 0.5, 5)
    assert (method.epochs, method.batch, method.weighting) == (10.0, 64, "uniform")
    assert method.optim == by_hand.trainer(3e-4)
    assert method.info.views == ("dynamic", "static", "local", "global")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"variant": "G"}, 'unknown variant "G": use T, F'),
        ({"order": "own-frist"}, 'Did you mean "own-first"'),
        ({"own_weight": 1.5}, "0 ≤ own_weight ≤ 1, not 1.5"),
        ({"most": -0.1}, "0 ≤ most ≤ 1, not -0.1"),
        ({"references": 0}, "references ≥ 1, not 0"),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        FedDPA(**settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_writes_is_refused_since_answers_have_no_rows_yet() -> None:
    tiny.federation(FedDPA(rank=2), "llama")  # a classifier
    with pytest.raises(UserError, match="feddpa weighs whole rows") as caught:
        tiny.federation(FedDPA(rank=2), "llama", task=GENERATION)
    assert "\n" not in str(caught.value)


# what other tests ask of this method --------------------------------------------------------------------------------------

BYTES = Case({"rank": 2, **SITES}, factors_and_head, factors_and_head)
BYTES_VARIANTS = {
    "F": Case({"rank": 2, "variant": "F", **SITES}, factors_and_head, factors_and_head),
    "common first": Case({"rank": 2, "order": "common-first", **SITES}, factors_and_head, factors_and_head),
}
PAGE_SAYS = {"optim": "it clips gradients at a norm of 1"}
