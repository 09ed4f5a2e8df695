"""Operations of a backbone's blocks, as PyTorch counts them, are the sizes of their layers times the tokens of a row."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from weft.backbones.flops import above, powers

D, FFN = 32, 64
LINEAR, ATTENTION = 2 * (4 * D * D + 2 * D * FFN), 4 * D


@pytest.mark.parametrize("model", ["bert", "opt", "phi"])
def test_of_blocks_by_hand(model: str) -> None:
    found = tiny.backbone(model).flops
    for block in (1, 2, 3):
        assert found.forward[block].tolist() == [0, LINEAR, ATTENTION, 0, 0, 0]
        assert found.backward[block].tolist() == [0, LINEAR, 2 * ATTENTION, 0, 0, 0]
    assert not found.forward[0].any()
    assert found.forward[4, 0] == (2 * D * D if model == "bert" else 0)  # its pooler; a head is a part


def test_of_an_encoder_decoder_by_hand() -> None:
    found = tiny.backbone("bart", task="generation", checkpoint="pair").flops
    assert found.forward[1].tolist() == [0, LINEAR, ATTENTION, 0, 0, 0]
    # keys and values of the encoder's tokens; two attentions and what else there is of the decoder's
    assert found.forward[3].tolist() == [0, 2 * 2 * D * D, 0, LINEAR + 2 * 2 * D * D, ATTENTION, ATTENTION]


def test_of_pictures_by_hand() -> None:
    backbone = tiny.backbone("vit")
    found, tokens = backbone.flops, backbone.picture_tokens
    own = found.forward @ powers(np.array(tokens), np.array(0))
    assert own[1:4].tolist() == [LINEAR * tokens + ATTENTION * tokens**2] * 3
    assert own[0] == 2 * D * (tokens - 1) * 3 * backbone.model.config.patch_size**2


def test_a_block_that_is_called_many_times_is_counted_as_often() -> None:
    found = tiny.backbone("albert").flops
    assert found.calls == 3
    assert found.forward[1, 1:3].tolist() == [3 * LINEAR, 3 * ATTENTION]


def test_what_lies_behind_a_place_in_a_block() -> None:
    backbone = tiny.backbone("bert")
    behind = {stage: above(backbone, 1, stage)[1:3].tolist() for stage in (-1, 0, 2, 3, 4)}
    assert behind[-1] == [LINEAR, 2 * ATTENTION]
    assert behind[0] == [LINEAR - 2 * 3 * D * D, 2 * ATTENTION]
    assert behind[2] == [2 * 2 * D * FFN, 0]
    assert behind[3] == [2 * D * FFN, 0]
    assert behind[4] == [0, 0]
