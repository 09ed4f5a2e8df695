"""AdaFedSelecKD against its card: an own adapter that learns from the frozen mean of all, where that is sure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adapters_by_hand as hand
import by_hand
import cohorts
import tiny
from bytes_of import HEAD, LAYERS, Case, D, Sizes, Turn
from exporting import RUN_CLOSE, exported, trained
from weft.adaptation.tune import Tune
from weft.contract import PERSONAL, ClientInfo, MethodInfo, Optim, Scope, Tuned
from weft.errors import UserError
from weft.export import load
from weft.methods import AdaFedSelecKD, FedAvg
from weft.methods.adapters.adafedseleckd import uncertainty
from weft.tasks.kinds import GENERATION
from weft.tasks.losses import distillation
from weft.tasks.outputs import Output
from weft.tasks.regression import Regression
from weft.tensors import output_layer
from weft.testing import compare
from weft.testing.sites import kept, remote

SGD = Optim("sgd", lr=0.3, schedule="constant")
SMALL = AdaFedSelecKD(reduction=8, placement="ffn", steps=2, batch=3, tau=0.1, temperature=1.3, kd=0.7, optim=SGD)
SIZES = (6, 5, 7, 0)
ROUNDS = ((0, 1, 2, 3), (0, 2), (1, 2, 3), (0, 1))
"""Every client is away once and comes back; the last has no rows."""
Values = dict[str, Tensor]


def heads(scale: float = 1.2) -> Values:
    """A head that is handed out in set-up, and is sure of some rows and not of others."""
    g = torch.Generator().manual_seed(5)
    return {
        "head/classifier/weight": scale * torch.randn(3, D, generator=g, dtype=torch.float64),
        "head/classifier/bias": torch.randn(3, generator=g, dtype=torch.float64),
    }


def federation(method: AdaFedSelecKD | Tuned = SMALL, **more: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **{"sizes": SIZES, "rounds": 4, "start": heads()} | more)


# a round by hand ----------------------------------------------------------------------------------------------------------


def of(values: Values, adapter: str, head: str) -> Values:
    """One model's values, under the names of a model with one adapter and one head."""
    own = {n.replace(f"{adapter}/", "bottleneck/", 1): v for n, v in values.items() if n.startswith(f"{adapter}/")}
    return own | {n.replace(f"{head}/", "head/", 1): v for n, v in values.items() if n.startswith(f"{head}/")}


def p_of(values: Values) -> Values:
    return of(values, "mine", "my_head")


def g_of(values: Values) -> Values:
    return of(values, "bottleneck", "head")


