"""How a language model writes: how much, by which search, and how freely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from weft.errors import UserError
from weft.typed import Count, NonNegative, check


@dataclass(frozen=True)
class Decoding:
    """How text is generated.

    Attributes:
        new_tokens: most tokens of an answer. beams: hypotheses kept by beam search; 1 = no search.
        temperature: what logits are divided by before a token is drawn; 0 = always the likeliest token, which depends on no seed.
        top_p: tokens are drawn among the likeliest that have this probability together (Holtzman et al., 2020); 1 = among all.

    Raises:
        UserError: a value out of its range, or tokens are both searched for and drawn.
    """

    new_tokens: Count = 64
    beams: Count = 1
    temperature: NonNegative = 0.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0

    def __post_init__(self) -> None:
        check(self)
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                f"beams look for the likeliest answer, and a temperature of {self.temperature:g} draws one: set beams = 1 or "
                "temperature = 0."
            )
