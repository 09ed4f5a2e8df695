"""What an experiment's privacy is refused for, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weft
from command_line import flowing
from command_line import weft as typed
from every_method import METHODS, SPLIT
from toy_runs import by_engine
from weft.errors import UserError
from weft.experiment import hidden, resolve
from weft.methods import FedIT
from weft.privacy.hiding import MECHANISMS, Privacy, mechanisms

SMALL = {"method": "fedit", "privacy": "dp-sgd", "epsilon": 8.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"privacy": "none", "epsilon": 8.0}, "epsilon is given, and privacy is none: give --privacy too"),
        ({"epsilon": None}, "dp-sgd has neither noise nor a budget: give --epsilon 8, or --privacy dp-sgd:noise=1"),
        ({"privacy": "dp-sgd:noise=0"}, "dp-sgd has noise 0, which keeps no epsilon at all"),
        ({"method": "c2a"}, "c2a makes a client's adapters of the classes of all its rows, so dp-sgd would not hide"),
        ({"method": "flora", "privacy": "dp-fedavg"}, "flora needs each update by itself and not their mean, so dp-fedavg"),
        ({"method": "lotteryfl", "privacy": "ldp"}, "lotteryfl sends those entries that clients have chosen"),
        ({"method": "diana", "privacy": "dp-fedavg"}, "diana adds up the shifts of single clients beside the mean"),
        ({"method": "soteriafl", "privacy": "dp-ftrl"}, "soteriafl adds up the shifts of single clients"),
        ({"method": "fedbert"}, "fedbert has a part of each step at its server"),
        ({"baseline": "central"}, "baseline central is no federation that privacy could hide anybody in"),
        ({"start_head": "probe"}, "give --start-head random"),
        ({"rule": "mime"}, "fedit+mime sends the gradient of all of a client's rows, so dp-sgd would not hide"),
        ({"privacy": "dp-fedavg", "rule": "scaffold"}, 'rule = "scaffold" adds up what single clients change'),
        ({"privacy": "dp-fedavg", "robust": "median"}, 'robust = "median" looks at single updates'),
        ({"privacy": "dp-fedavg", "devices": "phones"}, "leave --devices out"),
        (
            {"privacy": "dp-fedavg", "devices": "phones", "aggregation": "fedbuff"},
            'aggregation = "fedbuff" takes updates as they',
        ),
        ({"method": "fedavg", "batch_norms": "averaged"}, "batch_norms = averaged sends means"),
        (
            {"privacy": "secagg", "epsilon": None, "method": "flora"},
            "flora needs each update by itself and not their mean, so secagg",
        ),
        ({"privacy": "secagg", "epsilon": None, "codec": "quant8"}, 'codec = "quant8" makes bytes that can\'t be added up'),
        ({"privacy": "secagg", "epsilon": None, "rule": "scaffold"}, 'rule = "scaffold" sends more than an update changes'),
        ({"privacy": "secagg", "epsilon": None, "robust": "median"}, 'robust = "median" looks at single updates'),
        ({"privacy": "secagg", "epsilon": None, "max_factor": 3.0}, "max_factor compares single updates"),
        (
            {"privacy": "secagg", "epsilon": None, "devices": "phones", "aggregation": "fedbuff"},
            'aggregation = "fedbuff" takes updates as they',
        ),
        ({"privacy": "dp-fedavg+secagg", "epsilon": None}, "dp-fedavg has neither noise nor a budget"),
        ({"privacy": "secagg"}, "epsilon is a budget of noise, and privacy = secagg adds none"),
        ({"privacy": "dp-fedavg", "max_factor": 3.0}, "max_factor compares single updates"),
        ({"delta": 1.5}, "delta"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as e:
        resolve(SMALL | settings)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_a_recipe_s_probe_gives_way() -> None:
    assert resolve(SMALL).experiment.start_head == "auto"


def test_insecure_noise_says_what_it_costs() -> None:
    assert hidden.INSECURE in resolve(SMALL | {"insecure_noise": True}).notes
    assert hidden.INSECURE not in resolve(SMALL).notes


def test_no_noise_says_that_it_hides_nothing() -> None:
    wanted = "dp-sgd has noise 0: it clips, and hides nothing."
    assert wanted in resolve(SMALL | {"privacy": "dp-sgd:noise=0", "epsilon": None}).notes
    assert wanted not in resolve(SMALL | {"privacy": "dp-sgd:noise=1"}).notes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, True),
        ({"privacy": "dp-sgd", "epsilon": 8.0}, False),
        ({"privacy": "ldp", "epsilon": 8.0}, False),
        ({"baseline": "central"}, False),
        ({"method": "diana"}, False),
    ],
)
def test_a_method_that_is_made_for_noise_says_what_it_is_without(settings: dict[str, Any], told: bool) -> None:
    notes = [n for n in resolve({"method": "soteriafl"} | settings).notes if "gets no noise at its clients" in n]
    assert bool(notes) is told


@pytest.mark.parametrize(
    ("text", "rows", "said"),
    [
        ("dp-sgd:noise=1", [50, 2000], "delta is 0.001, and with 2,000 the largest client's rows it must be less than 0.0005"),
        ("dp-fedavg:noise=1", [5] * 1000, "delta is 0.001, and with 1,000 clients it must be less than 0.001"),
        ("ldp:noise=1", [5] * 1000, "with 1,000 clients"),
    ],
)
def test_a_delta_that_says_nothing_is_refused(text: str, rows: list[int], said: str) -> None:
    privacy = Privacy(mechanisms(text), delta=1e-3)
    with pytest.raises(UserError) as e:
        hidden.check_loaded(privacy, FedIT(), rows)
    assert said in str(e.value)
    hidden.check_loaded(privacy, FedIT(), [5] * 10)


def test_rounds_of_too_few_clients_have_no_sum() -> None:
    privacy = Privacy(mechanisms("secagg:least=4"), participation=0.5)
    with pytest.raises(UserError, match=r"a round has 3 clients, and a sum of secagg is of 4 or more: let more take part\."):
        hidden.check_loaded(privacy, FedIT(), [5] * 6)
    hidden.check_loaded(privacy, FedIT(), [5] * 8)


def test_a_client_that_would_count_less_than_its_rows_is_refused() -> None:
    privacy = Privacy(mechanisms("secagg:heaviest=100"))
    with pytest.raises(UserError, match=r"a client has 150 rows, .* give secagg:heaviest=150 or more"):
        hidden.check_loaded(privacy, FedIT(), [20, 150, 30])
    hidden.check_loaded(privacy, FedIT(), [20, 100, 30])
    hidden.check_loaded(privacy, FedIT(weighting="uniform"), [20, 150, 30])


# the command line ---------------------------------------------------------------------------------------------------------


def test_the_matrix_has_every_method_and_mechanism(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(typed(capsys, "methods", "--privacy", "--json").out)
    assert found.keys() == {*METHODS, *SPLIT}
    assert all(row.keys() == MECHANISMS.keys() for row in found.values())
    assert all(not why for why in found["fedit"].values())
    assert all(found["fedbert"].values())
    table = typed(capsys, "methods", "c2a", "--privacy").out
    assert "c2a makes a client's adapters of the classes of all its rows: not under dp-sgd." in flowing(table)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> weft.Run:
    """A run under noise at rows and at clients."""
    where = tmp_path_factory.mktemp("runs")
    return weft.run(
        method="fedbf",
        data="glyphs",
        limit=60,
        clients=3,
        rounds=2,
        privacy="dp-sgd+dp-fedavg",
        epsilon=6.0,
        delta=1e-3,
        runs=str(where),
        report=False,
    )


def test_every_round_says_what_has_been_spent(run: weft.Run) -> None:
    said = [line["privacy"] for line in run.rounds]
    for unit in ("row", "client"):
        spent = [one[f"{unit}_epsilon"] for one in said]
        assert 0 < spent[0] < spent[1] <= 6.0 * (1 + 1e-9)
        assert spent[1] > 5.9
    assert all(line["loss"] is None for line in run.rounds)


def test_what_a_run_is_compared_with_hides_nothing(tmp_path: Path) -> None:
    """Not its rows either: it is no federation, and its score is that to which a method is compared."""
    chain = {"privacy": "dp-sgd:noise=50,clip=1", "insecure_noise": True, "start_head": "random"}
    found = []
    for name, more in (("plain", {"start_head": "random"}), ("noisy", chain)):
        run = by_engine(tmp_path, "fedbf", "simulation", 3, {}, baselines=["local"], runs=str(tmp_path / name), **more)
        found.append((run.metrics, run.summary["baselines"]["local"]["metrics"]))
    assert found[0][1] == found[1][1]
    assert found[0][0] != found[1][0]


def test_a_rehearsal_says_what_each_party_sees(capsys: pytest.CaptureFixture[str]) -> None:
    said = flowing(
        typed(
            capsys,
            *("run", "--method", "fedbf", "--data", "glyphs", "--limit", "60", "--clients", "3", "--rounds", "2"),
            *("--privacy", "dp-sgd:clip=0.5", "--epsilon", "6", "--delta", "0.001", "--dry-run"),
        ).out
    )
    assert "dp-sgd: noise on the sum of clipped gradients of single rows" in said
    assert "times the norm 0.5" in said
    assert "who gets the model" in said


def test_a_rehearsal_of_sums_counts_their_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    said = flowing(
        typed(
            capsys,
            *("run", "--method", "fedbf", "--data", "glyphs", "--limit", "60", "--clients", "4", "--rounds", "2"),
            *("--privacy", "dp-fedavg+secagg", "--epsilon", "6", "--delta", "0.001", "--dry-run"),
        ).out
    )
    assert "secagg: sums of clipped updates under masks that cancel each other" in said
    assert "dp-fedavg: noise of the clients' on the sum" in said
    assert "of all clients of a round together" in said
    assert "secagg 468 B 616 B" in " ".join(said.split())
