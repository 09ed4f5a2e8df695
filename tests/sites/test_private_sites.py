"""Rows and clients hidden in a real federation: the sites have the noise, and agree to what hides nothing only in writing."""

from __future__ import annotations

import pytest

from machines import Machines, coordinate, experiment
from toy_runs import Told
from weft import experiment as settings

CHAIN = {"privacy": "dp-sgd:clip=0.5", "epsilon": 8.0, "delta": 1e-3, "start_head": "random"}


def test_sites_hide_their_rows_and_the_coordinator_is_told_what_it_costs(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    told = Told()
    done = coordinate(machines, told, **CHAIN)
    said = [line["privacy"] for line in done.rounds]
    assert 0 < said[0]["row_epsilon"] < said[-1]["row_epsilon"] <= 8.0 * (1 + 1e-9)
    assert said[-1]["row_epsilon"] > 7.9
    assert all(line["loss"] is None for line in done.rounds)
    assert any("privacy of this run: dp-sgd:clip=0.5, with a budget of epsilon 8." in s for s in machines.said["at north"])


def test_a_coordinator_that_hides_clients_sees_each_update_once_clipped(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    done = coordinate(machines, Told(), privacy="dp-fedavg", epsilon=8.0, delta=1e-3, start_head="random")
    said = [line["privacy"] for line in done.rounds]
    assert said[-1]["client_epsilon"] <= 8.0 * (1 + 1e-9)
    assert {one["clip"] for one in said} == {0.1}


@pytest.mark.parametrize("agrees", [False, True])
def test_noise_that_hides_nothing_needs_a_site_s_own_word(machines: Machines, agrees: bool) -> None:
    file = machines.root / "mine.toml"
    chain = CHAIN | {"insecure_noise": True}
    file.write_text(settings.to_toml(settings.resolve(experiment(machines, **chain)).experiment, {}))
    for name in ("north", "south"):
        machines.join(name, experiment=str(file))
    if not agrees:
        machines.join("odd")
    told = Told()
    coordinate(machines, told, **chain)
    words = "odd does not take part: it refuses: the experiment asks for noise that hides nothing"
    assert any(words in s for s in told.sentences) != agrees
    assert agrees or any("insecure_noise = true if you agree" in s for s in machines.said["at odd"])
