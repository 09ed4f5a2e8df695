"""What a message costs to read, whatever the codec: so many bytes for each entry that a receiver allows."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from codec_texts import TEXTS
from measured import measured, plain_header
from raw_messages import whole
from weft.communication.codecs import codec
from weft.tensors.keyed import generator

N = 1 << 22  # entries


def message(text: str, x: torch.Tensor) -> bytes:
    which = codec(text)
    wire, meta = which.encode({"a/x": x.clone()}, generator(0), common=generator(0))
    body = safetensors.torch.save(wire)
    length = int.from_bytes(body[:8], "little")
    return whole(plain_header(codec=which.text, meta=meta), json.loads(body[8 : 8 + length]), body[8 + length :])


@pytest.mark.slow
def test_every_codec_is_read_in_a_few_bytes_for_each_entry() -> None:
    x = torch.randn(N, generator=generator(0))
    sent = [message(text, x) for text in TEXTS]
    found = measured([sent[0], *sent], 8 * N, {"a/x": [N]})[1:]
    assert [said for _, _, said in found] == [""] * len(TEXTS)
    costs = {text: grown / N for text, (grown, _, _) in zip(TEXTS, found, strict=True)}
    assert max(costs.values()) < 40, costs
    assert costs["quant8"] < 25, costs