def kl_of_sure(method: AdaFedSelecKD, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """T² Σ m KL(p ‖ q) / max(1, Σ m) over the rows of a batch, and m: by numbers of each class."""
    t = method.temperature
    p, q = (teacher / t).exp(), (student / t).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    h = -(p * p.log()).sum(1) / math.log(p.shape[1])
    limit = float(h.sort().values[(len(h) - 1) // 2]) if method.tau == "median" else float(method.tau)
    m = (h <= limit).to(p)
    kl = (p * (p / q).log()).sum(1)
    return t**2 * (m * kl).sum() / max(1.0, float(m.sum())), m


def train(
    run: tiny.Federation,
    method: AdaFedSelecKD,
    p: Values,
    g: Values,
    steps: list[np.ndarray],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    marks: list[float],
    falls: bool = False,
) -> Values:
    """A client's turn, in plain PyTorch: adapters in each feed-forward by hooks on transformers' own modules."""
    predict = hand.with_adapters()
    leaves = {n: v.clone().requires_grad_() for n, v in p.items()}
    opt = optimizer(list(leaves.values()))
    rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 1 - i / len(steps) if falls else 1.0)
    for rows in steps:
        opt.zero_grad()
        student = predict(run, leaves, rows)
        with torch.no_grad():
            teacher = predict(run, g, rows)
        term, m = kl_of_sure(method, teacher, student)
        marks += m.tolist()
        (F.cross_entropy(student, by_hand.labels(run, rows)) + method.kd * term).backward()
        if method.optim.clip is not None:
            nn.utils.clip_grad_norm_(list(leaves.values()), method.optim.clip)
        opt.step()
        rate.step()
    return {n: v.detach() for n, v in leaves.items()}


def sgd(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, 0.3)


def four_rounds(method: AdaFedSelecKD, optimizer: Callable[..., torch.optim.Optimizer], falls: bool, tolerance: float) -> float:
    """Played and done by hand; the share of rows that the teacher was sure of."""
    run = federation(method)
    g = g_of(by_hand.shared(run))
    first, sizes = dict(g), [c.n for c in run.clients]
    assert sizes == list(SIZES)
    own: dict[int, Values] = {}
    marks: list[float] = []
    for t, present in enumerate(ROUNDS):
        ends = {}
        for k in present:
            if sizes[k]:
                begin = g if method.local_init == "from_global" else own.get(k, first)
                steps = by_hand.steps_of(run, k, t)
                ends[k] = train(run, method, begin, g, steps, optimizer, marks, falls)
        cohorts.play(run, t, present)
        own |= ends
        whole = sum(sizes[k] for k in ends)
        g = {n: sum(sizes[k] / whole * end[n] for k, end in ends.items()) for n in g}  # type: ignore[misc]
        found = g_of(by_hand.shared(run))
        assert found.keys() == g.keys()
        for name, value in found.items():
            by_hand.close(value, g[name], tolerance)
        for k, client in enumerate(run.clients):
            mine = p_of(by_hand.kept(run)[client.id])
            assert bool(mine) == (k in own or not sizes[k])
            for name, value in mine.items() if sizes[k] else ():
                by_hand.close(value, own[k][name], tolerance)
    return sum(marks) / len(marks)


@pytest.mark.parametrize("change", [{}, {"tau": "median"}, {"local_init": "from_global"}, {"kd": 0.0}, {"tau": 1.0}], ids=str)
def test_four_rounds_by_hand_with_clients_that_are_away_and_one_without_rows(change: dict[str, Any]) -> None:
    share = four_rounds(replace(SMALL, **change), sgd, False, 1e-11)
    assert share == 1.0 if change == {"tau": 1.0} else 0.2 < share < 0.9


def test_the_default_optimizer_by_hand() -> None:
    method = replace(SMALL, optim=AdaFedSelecKD().optim.but(lr=3e-2))

    def adamw(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(leaves, lr=3e-2, weight_decay=0.0)

    four_rounds(method, adamw, True, by_hand.ADAM)


@pytest.mark.parametrize("tau", [0.6, "median"])
def test_in_packs_one_by_one_and_message_by_message_the_run_is_the_same(tau: Any) -> None:
    method = replace(SMALL, tau=tau)
    together, alone = (compare.state(federation(method, pack=size).run()) for size in (4, 1))
    compare_all(together, alone)
    run, loop = remote(method, sizes=SIZES, rounds=4, start=heads())
    run.run()
    apart = federation(method).run()
    compare_all(compare.server_state(run), compare.server_state(apart))
    compare_all(kept(loop), compare.client_state(apart))


def compare_all(some: Values, others: Values) -> None:
    assert some.keys() == others.keys()
    assert some
    for name, value in some.items():
        by_hand.close(value, others[name], 1e-12)


# what it is where it does less --------------------------------------------------------------------------------------------

TUNE = Tune("bottleneck", reduction=8, placement="ffn", up_std=0.0)


class Alone(Tuned):
    """Each client tunes one adapter and a head, and sends nothing."""

    info: ClassVar[MethodInfo] = replace(FedAvg.info, slug="alone", views=("personal",))
    shares: ClassVar[Scope] = PERSONAL


def test_without_distillation_and_from_the_common_one_it_is_averaging_of_adapters_bit_for_bit() -> None:
    run = federation(replace(SMALL, kd=0.0, local_init="from_global"), participation=0.5).run()
    plain = federation(FedAvg(tune=TUNE, steps=2, batch=3, optim=SGD), participation=0.5).run()
    found, wanted = g_of(by_hand.shared(run)), by_hand.shared(plain)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(v, wanted[n]) for n, v in found.items())
    assert not all(torch.equal(v, federation().server.shared[n]) for n, v in by_hand.shared(run).items())


def test_without_distillation_and_with_its_own_it_is_training_alone_bit_for_bit() -> None:
    run = federation(replace(SMALL, kd=0.0), participation=0.5)
    for t in range(4):
        run.simulation.round(t)
        for name, value in by_hand.shared(run).items():
            run.server.write(name, value + 10.0)  # whatever the common one is
    alone = by_hand.kept(federation(Alone(tune=TUNE, steps=2, batch=3, optim=SGD), participation=0.5).run())
    for client, values in by_hand.kept(run).items():
        mine = p_of(values)
        assert mine.keys() == alone[client].keys()
        assert all(torch.equal(v, alone[client][n]) for n, v in mine.items())


def gradients(method: AdaFedSelecKD, clients: tuple[int, ...] = (0, 1, 2), t: int = 2) -> Values:
    """Of a batch in the third round, when P and G differ."""
    run = federation(SMALL).run(t)
    pack = run.pack(list(clients), t)
    batch = next(iter(pack.batches(None, 1, 5)))
    leaves = {n: v.detach().clone().requires_grad_() for n, v in pack.params("mine", "my_head").items()}
    with pack.values(leaves):
        loss = method.objective(pack, batch).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def test_a_teacher_that_is_never_sure_changes_no_gradient_by_a_bit() -> None:
    plain, never, some = (gradients(replace(SMALL, **c)) for c in ({"kd": 0.0}, {"tau": -0.1}, {}))
    assert all(torch.equal(v, never[n]) for n, v in plain.items())
    assert not all(torch.equal(v, some[n]) for n, v in plain.items())


def test_a_teacher_that_is_sure_of_a_class_which_no_row_may_have_teaches_nothing() -> None:
    """Among the other two it can't choose."""
    method = replace(SMALL, tau=0.9)
    run = federation(method)
    labels = run.bench.table.labels % 2
    run.bench.table = replace(run.bench.table, labels=labels, allowed=np.tile([True, True, False], (len(labels), 1)))
    pack = run.pack([0, 1, 2])
    batch = next(iter(pack.batches(None, 1, 5)))
    bias = torch.tensor([0.0, 0.0, 50.0], dtype=torch.float64).repeat(3, 1)
    with pack.values({"head/classifier/weight": torch.zeros(3, 3, D, dtype=torch.float64), "head/classifier/bias": bias}):
        student, teacher = (method.forward(pack, batch, view) for view in (None, "global"))
        assert torch.equal(method.objective(pack, batch), pack.loss(student, batch))
        taught = distillation(teacher, student, batch.mask, 1.3, batch.allowed)
        assert bool((taught > 0).all()), "had it been asked, it would have"


def test_a_threshold_of_one_is_distillation_everywhere() -> None:
    run = federation().run(2)
    pack = run.pack([0, 1, 2], 2)
    batch = next(iter(pack.batches(None, 1, 5)))
    method = replace(SMALL, tau=1.0)
    even = Output(torch.zeros(3, 5, 7, dtype=torch.float64))
    assert torch.equal(method.sure(even, batch.mask), batch.mask), "nobody is less sure than an even teacher"
    student, teacher = (run.method.forward(pack, batch, view) for view in (None, "global"))
    wanted = pack.loss(student, batch) + 0.7 * distillation(teacher, student, batch.mask, 1.3)
    assert torch.equal(method.objective(pack, batch), wanted)


def test_a_teacher_that_says_the_same_teaches_nothing() -> None:
    run = federation()
    pack = run.pack([0, 1, 2])
    batch = next(iter(pack.batches(None, 1, 5)))
    leaves = {n: v.detach().clone().requires_grad_() for n, v in pack.params("mine", "my_head").items()}
    with pack.values(leaves):
        method = replace(SMALL, tau=1.0)
        term = method.objective(pack, batch) - replace(method, kd=0.0).objective(pack, batch)
    assert term.abs().max() < 1e-12
    slopes = torch.autograd.grad(term.sum(), list(leaves.values()))
    assert max(float(s.abs().max()) for s in slopes) < 1e-12


# how sure a teacher is ----------------------------------------------------------------------------------------------------


def test_uncertainty_is_between_that_of_one_class_and_that_of_all_whatever_their_number() -> None:
    g = torch.Generator().manual_seed(0)
    for classes in (2, 7, 5000):
        logits = 5 * torch.randn(2, 4, classes, generator=g, dtype=torch.float64)
        logits[0, 0], logits[0, 1] = 3.0, 0.0
        logits[0, 1, 1] = 1e4
        h = uncertainty(Output(logits), 1.3)
        assert bool(((h >= 0) & (h <= 1)).all())
        by_hand.close(h[0, :2], torch.tensor([1.0, 0.0], dtype=torch.float64), 1e-12)
        p = (logits[1] / 1.3).softmax(-1)
        by_hand.close(h[1], torch.distributions.Categorical(p).entropy() / math.log(classes), 1e-9)


def test_doubt_is_among_the_classes_that_a_row_may_have() -> None:
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 4, 6, generator=g, dtype=torch.float64)
    logits[0, 1] = 2.0
    allowed = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool)
    for temperature in (0.5, 2.0):
        h = uncertainty(Output(logits), temperature, allowed.unsqueeze(0))
        assert h[0, 1] == 1.0, "an even teacher of two classes could not be less sure"
        assert h[0, 3] == 0.0, "of one class alone there is no doubt"
        p = (logits[0, 2, :3] / temperature).softmax(-1)
        by_hand.close(h[0, 2], torch.distributions.Categorical(p).entropy() / math.log(3), 1e-9)
        by_hand.close(h[0, :1], uncertainty(Output(logits), temperature)[0, :1], 1e-12)


