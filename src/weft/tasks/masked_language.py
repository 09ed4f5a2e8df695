"""Masked language modelling: hidden tokens of a text, predicted from those on both sides of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.errors import UserError
from weft.tasks.generation import Generation
from weft.typed import Whole


@dataclass(frozen=True)
class MaskedLanguage(Generation):
    """Hidden tokens of running text (Devlin et al., NAACL 2019, arXiv 1810.04805), see :mod:`weft.backbones.masked_table`.

    ``perplexity`` is of the hidden tokens alone, which some call a pseudo-perplexity; ``token_accuracy`` is the share of them
    that are found. Nothing is written.
    """

    kind: ClassVar[str] = "masked"
    known: ClassVar[tuple[str, ...]] = ("perplexity", "token_accuracy")

    metrics: tuple[str, ...] = known
    samples: Whole = 0

    def __post_init__(self) -> None:
        if self.samples or self.text_metrics:
            what = f"the metric {self.text_metrics[0]}" if self.text_metrics else "samples"
            raise UserError(f"a masked language model writes no texts, so that there is nothing for {what}: leave it out.")
        super().__post_init__()
