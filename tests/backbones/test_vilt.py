"""ViLT as a classifier of answers: logits of transformers, the same twice; its table; what it costs; what is exported of it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, ViltForQuestionAnswering, ViltImageProcessor, ViTImageProcessor

import tiny
from command_line import weft
from exporting import FAST, FEDIT, RUN_CLOSE, assert_answers_about_pictures_as, by_readme, exported
from weft.backbones.backbone import Backbone
from weft.backbones.flops import flops, powers
from weft.backbones.load import load
from weft.backbones.pictured_table import Pictured
from weft.backbones.run_table import tabulate
from weft.data.rows import BOTH, Rows
from weft.errors import UserError
from weft.export import Predictor
from weft.export import load as load_export
from weft.methods.adapters.feddat import FedDAT
from weft.methods.selective.fedbf import FedBF

CLASSES, N = 3, 9
PATCHES = (8 // 4) ** 2


@functools.cache
def backbone(precision: str = "float64") -> Backbone:
    return tiny.backbone("vilt", classes=CLASSES, precision=precision)


def table(rows: Rows | None = None) -> Pictured:
    found = tabulate(backbone(), rows or tiny.rows(N, CLASSES, reads=BOTH), 8)
    assert isinstance(found, Pictured)
    return found


# the model -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_those_of_transformers_up_to_the_order_of_patches() -> None:
    b = backbone()
    plain = ViltForQuestionAnswering(b.model.config).double().eval()
    plain.load_state_dict(b.model.state_dict())
    inputs = b.to_model(table().collate(np.arange(N)))
    assert inputs["pixel_values"].dtype == torch.float64
    torch.manual_seed(3)
    found, wanted = b.model(**inputs).logits, plain(**inputs).logits
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-12)
    assert found.std(0).min() > 1e-3, "logits that are all alike would prove nothing"


@torch.no_grad()
def test_two_passes_agree_to_the_last_bit_whatever_was_drawn_in_between() -> None:
    b = backbone()
    inputs = b.to_model(table().collate(np.arange(N)))
    torch.manual_seed(3)
    first = b.model(**inputs).logits
    torch.manual_seed(4)
    before = torch.get_rng_state()
    assert torch.equal(b.model(**inputs).logits, first)
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 12), (8, 12), (12, 8)])
def test_a_picture_of_another_size_gets_places_between_those_of_the_checkpoint(size: tuple[int, int]) -> None:
    b = backbone()
    plain = ViltForQuestionAnswering(b.model.config).double().eval()
    plain.load_state_dict(b.model.state_dict())
    inputs = b.to_model(table().collate(np.arange(N)))
    inputs["pixel_values"] = torch.randn(N, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(b.model(**inputs).logits, plain(**inputs).logits, rtol=0.0, atol=1e-12)


@torch.no_grad()
def test_both_the_question_and_the_picture_count() -> None:
    rows = tiny.rows(N, CLASSES, reads=BOTH)
    assert rows.texts is not None
    assert rows.images is not None
    own = table(rows).collate(np.arange(N))
    asked = table(Rows(texts=rows.texts[::-1], images=rows.images, labels=rows.labels)).collate(np.arange(N))
    shown = table(Rows(texts=rows.texts, images=rows.images.take(range(N - 1, -1, -1)), labels=rows.labels)).collate(np.arange(N))
    b = backbone()
    first, second, third = (b.model(**b.to_model(inputs)).logits for inputs in (own, asked, shown))
    assert (first - second).abs().max() > 1e-3
    assert (first - third).abs().max() > 1e-3


def test_what_the_description_finds() -> None:
    b = backbone()
    assert (b.reads, b.pools, b.segments, len(b.blocks)) == (BOTH, "first", False, len(b.model.vilt.encoder.layer))
    assert b.picture_tokens == PATCHES + 1
    assert b.max_length == b.model.config.max_position_embeddings
    assert not b.more_tokens
    assert {h.name for h in b.heads} == {
        n for n, m in b.model.named_modules() if n.startswith("classifier.") and hasattr(m, "weight")
    }
    with pytest.raises(UserError, match="no picture patches to put tokens among"):
        b.check_more_tokens()


# the table ---------------------------------------------------------------------------------------------------------------------


def test_every_picture_is_kept_once_and_rows_are_collated_with_their_own() -> None:
    rows, found = tiny.rows(N, CLASSES, reads=BOTH), table()
    assert rows.images is not None
    assert len(found.pixels) == (N + 1) // 2
    assert found.picture.tolist() == [i // 2 for i in range(N)]
    index = np.array([5, -1, 0, 4])
    inputs = found.collate(index)
    processor = backbone().processor
    for at, i in ((0, 5), (2, 0), (3, 4)):
        by_hand = processor(images=[np.asarray(rows.images[i])], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(inputs["pixel_values"][at], by_hand, rtol=0.0, atol=1e-6)
        own = inputs["input_ids"][at][inputs["attention_mask"][at].bool()]
        assert own.tolist() == backbone().tokenizer((rows.texts or ())[i], truncation=True, max_length=8)["input_ids"]
    assert not inputs["pixel_values"][1].any()
    assert inputs["attention_mask"][1].tolist() == [1] + [0] * (inputs["attention_mask"].shape[1] - 1)


def test_a_row_costs_its_tokens_and_its_patches() -> None:
    found = table()
    assert found.lengths.tolist() == (found.widths + PATCHES + 1).tolist()
    assert found.spans[:, 0].tolist() == [[n, 0] for n in found.lengths.tolist()]


def test_votes_stand_beside_their_rows_and_padding_has_none() -> None:
    plain = tiny.rows(4, CLASSES, reads=BOTH, labels=[0, 1, 2, 1])
    assert table(plain).beside(np.array([[0, 1]])) is None
    votes = [{0: 1.0, 2: 0.3}, {1: 0.6}, {2: 1.0}, {1: 0.9, 0: 0.9}]
    found = table(Rows(texts=plain.texts, images=plain.images, labels=plain.labels, votes=votes))
    beside = found.beside(np.array([[3, -1], [0, 2]]))
    assert beside is not None
    wanted = [[[0.9, 0.9, 0.0], [0.0, 0.0, 0.0]], [[1.0, 0.0, 0.3], [0.0, 0.0, 1.0]]]
    torch.testing.assert_close(beside, torch.tensor(wanted))


# what it costs ------------------------------------------------------------------------------------------------------------------


def test_operations_are_the_sizes_of_layers_times_tokens_and_patches() -> None:
    d, ffn = 32, 64
    found, tokens = flops(backbone()), 6 + PATCHES + 1
    own = found.forward @ powers(np.array(tokens), np.array(0))
    assert own[1:-1].tolist() == [2 * (4 * d * d + 2 * d * ffn) * tokens + 4 * d * tokens**2] * len(backbone().blocks)


@pytest.mark.parametrize("width", [3, 11])
def test_the_polynomial_is_exact_at_a_length_that_it_was_not_fitted_on(width: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    b = backbone()
    inputs = table().collate(np.array([0]))
    inputs |= {n: torch.ones(1, width, dtype=torch.long) for n in ("input_ids", "attention_mask", "token_type_ids")}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        b.model(**b.to_model(inputs))
    heads = sum(2 * m.weight.numel() for m in b.model.classifier if isinstance(m, torch.nn.Linear))
    found = flops(b).forward @ powers(np.array(width + PATCHES + 1), np.array(0))
    assert int(found.sum()) + heads == counter.get_total_flops()


# folders, commands, exports ----------------------------------------------------------------------------------------------------


@pytest.fixture
def from_hub(tmp_path: Path) -> Path:
    """A folder as on the hub: ViLT's own image processor, and weights of whatever it was pretrained for."""
    plain = tiny.folder("vilt")
    model = ViltForQuestionAnswering.from_pretrained(plain)
    model.vilt.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    own = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    ViltImageProcessor(size={"shortest_edge": 8}, size_divisor=4, **own).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_as_on_the_hub_is_loaded_and_listed(from_hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = load(str(from_hub), classes=CLASSES, device="cpu", precision="float32")
    assert (b.reads, b.picture_tokens) == (BOTH, PATCHES + 1)
    wide = np.random.default_rng(0).integers(0, 256, (6, 24, 3), dtype=np.uint8)
    found = tabulate(b, Rows(texts=["w1"], images=[wide], labels=[0]), 8)
    assert isinstance(found, Pictured)
    assert found.collate(np.array([0]))["pixel_values"].shape == (1, 3, 8, 8)
    done = weft(capsys, "models", from_hub, "--json")
    assert done.code == 0
    about = json.loads(done.out)
    assert about["reads"] == BOTH


@pytest.mark.parametrize(
    "own",
    [
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 0},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2},
        {"do_normalize": False, "resample": 3},
    ],
)
def test_pictures_are_brought_to_the_square_of_the_model_as_the_checkpoint_s_own_processor_has_it(
    from_hub: Path, own: dict[str, Any]
) -> None:
    """Bilinear or another way, and each colour with its own mean and deviation: by Pillow and NumPy."""
    ViltImageProcessor(size={"shortest_edge": 16}, size_divisor=4, **own).save_pretrained(from_hub)
    shown = np.random.default_rng(0).integers(0, 256, (6, 24, 3), dtype=np.uint8)
    b = load(str(from_hub), classes=CLASSES, device="cpu", precision="float32")
    found = tabulate(b, Rows(texts=["w1"], images=[shown], labels=[0]), 8).collate(np.array([0]))["pixel_values"][0]
    wanted = np.asarray(Image.fromarray(shown).resize((8, 8), own["resample"])) / 255
    if own.get("do_normalize", True):
        wanted = (wanted - own["image_mean"]) / own["image_std"]
    np.testing.assert_allclose(found.numpy(), wanted.transpose(2, 0, 1), rtol=0, atol=1e-5)


