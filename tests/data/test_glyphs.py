"""glyphs and digits: what is drawn, from which fonts; and the backbones that come with Weft, which saw other fonts."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import ImageFont
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, ViTModel

from paths import ROOT
from weft.backbones.finding import find
from weft.backbones.short_names import KNOWN
from weft.data.digits import digits
from weft.data.glyphs import CHARACTERS, EACH, FINE, LEFT_OUT, SEEN, SIZE, STYLES, glyphs, shape
from weft.data.rows import Rows, Source

SHIPPED = sorted(name for name, known in KNOWN.items() if known.shipped)
OF_GLYPHS = [name for name in SHIPPED if "image" in KNOWN[name].kind]
UNSEEN = sorted({font for fonts in STYLES.values() for font in fonts})


@pytest.fixture(scope="module")
def source() -> Source:
    return glyphs()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_glyphs", ROOT / "scripts" / "pretrain_glyphs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(rows: Rows, among: np.ndarray | slice = slice(None)) -> np.ndarray:
    assert rows.images is not None
    return np.stack([np.asarray(rows.images[i]) for i in np.arange(len(rows))[among]])


def family(font: str) -> str:
    """What the file itself says that it is."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    name = ImageFont.truetype(str(path), 12).getname()[0]
    assert name is not None
    return name


# glyphs -------------------------------------------------------------------------------------------------------------------


def test_every_style_has_the_same_number_of_pictures_of_each_character(source: Source) -> None:
    assert "".join(source.classes) == "abcdefghijklmnopqrstuvwxyz0123456789"
    tables = [source.train, *source.unseen.values()]
    found = Counter((key, label) for t in tables for key, label in zip(t.keys or (), t.labels.tolist(), strict=True))
    assert found == {(style, label): EACH for style in STYLES for label in range(36)}
    ids = np.concatenate([t.ids for t in tables])
    assert sorted(ids.tolist()) == list(range(len(found) * EACH))


def test_a_style_is_a_natural_client_and_the_one_left_out_is_not_trained_on(source: Source) -> None:
    assert source.key_name == "style"
    assert set(source.train.keys or ()) == set(STYLES) - {LEFT_OUT}
    assert {name: set(rows.keys or ()) for name, rows in source.unseen.items()} == {LEFT_OUT: {LEFT_OUT}}


def test_pictures_are_small_coloured_and_all_different(source: Source) -> None:
    images = [rows.images for rows in (source.train, *source.unseen.values())]
    assert {images[0][i].size for i in range(0, 300, 7)} == {(SIZE, SIZE)}  # type: ignore[index]
    digests = [each.digest(i) for each in images if each is not None for i in range(len(each))]
    assert len(set(digests)) == len(digests)
    some = pixels(source.train, slice(0, None, 40)).astype(int)
    assert np.mean(np.abs(some[..., 0] - some[..., 2]).max((1, 2)) > 30) > 0.8


def test_the_same_pictures_are_drawn_every_time_and_no_global_stream_is_touched(source: Source) -> None:
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = (np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index]  # noqa: NPY002
    again = glyphs()
    after = (np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index]  # noqa: NPY002
    assert again.fingerprint == source.fingerprint
    assert np.array_equal(pixels(again.train), pixels(source.train))
    assert after[0] == before[0]
    assert torch.equal(after[1], before[1])


def test_ink_can_be_told_from_the_ground(source: Source) -> None:
    """The shade varies more over a picture than grain alone would make it."""
    keys = np.array(source.train.keys)
    grey = pixels(source.train, ~np.isin(keys, ("noisy",))).mean(-1)
    assert np.ptp(grey, axis=(1, 2)).min() > 0.2 * 255


