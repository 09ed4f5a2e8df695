"""Starting from cached embeddings, or from cached hidden states of an image tower, gives what the whole model gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from by_hand import close
from weaving import CLOSE, grads, leaves, pack_of, values_for
from weft.adaptation.bias import Bias
from weft.adaptation.head import Head
from weft.adaptation.lora import LoRA
from weft.adaptation.optim import Optim
from weft.adaptation.part import Part
from weft.adaptation.residual import Residual
from weft.adaptation.tokens import ClassContext, ImageTokens
from weft.adaptation.values import Values
from weft.backbones.backbone import Backbone
from weft.backbones.prefix import PrefixCache
from weft.federation.batch import make_batch
from weft.federation.bench import Bench
from weft.federation.method import Method
from weft.methods import MPFT, PromptFL

INDEX = np.array([[3, 0, 5, -1], [7, 7, 2, 9], [12, -1, -1, -1]])  # ragged, with padding rows, one row twice
LAST = "names:vision_model.encoder.layers.{0}.self_attn.q_proj,vision_model.encoder.layers.{0}.mlp.fc1"

TOWERS: dict[str, tuple[dict[str, Part], int]] = {
    "context": ({"context": ClassContext(3)}, 4),
    "class-specific context": ({"context": ClassContext(3, per_class=True)}, 4),
    "residual": ({"x": Residual()}, 4),
    "text LoRA": ({"lora": LoRA(2, 4.0, "text.q,text.v")}, 4),
    "text LoRA and residual": ({"lora": LoRA(2, 4.0, "text.ffn"), "x": Residual()}, 4),
    "values beside a context": ({"context": ClassContext(3), "table": Values((("t", (3, 3)),))}, 4),
    "LoRA in the last block": ({"lora": LoRA(2, 4.0, LAST.format(2))}, 2),
    "LoRA in an upper block and the text": (
        {"lora": LoRA(2, 4.0, LAST.format(1)), "text": LoRA(2, 4.0, "text.q"), "x": Residual()},
        1,
    ),
    "LoRA everywhere": ({"lora": LoRA(2, 4.0, "q,text.q")}, 0),
}
"""Parts of a CLIP, and how many of its three blocks (and the embedding after them) lie below them."""


def passes(bench: Bench, parts: dict[str, Part], index: np.ndarray = INDEX) -> tuple[Tensor, dict[str, Tensor], int]:
    pack = leaves(pack_of(bench, [parts] * len(index), [values_for(bench, parts, seed=i) for i in range(len(index))]), "*")
    batch = make_batch(bench.task, bench.table, index, None, bench.backbone.device)
    out = pack(batch)
    return out.logits, grads(pack, pack.loss(out, batch), "*"), pack.cut()


class Counter:
    """How often the linear layers of each block of the image tower have run."""

    def __init__(self, b: Backbone):
        self.runs = [0] * len(b.blocks)
        first = [next(s for s in b.linears if s.block == i).name for i in range(len(b.blocks))]
        self.handles = [b.module(n).register_forward_pre_hook(self._hook(i)) for i, n in enumerate(first)]

    def _hook(self, i: int) -> object:
        def hook(_module: object, _args: object) -> None:
            self.runs[i] += 1

        return hook

    def close(self) -> None:
        for h in self.handles:
            h.remove()


def same(b: Backbone, parts: dict[str, Part], cut: int) -> Bench:
    bench = tiny.bench(b)
    cached = replace(bench, prefix=PrefixCache(b))
    expected, slopes, _ = passes(bench, parts)
    valid = INDEX >= 0
    for _ in range(2):  # the first time rows are computed, the second time they are only read
        counter = Counter(b)
        found, mine, at = passes(cached, parts)
        counter.close()
        assert at == cut
        torch.testing.assert_close(found[valid], expected[valid], **CLOSE)
        assert bool(torch.isfinite(found).all())
        assert mine.keys() == slopes.keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(mine[name], slope, **CLOSE)
    assert counter.runs == [0] * min(cut, 3) + [1] * (3 - min(cut, 3))
    return cached


@pytest.mark.parametrize("what", TOWERS)
def test_a_clip_from_the_cache_is_the_whole_clip_in_logits_and_gradients(what: str) -> None:
    same(tiny.backbone("clip"), *TOWERS[what])


def test_what_is_kept_of_a_picture_is_its_embedding_if_no_part_lies_below_it() -> None:
    cached = same(tiny.backbone("clip"), *TOWERS["context"])
    assert cached.prefix is not None
    (kept,) = cached.prefix._rows.values()
    assert set(kept) == set(range(24)), "a window of the table at a time"
    assert {tuple(v.shape) for v in kept.values() if isinstance(v, Tensor)} == {(1, 16)}
    inputs = cached.backbone.to_model(cached.table.collate(np.arange(24)))
    found, _ = cached.prefix.gather(cached.table, np.arange(24), 4)
    close(found["image_embeds"], cached.backbone.model.embed_images(**inputs), 1e-12)


def test_a_pack_embeds_rows_from_the_same_cache_that_it_trains_from() -> None:
    cached = same(tiny.backbone("clip"), *TOWERS["residual"])
    counter = Counter(cached.backbone)
    parts: dict[str, Part] = {"x": Residual()}
    pack_of(cached, [parts], [values_for(cached, parts, seed=0)]).embed([np.arange(12)])
    counter.close()
    assert counter.runs == [0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "parts", "cut"),
    [
        ("vit", {"head": Head()}, 3),
        ("vit", {"lora": LoRA(2, 4.0, "names:layers.2.attention.q_proj,layers.1.mlp.fc1"), "head": Head()}, 1),
        ("vit", {"prompt": ImageTokens(2), "head": Head()}, 0),
        ("vit", {"prompt": ImageTokens(2, deep=True), "head": Head()}, 0),
        ("vit", {"bias": Bias(), "head": Head()}, 0),
        ("clip", {"head": Head()}, 3),
        ("clip", {"lora": LoRA(2, 4.0, LAST.format(2)), "head": Head()}, 2),
    ],
)
def test_a_classifier_of_images_from_the_cache_is_the_whole_model(kind: str, parts: dict[str, Part], cut: int) -> None:
    b = tiny.backbone(kind, task="classification")
    cached = same(b, parts, cut)
    assert cached.prefix is not None
    if cut == 3:  # a head that reads the class token needs no other; one that averages the patches needs them all
        (kept,) = cached.prefix._rows.values()
        assert {tuple(v.shape) for v in kept.values() if isinstance(v, Tensor)} == {(1 if kind == "vit" else 5, 32)}


def test_embeddings_beyond_the_memory_limit_come_back_from_the_file_bit_for_bit() -> None:
    b = tiny.backbone("clip", precision="bfloat16")
    table = tiny.table(b)
    roomy, tight = PrefixCache(b), PrefixCache(b, memory=100)
    wanted, _ = roomy.gather(table, np.arange(24), 4)
    for _ in range(2):
        found, _ = tight.gather(table, np.arange(24)[::-1].copy(), 4)
        assert torch.equal(found["image_embeds"].flip(0), wanted["image_embeds"])
    assert tight._file is not None
    assert roomy._file is None


@pytest.mark.parametrize(
    "method",
    [
        PromptFL(tokens=3, batch=4, epochs=1.0),
        MPFT(server_epochs=3, shots=2, adapt_steps=3, kd=1.0, optim=Optim("sgd", lr=0.1, schedule="constant")),
    ],
    ids=["promptfl", "mpft"],
)
def test_a_whole_run_is_the_same_with_and_without_the_cache(method: Method) -> None:
    plain, cached = tiny.federation(method).run(), tiny.federation(method, prefix=True)
    counter = Counter(cached.bench.backbone)
    cached.run()
    counter.close()
    rows = len(cached.bench.table)
    assert counter.runs == [-(-rows // 256)] * 3, "every picture goes through the image tower once"
    for name, value in plain.server.shared.items():
        assert isinstance(value, Tensor)
        close(cached.server.shared[name], value)  # type: ignore[arg-type]
    close(cached.global_logits(), plain.global_logits(), 1e-6)
