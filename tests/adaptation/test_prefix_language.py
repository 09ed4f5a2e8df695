"""Prefixes of language models: the keys and values of earlier tokens may be kept, packs write what their clients write alone."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import pytest
import torch

import tiny
from weft.backbones import quantised
from weft.backbones.load import load
from weft.contract import Batch, MethodInfo, Optim, Output, Pack, Scope, Tune, Tuned
from weft.federation import generating
from weft.tasks.generation_settings import Decoding
from weft.testing.federation import Federation

GREEDY, BEAMS, SAMPLED = (
    Decoding(new_tokens=6),
    Decoding(new_tokens=6, beams=3),
    Decoding(new_tokens=6, temperature=1.0, top_p=0.9),
)


class OfPrefixes(Tuned):
    info: ClassVar[MethodInfo] = MethodInfo(
        slug="of-prefixes", title="Prefixes", paper="none", arxiv="", family="prompts", sends="all", views=("personal",)
    )
    shares: ClassVar[Scope] = Scope.KEEP
    tune: Tune = Tune("prefix", tokens=3, hidden=4)
    optim: Optim = Optim("adamw", lr=5e-2)
    batch: int = 3


@functools.cache
def moved(kind: str) -> Federation:
    """Clients with prefixes of their own after two rounds."""
    run = tiny.federation(OfPrefixes(), kind, task="generation", rounds=2).run()
    for client in run.clients:
        run.simulation.setup.store.load(client)
    return run


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, GREEDY) for kind in ("llama", "gpt2", "gemma2", "t5", "bart")]
    + [("llama", BEAMS), ("llama", SAMPLED), ("t5", BEAMS)],
)
def test_texts_are_those_of_whole_passes_for_every_token_and_those_of_each_client_alone(kind: str, way: Decoding) -> None:
    run = moved(kind)
    rows = [np.array([0, 9]), np.array([20, 3]), np.array([1])]

    def anew(pack: Pack, batch: Batch) -> Output:  # more than one pass, for all that is known of it
        return Output(pack(batch).logits)

    kept = generating.write(run.pack([0, 1, 2]), run.method.forward, rows, way)
    assert kept == generating.write(run.pack([0, 1, 2]), anew, rows, way)
    assert kept == [generating.write(run.pack([k]), run.method.forward, [own], way)[0] for k, own in enumerate(rows)]
    plain = generating.write(run.pack([0, 1, 2]), lambda p, b: p(b, {}), rows, way)
    assert kept != plain, "a prefix does nothing"


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_a_quantised_base_takes_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "LIBRARIES", {("int8", "cpu"): ("torchao",)})
    wider = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    base = load(tiny.folder("llama", "lm", **wider), classes=["answer"], device="cpu", task="generation", quantise="int8")
    packed, alone = (
        tiny.federation(OfPrefixes(), base, task="generation", sizes=(5, 4, 3), pack=k, rounds=1).run() for k in (3, 1)
    )
    for run in (packed, alone):
        for client in run.clients:
            run.simulation.setup.store.load(client)
    for one, other in zip(packed.clients, alone.clients, strict=True):
        assert one.kept
        for name, value in one.kept.items():
            torch.testing.assert_close(value, other.kept[name], rtol=0, atol=2e-3)  # bfloat16 rounds packs otherwise
