"""Random answers in the place of gradients: right on average, as private as they say, and the published ones, which are not."""

from __future__ import annotations

import math

import pytest
import torch

from weft.tensors import response
from weft.tensors.keyed import generator

CLIP = 0.12


@pytest.mark.parametrize("value", [0.0, 0.05, -0.1199, 0.12, -0.12, 0.000123])
@pytest.mark.parametrize("epsilon", [0.3, 4.0, 9.0])
def test_the_mean_of_many_answers_is_the_gradient_within_three_standard_errors(value: float, epsilon: float) -> None:
    g = torch.full((10_000,), value, dtype=torch.float64)
    found = response.read(response.answers(g, epsilon, CLIP, generator(0, value, epsilon)), epsilon, CLIP)
    assert abs(float(found.mean()) - value) < 3 * float(found.std()) / 100 + 1e-12


def test_answers_are_whole_numbers_of_a_byte_and_cut_what_is_beyond_the_clip() -> None:
    g = torch.randn(5000, generator=generator(0, "g")) * 0.2
    found = response.answers(g, 0.3, CLIP, generator(0, "a"))
    assert found.dtype == g.dtype
    assert torch.equal(found, found.round().clamp(0, 255))
    assert len(found.unique()) == 256
    sure = response.answers(torch.tensor([9.0, -9.0]), 50.0, CLIP, generator(0, "b"))
    assert sure.tolist() == [255.0, 0.0]
    assert response.read(sure, 50.0, CLIP).tolist() == pytest.approx([CLIP, -CLIP])


def test_an_answer_is_as_private_as_its_epsilon_says() -> None:
    """The likeliest answer of one gradient is no more than e^ε times as likely for another."""
    epsilon, n = 2.0, 400_000
    counts = [
        torch.bincount(response.answers(torch.full((n,), v), epsilon, CLIP, generator(0, v)).long(), minlength=256) / n
        for v in (-CLIP, CLIP)
    ]
    assert float(counts[0][0] / counts[1][0]) == pytest.approx(math.exp(epsilon), rel=0.15)
    assert float(counts[0][0]) == pytest.approx(math.exp(epsilon) / (math.exp(epsilon) + 255), rel=0.05)
    assert response.kept(epsilon) == pytest.approx((math.exp(2) - 1) / (math.exp(2) + 255))


def test_the_published_code_reads_next_to_nothing_of_a_gradient() -> None:
    """As measured by whoever replayed it: no correlation, all read values on one side, and a mean that is not there."""
    g = torch.randn(200_000, generator=generator(0, "g"), dtype=torch.float64) * 0.05
    read = response.read_as_published(response.published(g, 0.3, CLIP, generator(0, "p")), CLIP)
    assert abs(float(torch.corrcoef(torch.stack([g, read]))[0, 1])) < 0.05
    assert float(read.min()) >= -(CLIP**2) / 256
    assert float(read.max()) < CLIP
    assert float(read.mean()) == pytest.approx(0.06, abs=0.003)
    # even without any noise a small gradient and the negative of it look alike
    still = (((torch.tensor([0.03, -0.09]) + CLIP) / (CLIP / 256)).round()).remainder(256)
    assert still.tolist() == pytest.approx([64.0, 64.0])
