"""x"""
from bytes_of import HEAD, LAYERS, Case, D, Sizes, Turn


def adapters(part: str):
    def of(turn: Turn) -> Sizes:
        m = D // 8
        return {part: [m * D, m, D * m, D] * LAYERS, {"mine": "head", "ours": "ours_head"}[part]: HEAD}
    return of


BYTES = Case({"reduction": 8}, adapters("ours"), adapters("mine"))
TINY = {"reduction": 2}
