"""The registered methods that train LoRA at their own defaults, for tests of what can be chosen about it."""

from __future__ import annotations

from functools import cache

import tiny
from every_method import METHODS, small
from weft.adaptation.lora import LoRA
from weft.federation.message import ClientInfo
from weft.testing.plays import shallow


@cache
def has_lora(slug: str) -> bool:
    """Whether the method's clients have LoRA on its tiny backbone."""
    method = small(slug)
    bench = tiny.federation(method, shallow(method), sizes=(1,)).bench
    return any(isinstance(part, LoRA) for part, _ in method.adapt(bench.backbone, bench.task, ClientInfo("")).values())


def of_lora() -> list[str]:
    return [slug for slug in METHODS if has_lora(slug)]
