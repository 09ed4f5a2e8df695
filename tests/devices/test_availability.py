"""When clients can be reached: hours and traces, and a clock over three devices by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from weft.devices import Clock, Device, Hours, Spent, read, read_trace, windows
from weft.errors import UserError

HOUR, DAY = 3600.0, 86400.0
KIND = Device(1, 4, 8, latency=0.0, watts=10, joules_per_byte=1e-6, utilisation=0.5, name="kind")
TURN = Spent(1e12, 1e6, 1e6)  # a second down, two of work, and a second up


def daily(text: str) -> Hours:
    return Hours.of(windows(text), every=DAY)


def test_a_night_goes_over_midnight() -> None:
    night = daily("22-6")
    assert [night.until(h * HOUR) / HOUR for h in (0, 5.5, 6, 12, 21.9, 22, 30, 47)] == [6, 6, 6, 12, 21.9, 30, 30, 54]
    assert [night.next(h * HOUR) / HOUR for h in (0, 6, 12, 23, 30, 100)] == [0, 22, 22, 23, 46, 100]


def test_hours_that_touch_are_one_and_a_whole_day_never_ends() -> None:
    assert daily("20-24,0-4").until(21 * HOUR) == 28 * HOUR
    assert daily("9-12,11-15") == daily("9-15")
    assert daily("0-12,12-24") == Hours() == daily("0-24")
    assert daily("18-6,5-20") == Hours()
    assert Hours().until(1e9) == math.inf
    two = daily("9-12,13.5-17")
    assert [two.next(h * HOUR) / HOUR for h in (8, 12, 13, 17)] == [9, 13.5, 13.5, 33]


@pytest.mark.parametrize("text", ["22", "22-", "25-3", "3-25", "6-6", "a-b", "22-6;1-2", "-1-5"])
def test_hours_that_cannot_be(text: str, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(f'[phone]\nspeed = 1\nmemory = 4\nbandwidth = 8\navailable = "{text}"\n')
    with pytest.raises(UserError, match=r'^\[phone\] in .* has available = .*: give hours of the day, .* "22-6" .*\.$'):
        read(str(file))


def test_a_file_of_devices_has_hours(tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(
        '[phone]\nspeed = 1\nmemory = 4\nbandwidth = 8\navailable = "22-6"\n[box]\nspeed = 1\nmemory = 4\nbandwidth = 8\n'
    )
    assert [device.available for device, _ in read(str(file))] == ["22-6", ""]


def three() -> Clock:
    """a at night, b from 5 to 8, c between two seconds of the clock, which begins at 5 in the morning: a goes after an hour."""
    shifted = {"a": [(17 * HOUR, 25 * HOUR)], "b": [(0.0, 3 * HOUR)]}
    hours = {c: Hours.of(spans, every=DAY) for c, spans in shifted.items()} | {"c": Hours.of([(2.0, 7200.0)])}
    return Clock(dict.fromkeys("abc", KIND), hours=hours, hour=5)


def test_three_devices_by_hand() -> None:
    clock = three()
    assert [clock.there(c, 0) for c in "abc"] == [True, True, False]
    assert [clock.there(c, 2) for c in "abc"] == [True, True, True]
    clock.now = HOUR - 3  # a turn takes 4 seconds, and a leaves after 3 of them
    spent = dict.fromkeys("abc", TURN)
    assert clock.gone(spent) == {"a": 3}
    tick = clock.tick(spent, clock.late(spent))
    assert (tick.seconds, tick.gone, tick.late, tick.slowest) == (4, ["a"], [], "c")
    assert tick.joules == pytest.approx((3 / 4 + 1 + 1) * (10 * 2 + 1e-6 * 2e6))
    assert [clock.there(c, clock.now) for c in "abc"] == [False, True, True]
    clock.now = 4 * HOUR  # 9 in the morning: b comes tomorrow at 5, a at 22, and c never again
    assert clock.first("abc") == clock.first("a") == 17 * HOUR
    assert clock.first("b") == 24 * HOUR
    assert clock.first("c") == math.inf
    assert (
        clock.wait(clock.first("abc")) == "nobody is available at 09:00 of day 1: the clock moves on by 13 h, to 22:00 of day 1."
    )
    assert clock.now == 17 * HOUR
    tick = clock.tick({"a": TURN}, [])
    assert (tick.waited, tick.seconds, tick.now) == (13 * HOUR, 4, 17 * HOUR + 4)
    assert clock.tick({"a": TURN}, []).waited == 0


def test_a_round_of_which_all_go_away_lasts_until_they_have() -> None:
    clock = Clock({"a": KIND, "b": KIND}, hours={"a": Hours.of([(0, 1)]), "b": Hours.of([(0, 3)])})
    tick = clock.tick(dict.fromkeys("ab", TURN), [])
    assert (tick.seconds, tick.gone, tick.slowest) == (3, ["a", "b"], "b")


def test_whoever_would_be_late_before_it_goes_is_late() -> None:
    clock = Clock({"a": KIND, "b": KIND, "c": KIND}, deadline=3.5, hours={"a": Hours.of([(0, 3.8)]), "b": Hours.of([(0, 2)])})
    spent = {"a": TURN, "b": TURN, "c": Spent(1e11, 0, 0)}
    assert (clock.late(spent), clock.gone(spent)) == (["a"], {"b": 2})
    assert clock.tick(spent, ["a"]).seconds == 3.5


def test_a_trace_by_ids_or_positions(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("client,start,end\nz,0,10\nz,5,20\nb,3,4\n")
    hours = read_trace(file).of(["a", "b", "z"])
    assert [hours[c].spans for c in "abz"] == [(), ((3, 4),), ((0, 20),)]
    file.write_text("position,start,end\n2,0,10\n")
    assert [bool(h.spans) for h in read_trace(file).of(["a", "b", "z"]).values()] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("client,start,end\na,5,2\n", r"line 2 of the trace .* ends at 2 s and starts at 5 s: let it end later"),
        ("client,start,end\na,0,1\na,5,5\n", r"line 3 of the trace .* ends at 5 s and starts at 5 s"),
        ("client,start,end\na,-1,2\n", r"line 2 of the trace .* has no start from 0 and end"),
        ("client,start,end\na,0,inf\n", r"line 2 of the trace .* has no start from 0 and end"),
        ("client,start,end\na,soon\n", r"line 2 of the trace .* has no start from 0 and end"),
        ("client,start\na,0\n", r"the trace .* has no lines with these columns"),
        ("", r"the trace .* has no lines with these columns"),
    ],
)
def test_traces_that_cannot_be(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"^{words}.*\.$"):
        read_trace(file)


def test_a_trace_of_somebody_else_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("client,start,end\nx,0,1\n")
    with pytest.raises(UserError, match=r'^.* has the client "x", which is none of this run: it has 2 clients, a to b\.$'):
        read_trace(file).of(["a", "b"])
    with pytest.raises(UserError, match=r"^the trace .* can't be read: .*\.$"):
        read_trace(tmp_path / "none.csv")
