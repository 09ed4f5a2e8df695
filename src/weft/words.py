"""Small words of sentences: every message that counts something asks here."""

from __future__ import annotations


def count(n: int, what: str, many: str = "") -> str:
    """``1 client``, ``1,200 clients``; ``many`` where an s does not make the plural."""
    return f"{n:,} {what if n == 1 else many or what + 's'}"
