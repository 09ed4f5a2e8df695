"""Ranks and devices dealt out to clients, and what is refused about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tiny
from weft.contract import ClientInfo
from weft.devices import FLEETS, PROFILES, Device, dealt, of_text, read
from weft.errors import UserError
from weft.experiment import handed, resolve
from weft.methods import FedIT, FedP2EFT, FLoRA
from weft.runs.suited import suited


@pytest.mark.parametrize("shares", [[1.0], [1.0, 1.0], [3.0, 4.0, 1.0], [0.5, 0.25, 0.25], [1.0] * 46])
def test_shares_are_met_by_any_number_of_clients(shares: list[float]) -> None:
    for n in (len(shares) * 4, 500):
        found = Counter(dealt(i, shares) for i in range(n))
        for kind, share in enumerate(shares):
            assert abs(found[kind] - n * share / sum(shares)) <= 3


def test_a_clients_kind_does_not_depend_on_how_many_there_are_and_kinds_come_mixed() -> None:
    kinds = [dealt(i, [1.0, 1.0]) for i in range(20)]
    assert kinds == [dealt(i, [2.0, 2.0]) for i in range(20)]
    assert all(len(set(kinds[i : i + 4])) == 2 for i in range(16))


def test_texts_are_kinds_with_shares() -> None:
    assert of_text("4, 8:2,16:0.5", "ranks") == {"4": 1.0, "8": 2.0, "16": 0.5}
    for text in ("", "4,", "4,4", "4:0", "4:-1", "4:x", "4:nan", "4:inf", ":3", "4:"):
        with pytest.raises(UserError, match="cannot be dealt out: write each kind once"):
            of_text(text, "ranks")


@pytest.mark.parametrize("fleet", FLEETS)
def test_fleets_that_come_with_weft_say_everything(fleet: str) -> None:
    devices = read(fleet)
    assert len(devices) >= 3
    assert all(d.name and d.watts > 0 and d.joules_per_byte > 0 and d.latency > 0 for d, _ in devices)


def test_devices_by_name() -> None:
    assert read("jetson-tx2:3,server") == [(PROFILES["jetson-tx2"], 3.0), (PROFILES["server"], 1.0)]
    with pytest.raises(UserError, match=r'no device "jetson-tx3".*Did you mean "jetson-tx2"'):
        read("jetson-tx3")


def test_devices_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "[slow]\nspeed = 1\nmemory = 4\nbandwidth = 10.5\nshare = 3\n[fast]\nspeed = 20\nmemory = 24\nbandwidth = 100\n"
    )
    assert read(str(file)) == [(Device(1, 4, 10.5), 3.0), (Device(20, 24, 100), 1.0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]\nspeed = -1\nmemory = 4\nbandwidth = 1\n", "has speed = -1: give it a number above 0"),
        ("[a]\nspeed = 1\nmemory = 0\nbandwidth = 1\n", "has memory = 0"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwidth = inf\n", "has bandwidth = inf"),
        ("[a]\nspeed = true\nmemory = 4\nbandwidth = 1\n", "has speed = True"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwidth = 1\nshare = 0\n", "has share = 0"),
        ("[a]\nspeed = 1\nmemory = 4\n", r"\[a\] in .* is no device"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwidth = 1\nfuel = 3\n", r"is no device, as fuel is nothing that devices have"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwidth = 1\nwatts = -3\n", "has watts = -3: give it a number of 0 or more"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwidth = 1\ndownlink = 0\n", "has downlink = 0: give it a number above 0"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwidth = 1\nutilisation = 1.5\n", "has utilisation = 1.5: give it a share"),
        (
            "[a]\nspeed = 1\nmemory = 4\nbandwidth = 1\nlatency = 1e308\n",
            r"has latency = 1e\+308: give it a number from",
        ),
        ("[a]\nspeed = 1e-300\nmemory = 4\nbandwidth = 1\n", "has speed = 1e-300: give it a number from 1e-12 to 1e"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwidth = 1\nrecharge = 5\n", "has recharge and no battery: give it one"),
        ("a = 1\n", "says a = 1 of no device"),
        ("[a]\nspeed = 1\nmemory = 4\nbandwith = 3\n", r"\[a\] in .* is no device, as bandwidth is not there"),
        ("", "has none"),
        ("speed = ", "is no TOML"),
    ],
)
def test_files_of_devices_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        read(str(file))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match="can't be read"):
            read(f"{path}/x.toml" if path is tmp_path else str(path))


def facts(method: str, **settings: Any) -> list[dict[str, Any]]:
    given = handed.facts_of(resolve({"method": method, **settings}).experiment)
    return [given(i) for i in range(40)]


def test_ranks_and_devices_become_facts() -> None:
    assert Counter(f["rank"] for f in facts("flora", ranks="4:3,16:1")) == pytest.approx({4: 30, 16: 10}, abs=1)
    assert all(f["rank"] == f["ffn_rank"] for f in facts("flexlora", ranks="4,16"))
    some = facts("legend", devices="phone,laptop")
    assert {(f["speed"], f["memory"], f["bandwidth"]) for f in some} == {(1.0, 8, 20), (2.0, 16, 50)}
    assert facts("fedit") == [{}] * 40


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "fedit", "ranks": "4,8"}, "fedit gives all clients the same rank.*--ranks.*flora.*hetlora"),
        ({"method": "flora", "devices": "phone", "engine": "flower"}, "sites are real; flora asks nothing about either"),
        ({"devices": "phone", "cohorts": "carbon", "grids": "solar", "engine": "flower"}, "cohorts is on the clock of simulated"),
        ({"devices": "phone", "energy_budget": 1.0, "engine": "flower"}, "energy_budget is on the clock of simulated"),
        ({"method": "legend", "devices": "phone", "deadline": 3, "engine": "flower"}, "deadline is on the clock of simulated"),
        ({"method": "flora", "deadline": 3}, "deadline is 3, but no device keeps the time"),
        ({"method": "flora", "ranks": "4,x"}, '"x", which is no rank'),
        ({"method": "flora", "ranks": "4,0"}, '"0", which is no rank'),
        ({"method": "flora", "ranks": "4,-8"}, '"-8", which is no rank'),
        ({"method": "legend", "devices": "toaster"}, 'no device "toaster"'),
    ],
)
def test_what_a_method_can_do_nothing_with_is_said_before_anything_is_loaded(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(settings)


def test_more_ranks_than_a_layer_has_are_said_before_anything_is_trained() -> None:
    bench = tiny.bench("bert")
    people = [ClientInfo(f"client-{r}", 1, {"rank": r}) for r in (4, 33)]
    suited(FedIT(rank=32), bench)
    suited(FLoRA(rank=2), bench, clients=people[:1])
    suited(FedIT(rank=2), bench, clients=people)  # which asks for no ranks
    suited(FedP2EFT(rank=32), bench)  # beside a head of three classes too
    for method, clients in ((FedIT(rank=33), []), (FLoRA(rank=2), people)):
        with pytest.raises(UserError, match=r"^LoRA of rank 33 is more than .*query of .* is 32 x 32: choose ranks up to 32\.$"):
            suited(method, bench, clients=clients)


@pytest.mark.parametrize("text", ["phones:3", "phones,laptop", "laptop,hospital-servers:2"])
def test_a_fleet_stands_alone(text: str) -> None:
    with pytest.raises(UserError, match="a fleet, which stands alone: give it without shares and other kinds"):
        read(text)
