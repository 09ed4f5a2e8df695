"""Declared watts are multiplied, counters are added up, and what is idle is taken off both."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counting_machine import Machine
from weft.energy import carbon, counters, meters
from weft.energy.counters import Unreadable
from weft.energy.metering import Metered, Metering, made
from weft.energy.meters import Declared, Measured
from weft.energy.totals import how, kind, total
from weft.errors import UserError
from weft.experiment import resolve

KWH = 3.6e6


def line(training: float, evaluation: float = 1.0, t: int = 0) -> dict[str, Any]:
    return {"round": t, "seconds": {"training": training, "evaluation": evaluation}}


def noted(metering: Metering, training: float, evaluation: float | None = None, t: int = 0) -> dict[str, Any]:
    """A line, as a player has it noted."""
    found = line(training, evaluation or 0.0, t)
    metering.begin()
    metering.trained(found)
    if evaluation is not None:
        metering.scored(found)
    return found


# declared -----------------------------------------------------------------------------------------------------------------


def test_declared_watts_by_hand() -> None:
    """65 W for 90 s are 5850 J, less 5 W idle 5400 J: 1.5 Wh, at 400 g per kWh 0.6 g."""
    said: list[str] = []
    found = noted(Metered(Declared(65, 5), 400, said.append), 90, 30)
    assert found["energy"] == {
        "kwh": pytest.approx(0.0015),
        "co2_kg": pytest.approx(0.0006),
        "source": "declared: 65 W",
        "idle_w": 5,
        "gross_kwh": pytest.approx(5850 / KWH),
        "g_per_kwh": 400,
        "evaluation_kwh": pytest.approx(0.0005),
    }
    assert said == ["energy: declared: 65 W; 5 W of an idle machine are subtracted."]


def test_without_idle_watts_and_carbon_that_is_what_is_told() -> None:
    said: list[str] = []
    found = noted(Metered(Declared(100), None, said.append), 36)
    assert (found["energy"]["kwh"], found["energy"]["co2_kg"]) == (pytest.approx(0.001), None)
    assert said == ["energy: declared: 100 W; nothing of an idle machine is subtracted."]
    assert how([total([found]) or {}]) == "declared: 100 W, idle not subtracted"


def test_runs_beside_each_other_share_the_watts_of_the_machine() -> None:
    found = noted(Metered(Declared(60, 12, jobs=3), None, print), 100)["energy"]
    assert found["source"] == "declared: 60 W shared by 3 jobs"
    assert (found["idle_w"], found["kwh"]) == (4, pytest.approx((20 - 4) * 100 / KWH))


def test_off_notes_nothing() -> None:
    assert noted(made(resolve({}).experiment, print), 10, 5) == line(10, 5)


# measured -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def at_work(machine: Machine, metering: Metering, training: tuple[float, float], scoring: tuple[float, float]) -> dict[str, Any]:
    """A line of a round, and of its scoring, that take so many (seconds, joules); saving takes something too."""
    found = line(training[0], scoring[0])
    metering.begin()
    machine.spend(*training)
    metering.trained(found)
    machine.spend(*scoring)
    metering.scored(found)
    machine.spend(9, 999)
    return found


def test_counters_by_hand_and_an_idle_machine_measured_before(machine: Machine) -> None:
    """3 W idle; 1000 J in 20 s are 940 J net, 100 J in 10 s 70 J."""
    said: list[str] = []
    metering = made(resolve({"energy": "measure", "carbon": 500, "device": "cpu"}).experiment, said.append)
    machine.spend(100, 5000)  # loading
    first = at_work(machine, metering, (20, 1000), (10, 100))["energy"]
    assert first["source"] == "measured: RAPL"
    assert first["idle_w"] == pytest.approx(3, rel=1e-4)
    assert first["gross_kwh"] == pytest.approx(1000 / KWH, rel=1e-4)
    assert first["kwh"] == pytest.approx(940 / KWH, rel=1e-4)
    assert first["co2_kg"] == pytest.approx(0.5 * 940 / KWH, rel=1e-4)
    assert first["evaluation_kwh"] == pytest.approx(70 / KWH, rel=1e-4)
    before = machine.now
    again = at_work(machine, metering, (20, 460), (10, 50))["energy"]
    assert machine.now == before + 20 + 10 + 9  # nobody waited for an idle machine again
    assert again["kwh"] == pytest.approx(400 / KWH, rel=1e-4)
    assert said == ["energy: measured: RAPL; 3 W of an idle machine are subtracted."]
    metering.close()


def test_declared_idle_watts_go_off_counters_too(machine: Machine) -> None:
    metering = made(resolve({"energy": "measure", "idle_watts": 10, "device": "cpu"}).experiment, print)
    machine.spend(100, 5000)  # loading
    found = at_work(machine, metering, (20, 1000), (10, 100))["energy"]
    assert machine.now == 1000 + 100 + 20 + 10 + 9
    assert (found["idle_w"], found["kwh"]) == (10, pytest.approx(800 / KWH, rel=1e-4))
    metering.close()


def test_a_round_below_idle_is_negative_and_said_once(machine: Machine) -> None:
    said: list[str] = []
    metering = made(resolve({"energy": "measure", "idle_watts": 50, "device": "cpu"}).experiment, said.append)
    lines = [at_work(machine, metering, (20, joules), (10, 600)) for joules in (2000, 900, 800)]
    assert [one["energy"]["kwh"] for one in lines] == pytest.approx([1000 / KWH, -100 / KWH, -200 / KWH], rel=1e-3)
    below = [s for s in said if "negative" in s]
    assert below == [
        "energy: round 1 drew less than the 50 W of an idle machine, so that its number is negative: the machine was busy when "
        "they were measured, or they are declared too high."
    ]
    told = total(lines)
    assert told is not None
    assert (told["negative"], told["kwh"]) == (2, pytest.approx(700 / KWH, rel=1e-3))
    assert how([told]) == "measured: RAPL, less 50 W idle, below idle in 2 rounds"
    metering.close()


class Failing:
    """A counter of which the test says what it gives."""

    def __init__(self, *told: float | None, name: str = "RAPL"):
        self.name = name
        self.told: Iterator[float | None] = iter(told)

    def kwh(self) -> float:
        if (value := next(self.told)) is None:
            raise Unreadable(self.name)
        return value


def test_a_round_in_which_a_counter_fails_tells_nothing_which_is_said_once(machine: Machine) -> None:
    said: list[str] = []
    meter = Measured([Failing(0, 1, 1, 0, None, 1, 0, 1, None), Failing(*[0.5] * 9, name="NVML")], idle=0.0)
    metering = Metered(meter, None, said.append)
    lines = [noted(metering, 1, 1, t) for t in range(3)]
    assert [line.get("energy", {}).get("kwh") for line in lines] == [1.5, None, None]
    assert [s for s in said if "could not be read" in s] == [
        "energy: a counter could not be read in round 2, whose energy is not told, nor that of further rounds in "
        "which this happens."
    ]
    told = total(lines)
    assert told is not None
    assert how([told]) == "measured: RAPL, NVML, idle not subtracted, without 2 rounds"
    metering.close()


def test_counters_are_read_within_a_round_too_and_nothing_of_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a counter could begin again twice in a long one."""
    read = threading.Event()

    class Stepping:
        name = "RAPL"
        calls, enough = 0, math.inf

        def kwh(self) -> float:
            self.calls += 1
            if self.calls >= self.enough:
                read.set()
            return 1.0

    monkeypatch.setattr(meters, "EVERY", 0.001)
    counter = Stepping()
    meter = Measured([counter], idle=0.0)
    meter.begin()
    counter.enough = counter.calls + 4  # its thread may have read before the round began, which counts for nothing
    assert read.wait(60)
    meter.close()
    meter._thread.join() if meter._thread else None
    found = meter.drawn(1.0)
    assert found is not None
    assert found.kwh > 1  # what was read in between counts
    assert found.kwh <= counter.calls - 1  # but for what came before it began


