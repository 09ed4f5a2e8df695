"""Chains of mechanisms as texts, and what is solved for a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from weft.errors import UserError
from weft.privacy import accounting
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
    tree = replace(plan, links=mechanisms("dp-ftrl"))
    assert tree.leaves == 4
    assert tree.spent_on_clients(20, trees=5) <= 4.0 < tree.spent_on_clients(21, trees=6)
    assert tree.spent_on_clients(3, trees=1) == tree.spent_on_clients(4, trees=1), "a tree costs once"


def test_streams_are_secret_unless_somebody_asks() -> None:
    plan = Privacy(mechanisms("ldp:noise=1"), seed=3)
    assert plan.secret("a").bytes(16) != plan.secret("a").bytes(16)
    known = replace(plan, insecure=True)
    assert known.secret("a", 1).bytes(16) == known.secret("a", 1).bytes(16)
    assert known.secret("a", 1).bytes(16) != known.secret("a", 2).bytes(16)
    assert known.secret("a").bytes(16) != replace(known, seed=4).secret("a").bytes(16)
