"""Trainable tokens: a context in front of class names (CoOp), and tokens among the patches of a picture (VPT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from weft.adaptation.part import Additive, Mode
from weft.backbones.options import spoken
from weft.errors import UserError
from weft.tensors.init import Init
from weft.typed import Called, Count, NonNegative

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

Place = Annotated[Literal["end", "middle", "front"], Called("place")]


@dataclass(frozen=True)
class ClassContext(Additive):
    """p trainable tokens around every class name in the text tower of a CLIP (K. Zhou et al., "Learning to Prompt for
    Vision-Language Models", IJCV 2022, arXiv 2109.01134).

    A name becomes [start][v_1 … v_p][name][.][end], the v in the space of the token embedding.

    Attributes:
        tokens: p. where the name stands: ``end`` (after the context), ``middle`` or ``front`` (before it).
        per_class: a context of its own for each class ([C, p, d] instead of [p, d]).
        phrase: words whose embeddings the context starts at; p is then their number. std: of the normal start otherwise.
        words: texts that the context is put around instead of the class names, for :meth:`weft.federation.pack.Pack.texts`.
    """

    tokens: Count = 16
    where: Place = "end"
    per_class: bool = False
    phrase: str = ""
    std: NonNegative = 0.02
    words: tuple[str, ...] = ()
    mode: ClassVar[Mode] = "embeds"

    def sites(self, backbone: Backbone) -> list[Site]:
        if backbone.words is None:
            raise UserError(
                f'backbone "{backbone.name}" has no text tower for class names: use a CLIP, such as --model glyph-clip, with '
                "--task similarity."
            )
        return [backbone.words]

    def length(self, backbone: Backbone) -> int:
        """p.

        Raises:
            UserError: a phrase without words.
        """
        if not self.phrase:
            return self.tokens
        assert backbone.names is not None
        words = backbone.names.words(self.phrase)
        if not words:
            raise UserError(f'the phrase "{self.phrase}" holds no words to start a context at: leave it out, or write some.')
        return len(words)

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        assert backbone.names is not None
        p, classes = self.length(backbone), len(self.words or backbone.names.names)
        shape = (classes, p, site.d_out) if self.per_class else (p, site.d_out)
        if not self.phrase:
            return {"context": Init(shape, "normal", self.std)}
        weight: Tensor = backbone.module(site.name).weight  # type: ignore[assignment]
        words = torch.tensor(backbone.names.words(self.phrase), device=weight.device)
        return {"context": Init(shape, "value", value=weight[words].float().cpu().expand(shape))}

    def inputs(self, backbone: Backbone, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows of token ids in which -1 … -p stand for the context; a class with one of its own has the next p."""
        assert backbone.names is not None
        p, stop = self.length(backbone), backbone.names.words(".")
        before = {"end": p, "middle": p // 2, "front": 0}[self.where]
        rows = []
        for c, name in enumerate(self.words or backbone.names.names):
            word = backbone.names.words(spoken(name))
            context = [-1 - i - (c * p if self.per_class else 0) for i in range(p)]
            rows.append([*context[:before], *word, *context[before:], *stop])
        return inputs | {"input_ids": backbone.names.rows(rows, self.words)}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        context = w["context"].to(out.dtype).flatten(1, -2)  # [k, p, d], or [k, C·p, d]
        at = (-1 - x).clamp(min=0).flatten(1).unsqueeze(-1)
        put = context.gather(1, at.expand(*at.shape[:2], context.shape[-1])).view_as(out)
        return torch.where((x < 0).unsqueeze(-1), put, out)


@dataclass(frozen=True)
class ImageTokens(Additive):
    """n trainable tokens between the class token and the patches of every picture (M. Jia et al., "Visual Prompt Tuning", ECCV
    2022, arXiv 2203.12119): from the first block on (shallow), or new ones at every block (deep).

    Start: uniform on ±√(6 / (3·patch² + d)).

    Attributes:
        tokens: n. deep: new tokens at every block.
    """

    tokens: Count = 10
    deep: bool = False
    mode: ClassVar[Mode] = "enters"

    def sites(self, backbone: Backbone) -> list[Site]:
        backbone.check_more_tokens()
        return backbone.entries[: None if self.deep else 1]

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        config = backbone.model.config
        patch = getattr(getattr(config, "vision_config", config), "patch_size", 16)
        patch = patch if isinstance(patch, int) else math.sqrt(math.prod(patch))
        return {"tokens": Init((self.tokens, backbone.d), "uniform", math.sqrt(6 / (3 * patch**2 + backbone.d)))}

    def constants(self, site: Site) -> Mapping[str, float]:
        return {"drop": float(self.tokens if site.block else 0)}

    def apply(self, module: nn.Module, w: Mapping[str, Tensor], x: Tensor, out: Tensor) -> Tensor:
        tokens = w["tokens"].to(out.dtype).unsqueeze(1).expand(-1, out.shape[1], -1, -1)
        former = int(w["drop"].reshape(-1)[0])  # those that the block before has brought along
        return torch.cat([out[:, :, :1], tokens, out[:, :, 1 + former :]], 2)
