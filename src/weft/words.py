"""Small words of sentences: every message that counts something, or shows a setting, asks here."""

from __future__ import annotations

from typing import Any


def count(n: int, what: str, many: str = "") -> str:
    """``1 client``, ``1,200 clients``; ``many`` where an s does not make the plural."""
    return f"{n:,} {what if n == 1 else many or what + 's'}"


def shown(value: Any, most: int | None = None) -> str:
    """A setting as a person would type it.

    Args:
        most: of a longer list only so many are shown, and how many there are.
    """
    if most is not None and isinstance(value, (tuple, list)) and len(value) > most:
        return f"{shown(value[:most])} … ({len(value):,} in all)"
    if isinstance(value, (tuple, list)):
        return ",".join(map(shown, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
