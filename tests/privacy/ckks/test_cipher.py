"""Ciphertexts of whole numbers: exact sums without the key, and nothing else that is taken for one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from sums_of_sites import key
from weft.communication.strict import Refused
from weft.errors import UserError
from weft.privacy.ckks.cipher import CLEAR, FIXED, SIZE, SLOTS, Cipher, ciphertexts, new_key, read_key
from weft.sites import sum_key
from weft.sites.key_files import SUM_KEY

WHOLE = Cipher(key())
EDGE = 2**31


def drawn(n: int, seed: int, most: int = EDGE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-most, most, n)


@pytest.mark.parametrize("n", [1, SLOTS - 1, SLOTS, SLOTS + 1, 2 * SLOTS + 5])
def test_a_sum_without_the_key_is_exact(n: int) -> None:
    server, parts = Cipher(), [drawn(n, i, EDGE // 8) for i in range(8)]
    total = WHOLE.seal(parts[0])
    for part in parts[1:]:
        total = server.added(total, WHOLE.seal(part))
    assert len(total) == SIZE * ciphertexts(n)
    assert WHOLE.open(total, n).tolist() == sum(parts).tolist()  # type: ignore[attr-defined]


def test_numbers_at_the_edge_are_exact() -> None:
    edges = np.array([EDGE - 1, -EDGE, 1 - EDGE, 0, 1, -1] * 100)
    assert WHOLE.open(WHOLE.seal(edges), len(edges)).tolist() == edges.tolist()


def test_noise_is_far_below_what_rounding_takes_off() -> None:
    """Its standard deviation after a hundred additions, which grows by their root: so far for as many as a sum may have."""
    one = WHOLE.seal(drawn(SLOTS, 0, 2**24))
    total, server = one, Cipher()
    for i in range(1, 100):
        total = server.added(total, WHOLE.seal(drawn(SLOTS, i, 2**24)))
    numbers = np.array(WHOLE._read(total).decrypt())
    spread = float(np.std(numbers - np.rint(numbers)))
    assert 0 < spread * (2**24 / 100) ** 0.5 < CLEAR / 6


def test_the_same_numbers_never_look_the_same() -> None:
    numbers = drawn(SLOTS, 1)
    one, other = (np.frombuffer(WHOLE.seal(numbers), np.uint8) for _ in range(2))
    assert np.mean(one == other) < 0.1
    assert np.mean(one == np.frombuffer(WHOLE.seal(np.zeros(SLOTS, np.int64)), np.uint8)) < 0.1


def test_without_the_key_nothing_opens() -> None:
    numbers = drawn(SLOTS, 2)
    sealed = WHOLE.seal(numbers)
    with pytest.raises(Refused, match="does not open with this key"):
        Cipher(new_key()).open(sealed, SLOTS)
    assert Cipher(key()).open(sealed, SLOTS).tolist() == numbers.tolist(), "a key is its bytes"


def test_sums_over_two_keys_open_with_neither() -> None:
    other = Cipher(new_key())
    both = Cipher().added(WHOLE.seal(drawn(9, 3)), other.seal(drawn(9, 4)))
    for cipher in (WHOLE, other):
        with pytest.raises(Refused, match="sites have others"):
            cipher.open(both, 9)


def test_what_is_changed_is_refused_or_another_ciphertext() -> None:
    """Bytes of a stranger's never end the process, and all that may differ is coefficients."""
    sealed, server, draw, taken = WHOLE.seal(drawn(SLOTS, 5)), Cipher(), random.Random(1), 0
    fixed = {i for part in FIXED for i in range(part.start, part.stop)}
    for _ in range(400):
        bad, where = bytearray(sealed), draw.choice([draw.randrange(150), draw.randrange(SIZE), SIZE - 1 - draw.randrange(60)])
        bad[where] ^= 1 << draw.randrange(8)
        if where in fixed:
            with pytest.raises(Refused, match="no ciphertext of this ring"):
                server.check(bytes(bad))
            continue
        try:
            server.check(bytes(bad))
            taken += 1
        except Refused:
            pass
    assert taken > 10
    for cut in (0, 1, 132, SIZE - 1):
        with pytest.raises(Refused):
            server.added(sealed, sealed[:cut])
        if cut:
            with pytest.raises(Refused):
                server.check(sealed[:cut])
    with pytest.raises(Refused, match="not as many"):
        server.added(sealed, sealed + sealed)
    with pytest.raises(Refused, match="waited for"):
        WHOLE.open(sealed, SLOTS + 1)


@pytest.mark.parametrize("bad", [b"", b"no key", bytes(1000), key()[:-40], key()[:200] + bytes(50)])
def test_what_is_no_key_is_one_sentence(bad: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bad)
    with pytest.raises(UserError, match=r"a: this is no key of encrypted sums: copy it once more from a site"):
        read_key(tmp_path / "a")


def test_a_key_without_its_secret_is_none() -> None:
    context = Cipher()._context
    with pytest.raises(UserError, match="this is no key"):
        Cipher(context.serialize(save_secret_key=False))


def test_a_key_file_is_the_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = sum_key.new(tmp_path / "keys")
    assert path == tmp_path / "keys" / SUM_KEY
    assert path.stat().st_mode & 0o777 == 0o600
    made = read_key(path)
    assert made != key()
    with pytest.raises(UserError, match="is there already and is never overwritten: sites that have it need the same"):
        sum_key.new(tmp_path / "keys")
    with pytest.raises(UserError, match="can't read the key of encrypted sums"):
        read_key(tmp_path / "none")
