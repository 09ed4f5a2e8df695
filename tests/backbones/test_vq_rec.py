"""The network over sequences of items: its arithmetic by hand, codes that are kept, and what it is refused for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from weft.backbones import item_codes
from weft.backbones.load import load
from weft.backbones.run_table import tabulate
from weft.backbones.vq_rec import VQRec, VQRecConfig
from weft.data.rows import Rows
from weft.errors import UserError
from weft.testing.data import rows, sequenced
from weft.testing.models import ITEMS, names

CLASSES = ("a/1: w1 w2", "a/2: w3", "b/1: w4", "b/2: w1 w2", "b/3: w9 w9")
"""The first and the fourth have one title."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "item-codes"


def folder(path: Path, **changes: Any) -> str:
    path.mkdir(exist_ok=True)
    settings = {"model_type": "vq-rec", "encoder": tiny.folder("bert"), "pooling": "mean", **ITEMS} | changes
    (path / "config.json").write_text(json.dumps(settings))
    return str(path)


def by_hand(model: VQRec, history: list[int]) -> Tensor:
    """Logits [C] of one sequence, item by item and head by head."""
    config, p = model.config, dict(model.named_parameters())
    d, heads = config.hidden_size, config.num_attention_heads

    def vector(item: int) -> Tensor:
        return torch.stack([p["code.weight"][row] for row in model.rows[model.item[item]].tolist()]).mean(0)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = torch.stack([vector(item) + p["encoder.position.weight"][i] for i, item in enumerate(history)])
    x = norm(x, "encoder.norm")
    for i in range(config.num_hidden_layers):
        at = f"encoder.layers.{i}"
        q, k, v = (x @ p[f"{at}.{n}.weight"].T + p[f"{at}.{n}.bias"] for n in "qkv")
        seen = torch.zeros_like(x)
        for h in range(heads):
            own = slice(h * d // heads, (h + 1) * d // heads)
            for t in range(len(history)):
                scores = torch.stack([q[t, own] @ k[s, own] for s in range(t + 1)]) / math.sqrt(d / heads)
                seen[t, own] = (scores.softmax(0)[:, None] * v[: t + 1, own]).sum(0)
        x = norm(x + seen @ p[f"{at}.o.weight"].T + p[f"{at}.o.bias"], f"{at}.norm1")
        inner = F.gelu(x @ p[f"{at}.fc1.weight"].T + p[f"{at}.fc1.bias"])
        x = norm(x + inner @ p[f"{at}.fc2.weight"].T + p[f"{at}.fc2.bias"], f"{at}.norm2")
    items = [vector(i) for i in range(len(model.item))]
    return torch.stack([torch.cosine_similarity(x[-1], v, dim=0) / config.temperature for v in items])


def scrambled(path: Path, **changes: Any) -> Any:
    backbone = load(folder(path, **changes), classes=CLASSES, precision="float64", device="cpu")
    with torch.no_grad():
        for i, p in enumerate(backbone.model.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype) * 0.7)
    return backbone


def test_logits_are_those_of_the_papers_network_whatever_else_is_in_the_batch(tmp_path: Path) -> None:
    backbone = scrambled(tmp_path / "m")
    sequences = [[0], [2, 4, 3, 2, 2], [1, 0], [4, 2, 3]]
    given = Rows(items=[tuple(s) for s in sequences], labels=np.array([1, 2, 0, 4]))
    out = backbone.model(**tabulate(backbone, given).collate(np.arange(4))).logits
    for row, history in zip(out, sequences, strict=True):
        torch.testing.assert_close(row, by_hand(backbone.model, history))


def test_items_of_equal_codes_have_equal_logits_to_the_last_bit_and_others_have_not(tmp_path: Path) -> None:
    backbone = scrambled(tmp_path / "m")
    item = backbone.model.item.tolist()
    assert item[0] == item[3]
    assert len(set(item)) >= 3
    z = backbone.model(input_ids=torch.randint(1, 6, (50, 5), generator=torch.Generator().manual_seed(0))).logits
    assert torch.equal(z[:, 0], z[:, 3])
    assert all(bool((z[:, i] != z[:, j]).any()) for i in range(5) for j in range(i) if item[i] != item[j])


def test_rows_of_padding_have_no_gradient_and_begin_as_zeros(tmp_path: Path) -> None:
    backbone = load(folder(tmp_path / "m"), classes=CLASSES, precision="float64", device="cpu")
    model, each = backbone.model, ITEMS["centroids"] + 1
    padding = torch.arange(ITEMS["slots"]) * each
    assert not model.code.weight[padding].any()
    assert model.code.weight.shape == (ITEMS["slots"] * each, ITEMS["hidden_size"])
    code = model.code.weight.detach().clone().requires_grad_(True)
    ids, mask = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    users = model.encoder(model.vectors(ids, code), mask)
    model.logits(users, code)[:, :3].logsumexp(1).sum().backward()
    assert code.grad is not None
    assert not code.grad[padding].any()
    assert int(code.grad.any(1).sum()) >= ITEMS["slots"]


