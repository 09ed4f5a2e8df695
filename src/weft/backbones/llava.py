"""LLaVA as a reader of what its frozen tower makes of pictures: they go through the tower once, whoever trains how often.

H. Liu, C. Li, Q. Wu, Y. J. Lee, "Visual Instruction Tuning", NeurIPS 2023, arXiv 2304.08485. A picture is N vectors of the tower,
which the connector, a small MLP, brings to the width of the language model; they stand among the words, where a prompt has as
many tokens for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

from weft.backbones.backbone import Site

KIND = "llava"
TOWER = "model.vision_tower"
CONNECTOR = "model.multi_modal_projector"


def connector(model: LlavaForConditionalGeneration) -> Site:
    """The connector, as a place for parts."""
    module = model.get_submodule(CONNECTOR)
    first, second = (module.get_submodule(name) for name in ("linear_1", "linear_2"))
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    return Site(CONNECTOR, "connector", first.in_features, second.out_features, block=None)


class LlavaReader(LlavaForConditionalGeneration):
    """The checkpoint's own tensors; it takes ``image_features`` in the place of ``pixel_values``."""

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """[n, N, d], what the frozen tower makes of pictures, before the connector."""
        layers = self.config.vision_feature_layer
        hidden = self.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        chosen = [hidden[i] for i in ([layers] if isinstance(layers, int) else layers)]
        if self.config.vision_feature_select_strategy == "default":
            chosen = [each[:, 1:] for each in chosen]  # without the class token
        return torch.cat(chosen, -1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """
        Args:
            input_ids, attention_mask: [n, T]. image_features: [n, N, d] of the picture of each row; a row without tokens for one
                does not see it. None = no row has a picture.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if image_features is not None:
                # of all rows, so that clients' parts find theirs in the connector, also where a row has no picture
                seen = self.model.multi_modal_projector(image_features)
                places = input_ids == self.config.image_token_id
                inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), seen[places.any(1)].to(inputs_embeds))
        kept = {name: value for name, value in kwargs.items() if name in ("use_cache", "logits_to_keep")}
        only = kept.pop("logits_to_keep", 0)
        out = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            return_dict=True,
            **kept,
        )
        hidden = out.last_hidden_state[:, -only:] if isinstance(only, int) and only else out.last_hidden_state
        return LlavaCausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(  # type: ignore[override]  # by position it takes the tokens alone
        self, input_ids: Any, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """A picture is looked at with the prompt, and not again with each token that follows.

        The library reads the names of arguments: behind ``kwargs`` it looks for those of ``forward``.
        """
        features = kwargs.pop("image_features", None)
        above: Any = super(LlavaForConditionalGeneration, self)
        found: dict[str, Any] = above.prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        return found | ({"image_features": features} if features is not None and first else {})
