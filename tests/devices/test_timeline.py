"""Turns under way, and the order in which they end, by hand."""

from __future__ import annotations

from weft.devices import Flight, Timeline

SECONDS = {"a": 2.0, "b": 3.0, "c": 5.0}


def test_three_devices_by_hand() -> None:
    """a ends at 2, 4 and 6, b at 3 and 6, c at 5; each begins anew from the version that its end has made."""
    line, seen = Timeline(3), []
    for client, seconds in SECONDS.items():
        line.start(client, 0, seconds)
    for version in range(6):
        flight = line.land()
        assert flight is not None
        seen.append((flight.client, line.now, version - flight.version))
        if not line.landing:
            for client in SECONDS.keys() - line.under_way.keys():
                line.start(client, version + 1, SECONDS[client])
    assert seen == [("a", 2, 0), ("b", 3, 1), ("a", 4, 1), ("c", 5, 3), ("a", 6, 1), ("b", 6, 3)]
    assert line.under_way == {"c": Flight("c", 4, 5, 10), "a": Flight("a", 6, 6, 8), "b": Flight("b", 6, 6, 9)}


def test_room_is_what_concurrency_leaves() -> None:
    line = Timeline(2, now=4.0, under_way=[Flight("a", 0, 0.0, 4.5)])
    assert line.free == 1
    line.start("b", 1, 1.0)
    assert (line.free, line.landing) == (0, False)
    assert line.land() == Flight("a", 0, 0.0, 4.5)
    assert (line.now, line.free) == (4.5, 1)


def test_those_who_end_together_come_by_id_before_anybody_begins() -> None:
    line = Timeline(2)
    for client in "ba":
        line.start(client, 0, 1.0)
    assert not line.landing
    assert getattr(line.land(), "client", None) == "a"
    assert line.landing
    assert getattr(line.land(), "client", None) == "b"
    assert not line.landing
    assert line.land() is None
    assert line.now == 1.0
