"""SoteriaFL against its card: noise of single rows before a codec with shifts, and the mean over who is away too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import tiny
from bytes_of import Case, factors_and_head
from weft.communication.codecs import codec
from weft.contract import Optim, Tune
from weft.errors import UserError
from weft.experiment import resolve
from weft.federation import hidden_rows
from weft.federation.message import Update
from weft.federation.method import Method
from weft.methods import DIANA, QSGD, SoteriaFL
from weft.privacy import accounting
from weft.privacy.hiding import Privacy, mechanisms
from weft.privacy.secret import Secret
from weft.testing import laws
from weft.testing.compare import assert_same, client_state, state
from weft.testing.sites import remote

TUNE = Tune("lora", rank=2, alpha=2.0, at="q,ffn.in")
SMALL = SoteriaFL(tune=TUNE, batch=4)
SHARE = 0.25
CODEC = f"shift:step=soteriafl+randk:share={SHARE}"
SIZES = (6, 5, 7, 3)
COHORTS = ([0, 1, 2, 3], [0, 2], [1, 2, 3], [0, 2], [1, 3])
Z, CLIP = 0.7, 0.2
NOISY = f"dp-sgd:noise={Z},clip={CLIP}"

test_laws = laws.over(SoteriaFL(tune=Tune("bottleneck", reduction=8)))


def privacy(text: str) -> Privacy:
    return Privacy(mechanisms(text), rounds=len(COHORTS), insecure=True)


def settings(codec_name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"codec_name": codec_name, "privacy": privacy(text), "sizes": SIZES, "rounds": len(COHORTS)} | more


def federation(method: Method = SMALL, codec_name: str = CODEC, text: str = NOISY, **more: Any) -> tiny.Federation:
    return tiny.federation(method, "bert", **settings(codec_name, text, **more))


def play(run: tiny.Federation, cohorts: Iterable[list[int]] = COHORTS) -> Iterator[int]:
    """Rounds of these clients, one after the other."""
    for t, present in enumerate(cohorts):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("weft.engines.engine.cohort", lambda *_, c=present: [run.clients[k] for k in c])
            run.simulation.round(t)
        yield t


def gamma(n: int, share: float = SHARE) -> float:
    w = n / max(round(share * n), 1) - 1
    return math.sqrt((1 + 2 * w) / (2 * (1 + w) ** 3))


# the algorithm box ----------------------------------------------------------------------------------------------------------


def slope(run: tiny.Federation, x: dict[str, Tensor], k: int, t: int) -> dict[str, Tensor]:
    """The noisy gradient of client k in round t, by name: row after row, in plain PyTorch."""
    client = run.clients[k]
    q = min(SMALL.batch / client.n, 1.0)
    drawn = Secret.of("weft", run.bench.seed, "lots", t, client.id, "main", 1).bernoulli(q, client.n)
    total = {n: torch.zeros_like(v) for n, v in x.items()}
    for row in client.data.train[drawn]:
        leaves = {n: v.clone().requires_grad_(True) for n, v in x.items()}
        F.cross_entropy(by_hand.logits(run, leaves, row[None]), by_hand.labels(run, row[None])).backward()
        norm = torch.cat([v.grad.flatten() for v in leaves.values() if v.grad is not None]).norm()
        for n, v in leaves.items():
            if v.grad is not None:
                total[n] += v.grad * min(1.0, CLIP / float(norm))
    stream = Secret.of("weft", run.bench.seed, "rows", t, client.id)
    return {n: (total[n] + Z * CLIP * stream.normal(total[n].shape)) / (q * client.n) for n in sorted(total)}


def test_rounds_of_some_of_the_clients_are_the_algorithm_box() -> None:
    """Noise and lots are drawn again, and which entries were is read off what arrives; all else is by hand, in float64."""
    run = federation()
    sent = by_hand.record(run)
    x, eta = by_hand.shared(run), SMALL.optim.lr
    s = {n: torch.zeros(len(SIZES), *v.shape, dtype=v.dtype) for n, v in x.items()}
    mean = {n: torch.zeros_like(v) for n, v in x.items()}
    drawn = 0
    for t in play(run):
        present = COHORTS[t]
        g = {k: slope(run, x, k, t) for k in present}
        after = by_hand.shared(run)
        assert [u.client.id for u in sent[t]] == [run.clients[k].id for k in present]
        for n in x:
            kept = max(round(SHARE * x[n].numel()), 1)
            v = torch.zeros_like(x[n])
            for update, k in zip(sent[t], present, strict=True):
                arrived = update.tensors[n]
                assert isinstance(arrived, Tensor)
                got = -(arrived - x[n]) / eta - s[n][k]
                places = got.abs() > 1e-12
                assert int(places.sum()) == kept
                drawn += kept
                wanted = torch.where(places, (g[k][n] - s[n][k]) * x[n].numel() / kept, 0.0)
                by_hand.close(got, wanted, 1e-9)
                v += wanted
                s[n][k] += gamma(x[n].numel()) * wanted
            by_hand.close(after[n], x[n] - eta * (mean[n] + v / len(present)), 1e-11)
            mean[n] = mean[n] + gamma(x[n].numel()) / len(SIZES) * v
            by_hand.close(run.server.memo[f"shift/{n}"] / len(SIZES), -eta * mean[n], 1e-11)
        x = after
    assert drawn > 1000


def test_the_servers_shift_is_the_mean_of_the_clients() -> None:
    run = federation()
    for t in play(run):
        own = client_state(run)
        for name in by_hand.shared(run):
            noted = [run.server.notes.get(c.id).get(f"shift/{name}") for c in run.clients]
            kept = [own.get(f"{c.id}:memo shift/now/{name}") for c in run.clients]
            assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(noted, kept, strict=True))
            total = torch.stack([v for v in noted if v is not None]).sum(0)
            by_hand.close(run.server.memo[f"shift/{name}"], total, 1e-12)
        assert t < len(COHORTS)


def test_gamma_is_that_of_the_paper_and_not_dianas() -> None:
    for share, n in ((0.05, 2000), (0.25, 64), (1.0, 10)):
        which = codec(f"shift:step=soteriafl+randk:share={share}")
        assert which.alpha(n) == pytest.approx(gamma(n, share), rel=1e-12)
        assert which.alpha(n) < codec(f"shift+randk:share={share}").alpha(n)
    assert codec(SoteriaFL.info.codec).alpha(2000) == pytest.approx(math.sqrt(39 / (2 * 20**3)))


# what it is without one of its parts --------------------------------------------------------------------------------------------


def test_without_noise_and_bound_it_is_diana_with_its_gamma() -> None:
    all_rows = replace(SMALL, batch=8)
    plain = DIANA(tune=TUNE, batch=8)
    found, wanted, other = (
        federation(m, c, text)
        for m, c, text in (
            (all_rows, CODEC, "dp-sgd:noise=0,clip=1e9"),
            (plain, CODEC, "none"),
            (plain, CODEC.replace("step=soteriafl", "step=diana"), "none"),
        )
    )
    for run in (found, wanted, other):
        list(play(run))
    assert_same(state(found), state(wanted), 1e-12)
    gaps = [float((v - by_hand.shared(other)[n]).abs().max()) for n, v in by_hand.shared(found).items()]
    assert max(gaps) > 1e-6, "DIANA's own step of the shifts leads elsewhere"


def test_where_nothing_is_lost_it_is_plain_noisy_descent() -> None:
    found = federation(codec_name="shift:step=soteriafl+randk:share=1.0")
    wanted = federation(QSGD(tune=TUNE, batch=4), "identity")
    everybody = [[0, 1, 2, 3]] * 4
    for run in (found, wanted):
        list(play(run, everybody))
    for name, value in by_hand.shared(wanted).items():
        by_hand.close(by_hand.shared(found)[name], value, 1e-12)


# noise comes first ----------------------------------------------------------------------------------------------------


def supports(run: tiny.Federation) -> dict[str, Tensor]:
    """Client and name -> which entries arrive of a first round."""
    x = by_hand.shared(run)
    sent = by_hand.record(run)
    next(play(run))
    return {f"{u.client.id} {n}": (v - x[n]).abs() > 1e-15 for u in sent[0] for n, v in u.tensors.items()}  # type: ignore[operator]


def check_supports(found: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """As many entries as the codec sends of every tensor, at places that two sets of labels have in common."""
    assert found.keys() == other.keys()
    for name, places in found.items():
        assert int(places.sum()) == max(round(SHARE * places.numel()), 1), name
        assert torch.equal(places, other[name]), name


def relabelled(**more: Any) -> tiny.Federation:
    run = federation(**more)
    for k in range(len(SIZES)):
        by_hand.spoil(run, k)
    return run


def test_which_entries_are_sent_does_not_depend_on_rows() -> None:
    """In the first round B of LoRA is 0, and so is the gradient of A: what is sent of A is noise, or would not be there."""
    check_supports(supports(federation()), supports(relabelled()))


class Swapped(SoteriaFL):
    """Noise behind the codec: on the mean of what has arrived of plain gradients."""

    info: ClassVar = replace(SoteriaFL.info, slug="swapped")

    def aggregate(self, server: Any, updates: Iterable[Update]) -> None:
        g = torch.Generator().manual_seed(server.round.index)
        super().aggregate(server, (replace(u, tensors={n: v + torch.randn(v.shape, generator=g) for n, v in u.tensors.items()})
                                   for u in updates))  # type: ignore[operator, union-attr]  # fmt: skip


@pytest.mark.parametrize("where", ["nowhere", "behind"])
def test_the_support_tells_noise_that_comes_later(where: str) -> None:
    """The same check fails of plain gradients, of which zeros show, and of noise that is added to what has arrived."""
    method = SMALL if where == "nowhere" else Swapped(tune=TUNE, batch=4)
    runs = [f(method=method, text="dp-sgd:noise=0") for f in (federation, relabelled)]
    found = [moved(run) if where == "behind" else supports(run) for run in runs]
    with pytest.raises(AssertionError):
        check_supports(*found)


def moved(run: tiny.Federation) -> dict[str, Tensor]:
    """Which entries of the model a first round of one client moves."""
    x = by_hand.shared(run)
    next(play(run, [[0]]))
    return {n: (v - x[n]).abs() > 1e-15 for n, v in by_hand.shared(run).items()}


def test_no_row_counts_for_more_than_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """η times the sum of the clipped gradients of a batch, over its expected rows."""
    seen: list[float] = []
    clipped = hidden_rows.HiddenRows._clipped

    def watched(self: Any, pack: Any, objective: Any, real: Any, names: Any, who: Any) -> Any:
        found, within = clipped(self, pack, objective, real, names, who)
        for k, index in zip(who.tolist(), real.index, strict=True):
            rows = int(np.sum(index >= 0))
            norm = math.sqrt(sum(float(v[k].square().sum()) for v in found.values()))
            assert norm <= rows * self.clips[k] * (1 + 1e-9)
            seen.append(norm)
        return found, within

    monkeypatch.setattr(hidden_rows.HiddenRows, "_clipped", watched)
    list(play(federation()))
    assert max(seen) > CLIP, "more than one row counted"


# σ ------------------------------------------------------------------------------------------------------------------------------


def closed_form(epsilon: float, rounds: int, rows: int, delta: float = 1e-3) -> float:
    """σ of the code's SGD, of the mean gradient with G = 1; its batch does not show in it."""
    return math.sqrt(12 * rounds * math.log(1 / delta) / (rows**2 * epsilon**2))


