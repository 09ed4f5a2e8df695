"""What is promised of a codec's error holds, and is no more than is needed."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codec_texts import TEXTS
from weft.communication.codecs import codec
from weft.tensors.keyed import generator

UNBIASED = [t for t in TEXTS if not any(s in t for s in ("topk", "nnadq", "block8", "nf4", "fp4", "half", "sign"))]
BIASED = [t for t in TEXTS if t not in UNBIASED]
DRAWS = 2000


def decoded(text: str, x: Tensor, draws: int = DRAWS) -> np.ndarray:
    """[draws, n]: what arrives of x, each time with another stream."""
    which, found = codec(text), []
    if "common" in text or "adaptive" in text:  # places, or bits, of one message are not independent
        for i in range(draws // 5):
            wire, meta = which.encode({"a": x.clone()}, generator(i, "own"), common=generator(i, "common"))
            found.append(which.decode(wire, meta)["a"])
    else:
        wire, meta = which.encode({f"a/{i}": x.clone() for i in range(draws)}, generator(0, "own"))
        found += which.decode(wire, meta).values()
    return torch.stack(found).double().numpy().reshape(len(found), -1)


@functools.cache
def many(text: str, which: str) -> np.ndarray:
    return decoded(text, vectors()[which])


def vectors() -> dict[str, Tensor]:
    draw = generator(0, "vectors")
    spike = torch.full((24,), 0.3)
    spike[5] = 2.0
    return {
        "normal": torch.randn(24, generator=draw, dtype=torch.float64),
        "flat": torch.full((24,), -1.5, dtype=torch.float64),
        "spike": spike.double(),
        "heavy": torch.randn(24, generator=draw, dtype=torch.float64) ** 3,
        "between": torch.cat([torch.ones(1), torch.full((23,), 0.5 / 7)]).double(),
    }


def test_what_is_unbiased_says_so_and_nothing_else() -> None:
    assert [t for t in TEXTS if codec(t).unbiased] == UNBIASED
    assert all(math.isfinite(codec(t).omega(100)) for t in UNBIASED)
    assert all(codec(t).omega(100) == math.inf for t in BIASED)
    assert all(0 <= codec(t).delta(n) <= 1 for t in TEXTS for n in (0, 1, 2, 100, 10**6))


@pytest.mark.parametrize("text", UNBIASED)
@pytest.mark.parametrize("which", vectors())
def test_an_unbiased_codec_is_right_on_average(text: str, which: str) -> None:
    x = vectors()[which]
    y, exact = many(text, which), x.numpy()
    error, off, most = y.std(0) / np.sqrt(len(y)), y.mean(0) - exact, np.abs(y).max(0)
    seldom = (y != np.median(y, 0)).sum(0) < 30  # what is expected so seldom may by chance not be drawn at all
    chance = 12 * np.where(seldom, most.max(), most) / len(y)
    assert np.all(np.abs(off) <= 5 * error + np.where((error > 0) | seldom, chance, 0) + 1e-6 * most.max())
    if not text.startswith("randk"):  # whose entries depend on each other
        z = off[~seldom] / error[~seldom]
        assert abs(z.sum()) <= 5 * np.sqrt(len(z))  # a small bias of all entries in one direction adds up here


@pytest.mark.parametrize("text", UNBIASED)
@pytest.mark.parametrize("which", vectors())
def test_its_variance_is_within_omega(text: str, which: str) -> None:
    x = vectors()[which]
    errors = ((many(text, which) - x.numpy()) ** 2).sum(1) / float((x**2).sum())
    assert errors.mean() - 5 * errors.std() / np.sqrt(len(errors)) <= codec(text).omega(24) + 1e-12


@pytest.mark.parametrize(
    ("text", "x", "omega", "reached"),
    [
        # one at the norm, all others half-way between two levels: n / (4 s²), but for the one
        ("qsgd:levels=7,bucket=16", [1.0] + [0.5 / 7] * 7, 8 / (4 * 49), 0.8),
        ("qsgd:levels=7,bucket=8", ([1.0] + [0.5 / 7] * 7) * 4, 8 / (4 * 49), 0.8),
        # equal entries, a level of one: √n (1 - 1/√n)
        ("qsgd:levels=1,bucket=400,norm=l2", [1.0] * 400, 20.0, 0.9),
        ("quant8", [1.0] + [0.5 / 127] * 39, 40 / (4 * 127**2), 0.9),
        ("randk:share=0.1", [1.0] * 20, 9.0, 0.95),
        ("randk:share=0.25,common=true", [1.0] + [0.0] * 19, 3.0, 0.85),
        # the factors of both stages: 4 and 1 + 8/(4 · 49), of 8 entries in a bucket that has its largest
        ("randk:share=0.25+qsgd:levels=7", ([1.0] + [0.5 / 7] * 7) * 4, 4 * (1 + 8 / (4 * 49)) - 1, 0.85),
        ("identity", [1.0, 2.0], 0.0, 0.0),
    ],
)
def test_omega_is_what_it_should_be_and_some_vectors_reach_it(text: str, x: list[float], omega: float, reached: float) -> None:
    assert codec(text).omega(len(x)) == pytest.approx(omega)
    v = torch.tensor(x, dtype=torch.float64)
    errors = ((decoded(text, v) - v.numpy()) ** 2).sum(1).mean() / float((v**2).sum())
    assert errors >= reached * omega


def test_omega_of_many_entries_is_that_of_a_bucket_and_grows_with_the_root() -> None:
    assert codec("qsgd:levels=7,bucket=512").omega(10**6) == codec("qsgd:levels=7,bucket=512").omega(512) == 512 / 196
    assert codec("qsgd:levels=1,bucket=1024,norm=l2").omega(1024) == 32
    assert codec("adaptive:bucket=100").omega(10**6) == codec("qsgd:levels=1,bucket=100").omega(100)


@pytest.mark.parametrize("text", BIASED)
@pytest.mark.parametrize("which", vectors())
def test_delta_is_a_share_of_the_norm_that_arrives(text: str, which: str) -> None:
    x = vectors()[which]
    errors = ((decoded(text, x, 300) - x.numpy()) ** 2).sum(1) / float((x**2).sum())
    assert errors.mean() - 5 * errors.std() / np.sqrt(len(errors)) <= 1 - codec(text).delta(24) + 1e-9


@pytest.mark.parametrize("text", ["nf4:block=16", "fp4", "block8", "half", "half:format=bf16", "sign", "topk:share=0.25"])
@settings(max_examples=150)
@given(values=st.lists(st.floats(-1, 1).map(lambda v: v if abs(v) > 1e-12 else 0.0), min_size=1, max_size=16))
def test_delta_holds_of_any_vector(text: str, values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    error = float(((decoded(text, x, 1)[0] - x.numpy()) ** 2).sum())
    assert error <= (1 - codec(text).delta(len(x))) * float((x**2).sum()) * (1 + 1e-6) + 1e-13 * float((x**2).sum())


@pytest.mark.parametrize(
    ("text", "x", "delta"),
    [
        ("topk:share=0.25", [1.0] * 20, 0.25),
        ("sign", [1.0] + [0.0] * 19, 1 / 20),
        ("topk:share=0.5+sign", [1.0] * 10 + [1.0] + [0.0] * 9, 0.5 * 0.1),
    ],
)
def test_delta_is_what_it_should_be(text: str, x: list[float], delta: float) -> None:
    assert codec(text).delta(len(x)) == pytest.approx(delta)
    v = torch.tensor(x, dtype=torch.float64)
    lost = ((decoded(text, v, 1)[0] - v.numpy()) ** 2).sum() / float((v**2).sum())
    if "+" not in text:
        assert lost == pytest.approx(1 - delta)


@pytest.mark.parametrize("text", ["nf4:block=16", "fp4:block=16", "block8:block=16"])
def test_delta_of_a_code_book_is_reached_half_way_between_two_of_its_values(text: str) -> None:
    """Of a block of one entry at its scale and others half-way between the two values for which most is lost."""
    which, worst = codec(text), 0.0
    for low, high in itertools.pairwise(which.book.tolist()):  # type: ignore[attr-defined]
        x = torch.full((16,), (low + high) / 2, dtype=torch.float64)
        x[0] = 1.0
        worst = max(worst, float(((decoded(text, x, 1)[0] - x.numpy()) ** 2).sum() / (x**2).sum()))
    assert worst == pytest.approx(1 - which.delta(16), rel=1e-4)


@pytest.mark.parametrize(("text", "bits"), [("half", 11), ("half:format=bf16", 8)])
def test_delta_of_half_precision_is_reached_half_way_between_two_of_its_numbers(text: str, bits: int) -> None:
    x = torch.tensor([1 + 2.0**-bits], dtype=torch.float64)
    lost = float(((decoded(text, x, 1)[0] - x.numpy()) ** 2).sum() / (x**2).sum())
    assert 0.95 * (1 - codec(text).delta(1)) <= lost <= 1 - codec(text).delta(1)


def test_delta_of_an_unbiased_codec_follows_from_omega() -> None:
    assert codec("qsgd:levels=7,bucket=16").delta(100) == pytest.approx(1 - 16 / 196)
    assert codec("randk:share=0.1").delta(100) == 0
    assert codec("topk:share=0.5+qsgd:levels=7,bucket=16").delta(100) == pytest.approx(0.5 * (1 - 16 / 196))
    assert codec("randk:share=0.5+nf4").delta(100) == 0
    assert codec("quant8+entropy").delta(100) == codec("quant8").delta(100)
    assert codec("identity").delta(100) == 1


# sums of messages -----------------------------------------------------------------------------------------------------------


def test_what_is_linear_says_so_and_nothing_else() -> None:
    assert [t for t in TEXTS if codec(t).linear] == ["identity", "randk:share=0.3,common=true"]
    assert not codec("randk:common=true+qsgd").linear


@pytest.mark.parametrize("text", ["identity", "randk:share=0.3,common=true"])
def test_a_sum_of_what_several_send_decodes_to_the_sum_of_what_they_decode_to(text: str) -> None:
    which = codec(text)
    tensors = [
        {"a/x": torch.randn(5, 7, generator=generator(i, "x")), "a/y": torch.randn(9, generator=generator(i, "y"))}
        for i in range(3)
    ]
    sent = [which.encode(dict(t), generator(i, "own"), common=generator(0, "common")) for i, t in enumerate(tensors)]
    assert sent[0][1] == sent[1][1] == sent[2][1]
    added = {n: sum(wire[n] for wire, _ in sent) for n in sent[0][0]}
    for name, y in which.decode(added, sent[0][1]).items():  # type: ignore[arg-type]
        assert torch.allclose(y.double(), sum(which.decode(*s)[name].double() for s in sent), atol=1e-5)  # type: ignore[arg-type]


def test_places_that_are_not_common_differ_from_message_to_message_and_from_tensor_to_tensor() -> None:
    def places(text: str, own: int) -> list[list[int]]:
        which = codec(text)
        wire, meta = which.encode({n: torch.ones(200) for n in "ab"}, generator(own), common=generator(9))
        return [x.nonzero().flatten().tolist() for x in which.decode(wire, meta).values()]

    own, common = "randk:share=0.1", "randk:share=0.1,common=true"
    assert places(own, 0) == places(own, 0) != places(own, 1)
    assert places(common, 0) == places(common, 1)
    assert places(own, 0)[0] != places(own, 0)[1]
    assert places(common, 0)[0] != places(common, 0)[1]
