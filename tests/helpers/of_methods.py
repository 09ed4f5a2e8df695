"""What each method's own test file says about it, collected by name: a new method is found here without an edit of any list.

The tests of the method ``my-method`` are in ``tests/methods/FAMILY/test_my_method.py``. Tests that run over every method look
there for:

    BYTES           what it sends and gets, as a `bytes_of.Case`; every method says it
    BYTES_VARIANTS  the same for other settings: a dictionary from a few words to a case
    TINY            settings without which a tiny model of the tests is too small for it
    PAGE_SAYS       setting -> what the method's page must say of a default that is not everybody's
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import ModuleType
from typing import Any

from paths import ROOT
from weft.methods.discovery import sources

FOLDER = ROOT / "tests" / "methods"


def slugs() -> list[str]:
    """Methods of this package, sorted; what other packages add on this machine has its tests there."""
    return sorted(slug for slug, source in sources().items() if source.package == "weft")


@functools.cache
def own(slug: str) -> ModuleType | None:
    """A method's own test file as a module; None if there is none."""
    name = f"test_{slug.replace('-', '_')}"
    found = sorted(FOLDER.glob(f"*/{name}.py"))
    if not found:
        return None
    spec = importlib.util.spec_from_file_location(f"of_methods.{name}", found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def said(name: str) -> dict[str, Any]:
    """Slug -> what its test file calls ``name``, of the methods whose files do."""
    return {slug: getattr(own(slug), name) for slug in slugs() if hasattr(own(slug), name)}