@pytest.mark.parametrize(("epsilon", "rounds"), [(1.0, 200), (2.0, 200), (1.0, 800)])
def test_the_accountants_noise_is_less_than_the_closed_form(epsilon: float, rounds: int) -> None:
    """MNIST of ten agents: 6,000 rows each, batches of 128. σ of the mean is z G over the batch."""
    rows, batch = 6000, 128
    found = accounting.noise_for(epsilon, batch / rows, rounds, 1e-3) / batch
    assert 0.2 < found / closed_form(epsilon, rounds, rows) < 1


def test_noise_doubles_with_four_times_the_rounds_and_with_half_of_epsilon() -> None:
    """Where ε is small beside ln(1/δ), as the closed form has it everywhere."""
    delta = 1e-12
    base = accounting.noise_for(0.5, 0.1, 500, delta)
    assert accounting.noise_for(0.5, 0.1, 2000, delta) / base == pytest.approx(2, rel=0.05)
    assert accounting.noise_for(0.25, 0.1, 500, delta) / base == pytest.approx(2, rel=0.05)
    assert closed_form(1, 800, 50) == pytest.approx(2 * closed_form(1, 200, 50))
    assert closed_form(1, 200, 50) == pytest.approx(2 * closed_form(2, 200, 50))


# one by one, and as bytes ---------------------------------------------------------------------------------------------


