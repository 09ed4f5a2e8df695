"""What a model and its tokenizer have to agree on: the ids of tokens, where a decoder begins, and the longest row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weft.backbones import trace as tracing
from weft.backbones.translators import shifting
from weft.checks import tokenizers
from weft.errors import UserError

USUAL_LENGTH = 512  # tokens of a row, where a configuration names no limit
TRIED_LENGTH = 8192  # what takes longer rows has no table of positions to run out of


def fitting(name: str, tokenizer: Any, model: Any) -> list[str]:
    """Compare a tokenizer with the embedding that its tokens go to; notes."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        return []
    if not isinstance(embedding, torch.nn.Embedding):  # CANINE hashes its characters
        return []
    own = tokenizer.init_kwargs.get("pad_token") is not None  # else the end of a text was taken for it
    told = getattr(model.config.get_text_config(), "pad_token_id", None)  # of a LLaVA its language model may say it alone
    notes = tokenizers.padding(tokenizer.pad_token_id, told) if own else []
    return notes + tokenizers.vocabulary(name, tokenizer.get_vocab(), tokenizer.all_special_tokens, embedding.num_embeddings)


def starts(name: str, model: Any) -> None:
    """
    Raises:
        UserError: nobody knows which token its decoder begins with.
    """
    try:
        shifting(model)(torch.zeros(1, 1, dtype=torch.long))
    except Exception as e:  # of whatever it lacks
        raise UserError(
            f'the configuration of backbone "{name}" names no token that its decoder begins with: set decoder_start_token_id '
            "in its config.json."
        ) from e


def longest_row(name: str, model: Any, tokenizer: Any, block: str, inputs: Mapping[str, Tensor]) -> int:
    """Tokens of the longest row that the model takes: as its configuration and tokenizer say, if that is true.

    A RoBERTa counts positions from behind its padding id, so that it takes fewer than it has.
    """
    config = getattr(model.config, "text_config", None) or model.config
    limit, named = int(getattr(config, "max_position_embeddings", 0) or USUAL_LENGTH), tokenizer.model_max_length
    limit = min(limit, int(min(named, 1 << 20)))
    if limit <= TRIED_LENGTH:
        limit = tracing.longest(model, block, inputs, limit)
    tokenizers.length(name, limit, tokenizer.num_special_tokens_to_add(pair=True))
    return limit
