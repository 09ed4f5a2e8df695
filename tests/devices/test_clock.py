"""A clock over three devices, by hand; and what is left of those who miss its deadline."""

from __future__ import annotations

import pytest

from weft.devices import Clock, Device, Grid, Spent, span, total
from weft.errors import UserError

SLOW = Device(1, 4, 8, downlink=80, latency=0.1, watts=10, joules_per_byte=1e-6, utilisation=0.5, name="slow")
MIDDLE = Device(4, 8, 16, latency=0.2, watts=20, utilisation=0.25, name="middle")
FAST = Device(100, 40, 800, latency=0.0, watts=200, joules_per_byte=1e-8, utilisation=0.5, name="fast")
DEVICES = {"a": SLOW, "b": MIDDLE, "c": FAST}
SPENT = {"a": Spent(1e12, 1e7, 2e6), "b": Spent(3e12, 1e7, 1e6), "c": Spent(1e14, 1e8, 1e8)}


def test_three_devices_by_hand() -> None:
    """a computes 1e12 / 0.5e12 = 2 s, 1e7 bytes come at 1e7 a second, 2e6 go at 1e6; b: 3, 5 and 0.5 s; c: 2, 1 and 1 s."""
    clock = Clock(DEVICES)
    assert [clock.seconds(c, SPENT[c]) for c in "abc"] == pytest.approx([0.1 + 2 + 1 + 2, 0.2 + 3 + 5 + 0.5, 2 + 1 + 1])
    assert clock.late(SPENT) == []
    tick = clock.tick(SPENT, [])
    assert tick.seconds == tick.now == clock.now == pytest.approx(8.7)
    assert tick.slowest == "b"
    assert tick.joules == clock.joules == pytest.approx(10 * 2 + 1e-6 * 1.2e7 + 20 * 3 + 200 * 2 + 1e-8 * 2e8)
    again = clock.tick({"a": SPENT["a"]}, [])
    assert (again.seconds, again.now, again.joules) == pytest.approx((5.1, 13.8, 32))


def test_a_round_lasts_until_its_deadline_if_anybody_misses_it() -> None:
    clock = Clock(DEVICES, deadline=6)
    late = clock.late(SPENT)
    assert late == ["b"]
    tick = clock.tick(SPENT, late)
    assert (tick.seconds, tick.late, tick.slowest) == (6, ["b"], "b")
    assert tick.joules == pytest.approx(494)  # whoever is late has drawn all the same
    assert Clock(DEVICES, deadline=9).tick(SPENT, []).seconds == pytest.approx(8.7)


def test_nobody_waits_for_whoever_fails() -> None:
    failed = SPENT | {"b": Spent(0, 1e7, 0, answered=False)}
    clock = Clock(DEVICES, deadline=6)
    assert clock.late(failed) == []
    tick = clock.tick(failed, [])
    assert tick.seconds == pytest.approx(5.1)
    assert tick.joules == pytest.approx(20 + 12 + 0 + 400 + 2)
    nobody = clock.tick({"b": Spent(0, 0, 0, answered=False)}, [])
    assert (nobody.seconds, nobody.slowest) == (0, None)


def test_a_cohort_that_nobody_can_serve_by_the_deadline_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^no client of the cohort .* 3 s: the first would be c \(fast\) after 4 s; .*\.$"):
        Clock(DEVICES, deadline=3).late(SPENT)


@pytest.mark.parametrize("numbers", [{"speed": -1}, {"bandwidth": 0}, {"memory": 0}, {"watts": -1}, {"utilisation": 0}])
def test_devices_that_cannot_be(numbers: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(numbers))):
        Device(**({"speed": 1, "memory": 1, "bandwidth": 1} | numbers))


def test_a_clock_goes_on_where_it_was_saved() -> None:
    clock = Clock(DEVICES)
    clock.tick(SPENT, [])
    other = Clock(DEVICES)
    other.restore(clock.saved())
    assert (other.now, other.joules) == (clock.now, clock.joules)


def test_totals_are_of_all_rounds_and_set_up_is_apart() -> None:
    lines = [
        {"clock": {"now": 2.0, "joules": 3.0, "late": ["a"], "gone": [], "waited": 0.5}},
        {"clock": {"now": 5.0, "joules": 4.0, "late": [], "gone": ["b", "c"], "waited": 1.0}},
    ]
    setup = {"setup_seconds": 0.0, "setup_joules": 0.0, "setup_grams": 0}
    assert total(lines) == {"seconds": 5.0, "joules": 7.0, "grams": None, "late": 1, "gone": 2, "waited": 1.5} | setup
    for line, grams in zip(lines, (0.5, 0.25), strict=True):
        line["clock"]["grams"] = grams
    assert (total(lines) or {})["grams"] == 0.75
    found = total(lines, lines[:1])
    assert found is not None
    assert (found["setup_seconds"], found["setup_joules"]) == (2.0, 3.0)
    assert total([{"round": 0}]) is None


def test_spans_for_people() -> None:
    assert [span(s) for s in (0.3529, 119, 750, 11520, 200000)] == ["0.353 s", "119 s", "12.5 min", "3.2 h", "2.31 d"]


def test_turns_that_nobody_waits_for_cost_the_carbon_of_the_hours_in_which_they_were_played() -> None:
    """a and c draw 32 and 402 J within the first hour, of 100 g a kWh; the server updates in the second one, of 900 g."""
    grid = Grid("two", (100.0, 900.0, *[500.0] * 22))
    clock = Clock(DEVICES, grids=dict.fromkeys("abc", grid))
    spent = {c: SPENT[c] for c in "ac"}
    tick = clock.reach(3700.0, spent, {"a": 10.0, "c": 3000.0}, "c")
    assert (tick.seconds, tick.now, clock.now, tick.slowest) == (3700, 3700, 3700, "c")
    assert tick.joules == clock.joules == pytest.approx(32 + 402)
    assert tick.grams == clock.grams == pytest.approx(100 * (32 + 402) / 3.6e6)
    later = clock.reach(3800.0, spent, {"a": 3500.0, "c": 3705.0}, "c")  # a was under way when the server updated last
    assert later.grams == pytest.approx((100 * 32 + 900 * 402) / 3.6e6)
    assert clock.grams == pytest.approx((100 * 466 + 900 * 402) / 3.6e6)
    assert Clock(DEVICES).reach(1.0, spent, {}, "c").grams is None