def test_styles_look_as_they_are_called(source: Source) -> None:
    keys = np.array(source.train.keys)
    corner = {style: pixels(source.train, keys == style)[:, :2, :2].astype(float) for style in set(keys.tolist())}
    # the corners show the ground alone, so what varies there is grain
    grain = {style: float(np.median(c.std((1, 2)))) for style, c in corner.items()}
    assert grain["noisy"] > 3 * max(value for style, value in grain.items() if style != "noisy")
    for font in STYLES["outlined"]:
        for character in CHARACTERS:
            rim, whole = shape(character, font, True), shape(character, font)
            assert (rim * whole).sum() < 0.1 * whole.sum()  # hollow
            assert rim.sum() > 0.5 * whole.sum()


def test_the_fonts_of_the_set_and_of_pretraining_are_two_disjoint_worlds(script: ModuleType) -> None:
    assert {family(font).split()[0] for font in SEEN} == {"DejaVu"}
    assert not {family(font) for font in UNSEEN} & {family(font) for font in SEEN}
    assert set(script.FONTS) == set(SEEN)


@pytest.mark.parametrize("font", [*SEEN, *UNSEEN])
def test_a_font_has_all_36_characters_and_they_fit(font: str) -> None:
    drawn = np.stack([shape(character, font) for character in CHARACTERS])
    assert drawn.shape == (36, FINE, FINE)
    assert drawn.sum((1, 2)).min() > 0.01 * FINE**2
    missing = shape("\ue000", font)  # private use: what a font draws for what it lacks
    assert min(np.abs(each - missing).max() for each in drawn) > 0.5
    assert len({each.tobytes() for each in drawn}) == 36
    rim = np.concatenate([drawn[:, 0], drawn[:, -1], drawn[:, :, 0], drawn[:, :, -1]])
    assert not rim.any()


# digits -------------------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_from_black_to_white() -> None:
    source, bunch = digits(), load_digits()
    assert source.classes == tuple("0123456789")
    assert (source.key_name, dict(source.unseen), source.train.keys) == (None, {}, None)
    assert source.train.labels.tolist() == bunch.target.tolist()
    assert source.train.ids.tolist() == list(range(1797))
    shown = pixels(source.train)
    assert shown.shape == (1797, 8, 8, 3)
    assert np.abs(shown - bunch.images[..., None] / 16 * 255).max() <= 0.5
    assert source.fingerprint == digits().fingerprint


# the backbones that come with Weft ----------------------------------------------------------------------------------------


def folder(name: str) -> Path:
    return Path(find(name)[0])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_half_precision_and_those_of_their_card(name: str) -> None:
    assert sum(file.stat().st_size for file in folder(name).iterdir()) <= 4 * 2**20
    digest = hashlib.sha256((folder(name) / "model.safetensors").read_bytes()).hexdigest()
    card = (folder(name) / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"sha256 of `model.safetensors`: `(\w+)`", card) == [digest]
    assert KNOWN[name].sha256 == digest
    assert "license: apache-2.0" in card
    with safe_open(folder(name) / "model.safetensors", "pt") as tensors:
        weights = [tensors.get_tensor(key) for key in tensors.keys()]  # noqa: SIM118 (not a mapping)
    assert {w.dtype for w in weights} == {torch.float16}
    assert all(bool(w.isfinite().all()) for w in weights)
    assert f"{sum(w.numel() for w in weights):,} parameters" in card


def plain(name: str) -> tuple[Any, dict[str, Any]]:
    """As anyone would load it who has transformers and not Weft."""
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "local_files_only": True}
    if name == "glyph-clip":
        return CLIPModel.from_pretrained(folder(name), **options)  # type: ignore[return-value]
    return ViTModel.from_pretrained(folder(name), add_pooling_layer=False, **options)  # type: ignore[return-value]


@pytest.mark.parametrize("name", OF_GLYPHS)
def test_transformers_loads_a_shipped_backbone_whole_and_its_processor_gives_what_it_was_trained_on(
    name: str, source: Source
) -> None:
    _, info = plain(name)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert source.train.images is not None
    processor = AutoImageProcessor.from_pretrained(folder(name), backend="pil")
    given = processor(images=[source.train.images[0]], return_tensors="pt")["pixel_values"]
    by_hand = torch.from_numpy(pixels(source.train, slice(0, 1)) / 127.5 - 1).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(given, by_hand, rtol=0.0, atol=1e-5)