def test_a_table_holds_the_latest_items_and_each_row_is_ranked_in_its_domain(tmp_path: Path) -> None:
    backbone = load(folder(tmp_path / "m", max_position_embeddings=3), classes=CLASSES, device="cpu")
    given = Rows(items=[(0, 1, 1, 1, 0), (2, 3)], labels=np.array([1, 4]))
    table = tabulate(backbone, given)
    inputs = table.collate(np.array([1, 0, -1]))
    assert inputs["input_ids"].tolist() == [[3, 4, 0], [2, 2, 1], [0, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert table.allowed is not None
    assert table.allowed[np.array([[0, 1]])].tolist() == [[[True, True, False, False, False], [False, False, True, True, True]]]
    assert tabulate(backbone, given, 2).widths.tolist() == [2, 2]
    with pytest.raises(UserError, match="row 0 has items of several domains"):
        tabulate(backbone, Rows(items=[(0, 2)], labels=np.array([1])))


def test_it_is_described_like_any_backbone(tmp_path: Path) -> None:
    backbone = load(folder(tmp_path / "m"), classes=CLASSES, device="cpu")
    assert backbone.blocks == ["encoder.layers.0", "encoder.layers.1"]
    assert [s.role for s in backbone.linears] == ["q", "k", "v", "o", "ffn.in", "ffn.out"] * 2
    assert [(s.name, s.role) for s in backbone.bottlenecks] == [(f"encoder.layers.{i}.norm2", "ffn.norm") for i in (0, 1)]
    assert (backbone.pools, backbone.d, backbone.heads, backbone.attentions) == ("last", 8, [], [])
    assert backbone.separate_blocks
    assert "code.weight" in backbone.own
    assert backbone.own.keys() == {n for n, _ in backbone.model.named_parameters()}
    again = load(folder(tmp_path / "m"), classes=CLASSES, device="cpu")
    assert backbone.weight_hash == again.weight_hash
    assert backbone.weight_hash != load(folder(tmp_path / "m"), classes=CLASSES[::-1], device="cpu").weight_hash


# codes ----------------------------------------------------------------------------------------------------------------


def test_codes_are_made_once_kept_and_taken_from_the_folder_of_a_backbone_that_has_some(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    first = load(folder(tmp_path / "m"), classes=CLASSES, device="cpu", say=said.append)
    (kept,) = cache.iterdir()
    assert said == ["codes of 5 items are made of their titles, once."]
    assert first.notes[0].endswith(f"are in {kept}.")

    def never(*_: object) -> np.ndarray:
        raise AssertionError

    monkeypatch.setattr(item_codes, "embedded", never)
    assert load(folder(tmp_path / "m"), classes=CLASSES, device="cpu").weight_hash == first.weight_hash
    there = tmp_path / "m" / item_codes.FILE
    kept.rename(there)
    assert load(folder(tmp_path / "m"), classes=CLASSES, device="cpu").weight_hash == first.weight_hash
    for name, changes in ((CLASSES[:4], {}), (CLASSES, {"centroids": 3})):
        with pytest.raises(UserError, match="holds codes of other items, or of other settings: remove it"):
            load(folder(tmp_path / "m", **changes), classes=name, device="cpu")


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_titles_are_embedded_by_the_frozen_encoder_each_as_if_alone(pooling: str) -> None:
    titles = ["w1 w2 w3", "w7", "w1 w2 w3"]
    found = item_codes.embedded(titles, tiny.folder("bert"), pooling)
    encoder = tiny.backbone("bert", precision="float32")
    for title, row in zip(titles, found, strict=True):
        states = encoder.model.base_model(**encoder.tokenizer(title, return_tensors="pt")).last_hidden_state[0]
        wanted = states[0] if pooling == "first" else states.mean(0)
        assert np.abs(row - wanted.detach().numpy()).max() < 1e-4


def test_like_titles_have_like_codes() -> None:
    """By the encoder that comes along: things for baking are nearer to each other than to things for camping."""
    from weft.tensors import product_codes

    titles = [
        f"{look} {use} {thing}"
        for use in ("baking", "camping")
        for look in ("red", "blue")
        for thing in ("tray", "poster", "kit")
    ]
    codes = product_codes.fit(item_codes.embedded(titles, "minilm", "mean"), 16, 4, 5)
    alike = (codes[:, None] == codes[None]).mean(-1)
    assert alike[:6, :6][~np.eye(6, dtype=bool)].mean() > alike[:6, 6:].mean() + 0.1


# refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_attention_heads": 3}, "has to be a multiple of its num_attention_heads"),
        ({"slots": 0}, "slots, centroids and temperature more than 0"),
        ({"temperature": 0}, "temperature more than 0"),
        ({"pooling": "last"}, "pooling first or mean"),
        ({"hidden_size": "x"}, "can't be read"),
        ({"num_attention_heads": 0}, "can't be read"),
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(folder(tmp_path / "m", **changes), classes=CLASSES)


def test_other_tasks_and_other_backbones_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ranks what comes next in a sequence of items: use it with --task next-item"):
        load("vq-rec-small", classes=CLASSES, task="classification")
    with pytest.raises(UserError, match='backbone "minilm" knows no items'):
        load("minilm", classes=CLASSES, task="next-item")
    backbone = load(folder(tmp_path / "m"), classes=names(3), device="cpu")
    with pytest.raises(UserError, match=r"the data are texts, but backbone .* reads items"):
        tabulate(backbone, rows(3))
    with pytest.raises(UserError, match=r"the data are items, but backbone .* reads texts: .* such as vq-rec or vq-rec-small"):
        tabulate(tiny.backbone("bert"), sequenced(rows(3)))


def test_the_papers_network_has_the_papers_numbers() -> None:
    config = VQRecConfig()
    with torch.device("meta"):
        model = VQRec(config, np.zeros((3, 32), np.int64), np.zeros(3, np.int64))
    assert model.code.weight.shape == (8224, 300)
    assert model.code.weight.numel() == 2_467_200
    shipped = json.loads((Path(item_codes.__file__).parent / "made" / "vq-rec" / "config.json").read_text())
    assert {n: v for n, v in shipped.items() if n != "model_type"} == {
        n: getattr(config, n) for n in shipped if n != "model_type"
    }