def test_a_processor_of_another_square_is_made_to_fit_the_model(from_hub: Path) -> None:
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(from_hub)
    b = load(str(from_hub), classes=CLASSES, device="cpu", precision="float32")
    found = tabulate(b, Rows(texts=["w1"], images=[np.zeros((16, 16, 3), np.uint8)], labels=[0]), 8)
    assert found.collate(np.array([0]))["pixel_values"].shape == (1, 3, 8, 8)


METHODS = {"peft": FEDIT, "weft": FedDAT(batch=4, optim=FAST), "bias": FedBF(batch=4, optim=FAST)}


@pytest.fixture(params=METHODS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, str]:
    run = tiny.federation(METHODS[request.param], tiny.backbone("vilt", precision="float32"), sizes=(6, 5), rounds=1).run()
    report = exported(run, tmp_path)
    assert report.difference <= report.tolerance
    return tmp_path, run, request.param


def here(folder: Path) -> Predictor:
    return load_export(folder, device="cpu", precision="float32")


def test_an_exported_model_answers_as_its_run_did(model: tuple[Path, Any, str]) -> None:
    folder, run, kind = model
    assert_answers_about_pictures_as(run, here(folder), of_everybody=kind != "weft")  # feddat's are a new client's
    about = json.loads((folder / "weft.json").read_text())
    assert (about["kind"], about["base"]["reads"], about["task"]) == ("peft" if kind == "peft" else "weft", BOTH, "vqa")