def test_the_median_takes_the_surer_half_of_each_client_and_padding_counts_for_nothing() -> None:
    method = replace(SMALL, tau="median", temperature=1.0)
    sharpness = torch.tensor([[1.0, 4.0, 2.0, 3.0, 9.0], [5.0, 1.0, 2.0, 9.0, 9.0], [9.0] * 5])
    logits = sharpness[..., None] * torch.tensor([1.0, 0.0, 0.0])
    mask = torch.tensor([[True] * 5, [True, True, True, False, False], [False] * 5])
    found = method.sure(Output(logits), mask)
    wanted = [[False, True, False, True, True], [True, False, True, False, False], [False] * 5]
    assert found.tolist() == wanted


@contextmanager
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_layer, "CHUNK", 1)
        patch.setattr(output_layer, "ROWS", 3)
        yield


@pytest.mark.parametrize("kind", ["llama", "bart", "t5"])
def test_a_language_model_is_asked_for_each_token_of_its_answers_in_chunks(kind: str) -> None:
    """Padding of another client's longer rows changes nothing; the logits are never held together."""
    method = replace(SMALL, placement="block", tau="median", optim=Optim("adamw", lr=0.05))
    run = tiny.federation(method, kind, sizes=(6, 5, 7), rounds=2, task=GENERATION).run()
    pack = run.pack([0, 1, 2], 2)
    batch = next(iter(pack.batches(None, 1, 5)))
    with small_chunks():
        found = method.objective(pack, batch)
    for k in range(3):
        own = run.pack([k], 2)
        rows = next(iter(own.batches(None, 1, 5)))
        (student, teacher) = (method.forward(own, rows, view).logits[rows.mask] for view in (None, "global"))
        term, m = kl_of_sure(method, teacher, student)
        assert 0 < m.mean() < 1
        wanted = F.cross_entropy(student, rows.labels[rows.mask]) + 0.7 * term
        by_hand.close(found[k], wanted)


