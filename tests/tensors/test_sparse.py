"""The largest entries of several tensors at once, and how few entries are written down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from weft.errors import UserError
from weft.tensors import sparse

SHAPES: dict[str, tuple[int, ...]] = {"b": (3, 4), "a": (7,), "c": (2, 1, 2)}


def values(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in SHAPES.items()}


@pytest.mark.parametrize(("share", "k"), [(0.3, 7), (1e-9, 1), (0.5, 12), (1.0, 23)])
def test_the_largest_entries_of_all_tensors_stay_and_all_others_are_0(share: float, k: int) -> None:
    given = values()
    flat = np.concatenate([given[n].numpy().ravel() for n in SHAPES])
    wanted = np.where(np.abs(flat) >= np.sort(np.abs(flat))[-k], flat, 0.0)
    found = sparse.largest(given, share)
    assert {n: tuple(v.shape) for n, v in found.items()} == SHAPES
    assert np.array_equal(np.concatenate([found[n].numpy().ravel() for n in SHAPES]), wanted)
    assert all(torch.equal(v, values()[n]) for n, v in given.items())


@pytest.mark.parametrize("share", [1e-9, 0.3, 1.0])
def test_entries_and_places_are_the_tensors(share: float) -> None:
    given = sparse.largest(values(), share)
    found, places = sparse.entries(given)
    assert sum(len(v) for v in found.values()) == sum(int((v != 0).sum()) for v in given.values())
    assert len(places) == 4  # 23 bits are 3 bytes, of which base 85 makes 4 characters
    again = sparse.dense(found, places, SHAPES)
    assert all(torch.equal(again[n], v) for n, v in given.items())
    assert all(v.dtype == torch.float64 for v in again.values())


def test_the_order_in_which_tensors_are_given_does_not_matter() -> None:
    given = sparse.largest(values(), 0.3)
    found, places = sparse.entries(given)
    other, same = sparse.entries(dict(reversed(given.items())))
    assert places == same
    again = sparse.dense(other, places, dict(reversed(SHAPES.items())))
    assert all(torch.equal(again[n], v) for n, v in given.items())
    assert all(torch.equal(other[n], v) for n, v in found.items())


def test_what_does_not_fit_together_is_refused() -> None:
    found, places = sparse.entries(sparse.largest(values(), 0.3))
    _, all_places = sparse.entries(values())
    short = next(n for n, v in found.items() if len(v))
    wrong: list[tuple[dict[str, Tensor], object, dict[str, tuple[int, ...]]]] = [
        (found, None, SHAPES),
        (found, 7, SHAPES),
        (found, [places], SHAPES),
        (found, "", SHAPES),
        (found, "€€€€", SHAPES),
        (found, "\x00" * 4, SHAPES),
        (found, places + places, SHAPES),
        (found, all_places, SHAPES),
        (found, places, SHAPES | {"d": (1,)}),
        (found, places, SHAPES | {"a": (8,)}),
        (found | {"d": torch.zeros(0)}, places, SHAPES),
        (found | {short: found[short][:-1]}, places, SHAPES),
        (found | {short: found[short].unsqueeze(0)}, places, SHAPES),
        (values(), all_places, SHAPES),
        ({"a": torch.ones(())}, sparse.entries({"a": torch.ones(1)})[1], {"a": (1,)}),
    ]
    for entries, text, shapes in wrong:
        with pytest.raises(ValueError, match=r"\w"):
            sparse.dense(entries, text, shapes)
    behind, _ = sparse.entries({"a": torch.ones(7)})
    _, eight = sparse.entries({"a": torch.ones(8)})
    with pytest.raises(ValueError, match="behind the last"):
        sparse.dense(behind, eight, {"a": (7,)})


def test_more_places_than_a_message_has_room_for_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "LONGEST", 4)
    assert len(sparse.entries(values())[1]) == 4
    with pytest.raises(UserError, match="places of some of 40 entries do not fit"):
        sparse.entries({"a": torch.ones(40)})
