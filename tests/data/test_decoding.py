"""Pictures as they are meant: the whole range of values, upright, and refused where that can't be."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from command_line import weft
from exporting import FEDIT, exported
from weft.backbones.pixels import pixels
from weft.data import Images, Rows
from weft.errors import UserError
from weft.export import load

RAMP = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)  # grey values that differ in every pixel


def refusal(item: Any) -> str:
    with pytest.raises(UserError) as caught:
        Images([item])[0]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def grey(item: Any) -> np.ndarray:
    shown = Images([item])[0]
    assert shown.mode == "RGB"
    values = np.asarray(shown)
    assert (values == values[..., :1]).all()
    return values[..., 0]


@pytest.mark.parametrize(("suffix", "big"), [("png", False), ("tif", False), ("tif", True), ("pgm", False)])
def test_sixteen_bits_keep_their_range(suffix: str, big: bool, tmp_path: Path) -> None:
    values = RAMP.astype(np.uint16) * 257
    file = tmp_path / f"a.{suffix}"
    picture = Image.fromarray(values)
    (Image.frombytes("I;16B", (8, 6), values.astype(">u2").tobytes()) if big else picture).save(file)
    for item in (file, file.read_bytes(), Image.open(file)):
        assert np.array_equal(grey(item), RAMP)


def test_pixels_of_sixteen_bits_and_of_one_keep_their_range() -> None:
    assert np.array_equal(grey(RAMP.astype(np.uint16) * 257), RAMP)
    assert np.array_equal(grey(RAMP > 100), np.where(RAMP > 100, 255, 0))
    assert np.array_equal(grey(RAMP[:, :, None]), RAMP)


def test_sixteen_bits_where_white_is_zero_are_not_a_negative(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray((255 - RAMP).astype(np.uint16) * 257).save(file, tiffinfo={262: 0})
    assert Image.open(file).tag_v2[262] == 0
    assert np.array_equal(grey(file), RAMP)


def test_floats_from_zero_to_one_are_grey_and_other_numbers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray((RAMP / 255).astype(np.float32)).save(file)
    assert np.array_equal(grey(file), RAMP)
    for values in (RAMP.astype(np.float32), RAMP / 255 - 0.5, np.where(RAMP == 0, np.nan, RAMP / 255)):
        Image.fromarray(values.astype(np.float32)).save(file)
        assert "a.tif can't be shown faithfully" in refusal(file)
        assert "floats are not all from 0 to 1" in refusal(file)
    Image.fromarray(RAMP.astype(np.int32) * 1000).save(file)
    assert "nothing tells its white" in refusal(file)


def test_twelve_bits_that_call_themselves_sixteen_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "a.png")
    assert "its values are from 0 to 4080 of 65535, of which 8 bits would leave 17 grey levels" in refusal(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "dark.png")  # nothing of it is lost
    assert (grey(tmp_path / "dark.png") == 1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_whatever_way_round_they_are_stored(orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(np.arange(0, 240, 10).astype(np.uint8).reshape(4, 6)).resize((60, 40), Image.Resampling.NEAREST)
    flat = Image.Transpose
    stored = {
        2: [flat.FLIP_LEFT_RIGHT], 3: [flat.ROTATE_180], 4: [flat.FLIP_TOP_BOTTOM], 5: [flat.TRANSPOSE],
        6: [flat.ROTATE_90], 7: [flat.TRANSVERSE], 8: [flat.ROTATE_270],
    }.get(orientation, [])  # fmt: skip
    turned = upright
    for way in stored:
        turned = turned.transpose(way)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("jpg", "png", "webp", "tif"):
        file = tmp_path / f"a.{suffix}"
        turned.save(file, exif=exif, **({"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}))
        for item in (file, file.read_bytes(), Image.open(io.BytesIO(file.read_bytes()))):
            shown = np.asarray(Images([item])[0])[..., 0].astype(int)
            assert shown.shape == (40, 60), (suffix, item)
            assert np.abs(shown - np.asarray(upright)).max() <= 6, (suffix, item)


def test_metadata_that_nobody_can_read_turn_nothing(tmp_path: Path) -> None:
    Image.fromarray(RAMP).convert("RGB").save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=100)
    assert grey(tmp_path / "a.jpg").shape == RAMP.shape


def test_what_is_transparent_is_white_and_black_where_all_else_is_white() -> None:
    drawn = np.zeros((4, 4, 4), np.uint8)
    drawn[1:3, 1:3, 3] = 255  # a black square on nothing
    assert grey(drawn).tolist() == np.where(drawn[..., 3] == 255, 0, 255).tolist()
    drawn[..., :3] = 255  # a white one
    assert grey(drawn).tolist() == drawn[..., 3].tolist()
    half = Image.fromarray(drawn).convert("LA")
    assert grey(half).tolist() == drawn[..., 3].tolist()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 10, 10, 200, 200, 200])
    palette.putpixel((0, 0), 0)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    found = grey(buffer.getvalue())
    assert (found[0, 0], found[3, 3]) == (10, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_shows_its_colours(mode: str) -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((0, 0, 0), (0, 0, 4, 8))
    shown = np.asarray(Images([picture.convert(mode)])[0]).astype(int)
    assert np.abs(shown - np.asarray(picture)).max() <= 2


def broken() -> dict[str, bytes]:
    found = {}
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000", "TGA", "ICO"):
        buffer = io.BytesIO()
        Image.fromarray(np.tile(RAMP, (6, 4))).convert("RGB").save(buffer, kind)
        found[kind] = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    return found | {"nothing": b"", "text": b"no picture"}


@pytest.mark.parametrize("kind", broken())
def test_half_a_picture_is_one_sentence(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "half.png"
    file.write_bytes(broken()[kind])
    assert f"{file} can't be read as a picture (" in refusal(file)


def test_an_error_of_any_class_from_a_decoder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for error in (ValueError("first\nsecond"), ZeroDivisionError(), SyntaxError("broken"), MemoryError()):

        def fails(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(Image, "open", fails)
        assert f"({str(error).split(chr(10))[0] or type(error).__name__})" in refusal(tmp_path / "a.png")


def test_a_strip_is_refused_before_it_fills_the_memory() -> None:
    assert "a strip that no backbone can see" in refusal(np.zeros((1, 5000), np.uint8))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (np.zeros((4, 4)), "is float64 of shape [4, 4]"),
        (np.zeros((3, 5, 5), np.uint8), "is uint8 of shape [3, 5, 5]"),
        (np.zeros((0, 4), np.uint8), "is uint8 of shape [0, 4]"),
        (None, "is a NoneType"),
        (torch.zeros(3, 4, 4), "is a Tensor"),
    ],
)
def test_what_is_no_picture_is_refused_at_the_door(item: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        Images([np.zeros((4, 4), np.uint8), item])
    assert f"picture 1 {words}" in str(caught.value)


def test_a_list_of_names_is_one_of_files_and_a_single_one_is_no_list(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert np.array_equal(grey(str(tmp_path / "a.png")), RAMP)
    for alone in (tmp_path / "a.png", "a.png", b"", Image.new("L", (2, 2))):
        with pytest.raises(UserError, match="give a list of pictures"):
            Images(alone)  # type: ignore[arg-type]


def test_a_digest_is_of_the_content_and_read_once(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    images = Images([tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), RAMP, RAMP.copy(), RAMP.T])
    digests = [images.digest(i) for i in range(5)]
    assert digests[0] == digests[1] != digests[2] == digests[3] != digests[4]
    (tmp_path / "a.png").unlink()
    assert images.take([0]).digest(0) == Images.concatenate([images, images]).digest(5) == digests[0]


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_picture_three_pixels_high_is_not_taken_for_its_channels(kind: str) -> None:
    b = tiny.backbone(kind)
    flat = np.zeros((3, 4, 3), np.uint8)
    flat[..., 0] = 255  # red
    table = pixels(b, Rows(None, None, np.zeros(1), np.arange(1), images=Images([flat])))
    assert (table.values[0, 0] == 255).all()
    assert (table.values[0, 1:] == 0).all()


def test_large_pictures_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    b, rows = tiny.backbone("vit"), tiny.rows(9, reads="images")
    whole = pixels(b, rows).values
    monkeypatch.setattr("weft.backbones.pixels.AT_ONCE", 1)
    assert np.array_equal(pixels(b, rows).values, whole)


def test_prediction_and_evaluation_see_what_training_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture stored on its side or in 16 bits gets the answer of the upright one in 8."""
    exported(tiny.federation(FEDIT, tiny.backbone("vit", precision="float32"), sizes=(6,), rounds=1).run(), tmp_path / "m")
    model = load(tmp_path / "m", device="cpu", precision="float32")
    upright = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.png", exif=exif)
    Image.fromarray(upright.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    forms: list[Any] = [upright, tmp_path / "side.png", tmp_path / "deep.png"]
    forms += [Image.open(tmp_path / "side.png"), Image.open(tmp_path / "deep.png")]
    logits = model.logits(forms)
    assert torch.equal(logits, logits[:1].expand_as(logits))
    done = weft(capsys, "predict", tmp_path / "m", tmp_path / "side.png", tmp_path / "deep.png", "--device", "cpu", "--json")
    assert done.code == 0, done.err