# who holds and sends what -------------------------------------------------------------------------------------------------


def test_the_teacher_stays_what_was_received() -> None:
    run = federation().run(1)
    pack = run.pack([0, 1, 2], 1)
    before = {n: v.clone() for n, v in pack.tensors.items()}
    updates = list(run.method.train(pack))
    moved = {n.split("/")[0] for n, v in pack.tensors.items() if not torch.equal(v, before[n])}
    assert moved == {"mine", "my_head"}
    assert pack.optimized() == {n for n in before if n.split("/")[0] in moved}
    for k, update in enumerate(updates):
        sent = {n: v for n, v in update.tensors.items() if isinstance(v, Tensor)}
        own = p_of({n: pack.value(k, n) for n in pack.optimized()})
        assert sent.keys() == {n for n in before if n.split("/")[0] in ("bottleneck", "head")} == own.keys()
        assert all(torch.equal(v, own[n]) for n, v in sent.items())


@pytest.mark.parametrize("init", ["keep", "from_global"])
def test_a_turn_begins_with_its_own_or_with_the_common_one(init: Any) -> None:
    method = replace(SMALL, local_init=init, optim=SGD.but(lr=0.0))
    run = federation(method).run(1)
    for name, value in by_hand.shared(run).items():
        run.server.write(name, value + 1.0)
    pack = run.pack([0, 1], 1)
    list(method.train(pack))
    for own, given in (("mine", "bottleneck"), ("my_head", "head")):
        for name, value in pack.params(own).items():
            same = torch.equal(value, pack.tensors[name.replace(own, given, 1)])
            assert same == (init == "from_global")


