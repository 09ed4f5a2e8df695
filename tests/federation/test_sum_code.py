"""What clients change as whole numbers, whoever sends what in which size: the mean that their sum stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.communication.strict import Refused
from weft.federation.sum_code import SumCode
from weft.federation.sum_layout import SumLayout
from weft.privacy.hiding import Privacy, mechanisms
from weft.privacy.secret import Secret

MOST, HEAVIEST = 6, 9
LAYOUT = SumLayout({"a": ((3, 2), ((1, 2), (2, 1), (3, 2))), "b": ((2,), ((2,),)), "c": ((), ((),))}, MOST)


def code(text: str = "secagg", alike: bool = False) -> SumCode:
    return SumCode(Privacy(mechanisms(text), insecure=True), LAYOUT, alike)


@st.composite
def clients(draw: st.DrawFn) -> list[tuple[int, dict[str, Tensor]]]:
    """Weights and changes of two to six clients, of which each sends what it likes in a size that there is."""
    found = []
    for k in range(draw(st.integers(2, MOST))):
        g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)) + k)
        sent = {n: draw(st.sampled_from((None, *kinds))) for n, (_, kinds) in LAYOUT.shapes.items()}
        change = {n: torch.rand(s, generator=g, dtype=torch.float64) - 0.5 for n, s in sent.items() if s is not None}
        found.append((draw(st.integers(1, HEAVIEST)), change))
    return found


def total(of: SumCode, people: list[tuple[int, dict[str, Tensor]]]) -> np.ndarray:
    vectors = [of.encoded(change, weight, Secret.of(k)) for k, (weight, change) in enumerate(people)]
    return np.sum(vectors, axis=0, dtype=np.uint32)


@settings(max_examples=150, deadline=None)
@given(clients(), st.integers(6, 29))
def test_each_entry_is_the_weighted_mean_of_those_who_have_it_within_half_a_level_of_each(people: Any, bits: int) -> None:
    of = code(f"secagg:bits={bits},heaviest={HEAVIEST},clip=3")
    found = of.mean(total(of, people))
    assert found.keys() == {n for _, change in people for n in change}
    for name, value in found.items():
        whole, _ = LAYOUT.shapes[name]
        sums, weights, holders = (torch.zeros(whole, dtype=torch.float64) for _ in range(3))
        for weight, change in people:
            if name in change:
                at = tuple(slice(0, n) for n in change[name].shape)
                sums[at] += weight * change[name]
                weights[at] += weight
                holders[at] += 1
        there = weights > 0
        bound = holders * of.step * HEAVIEST / (2 * weights.clamp(min=1)) + 1e-12
        assert ((value - sums / weights).abs() <= bound)[there].all()
        assert (value[~there] == 0).all(), "nobody has sent these entries"


@settings(max_examples=50, deadline=None)
@given(clients(), st.randoms())
def test_the_order_in_which_vectors_are_added_is_no_matter(people: Any, random: Any) -> None:
    of = code()
    vectors = [of.encoded(change, weight, Secret.of(k)) for k, (weight, change) in enumerate(people)]
    before = np.sum(vectors, axis=0, dtype=np.uint32)
    random.shuffle(vectors)
    assert (before == np.sum(vectors, axis=0, dtype=np.uint32)).all()


def test_levels_are_as_fine_as_clients_can_add_up() -> None:
    """2^bits times the clients is 2³² at most, and twice that would be too much."""
    for most in (1, 2, 3, 4, 5, 1000, 1024, 1025):
        bits = Privacy(mechanisms("secagg")).sum_bits(most)
        assert most << bits <= 1 << 32
        assert bits == 30 or most << (bits + 1) > 1 << 32
        SumCode(Privacy(mechanisms("secagg:heaviest=1000")), SumLayout(LAYOUT.shapes, most), False)


def test_a_sum_whose_weights_nobody_can_have_is_refused() -> None:
    """A client that lies about what it weighs is not noticed within bounds, and is beyond them."""
    of = code()
    good = total(of, [(1, {"b": torch.ones(2)}), (2, {"b": torch.ones(2)})])
    for at, value in ((-1, 2**32 - 5), (-1, 10**6), (LAYOUT.numbers, 0)):
        bad = good.copy()
        bad[at] = value
        with pytest.raises(Refused, match="The weights of the clients in the sum are none that they can have"):
            of.mean(bad)
    of.mean(good)
