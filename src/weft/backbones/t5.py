"""The encoder of a T5 as a classifier: its own encoder, the mean over a row's tokens, and a linear head.

C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020, arXiv
1910.10683. transformers classifies with the decoder, which has no place in a pass over frozen blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MT5EncoderModel, T5EncoderModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooled:
    """What both encoders get on top. Tensors keep the names that they have in all checkpoints of the family."""

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        first, *others = (block.layer[0].SelfAttention for block in self.encoder.block)  # type: ignore[attr-defined]
        for attention in others:
            # Only the first block owns the table of relative positions, and hands what it reads there to the next. Here every
            # block reads the table itself, so that blocks can be left out. It stays one parameter, with one name.
            vars(attention)["relative_attention_bias"] = first.relative_attention_bias
            attention.has_relative_attention_bias = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """
        Args:
            input_ids, attention_mask: [n, T].
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state  # type: ignore[attr-defined]
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(pooled))


class T5Classifier(MeanPooled, T5EncoderModel):
    pass


class MT5Classifier(MeanPooled, MT5EncoderModel):
    pass


CLASSES: dict[str, type] = {"t5": T5Classifier, "mt5": MT5Classifier}
