"""LoRA whose factors are both random at the start, with a product of zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.adaptation.lora import LoRA
from weft.errors import UserError
from weft.tensors.init import Init

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone
    from weft.backbones.model_site import Site

SIZE = 0.1


@dataclass(frozen=True)
class Orthogonal(LoRA):
    """A = (X Q_odd)ᵀ / 10 and B = Y Q_even / 10 with the odd and the even rows of one random orthogonal Q [r, r] and standard
    normal X [d_in, r/2], Y [d_out, r/2], so that B A = 0.

    As PEFT's ``init_lora_weights="orthogonal"`` (peft 0.21.2, ``LoraLayer.orthogonal_init``), by D. Tummala, "Rethinking LoRA
    initialisation", https://datta0.github.io/posts/rethink-lora-init/. Rows of A are not orthonormal among themselves.
    """

    def tensors(self, backbone: Backbone, site: Site) -> Mapping[str, Init]:
        """
        Raises:
            UserError: the rank has no halves, or this is a leading part, whose product would not be zero.
        """
        r = self.rank_at(site)
        if self.of not in (None, r):
            raise UserError('a slice of a LoRA can\'t begin with a product of zero: leave lora.start = "orthogonal" out.')
        if r % 2:
            raise UserError(
                f'lora.start = "orthogonal" halves the rank, which is {r} at {site.name}: choose an even rank, or leave it out.'
            )
        return {"A": Init((r, site.d_in), "odd", SIZE), "B": Init((site.d_out, r), "even", SIZE)}
