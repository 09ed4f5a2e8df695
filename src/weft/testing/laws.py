"""The laws of the contract, to be run over any method: ``test_laws = laws.over(MyMethod())``."""

from __future__ import annotations

from collections.abc import Callable

from weft.federation.method import Method
from weft.testing import of_privacy, of_rules, of_runs, of_settings

Law = Callable[[Method], None]

LAWS: dict[str, Law] = {
    "pack": of_runs.check_packs,
    "return": of_runs.check_return,
    "sums": of_rules.check_sums,
    "rows": of_privacy.check_rows,
    "sites": of_runs.check_sites,
    "scores": of_runs.check_scores,
    "ledger": of_runs.check_ledger,
    "resuming": of_runs.check_resuming,
    "backbone": of_runs.check_backbone,
    "loading": of_runs.check_loading,
    "learning": of_runs.check_learning,
    "counting": of_rules.check_counting,
    "reading": of_rules.check_reading,
    "roll-back": of_rules.check_roll_back,
    "single precision": of_settings.check_single_precision,
    "half precision": of_settings.check_half_precision,
    "codecs": of_settings.check_codecs,
    "nobody": of_settings.check_nobody,
    "elsewhere": of_settings.check_elsewhere,
}
"""Name -> the law, a function that raises AssertionError with a sentence where a method breaks it."""


def check(method: Method, *names: str) -> None:
    """Hold a method to these laws, or to all.

    Raises:
        AssertionError: it breaks one; the message says which, and how.
    """
    for name in names or LAWS:
        LAWS[name](method)


def over(*methods: Method) -> Callable[[Method, str], None]:
    """One test for each law and method, to be given a name that pytest collects. Needs pytest."""
    import pytest

    @pytest.mark.parametrize("law", LAWS)
    @pytest.mark.parametrize("method", methods, ids=[m.info.slug for m in methods])
    def test(method: Method, law: str) -> None:
        LAWS[law](method)

    return test
