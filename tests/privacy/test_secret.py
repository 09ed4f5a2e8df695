"""Secret random numbers: what they are distributed like, and that only a key gives them again."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from weft.errors import UserError
from weft.privacy.secret import KEY, Secret


def test_the_stream_is_that_of_aes_in_counter_mode() -> None:
    """By hand, block for block: what it encrypts are the numbers 0, 1, 2 …"""
    key = hashlib.sha256(b"some key").digest()
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    by_hand = b"".join(ecb.update(i.to_bytes(16, "big")) for i in range(4))
    secret = Secret(key)
    assert secret.bytes(5) + secret.bytes(0) + secret.bytes(59) == by_hand


def test_fresh_secrets_differ_and_derived_ones_come_again() -> None:
    assert Secret.fresh().bytes(32) != Secret.fresh().bytes(32)
    assert Secret.of(3, "noise", 1).bytes(32) == Secret.of(3, "noise", 1).bytes(32)
    keys: list[tuple[object, ...]] = [(), (1, 2), (12,), ("1", 2), (2, 1), (b"1", 2), ("", 1, 2), ("1,2",)]
    assert len({Secret.of(*k).key for k in keys}) == len(keys)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        Secret(bytes(KEY // 2))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with pytest.raises(UserError, match=r"need the package cryptography: .*\[privacy\]"):
        Secret.fresh()


def test_uniform_numbers_are_uniform() -> None:
    u = Secret.of("uniform").uniform((50, 400))
    assert u.shape == (50, 400)
    assert u.dtype == torch.float64
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    assert torch.equal(u * 2**53, (u * 2**53).round())
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


def test_normal_numbers_are_normal_and_independent() -> None:
    z = Secret.of("normal").normal((40_000,)).numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / 200
    assert abs(np.corrcoef(z[:-1] ** 2, z[1:] ** 2)[0, 1]) < 4 / 200
    assert abs(stats.kurtosis(z)) < 4 * (24 / len(z)) ** 0.5
    assert Secret.of("normal").normal((2, 3), torch.float32).dtype == torch.float32
    assert Secret.of("normal").normal(()).shape == ()


def test_a_normal_number_takes_eight_uniform_ones() -> None:
    """That is what makes it hard to undo."""
    one, other = Secret.of("cost"), Secret.of("cost")
    one.normal((3,))
    other.bytes(3 * 8 * 8)
    assert one.bytes(16) == other.bytes(16)


def test_bernoulli_draws_each_row_by_itself() -> None:
    drawn = Secret.of("rows").bernoulli(0.2, 20_000)
    assert drawn.dtype == bool
    assert stats.binomtest(int(drawn.sum()), 20_000, 0.2).pvalue > 1e-3
    both = int((drawn[:-1] & drawn[1:]).sum())
    assert stats.binomtest(both, 19_999, 0.04).pvalue > 1e-3
    assert Secret.of(0).bernoulli(1.0, 100).all()
    assert not Secret.of(0).bernoulli(0.0, 100).any()