def test_the_readme_of_an_adapter_reads_questions_and_pictures_without_weft(tmp_path: Path) -> None:
    run = tiny.federation(FEDIT, tiny.backbone("vilt", precision="float32"), sizes=(6, 5), rounds=1).run()
    exported(run, tmp_path)
    rows = tiny.states((6, 5), reads=BOTH)[0]
    torch.testing.assert_close(by_readme(tmp_path, rows), run.global_logits(), **RUN_CLOSE)


def test_an_adapter_is_merged_into_a_whole_model(tmp_path: Path) -> None:
    from weft.export.merged import merge

    run = tiny.federation(FEDIT, tiny.backbone("vilt", precision="float32"), sizes=(6, 5), rounds=1).run()
    (tmp_path / "in").mkdir()
    exported(run, tmp_path / "in")
    (tmp_path / "out").mkdir()
    merge(tmp_path / "in", tmp_path / "out", precision="float32")
    whole = ViltForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    rows = tiny.states((6, 5), reads=BOTH)[0]
    inputs = tabulate(tiny.backbone("vilt", precision="float32"), rows, 128).collate(np.arange(len(rows)))
    with torch.no_grad():
        torch.testing.assert_close(whole(**inputs).logits, run.global_logits(), **RUN_CLOSE)


@pytest.mark.parametrize("odd", [["what?"], [("what?",)], [("a.png", "b.png", "c.png")], [(b"a", "what?")]])
def test_what_is_no_question_with_a_picture_is_one_sentence(odd: Any, tmp_path: Path) -> None:
    exported(tiny.federation(FEDIT, tiny.backbone("vilt", precision="float32"), sizes=(3,), rounds=1).run(), tmp_path)
    with pytest.raises(UserError, match="give a question and a picture of each row"):
        here(tmp_path).predict(odd)
