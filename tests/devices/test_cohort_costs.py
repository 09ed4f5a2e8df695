"""Carbon, batteries and budgets over three devices, by hand: what turns cost, whose are cheap, and who is owed one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from weft.devices import Budget, Clock, Device, Grid, Spent, Thrift, read, read_grids
from weft.devices.batteries import Batteries
from weft.errors import UserError

HOUR = 3600.0
NOON = Grid("noon", tuple(100.0 if 10 <= hour < 14 else 500.0 for hour in range(24)))
FLAT = Grid("flat", (300.0,) * 24)
KIND = Device(1, 4, 8, latency=0.0, watts=360, utilisation=0.5, name="kind")
THRIFTY = Device(1, 4, 8, latency=0.0, watts=90, utilisation=0.5, name="thrifty")
TURN = Spent(5e14, 0, 0)  # 1000 seconds, 360 kJ or 0.1 kWh; 90 kJ or 0.025 kWh


def clock(hour: float, share: float = 0.0) -> Clock:
    """a by the sun, b and c as ever; c draws a quarter."""
    grids = {"a": NOON, "b": FLAT, "c": FLAT}
    return Clock({"a": KIND, "b": KIND, "c": THRIFTY}, hour=hour, grids=grids, thrift=Thrift(share))


def test_grams_by_hand() -> None:
    tick = clock(11).tick(dict.fromkeys("abc", TURN), [])
    assert tick.grams == pytest.approx(0.1 * 100 + 0.1 * 300 + 0.025 * 300)
    assert clock(8).tick({"a": TURN}, []).grams == pytest.approx(0.1 * 500)
    before = clock(10 - 250 / HOUR)  # a quarter of the turn lies before ten
    assert before.tick({"a": TURN}, []).grams == pytest.approx(0.1 * (0.25 * 500 + 0.75 * 100))
    assert before.grams == pytest.approx(20)
    assert Clock({"a": KIND}).tick({"a": TURN}, []).grams is None


def test_a_grid_over_days_and_in_no_time() -> None:
    day = 24 * HOUR
    mean = (4 * 100 + 20 * 500) / 24
    assert NOON.of(3.6e6, 0, 3 * day) == pytest.approx(mean)
    assert NOON.of(3.6e6, 11 * HOUR, 12 * HOUR + 5 * day) == pytest.approx((mean * 5 * 24 + 100) / 121)
    assert NOON.of(3.6e6, 9.5 * HOUR, 9.5 * HOUR) == 500
    assert NOON.of(3.6e6, 23 * HOUR + 7 * day, 25 * HOUR + 7 * day) == pytest.approx(500)


def test_whose_turns_cost_the_least_by_hand() -> None:
    """For the work of which a and b draw 1 kWh, at noon a costs 100 g, b 300 and c a quarter, 75; at night a costs 500."""
    noon, night = clock(11), clock(3)
    order = noon.order_at(0)
    assert order is not None
    assert order("abc", [0, 1, 2]) == ["c", "a", "b"]
    order = night.order_at(0)
    assert order is not None
    assert order("abc", [0, 1, 2]) == ["c", "b", "a"]
    order = night.order_at(8 * HOUR)  # eleven in the morning
    assert order is not None
    assert order("abc", [0, 1, 2]) == ["c", "a", "b"]


def test_turns_cost_what_the_last_one_did_and_unknown_ones_the_mean() -> None:
    at = clock(11)
    assert at.cost("a", 0)[0] == pytest.approx(360 * 2)  # 1e12 operations before anything is known
    at.tick({"a": TURN, "b": Spent(1e14, 0, 0), "c": Spent(9e14, 0, 0, answered=False)}, [])
    assert at.cost("a", 0) == pytest.approx((360e3, 10))
    assert at.cost("b", 0) == pytest.approx((72e3, 6))
    assert at.cost("c", 0) == pytest.approx((0.25 * (360e3 + 72e3) / 2, 4.5))


def test_alike_ones_are_taken_by_lot() -> None:
    assert Thrift(0).order({"a": 1.0, "b": 1.0, "c": 0.5}, [2, 0, 1]) == ["c", "b", "a"]
    assert Thrift(0).order({"a": 0.0, "b": 1.0, "c": 0.0}, [2, 0, 1]) == ["c", "a", "b"]


def test_of_those_that_cost_about_as_much_all_take_turns() -> None:
    thrift, drawn = Thrift(0.0), ""
    for _ in range(7):
        drawn += (chosen := thrift.order({"a": 1.0, "b": 1.01, "c": 0.99, "d": 1.3}, [2, 1, 0, 3])[0])
        thrift.took("abcd", {chosen})
    assert drawn == "cbacbac"


def test_a_floor_of_fairness_by_hand() -> None:
    """One of three in each round, half of whose turns are owed: everybody has a sixth of a turn more in each round."""
    thrift, costs, drawn = Thrift(0.5), {"a": 1.0, "b": 2.0, "c": 3.0}, []
    for _ in range(14):
        chosen = thrift.order(costs, [0, 1, 2])[0]
        thrift.took("abc", {chosen})
        drawn.append(chosen)
    assert "".join(drawn) == "aaaaaabcaaaabc"
    equal = Thrift(1.0)
    turns = []
    for _ in range(9):
        turns.append(equal.order(costs, [0, 1, 2])[0])
        equal.took("abc", {turns[-1]})
    assert sorted(turns[3:]) == ["a", "a", "b", "b", "c", "c"]


def test_batteries_by_hand() -> None:
    """Of 1000 J, with 10 W coming in: a turn of 900 J in 20 s leaves 300 J, and 40 s later there are 700."""
    phone = Device(1, 4, 8, latency=0.0, watts=45, utilisation=0.5, battery=1000, recharge=10, name="phone")
    at = Clock({"a": phone, "b": KIND}, floor=0.5)
    turn = Spent(1e13, 0, 0)
    assert at.gone({"a": turn}) == {}
    at.tick({"a": turn}, [])
    assert at.batteries.levels == {"a": 300}
    assert (at.there("a", at.now), at.there("b", at.now)) == (False, True)
    assert at.first("a") == 20 + 20  # 200 J are lacking
    assert at.there("a", 40)
    assert not at.there("a", 39.9)
    at.wait(at.first("a"))
    assert at.batteries.levels["a"] == 500
    gone = at.gone({"a": turn})  # 45 W go out, 10 W come in
    assert gone == {"a": pytest.approx(500 / 35)}
    tick = at.tick({"a": turn}, [])
    assert tick.gone == ["a"]
    assert tick.joules == pytest.approx(45 * 500 / 35)
    assert at.batteries.levels["a"] == pytest.approx(0, abs=1e-9)
    at.batteries.passed(1e6, {})
    assert at.batteries.levels["a"] == 1000


def test_an_empty_device_is_off_whoever_is_drawn() -> None:
    phone = Device(1, 4, 8, battery=1000, name="phone")
    batteries = Batteries({"a": phone})
    batteries.passed(1, {"a": 985})
    assert batteries.wait("a") == 0
    batteries.passed(1, {"a": 6})
    assert batteries.wait("a") == math.inf


def test_budgets_by_hand() -> None:
    at = clock(11)
    at.tick(dict.fromkeys("ab", TURN), [])  # 720 kJ and 40 g
    for enough in (Budget(), Budget(joules=1440e3), Budget(grams=81), Budget(1440e3, 81)):
        assert enough.over(at, ["a", "b"], at.now) is None
    why = Budget(joules=1439e3, grams=1e9).over(at, ["a", "b"], at.now)
    assert why == "the next would cost about 7.2e+05 J, and 7.19e+05 of the energy budget of 1.439e+06 J are left"
    why = Budget(grams=79).over(at, ["a", "b"], at.now)
    assert why == "the next would cost about 40 g, and 39 of the carbon budget of 79 g are left"
    Budget(720e3 + 1, 40.1).check(at)
    with pytest.raises(UserError, match=r"^the carbon budget of 39 g is spent already, by 40 g: give a larger one\.$"):
        Budget(grams=39).check(at)


def test_what_is_known_of_costs_survives() -> None:
    phone = Device(1, 4, 8, latency=0.0, watts=45, utilisation=0.5, battery=1e9, recharge=10, name="phone")
    one, other = (Clock({"a": phone}, grids={"a": FLAT}, thrift=Thrift(0.5)) for _ in range(2))
    one.tick({"a": TURN}, [])
    assert one.thrift is not None
    one.thrift.took("ab", {"a"})
    other.restore(one.saved())
    assert other.saved() == one.saved()
    assert other.saved()["owed"] == {"a": -0.75, "b": 0.25}
    assert other.saved()["levels"]["a"] < 1e9
    assert other.grams > 0


def curve(region: str, **odd: str) -> str:
    return "".join(f"{region},{hour},{odd.get(f'h{hour}', hour)}\n" for hour in range(24))


def test_files_of_grids(tmp_path: Path) -> None:
    file = tmp_path / "grids.csv"
    file.write_text("# of nobody\nregion,hour,g_per_kwh\n" + curve("north") + "\n" + curve("south"))
    found = read_grids(str(file))
    assert [(grid.name, share) for grid, share in found] == [("north", 1), ("south", 1)]
    assert found[0][0].grams == tuple(range(24))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (curve("x", h3="1e308"), r"line 5 of the carbon file .* g per kWh: give grams of 0 or more, to 100000"),
        (curve("x", h3="-5"), r"line 5 of the carbon file .* has -5 g per kWh: give grams of 0 or more"),
        (curve("x").replace("x,7,7\n", "").replace("x,9,9\n", ""), r"the carbon file .* lacks the hours 7, 9 of x"),
        (curve("x") + "x,3,1\n", r"line 26 of the carbon file .* has hour 3 of x once more"),
        (curve("x") + "x,24,1\n", r"line 26 of the carbon file .* has no region, hour and grams"),
        (curve("x", h0="nan"), r"line 2 of the carbon file .* has no region, hour and grams"),
        ("", r"the carbon file .* has no lines with these columns"),
    ],
)
def test_grids_that_cannot_be(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "grids.csv"
    file.write_text("region,hour,g_per_kwh\n" + text)
    with pytest.raises(UserError, match=rf"^{words}.*\.$"):
        read_grids(str(file))


def test_shipped_grids_are_what_their_comments_say() -> None:
    """Shares of sources times grams of each, in the middle of every hour."""
    (solar, one), (windy, three) = read_grids("solar,coal-wind:3")
    assert (one, three) == (1, 3)
    for hour in range(24):
        sun = 0.6 * max(math.sin(math.pi * (hour + 0.5 - 6) / 12), 0)
        assert solar.grams[hour] == round(sun * 45 + (1 - sun) * (0.7 * 490 + 0.3 * 12))
        wind = 0.35 + 0.1 * math.cos(2 * math.pi * (hour + 0.5 - 3) / 24)
        assert windy.grams[hour] == round(wind * 12 + (1 - wind) * 820)
    with pytest.raises(UserError, match=r'^there is no grid "sola": use solar, coal-wind, .* Did you mean "solar"\?$'):
        read_grids("sola")


@pytest.mark.parametrize("line", ["battery = 0", "battery = -1", "recharge = -1", 'region = ""', "region = 3"])
def test_files_of_devices_that_cannot_be(line: str, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(f"[phone]\nspeed = 1\nmemory = 4\nbandwidth = 8\n{line}\n")
    with pytest.raises(UserError, match=rf"^\[phone\] in .* has {line.split()[0]} = .*\.$"):
        read(str(file))