# words --------------------------------------------------------------------------------------------------------------------


def test_totals_are_sums_and_say_what_they_are_made_of() -> None:
    declared = [noted(Metered(Declared(65, 5), 400, print), s, 10, t) for t, s in enumerate((90, 60))]
    metering = Metered(Measured([Failing(0, 0.001)], 0.0), None, print)
    measured = [noted(metering, 1, t=2)]
    metering.close()
    found = total([*declared, *measured, line(1, 1, 3)], setup=declared[:1])
    assert found == {
        "kwh": pytest.approx(0.0015 + 0.001 + 0.001),
        "co2_kg": None,  # one round does not tell it
        "source": "declared: 65 W and measured: RAPL",
        "idle_w": pytest.approx(10 / 3),
        "gross_kwh": pytest.approx(65 * 150 / KWH + 0.001),
        "evaluation_kwh": pytest.approx(2 * 600 / KWH),
        "setup_kwh": pytest.approx(0.0015),
        "missing": 1,
        "negative": 0,
    }
    assert kind([found]) == "declared and measured"
    assert how([found]) == "declared: 65 W and measured: RAPL, less 3.33 W idle, without 1 round"
    whole = total(declared)
    assert whole is not None
    assert (kind([whole]), whole["co2_kg"]) == ("declared", pytest.approx(0.001))
    assert how([whole, whole]) == "declared: 65 W, less 5 W idle"
    assert total([line(1), line(2)]) is None


