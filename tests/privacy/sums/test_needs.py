"""Packages that hidden sums need."""

from __future__ import annotations

import pytest

from weft.errors import UserError
from weft.privacy.mechanism import CKKS, SecAgg, Summed
from weft.privacy.sums.needs import needs_packages


@pytest.mark.parametrize(
    ("link", "module", "words"),
    [
        (SecAgg(), "Crypto", r"secagg needs the package pycryptodome: .*\[secagg\]"),
        (CKKS(), "tenseal", r"ckks needs the package tenseal: .*\[he\]"),
    ],
)
def test_missing_packages_are_one_sentence(link: Summed, module: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_packages(link)
    monkeypatch.setattr("weft.privacy.sums.needs.find_spec", lambda name: None if name == module else name)
    with pytest.raises(UserError, match=words):
        needs_packages(link)
