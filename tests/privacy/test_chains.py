"""Chains of mechanisms as texts, and what is solved for a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.dp_event import GaussianDpEvent, SingleEpochTreeAggregationDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.linalg import sqrtm

from weft.errors import UserError
from weft.privacy import accounting, parties
from weft.privacy.hiding import MECHANISMS, Privacy, mechanisms
from weft.privacy.mechanism import DPSGD, SEATS, DPFedAvg, Noisy


def test_a_chain_is_its_text() -> None:
    found = mechanisms("dp-sgd:clip=0.5,noise=1.1+dp-fedavg:quantile=0.5")
    assert found == (DPSGD(clip=0.5, noise=1.1), DPFedAvg(quantile=0.5))
    assert mechanisms("+".join(link.text for link in found)) == found
    assert mechanisms("none") == ()
    assert not Privacy()
    assert Privacy(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dpsgd", 'there is no privacy "dpsgd": use none, dp-sgd'),
        ("dp-sgd:klip=1", 'privacy "dp-sgd": there is no setting "klip"'),
        ("dp-sgd:clip=0", "it needs clip > 0, not 0.0"),
        ("dp-sgd:clip=-1", "it needs clip > 0, not -1.0"),
        ("dp-sgd:clip=nan", '"clip" must be a number'),
        ("dp-fedavg+dp-sgd", "write dp-sgd+dp-fedavg"),
        ("dp-fedavg+dp-ftrl", "both hide clients by noise"),
        ("dp-sgd+dp-sgd", "both hide rows by noise"),
        ("", 'there is no privacy ""'),
        ("secagg+dp-fedavg", "write dp-fedavg+secagg"),
        ("secagg+dp-sgd", "write dp-sgd+secagg"),
        ("secagg+secagg", "secagg and secagg both hide updates in their sum"),
        ("secagg+ckks", "secagg and ckks both hide updates in their sum"),
        ("dp-ftrl:noise=1+ckks", "which ckks hides updates from: use dp-fedavg+ckks"),
        ("ckks+dp-fedavg:noise=1", "write dp-fedavg+ckks"),
        ("dp-ftrl+secagg", "use dp-fedavg+secagg"),
        ("dp-ftrl:factorization=tree,bands=4", "dp-ftrl:bands is of factorization=banded, and a tree has none"),
        ("dp-ftrl:factorization=band", 'unknown factorization "band": use banded, tree'),
        ("dp-ftrl:bands=0", "it needs bands ≥ 1, not 0"),
        ("dp-fedavg:quantile=0.5+secagg", "leave quantile out"),
        ("secagg:degree=3", "give an even number"),
        ("secagg:share=0.5", "share"),
        ("secagg:least=1", "least"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError) as e:
        mechanisms(text)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_mechanisms_say_where_they_stand_and_what_they_give() -> None:
    for name, kind in MECHANISMS.items():
        assert kind.name == name
        assert kind.seat in SEATS
        assert kind.title
        assert kind.gives
        assert kind.not_given
        assert mechanisms(name) == (kind(),)
        assert not issubclass(kind, Noisy) or kind.unit


def test_noise_is_found_for_what_is_planned() -> None:
    plan = Privacy(mechanisms("dp-sgd"), epsilon=4.0, delta=1e-5, rounds=10, participation=0.5)
    assert plan.turns == 5
    z = plan.row_noise(0.2, 8)
    assert plan.spent_on_rows(z, 0.2, 5 * 8) <= 4.0 < plan.spent_on_rows(z, 0.2, 5 * 8 + 8)
    assert replace(plan, links=mechanisms("dp-sgd:turns=10")).row_noise(0.2, 8) > z
    assert replace(plan, links=mechanisms("dp-sgd:noise=3")).row_noise(0.2, 8) == 3.0
    with pytest.raises(UserError, match="neither noise nor epsilon"):
        replace(plan, epsilon=None).row_noise(0.2, 8)


def test_the_noise_of_an_update_hides_one_behind_any_other() -> None:
    """Two updates within C of what was held may be 2 C apart."""
    plan = Privacy(mechanisms("ldp"), epsilon=4.0, rounds=3)
    assert plan.local_noise == pytest.approx(2 * accounting.noise_for(4.0, 1.0, 3, 1e-5))
    assert plan.spent_on_updates(3) <= 4.0 < plan.spent_on_updates(4)


def test_the_noise_of_the_server_is_for_its_rounds() -> None:
    plan = Privacy(mechanisms("dp-fedavg"), epsilon=4.0, rounds=20, participation=0.25)
    assert plan.spent_on_clients(20) <= 4.0 < plan.spent_on_clients(22)


@pytest.mark.parametrize("factorization", ["tree", "banded", "banded,bands=2", "banded,accountant=pld"])
def test_the_noise_of_passes_is_for_the_planned_ones(factorization: str) -> None:
    plan = Privacy(mechanisms(f"dp-ftrl:factorization={factorization}"), epsilon=4.0, rounds=20, participation=0.25)
    assert plan.pass_rounds == 4
    assert plan.spent_on_clients(20, passes=5) <= 4.0 < plan.spent_on_clients(21, passes=6)
    assert plan.spent_on_clients(3, passes=1) == plan.spent_on_clients(4, passes=1), "a pass costs once"
    cut = replace(plan, rounds=18)
    assert cut.central_noise == plan.central_noise, "the last pass counts whole, also where it is cut short"


@pytest.mark.parametrize("bands", [1, 3, 8, 30, None])
def test_a_pass_costs_one_gaussian_of_what_a_client_moves(bands: int | None) -> None:
    """By dp-accounting alone, with the norm of the first column of the square root of the matrix that adds up rounds."""
    column = np.real(sqrtm(np.triu(np.ones((8, 8)))))[0][:bands]
    text = "dp-ftrl:noise=3" if bands is None else f"dp-ftrl:noise=3,bands={bands}"
    plan = Privacy(mechanisms(text), delta=1e-5, rounds=24, participation=0.125)
    wanted = RdpAccountant().compose(GaussianDpEvent(3.0 / np.linalg.norm(column)), 3).get_epsilon(1e-5)
    assert plan.spent_on_clients(17, passes=3) == pytest.approx(wanted, rel=1e-9)


def test_a_tree_costs_what_the_library_says() -> None:
    plan = Privacy(mechanisms("dp-ftrl:noise=3,factorization=tree"), delta=1e-5, rounds=24, participation=0.125)
    wanted = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    wanted.compose(SingleEpochTreeAggregationDpEvent(3.0, [8]), 3)
    assert plan.spent_on_clients(24, passes=3) == pytest.approx(wanted.get_epsilon(1e-5), rel=1e-6)


def test_bands_are_no_more_than_rounds_of_a_pass() -> None:
    many, few = (Privacy(mechanisms(f"dp-ftrl:noise=1,bands={b}"), participation=0.25) for b in (100, 4))
    assert many.sensitivity == few.sensitivity


def test_streams_are_secret_unless_somebody_asks() -> None:
    plan = Privacy(mechanisms("ldp:noise=1"), seed=3)
    assert plan.secret("a").bytes(16) != plan.secret("a").bytes(16)
    known = replace(plan, insecure=True)
    assert known.secret("a", 1).bytes(16) == known.secret("a", 1).bytes(16)
    assert known.secret("a", 1).bytes(16) != known.secret("a", 2).bytes(16)
    assert known.secret("a").bytes(16) != replace(known, seed=4).secret("a").bytes(16)


@pytest.mark.parametrize("name", [name for name, kind in MECHANISMS.items() if issubclass(kind, Noisy)])
def test_a_link_without_noise_promises_nothing(name: str) -> None:
    for text, hides in ((f"{name}:noise=1", True), (f"{name}:noise=0", False)):
        links = mechanisms(text)
        told = parties.told(links)[0]
        assert ("hides nothing" in told) is not hides
        assert (links[0].gives[1:] in told) is hides
        assert any("hide" in what for what in parties.seen(links, "all").values()) is hides


def test_a_link_without_noise_leaves_the_promise_of_a_sum() -> None:
    links = mechanisms("dp-fedavg:noise=0+secagg")
    assert "hides nothing" in parties.told(links)[0]
    assert parties.seen(links, "all") == parties.seen(links[1:], "all")
