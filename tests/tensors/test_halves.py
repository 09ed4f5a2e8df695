"""Numbers of 16 bits as integers: every finite one has its own, and every integer below the bound is a finite one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.tensors.halves import HALVES, halves, numbers


def test_every_integer_below_the_bound_is_one_finite_number_and_comes_back() -> None:
    codes = torch.arange(HALVES)
    found = numbers(codes)
    assert found.dtype == torch.float16
    assert torch.isfinite(found).all()
    everything = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = everything[np.isfinite(everything)]
    assert set(found.numpy().view(np.uint16).tolist()) == set(finite.view(np.uint16).tolist())
    assert torch.equal(halves(found.double()), codes)
    assert (HALVES - 1).bit_length() == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_become_the_nearest_number_and_what_is_too_large_the_largest(dtype: torch.dtype) -> None:
    values = torch.tensor([0.1, -0.1, 1 / 3, -2.5e-8, 0.0, 1e9, -1e9, 65504.0], dtype=dtype)
    wanted = values.numpy().clip(-65504, 65504).astype(np.float16)
    assert (numbers(halves(values)).numpy() == wanted).all()
