"""What a run says before its first round."""

from __future__ import annotations

import tiny
from weft.methods import FedIT, FedKSeed
from weft.runs.summary import uploads


def said(method: FedIT | FedKSeed) -> str:
    return uploads(tiny.federation(method, precision="float32").simulation)


def test_what_a_client_may_send_is_counted_whether_or_not_it_is_of_a_part() -> None:
    numbers = 3 * 32 + 3 + 3 * 2 * (2 * 2 * 32)
    assert said(FedIT(rank=2, sites="q,v")) == (
        f"bytes: a client sends up to {4 * numbers / 1000:.2f} kB a round before the codec, of 14 tensors."
    )
    assert said(FedKSeed(steps=200)) == "bytes: a client sends up to 800 B a round before the codec, of 1 tensor."
    some = "bytes: a client sends up to 0 B a round before the codec, of 0 tensors, and 1 whose size depends on its rows."
    assert said(FedKSeed(steps=None)) == some
