"""Soft words: trainable vectors in the place of word embeddings, before a text (B. Lester et al., "The Power of Scale for
Parameter-Efficient Prompt Tuning", EMNLP 2021, arXiv 2104.08691), plain or made by a small network (P-tuning: X. Liu et al., "GPT
Understands, Too", arXiv 2103.10385).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.adaptation.part import Additive, Mode
from weft.errors import UserError
from weft.tensors.init import Init
from weft.tensors.keyed import numpy_generator
from weft.typed import Called, Count

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

WordPlace = Annotated[Literal["auto", "front", "behind"], Called("place")]
WordEncoder = Annotated[Literal["none", "mlp"], Called("encoder")]
LAYERS = 3


@dataclass(frozen=True)
class SoftWords(Additive):
    """m trainable vectors of the embedding's width among the tokens of every row. The model reads them as it does any token: they
    have positions, they are attended to, and of two kinds of segments they are of the first.

    A row that would be longer than the backbone takes with them loses tokens at the end of its text, see
    :meth:`weft.backbones.token_table.Tokens.collate`.

    Attributes:
        tokens: m.
        where: ``front`` (before the first token, as PEFT does) or ``behind`` it. ``auto``: behind where the head reads the row's
            first token ([CLS]), which it goes on reading then, in front elsewhere.
        encoder: ``none``: the vectors themselves are trained; ``mlp``: they are made of m trained vectors by a network that is
            trained with them, W_3 relu(W_2 relu(W_1 e_i + b_1) + b_2) + b_3 (P-tuning as PEFT has it).
        hidden: width of that network.
        phrase: words whose embeddings the vectors start at, from the beginning again where there are fewer than m; without one
            they start at those of words drawn at random, no special tokens, the same on any machine. Layers of the network start
            uniform on ±1/√(their inputs).
    """

    tokens: Count = 20
    where: WordPlace = "auto"
    encoder: WordEncoder = "none"
    hidden: Count = 128
    phrase: str = ""
    mode: ClassVar[Mode] = "embeds"

    def sites(self, backbone: Backbone) -> list[Site]:
        if backbone.reads != "texts" or backbone.reader is None or backbone.reader.role != "words":
            raise UserError(
                f'backbone "{backbone.name}" has no embedding of words to put soft words among: use a text backbone, such as '
                "--model minilm."
            )
        if backbone.vocabulary is not None:
            raise UserError(
                "soft words stand before texts that are told apart, and not before what a language model writes: use "
                "--set method.tune.kind=prefix for that."
            )
        return [backbone.reader]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        found = {"words": Init((self.tokens, site.d_out), "value", value=self._start(backbone, site))}
        if self.encoder == "mlp":
            widths = (site.d_out, *[self.hidden] * (LAYERS - 1), site.d_out)
            for i in range(LAYERS):
                bound = 1 / math.sqrt(widths[i])
                found[f"weight{i + 1}"] = Init((widths[i + 1], widths[i]), "uniform", bound)
                found[f"bias{i + 1}"] = Init((widths[i + 1],), "uniform", bound)
        return found

    def _start(self, backbone: Backbone, site: Site) -> Tensor:
        """[m, d], rows of the frozen embedding.

        Raises:
            UserError: a phrase without words.
        """
        special = set(backbone.tokenizer.all_special_ids)
        if self.phrase:
            ids = [i for i in backbone.tokenizer(self.phrase, add_special_tokens=False)["input_ids"] if i not in special]
            if not ids:
                raise UserError(f'the phrase "{self.phrase}" holds no words to start at: leave it out, or write some.')
            chosen = [ids[i % len(ids)] for i in range(self.tokens)]
        else:
            draw, size, chosen = numpy_generator(0, "soft words"), min(len(backbone.tokenizer), site.d_in), []
            while len(chosen) < self.tokens:
                i = int(draw.integers(size))
                chosen += [] if i in special else [i]
        with torch.no_grad():  # some embeddings do more than look up
            found: Tensor = backbone.module(site.name)(torch.tensor(chosen, device=backbone.device))
        return found.to("cpu", torch.promote_types(found.dtype, torch.float32))

    def behind(self, backbone: Backbone) -> int:
        """How many tokens of a row stand before them."""
        return int(self.where == "behind" or (self.where == "auto" and backbone.pools == "first"))

    def room(self, backbone: Backbone) -> int:
        return self.tokens

    def inputs(self, backbone: Backbone, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows of token ids in which -1 … -m stand for the vectors, with masks and segments to go with them."""
        ids, at = inputs["input_ids"], self.behind(backbone)
        new = torch.arange(-1, -1 - self.tokens, -1, device=ids.device).expand(len(ids), -1)
        fill = {"input_ids": new, "attention_mask": torch.ones_like(new), "token_type_ids": torch.zeros_like(new)}
        rows = {n: torch.cat([t[:, :at], fill[n], t[:, at:]], 1) for n, t in inputs.items() if n in fill}
        return inputs | rows

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        made = w["words"]  # [k, m, d]
        if self.encoder == "mlp":
            for i in range(1, LAYERS + 1):
                made = torch.bmm(made, w[f"weight{i}"].mT) + w[f"bias{i}"].unsqueeze(1)
                made = F.relu(made) if i < LAYERS else made
        at = (-1 - x).clamp(min=0)
        spread = made.to(out.dtype).unsqueeze(1).expand(-1, x.shape[1], -1, -1)
        put = spread.gather(2, at.unsqueeze(-1).expand(*at.shape, made.shape[-1]))
        return torch.where((x < 0).unsqueeze(-1), put, out)