def prepared(name: str, rows: Rows, most: int = 720) -> tuple[Tensor, Tensor]:
    """About ``most`` rows spread over a table, as the backbone's own processor gives them, and their labels."""
    some = rows.take(np.arange(0, len(rows), max(1, len(rows) // most)))
    assert some.images is not None
    processor = AutoImageProcessor.from_pretrained(folder(name), backend="pil")
    given = processor(images=[some.images[i] for i in range(len(some))], return_tensors="pt")["pixel_values"]
    return given, torch.from_numpy(some.labels.copy())


def test_glyph_vit_tells_printed_characters_apart_and_those_of_other_fonts_less_well(script: ModuleType, source: Source) -> None:
    """By the nearest class mean of its class token, over one half of the pictures for the other half."""
    vit = plain("glyph-vit")[0].eval()

    @torch.no_grad()
    def on(x: Tensor, labels: Tensor) -> float:
        features = vit(x).last_hidden_state[:, 0]
        means = torch.stack([features[::2][labels[::2] == c].mean(0) for c in range(36)])
        return float((torch.cdist(features[1::2], means).argmin(1) == labels[1::2]).float().mean())

    fresh, what = script.Drawings(seed=20_000).draw(1440)  # a seed that pretraining does not use
    seen, unseen = on(fresh, what["character"]), on(*prepared("glyph-vit", source.train, 1440))
    assert seen >= 0.9
    assert 3 / 36 < unseen < seen - 0.1


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(folder("glyph-clip"))


@pytest.mark.parametrize(
    "names",
    [CHARACTERS, ("alarm clock", "alarmclock", "bike", "bikes", "k", "kk", "k2", "a k", "2k"), ("digit", "digits", "digi t")],
)
def test_class_names_have_token_ids_of_their_own(names: tuple[str, ...], tokenizer: Any) -> None:
    ids = [tuple(row) for row in tokenizer([f"a photo of a {name}." for name in names])["input_ids"]]
    assert len(set(ids)) == len(names)
    assert all(tokenizer.unk_token_id not in row for row in ids)


def test_a_text_ends_with_the_highest_id_where_the_text_tower_looks_for_it(tokenizer: Any) -> None:
    ids = tokenizer(["A photo of a K.", "[X] [X] k."])["input_ids"]
    assert [row[0] for row in ids] == [tokenizer.bos_token_id] * 2
    assert [row[-1] for row in ids] == [tokenizer.eos_token_id] * 2
    assert ids[0] == tokenizer("a photo of a k.")["input_ids"]
    assert ids[1][1:3] == [tokenizer.convert_tokens_to_ids("[X]")] * 2
    text = plain("glyph-clip")[0].config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip
    assert text.eos_token_id == len(tokenizer) - 1 == text.vocab_size - 1
    assert tokenizer.model_max_length == text.max_position_embeddings


@torch.no_grad()
def accuracy(clip: Any, tokenizer: Any, pictures: Tensor, labels: Tensor, names: tuple[str, ...]) -> float:
    texts = tokenizer([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
    scores = clip(pixel_values=pictures, **texts).logits_per_image
    return float((scores.argmax(1) == labels).float().mean())


def test_glyph_clip_names_printed_characters_it_was_trained_on_and_others_less_well(
    script: ModuleType, source: Source, tokenizer: Any
) -> None:
    clip = plain("glyph-clip")[0].eval()
    fresh, what = script.Drawings(seed=20_000).draw(720)  # a seed that pretraining does not use
    seen = accuracy(clip, tokenizer, fresh, what["character"], CHARACTERS)
    unseen = accuracy(clip, tokenizer, *prepared("glyph-clip", source.train), source.classes)
    handwritten = accuracy(clip, tokenizer, *prepared("glyph-clip", digits().train), digits().classes)
    assert seen >= 0.93
    assert 2 / 36 < unseen < seen - 0.1
    assert handwritten < seen - 0.3  # of ten classes, not 36