def test_clients_that_send_the_same_get_the_same_back() -> None:
    run = federation()
    g = torch.Generator().manual_seed(1)
    value = {n: torch.randn(v.shape, generator=g, dtype=torch.float64) for n, v in by_hand.shared(run).items()}
    run.method.aggregate(run.server, [by_hand.update(run, k, value, w) for k, w in ((0, 6.0), (1, 5.0), (2, 7.0))])
    for name, found in g_of(by_hand.shared(run)).items():
        by_hand.close(found, value[name], 1e-12)


def test_both_models_begin_as_one_and_the_head_is_the_one_that_was_handed_out() -> None:
    run = federation()
    start = by_hand.start_of(run)
    assert g_of(start).keys() == p_of(start).keys()
    assert all(torch.equal(v, p_of(start)[n]) for n, v in g_of(start).items())
    assert all(torch.equal(v, p_of(start)[n]) for n, v in heads().items())
    assert not any(v.any() for n, v in start.items() if n.endswith("/up"))
    assert all(v.any() for n, v in start.items() if n.endswith("/down"))
    assert not run.method.send(run.server, run.clients[0].info(())).tensors, "what begins alike costs nothing to send"


def test_whoever_has_not_trained_yet_is_scored_with_the_common_model_and_everybody_else_with_their_own() -> None:
    run = federation()
    cohorts.play(run, 0, (0, 2))
    rows = {c.id: np.arange(len(run.bench.table)) for c in run.clients}
    found = run.personal_logits("personal", rows, torch.float64)
    predict = hand.with_adapters()
    for k, client in enumerate(run.clients):
        mine = g_of(by_hand.shared(run)) if k in (1, 3) else p_of(by_hand.kept(run)[client.id])
        by_hand.close(found[client.id], predict(run, mine, rows[client.id]))
    everybody = run.global_logits(view="global", dtype=torch.float64)
    by_hand.close(everybody, predict(run, g_of(by_hand.shared(run)), rows["client-0"]))


