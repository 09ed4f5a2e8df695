"""What Weft asks of a model that writes about pictures, of whichever family it is.

A picture is N vectors of a frozen tower, which looks at it once, whoever trains how often. A connector brings them to the width
of the language model, where they stand among the words: a prompt has N tokens for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from weft.backbones.model_site import Site

READERS = {
    "llava": ("llava", "LlavaReader"),
    "paligemma": ("paligemma", "PaliGemmaReader"),
    "qwen2_vl": ("qwen_vl", "Qwen2VLReader"),
    "qwen2_5_vl": ("qwen_vl", "Qwen25VLReader"),
}
"""Model type -> file and class of its reader."""
FAMILIES = "a LLaVA (glyph-llava), a PaliGemma, a Qwen2-VL or a Qwen2.5-VL"
"""The same for people."""


def reader(model_type: str) -> type[PictureReader] | None:
    """The reader of a type of model, with transformers, which takes seconds to import; None if there is none."""
    if model_type not in READERS:
        return None
    file, name = READERS[model_type]
    found: type[PictureReader] = getattr(import_module(f"weft.backbones.{file}"), name)
    return found


class PictureReader:
    """A class of transformers gets this in front of it, and takes ``image_features`` in the place of ``pixel_values``.

    Attributes:
        TOWER: beginnings of the paths of modules that make ``image_features``, where no part can sit.
        CONNECTOR: path of the module that reads these: linear layers with activations between them.
        TEMPLATE: of prompts where nobody names one; "" = the chat template, or Alpaca's.
        IN_FRONT: a picture's tokens stand before all others, the one that begins a text included; else where :meth:`asked` says.
        TWO_WAY: tokens of a prompt see each other both ways; ``token_type_ids`` are 0 for these and 1 for those of an answer.
    """

    TOWER: ClassVar[tuple[str, ...]]
    CONNECTOR: ClassVar[str]
    TEMPLATE: ClassVar[str] = ""
    IN_FRONT: ClassVar[bool] = False
    TWO_WAY: ClassVar[bool] = False

    if TYPE_CHECKING:  # of the class of transformers
        config: Any
        model: Any
        get_input_embeddings: Any
        get_submodule: Any

    @staticmethod
    def processor(where: str, config: Any, trust: bool) -> Any:
        """The image processor of a checkpoint, which brings all pictures to one size."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(where, trust_remote_code=trust, backend="pil")

    def features(self, pixel_values: Tensor) -> Tensor:
        """[n, N, d], what the frozen tower makes of pictures [n, 3, H, W], before the connector; without gradient."""
        raise NotImplementedError

    def asked(self, tokenizer: Any, mark: str, text: str) -> str:
        """A question with the place of its picture.

        Args:
            mark: the token that stands for all those of a picture.
        """
        return f"{mark}{text}"

    def connected(self, image_features: Tensor) -> Tensor:
        """[n, N, D] of :meth:`features`, as they stand among the words."""
        found: Tensor = self.get_submodule(self.CONNECTOR)(image_features)
        return found

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """[n, T] or [3, n, T] of whole rows [n, T]; None = as the library counts."""
        return None

    def connector(self) -> Site:
        """The connector, as a place for parts."""
        layers = [m for m in self.get_submodule(self.CONNECTOR).modules() if isinstance(m, nn.Linear)]
        return Site(self.CONNECTOR, "connector", layers[0].in_features, layers[-1].out_features, block=None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            input_ids, attention_mask, token_type_ids: [n, T]. image_features: [n, N, d] of the picture of each row; a row without
                tokens for one does not see it. None = no row has a picture.
        """
        if input_ids is not None and position_ids is None and past_key_values is None:
            position_ids = self.positions(input_ids, attention_mask)
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if image_features is not None:
                # of all rows, so that clients' parts find theirs in the connector, also where a row has no picture
                seen = self.connected(image_features)
                places = input_ids == self.config.image_token_id
                inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), seen[places.any(1)].to(inputs_embeds))
        above: Any = super()
        return above.forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **({"token_type_ids": token_type_ids} if self.TWO_WAY else {}),
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """A picture is looked at with the prompt, and not again with each token that follows.

        The library reads the names of arguments: behind ``kwargs`` it looks for those of ``forward``.
        """
        from transformers import GenerationMixin

        above: Any = GenerationMixin
        features, given = (
            kwargs.pop("image_features", None),
            {"past_key_values": past_key_values, "attention_mask": attention_mask},
        )
        found: dict[str, Any] = above.prepare_inputs_for_generation(self, input_ids, **given, **kwargs)
        places = self.positions(input_ids, attention_mask)
        if places is not None:
            found["position_ids"] = places[..., -found["input_ids"].shape[1] :]
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        return found | ({"image_features": features} if features is not None and first else {})


def counted(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[n, T], the number of each token among its row's own, from 0; of padding any."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    return (mask.cumsum(-1) - 1).clamp(min=0)
