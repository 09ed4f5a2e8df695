"""Tensors as integers: means by what clients weigh, right to a level, and no sum that can run over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secure_sums import Sum
from weft.communication.strict import Refused
from weft.errors import UserError
from weft.privacy.sums.fixed_point import FixedPoint
from weft.privacy.sums.sum_terms import SumTerms
from weft.privacy.sums.whole_numbers import WholeNumbers


def added(vectors: list[np.ndarray], width: int = 4) -> np.ndarray:
    """Modulo 2^(8·width), in Python's integers."""
    total = [sum(column) % 256**width for column in zip(*(v.tolist() for v in vectors), strict=True)]
    return np.array(total, np.uint32)


@st.composite
def points(draw: st.DrawFn) -> FixedPoint:
    """All that are allowed, those at the edge too."""
    width = draw(st.integers(1, 4))
    clients = draw(st.integers(1, min(60, 2 ** (8 * width - 2))))
    largest = (2 ** (8 * width) // clients).bit_length() - 1
    bits = draw(st.one_of(st.just(largest), st.integers(2, largest)))
    heaviest = draw(st.integers(1, (2 ** (8 * width - 1) - 1) // clients))
    return FixedPoint(draw(st.floats(1e-6, 1e6)), bits, clients, heaviest, width=width)


@given(points(), st.booleans(), st.booleans())
def test_all_clients_at_the_clip_do_not_run_over(point: FixedPoint, below: bool, at_random: bool) -> None:
    """The other public project's error: sums beyond the range come out with the other sign."""
    corner = np.full(3, -point.clip if below else point.clip)
    uniform = np.array([0.0, 0.5, np.nextafter(1, 0)]) if at_random else None
    sent = [point.encoded(corner, point.heaviest, uniform)] * point.clients
    total = added(sent, point.width)
    assert point.mean(total) == pytest.approx(corner, rel=1e-12)
    assert point.summed(total)[1] == point.clients * point.heaviest


@given(st.integers(1, 4), st.integers(1, 10**6), st.integers(2, 40), st.integers(0, 2**31))
def test_what_could_run_over_is_refused(width: int, clients: int, bits: int, headroom: int) -> None:
    fits = clients * 2**bits + 2 * headroom <= 2 ** (8 * width)
    weights_fit = 2 * (clients + headroom) < 2 ** (8 * width)
    if fits and weights_fit:
        FixedPoint(1.0, bits, clients, headroom=headroom, width=width)
    else:
        with pytest.raises(UserError, match=r"^[^\n]* can't be added up in \d+ bits: let [^\n]*\.$"):
            FixedPoint(1.0, bits, clients, headroom=headroom, width=width)


@pytest.mark.parametrize(("bits", "clients"), [(28, 17), (31, 3), (32, 1), (33, 1), (1, 5), (0, 5), (-1, 5)])
def test_settings_that_run_over_by_hand(bits: int, clients: int) -> None:
    if (bits, clients) == (32, 1):
        assert FixedPoint(1.0, bits, clients).bits == 32
        return
    with pytest.raises(UserError, match=f"values of {bits} bits from {clients} clients"):
        FixedPoint(1.0, bits, clients)


def test_other_settings_that_can_t_be_are_one_sentence() -> None:
    for clip, heaviest in ((0.0, 1), (-1.0, 1), (np.inf, 1), (np.nan, 1), (1.0, 0)):
        with pytest.raises(UserError, match="leaves nothing"):
            FixedPoint(clip, 8, 3, heaviest)
    with pytest.raises(UserError, match="3 numbers of up to ±1000000000"):
        FixedPoint(1.0, 8, 3, 10**9)


def test_a_mean_is_by_weights_not_by_clients() -> None:
    """The other public project's error: a sum of weighted values over the number of clients."""
    point = FixedPoint(clip=2.0, bits=20, clients=3, heaviest=30)
    values = {1: [2.0, 0.0], 9: [0.0, 1.0], 30: [-1.0, 0.5]}
    total = added([point.encoded(np.array(v), w) for w, v in values.items()])
    by_hand = [(1 * 2 - 30) / 40, (9 + 15) / 40]
    assert point.mean(total) == pytest.approx(by_hand, abs=3 * point.step * 30 / 40 / 2)
    plain = np.mean(list(values.values()), axis=0)
    assert np.abs(point.mean(total) - plain).min() > 0.05


@given(points(), st.data())
def test_means_are_right_to_a_level(point: FixedPoint, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 4))
    count = data.draw(st.integers(1, min(point.clients, 6)))
    at_random = data.draw(st.booleans())
    sent, values, weights = [], [], []
    for _ in range(count):
        x = data.draw(arrays(np.float64, n, elements=st.floats(-2 * point.clip, 2 * point.clip)))
        w = data.draw(st.integers(0, 2 * point.heaviest))
        u = data.draw(arrays(np.float64, n, elements=st.floats(0, 1, exclude_max=True))) if at_random else None
        sent.append(point.encoded(x, w, u))
        values.append(np.clip(x, -point.clip, point.clip))
        weights.append(min(w, point.heaviest))
    total = added(sent, point.width)
    if not sum(weights):
        with pytest.raises(Refused, match="add up to 0"):
            point.mean(total)
        return
    wrong = np.abs(point.mean(total) - np.average(values, axis=0, weights=weights))
    bound = count * point.step * point.heaviest / sum(weights) * (1 if at_random else 0.5)
    assert (wrong <= bound * (1 + 1e-9) + 1e-12 * point.clip).all()


@given(st.floats(-1, 1), st.integers(2, 12), st.integers(0, 7))
def test_rounding_at_random_is_right_on_average(value: float, bits: int, weight: int) -> None:
    """Over uniform numbers that stand at equal distances."""
    point, many = FixedPoint(1.0, bits, 5, heaviest=7), 1000
    uniform = (np.arange(many) + 0.5) / many
    levels, _ = point.summed(point.encoded(np.full(many, value), weight, uniform))
    assert levels.mean() == pytest.approx(value * weight, abs=1.01 * point.step * 7 / many)
    assert len(np.unique(levels)) <= 2
    nearest = point.summed(point.encoded(np.array([value]), weight))[0]  # half a level off where it is in the middle
    assert nearest == pytest.approx(value * weight, abs=point.step * 7 / 2 * (1 + 1e-9))


def test_float32_values_are_taken_and_others_are_errors() -> None:
    point = FixedPoint(1.0, 16, 5)
    assert point.mean(point.encoded(np.array([0.25, -1], np.float32))) == pytest.approx([0.25, -1], abs=point.step)
    for values, weight in (([np.nan], 1), ([np.inf], 1), ([0.5], -1)):
        with pytest.raises(ValueError, match="values are finite, and weights not negative"):
            point.encoded(np.array(values), weight)


@given(st.integers(0, 1000), st.integers(1, 50), st.integers(0, 1000), st.integers(1, 4), st.data())
def test_whole_numbers_enter_as_they_are(largest: int, clients: int, headroom: int, width: int, data: st.DataObject) -> None:
    if 2 * (clients * largest + headroom) >= 256**width:
        with pytest.raises(UserError, match="can't be added up"):
            WholeNumbers(largest, clients, headroom, width)
        return
    kind = WholeNumbers(largest, clients, headroom, width)
    numbers = [data.draw(st.lists(st.integers(-largest, largest), min_size=2, max_size=2)) for _ in range(min(clients, 4))]
    numbers += [[largest, -largest]] * (clients - len(numbers))
    noise = [[headroom, -headroom]] + [[0, 0]] * (clients - 1)
    total = added([kind.encoded(np.array(n), np.array(z)) for n, z in zip(numbers, noise, strict=True)], width)
    by_hand = np.add(np.sum(numbers, axis=0, dtype=np.int64), [headroom, -headroom])
    assert kind.summed(total).tolist() == by_hand.tolist()


def test_whole_numbers_beyond_their_bound_are_errors() -> None:
    kind = WholeNumbers(5, 3)
    for bad in (6, -6):
        with pytest.raises(ValueError, match="not within ±5"):
            kind.encoded(np.array([0, bad]))
    with pytest.raises(ValueError, match="noise of shape"):
        kind.encoded(np.array([0, 1]), np.array([1]))
    with pytest.raises(ValueError, match="not negative"):
        WholeNumbers(-1, 3)


def test_noise_hides_values_and_weights_and_adds_up() -> None:
    point = FixedPoint(1.0, 16, 3, heaviest=10, headroom=1000)
    values, noise = np.array([0.5, -0.5]), np.array([100, -200, 7])
    plain, hidden = point.encoded(values, 4), point.encoded(values, 4, noise=noise)
    assert (hidden - plain).tolist() == [100, 2**32 - 200, 7]
    sums, weight = point.summed(added([hidden, plain]))
    assert sums == pytest.approx([4 + 1000 * point.step, -4 - 2000 * point.step], abs=10 * point.step)
    assert weight == 8 + 7


@pytest.mark.parametrize("gone", [(), ("site 1",)])
def test_a_mean_comes_through_the_masks(gone: tuple[str, ...]) -> None:
    """Of those who are in the sum, by their own weights."""
    rng = np.random.default_rng(0)
    point = FixedPoint(3.0, 24, 5, heaviest=100)
    values = {f"site {i}": rng.normal(size=40) for i in range(5)}
    weights = {c: int(rng.integers(1, 101)) for c in values}
    sent = {c: point.encoded(v, weights[c], rng.random(40)) for c, v in values.items()}
    sum_ = Sum(SumTerms("a run", 0, 41), sent).played({"masked": gone})
    there = [c for c in values if c not in gone]
    want = np.average([values[c] for c in there], axis=0, weights=[weights[c] for c in there])
    bound = 5 * point.step * 100 / sum(weights[c] for c in there)
    assert point.mean(sum_.server.total()) == pytest.approx(want, abs=bound)
