"""Packages that hidden sums need, before any of their modules is imported."""

from __future__ import annotations

from importlib.util import find_spec

from weft import distribution
from weft.errors import UserError
from weft.privacy.mechanism import Summed

PACKAGES = {"secagg": {"cryptography": "cryptography", "pycryptodome": "Crypto"}, "ckks": {"tenseal": "tenseal"}}
"""By mechanism the packages and their modules."""

EXTRAS = {"secagg": "secagg", "ckks": "he"}


def needs_packages(link: Summed) -> None:
    """Raises: UserError: a package is missing."""
    missing = [package for package, module in PACKAGES[link.name].items() if find_spec(module) is None]
    if missing:
        raise UserError(f"{link.name} needs the package {' and '.join(missing)}: {distribution.install(EXTRAS[link.name])}.")
