"""What a run says before its first round."""

from __future__ import annotations

import tiny
from weft.federation.method import Method
from weft.methods import FedIT, FedKSeed, HetLoRA
from weft.runs.summary import uploads


def said(method: Method) -> str:
    return uploads(tiny.federation(method, precision="float32").simulation)


def test_what_a_client_may_send_is_counted_whether_or_not_it_is_of_a_part() -> None:
    numbers = 3 * 32 + 3 + 3 * 2 * (2 * 2 * 32)
    assert said(FedIT(rank=2, sites="q,v")) == (
        f"bytes: a client sends up to {4 * numbers / 1000:.2f} kB a round before the codec, of 14 tensors."
    )
    ragged = said(HetLoRA(rank=2, least=1, sites="q,v"))  # whose uploads have the names of its parts
    assert ragged == said(FedIT(rank=2, sites="q,v"))
    assert said(FedKSeed(steps=200)) == "bytes: a client sends up to 800 B a round before the codec, of 1 tensor."
    some = "bytes: a client sends up to 0 B a round before the codec, of 0 tensors, and 1 whose size varies."
    assert said(FedKSeed(steps=None)) == some