# carbon -------------------------------------------------------------------------------------------------------------------


def test_a_country_is_looked_up_and_grams_are_taken_as_they_are() -> None:
    france, poland = carbon.grams("FRA"), carbon.grams("pol")
    assert france is not None
    assert poland is not None
    assert 10 < france < 100 < 500 < poland < 1000  # nuclear power, and coal
    assert (carbon.grams(380.5), carbon.grams(None), carbon.grams(0.0)) == (380.5, None, 0.0)


def test_an_unknown_country_is_refused() -> None:
    with pytest.raises(UserError, match=r'^carbon is "ZZZ", which is no country in the table of codecarbon: give a three-letter'):
        carbon.grams("ZZZ")


def test_without_codecarbon_grams_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carbon, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^carbon = "DEU" is looked up in a table of codecarbon: in a checkout.*--carbon 380\.$'):
        carbon.grams("DEU")
    assert carbon.grams(380.0) == 380.0


# settings -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"energy": -5}, r'^energy is -5, but must be more than 0\.0 or "off" or "measure"\.$'),
        ({"energy": 0}, r"^energy is 0, but must be more than 0\.0"),
        ({"energy": "loud"}, r'^energy is "loud", but must be a number or "off" or "measure"\.$'),
        ({"energy": True}, r"^energy is true, but must be a number"),
        ({"energy": 65, "idle_watts": -1}, r"^idle_watts is -1, but must be at least 0\.0\.$"),
        ({"energy": 65, "idle_watts": 70}, r"^idle_watts is 70, but must be less than the 65 W that energy declares under load"),
        ({"energy": 65, "idle_watts": 65}, r"^idle_watts is 65, but must be less than the 65 W"),
        (
            {"energy": 65, "carbon": "Germany"},
            r'^carbon is "Germany", but must be grams of CO₂ per kWh, or the three-letter code',
        ),
        ({"energy": 65, "carbon": -1}, r"^carbon is -1, but must be at least 0\.0"),
        ({"idle_watts": 5}, r"^idle_watts is 5\.0, but no energy is taken down: give --energy too, or leave it out\.$"),
        ({"carbon": "DEU"}, r"^carbon is DEU, but no energy is taken down"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refusal:
        resolve(settings)
    assert "\n" not in str(refusal.value)


def test_a_measured_run_may_declare_any_idle_watts() -> None:
    assert resolve({"energy": "measure", "idle_watts": 70, "carbon": 0}).experiment.idle_watts == 70


def test_the_extra_is_declared_and_among_all() -> None:
    import tomllib

    from paths import ROOT

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any("codecarbon" in requirement for requirement in extras["energy"])
    assert "energy" in extras["all"][0]
    assert counters.find_spec("pynvml") is not None  # which codecarbon brings