def test_one_set_of_adapters_goes_each_way_as_many_as_the_card_says() -> None:
    """BART-base: an encoder and a decoder of 6 blocks, 768 wide."""
    run = tiny.federation(AdaFedSelecKD(), "bart", task=GENERATION)
    backbone, sites = run.bench.backbone, run.server.sites("mine")
    stacks = {s.name.split(".layers.")[0] for s in sites}
    assert len(sites) == len(backbone.blocks) == 4
    assert len(stacks) == 2
    found = {scope: by_hand.elements(AdaFedSelecKD(), backbone, scope) for scope in (Scope.UP, Scope.DOWN)}
    assert found[Scope.UP] == found[Scope.DOWN] == {"bottleneck": 4 * (2 * 32 * 2 + 2 + 32)}
    part = run.server.adaptation["mine"][0]
    assert 12 * sum(i.numel for i in part.tensors(backbone, replace(sites[0], d_in=768, d_out=768)).values()) == 894_528


# files --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_both_views_are_exported_and_read_back_with_the_head_that_goes_with_each(kind: str, tmp_path: Path) -> None:
    run = trained(AdaFedSelecKD(reduction=8, batch=4, optim=Optim("adamw", lr=0.05)), kind)
    rows = np.arange(len(run.bench.table))
    texts = list(tiny.states()[0].texts or ())
    client = run.clients[0]
    wanted = {
        "global": run.global_logits(),
        "personal": run.personal_logits("personal", {client.id: rows})[client.id],
        "new": run.global_logits(),  # what a client that was never here starts from
    }
    run.simulation.setup.store.load(client)
    for what, expected in wanted.items():
        folder = tmp_path / what
        folder.mkdir()
        more = {"view": "global"} if what == "global" else {"client": client} if what == "personal" else {}
        report = exported(run, folder, **more)
        assert report.kind == "weft"
        why, *more_notes = report.notes  # a head that is one of several is none that AdapterHub's library loads
        assert why.startswith("It is in Weft's own files, as it has several adapters at one place, or parts of another kind")
        assert [n.split(": ")[1] for n in more_notes] == ["this is the one that a new client starts from."] * (what == "new")
        got = load(folder, device="cpu", precision="float32").logits(texts)
        torch.testing.assert_close(got, expected, **RUN_CLOSE)
    assert (wanted["personal"] - wanted["global"]).abs().max() > 1e-2


# settings -----------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_cards() -> None:
    method = AdaFedSelecKD()
    assert (method.reduction, method.placement, method.activation) == (16, "block", "relu")
    assert (method.kd, method.temperature, method.tau, method.local_init) == (1.0, 1.0, 0.5, "keep")
    assert (method.epochs, method.batch, method.weighting, method.optim.kind, method.optim.clip) == (
        1.0,
        8,
        "examples",
        "adamw",
        1.0,
    )
    assert 1e-4 <= method.optim.lr <= 5e-4
    assert method.info.evidence == "reconstructed"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tau": "medain"}, "median"),
        ({"local_init": "from_globl"}, 'Did you mean "from_global"'),
        ({"kd": -1.0}, "kd ≥ 0, not -1.0"),
        ({"temperature": 0.0}, "temperature > 0, not 0.0"),
        ({"placement": "blok"}, 'Did you mean "block"'),
    ],
)
def test_a_bad_setting_is_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        AdaFedSelecKD(**settings)
    assert "\n" not in str(caught.value)


def test_a_number_has_no_entropy() -> None:
    with pytest.raises(UserError, match="asks a teacher how sure it is, and a single number does not say: choose") as caught:
        AdaFedSelecKD().adapt(tiny.backbone("bert"), Regression(("similarity",)), ClientInfo(""))
    assert "\n" not in str(caught.value)


# what other tests ask of this method --------------------------------------------------------------------------------------


def one_set(turn: Turn) -> Sizes:
    m = D // 8
    return {"bottleneck": [m * D, m, D * m, D] * LAYERS, "head": HEAD}


BYTES = Case({"reduction": 8}, one_set, one_set)
BYTES_VARIANTS = {"without distillation": Case({"reduction": 8, "kd": 0.0, "local_init": "from_global"}, one_set, one_set)}
TINY = {"reduction": 2}
