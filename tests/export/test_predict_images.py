"""A model of pictures is exported with how its backbone was read, and answers for pictures in any form."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from command_line import weft
from exporting import FAST, FEDIT, exported
from weft.backbones.load import load as load_backbone
from weft.errors import UserError
from weft.export import Predictor, load
from weft.federation.method import Method
from weft.methods.prompts.promptfl import PromptFL
from weft.methods.selective.fedbf import FedBF

METHODS: dict[str, tuple[str, Method]] = {
    "peft": ("vit", FEDIT),
    "weft": ("vit", FedBF(batch=4, optim=FAST)),
    "similarity": ("clip", FEDIT),
    "prompt": ("clip", PromptFL(batch=4, optim=FAST)),
}


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, method = METHODS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    exported(tiny.federation(method, tiny.backbone(kind, precision="float32"), sizes=(6, 5), rounds=1).run(), folder)
    return folder


def here(folder: Path) -> Predictor:
    return load(folder, device="cpu", precision="float32")


def test_a_picture_in_any_form_gets_the_same_answer(model: Path, tmp_path: Path) -> None:
    rows = tiny.rows(9, reads="images")
    assert rows.images is not None
    pictures = [rows.images[i] for i in range(9)]
    files, encoded = [], []
    for i, picture in enumerate(pictures):
        files.append(tmp_path / f"{i}.png")
        picture.save(files[-1])
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    predictor = here(model)
    expected = predictor.logits_of(rows)
    assert expected.shape == (9, 3)
    pixels = [np.asarray(p) for p in pictures]
    forms: list[list[Any]] = [pictures, pixels, files, [str(f) for f in files], encoded]
    for form in forms:
        torch.testing.assert_close(predictor.logits(form), expected, rtol=0.0, atol=0.0)
    names = [predictor.classes[i] for i in expected.argmax(-1).tolist()]
    assert predictor.predict(files) == names
    grey = [p.convert("L") for p in pictures]
    torch.testing.assert_close(predictor.logits(grey), predictor.logits([np.asarray(g) for g in grey]), rtol=0.0, atol=0.0)
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ("a.png", "give a list of pictures"),
        (Path("a.png"), "give a list of pictures"),
        (["nowhere.png"], r"nowhere\.png does not exist"),
        ([b"no picture"], "can't be read as a picture"),
        ([np.zeros((4, 4, 3))], "a picture must be"),
        ([np.zeros((4, 4, 2), np.uint8)], "a picture must be"),
        ([3], "a picture must be"),
    ],
)
def test_what_is_no_list_of_pictures_is_refused(items: Any, words: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("m")
    exported(tiny.federation(FEDIT, tiny.backbone("vit", precision="float32"), sizes=(3,), rounds=1).run(), folder)
    with pytest.raises(UserError, match=words):
        here(folder).predict(items)


def test_an_export_in_low_precision_is_compared_on_a_copy_read_alike(tmp_path: Path) -> None:
    """Class names and template are part of what a CLIP computes: a copy with others would not agree."""
    b = load_backbone(
        tiny.folder("clip"), classes=tiny.names(3), device="cpu", precision="bfloat16", task="similarity", template="w5 {} w6"
    )
    run = tiny.federation(FEDIT, b, sizes=(6, 5), rounds=1).run()
    report = exported(run, tmp_path)
    assert report.difference <= report.tolerance
    about = json.loads((tmp_path / "weft.json").read_text())
    assert about["base"]["options"]["template"] == "w5 {} w6"
    assert about["base"]["pad_token_id"] is None
    assert about["base"]["reads"] == "images"
    rows = tiny.states((6, 5), reads="images")[0]
    predictor = here(tmp_path)
    names = predictor.backbone.names
    assert names is not None
    assert (names.names, names.template) == (tiny.names(3), "w5 {} w6")
    # the run's own logits are off by bfloat16's rounding; other texts would be off by whole units
    torch.testing.assert_close(predictor.logits_of(rows), run.global_logits(), rtol=0.0, atol=0.5)


def test_pictures_are_files_on_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny.rows(2, reads="images")
    assert rows.images is not None
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for i, file in enumerate(files):
        rows.images[i].save(file)
    done = weft(capsys, "predict", model, *files, "--device", "cpu", "--precision", "float32", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert [one["image"] for one in found] == files
    assert [one["label"] for one in found] == here(model).predict(files)
    said = weft(capsys, "predict", model, "nowhere.png", "--device", "cpu")
    assert said.code == 2
    assert "nowhere.png does not exist" in said.err


def test_a_base_that_comes_with_weft_is_known_by_its_name(tmp_path: Path) -> None:
    """Its folder lies elsewhere on every machine."""
    b = load_backbone("glyph-vit", classes=3, device="cpu", precision="float32")
    exported(tiny.federation(FEDIT, b, sizes=(3, 4), rounds=1).run(), tmp_path)
    base = json.loads((tmp_path / "weft.json").read_text())["base"]
    assert (base["name"], base["hub_id"], base["path"]) == ("glyph-vit", None, None)
    written = "".join(p.read_text() for p in tmp_path.iterdir() if p.suffix in (".md", ".json"))
    assert str(Path(b.path).parent) not in written
    assert "find('glyph-vit')[0]" in (tmp_path / "README.md").read_text()
    assert here(tmp_path).backbone.weight_hash == b.weight_hash


def test_a_client_with_another_backbone_is_exported_on_its_own(tmp_path: Path) -> None:
    """The second of two backbones that are dealt out in turn."""
    import weft as package
    from weft.export import export_run

    rows = tiny.rows(30, reads="images")
    assert rows.images is not None
    for i, label in enumerate(rows.labels.tolist()):
        file = tmp_path / "pictures" / f"class-{label}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows.images[i].save(file)
    other = tiny.folder("vit", hidden_size=16)
    run = package.run(
        method="fedhpl",
        model=f"{tiny.folder('vit')},{other}",
        data=str(tmp_path / "pictures"),
        partition="iid",
        clients=3,
        rounds=1,
        runs=str(tmp_path / "runs"),
        device="cpu",
        precision="float32",
    )
    report = export_run(run.folder, tmp_path / "own", client="c1")
    assert report.base == other
    assert report.difference <= report.tolerance
    assert here(tmp_path / "own").backbone.d == 16
    assert set(here(tmp_path / "own").predict([rows.images[0]])) <= {"class-0", "class-1", "class-2"}


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_a_method_is_sized_on_a_backbone_for_pictures(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = weft(capsys, "methods", "fedit", "--model", tiny.folder(kind), "--clients", 2, "--classes", 3, "--json")
    assert done.code == 0, done.err
    sizes = json.loads(done.out)["sizes"]
    lora = next(p for p in sizes["parts"] if p["part"] == "lora")
    assert lora["elements"] == 3 * 16 * (32 + 32)  # rank 16 at the query of three blocks