def test_in_packs_one_by_one_and_message_by_message_it_is_the_same() -> None:
    together, alone = (federation(pack=k).run(3) for k in (4, 1))
    apart, _ = remote(SMALL, CODEC, sizes=SIZES, rounds=len(COHORTS), privacy=privacy(NOISY))
    apart.run(3)
    assert_same(state(alone), state(together), 1e-9)
    for name, value in by_hand.shared(together).items():
        by_hand.close(by_hand.shared(apart)[name], value, 1e-9)


@pytest.mark.parametrize(("precision", "bits"), [("float64", 64), ("float32", 32)])
def test_bytes_are_those_of_the_card(precision: str, bits: int) -> None:
    """k values for each tensor, of 64 bits as the paper counts them in double precision, and nothing for their places."""
    run = federation(codec_name=SoteriaFL.info.codec, precision=precision, rounds=1)
    run.run(1)
    sizes = [v.numel() for v in by_hand.shared(run).values()]
    wanted = sum(max(round(0.05 * n), 1) for n in sizes) * bits // 8 * len(SIZES)
    parts = run.simulation.setup.exchange.ledger.totals(direction="up").parts
    assert sum(n for part, n in parts.items() if part != "facts") == wanted


# the card -----------------------------------------------------------------------------------------------------------------------


def test_an_experiment_takes_its_codec_and_says_that_it_has_no_noise() -> None:
    made = resolve({"method": "soteriafl", "recipes": False})
    assert made.experiment.codec == SoteriaFL.info.codec
    assert (made.method.optim, made.method.steps) == (Optim("sgd", lr=0.1, schedule="constant"), 1)
    assert [n for n in made.notes if "gets no noise" in n and "hides no row" in n]
    hidden = {"method": "soteriafl", "privacy": "dp-sgd", "epsilon": 8.0}
    assert not [n for n in resolve(hidden).notes if "gets no noise" in n]
    assert [n for n in resolve({"method": "diana"}).notes if "gets no noise" in n] == []
    with pytest.raises(UserError, match="soteriafl is what its codec's shift makes of it"):
        resolve({"method": "soteriafl", "codec": "randk"})
    with pytest.raises(UserError, match="soteriafl adds up the shifts of single clients"):
        resolve(hidden | {"privacy": "dp-fedavg"})


BYTES = Case({"rank": 2, "at": "q,ffn.in"}, factors_and_head, factors_and_head)
