"""CLIPs of open_clip: their pictures through their own tower, their texts through transformers', logits as open_clip's."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import encoders
import open_clips
import tiny
from by_hand import close
from command_line import weft
from exporting import FAST, RUN_CLOSE, exported
from towers_by_hand import CONTEXT, counted, in_context
from weaving import INDEX, batch_of, pack_of, values_for
from weft.adaptation.bottleneck import Bottleneck
from weft.adaptation.lora import LoRA
from weft.adaptation.part import Part
from weft.adaptation.prefix_tuning import Prefix
from weft.adaptation.tokens import ClassContext, ImageTokens
from weft.backbones.inventory import inventory
from weft.backbones.load import load
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import tabulate
from weft.data.images import Images
from weft.data.rows import Rows
from weft.errors import UserError
from weft.export import load as load_export
from weft.methods import PromptFL
from weft.methods.reparameterized.fedit import FedIT

KINDS = tuple(open_clips.VISION)
START, END = 49406, 49407


def pictures(kind: str, n: int = 6) -> Tensor:
    side = open_clips.VISION[kind]["image_size"]
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-11), ("float32", 1e-4)])
def test_zero_shot_logits_are_open_clips(kind: str, precision: str, tolerance: float) -> None:
    import open_clip

    b, theirs, x = open_clips.backbone(kind, precision), open_clips.own(kind), pictures(kind)
    texts = open_clip.tokenizer.SimpleTokenizer()(
        ["a photo of a cat.", "a photo of a red panda.", "a photo of a baseball field."]
    )
    images, names = theirs.encode_image(x, normalize=True), theirs.encode_text(texts, normalize=True)
    wanted = theirs.logit_scale.exp() * images @ names.T
    found = b.model(**b.to_model({"pixel_values": x}) | b.class_inputs()).logits
    torch.testing.assert_close(found.double(), wanted, rtol=0.0, atol=tolerance)
    assert wanted.std(1).min() > 0.1, "logits that are all alike would prove nothing"


def test_weights_of_torch_save_are_read_as_tensors_alone() -> None:
    x = pictures("rn50")
    a, b = open_clips.backbone("rn50"), open_clips.backbone("rn50", "float64", True)
    assert torch.equal(a.model(pixel_values=x, **a.class_inputs()).logits, b.model(pixel_values=x, **b.class_inputs()).logits)
    assert a.weight_hash != b.weight_hash  # of a file, and of tensors


def test_pictures_are_what_open_clip_makes_of_them() -> None:
    import open_clip

    theirs = open_clips.own("convnext")
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**theirs.visual.preprocess_cfg), is_train=False
    )
    rng = np.random.default_rng(0)
    own = [Image.fromarray(rng.integers(0, 256, size=(h, w, 3), dtype=np.uint8)) for h, w in ((64, 64), (81, 67), (30, 121))]
    found = open_clips.backbone("convnext").processor(images=own)["pixel_values"]
    torch.testing.assert_close(torch.from_numpy(found), torch.stack([transform(p) for p in own]), rtol=0.0, atol=1e-5)


# patches ---------------------------------------------------------------------------------------------------------------


def dense_resnet(x: Tensor) -> Tensor:
    """Places of the last map as 1×1 convolutions with the weights of the pooling's values and output (MaskCLIP)."""
    visual = open_clips.own("rn50").visual
    pool = visual.attnpool
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(x)))))
    for layer in (pool.v_proj, pool.c_proj):
        x = F.conv2d(x, layer.weight[:, :, None, None], layer.bias)
    return x.flatten(2).mT


def dense_convnext(x: Tensor) -> Tensor:
    """Norm and projection of the pooled map, at every place of the map (FC-CLIP)."""
    visual = open_clips.own("convnext").visual
    x = visual.trunk.stages(visual.trunk.stem(x)).movedim(1, -1)
    norm = visual.trunk.head.norm
    return visual.head.proj(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)).flatten(1, 2)


@pytest.mark.parametrize(("kind", "by_hand"), [("rn50", dense_resnet), ("convnext", dense_convnext)])
@pytest.mark.parametrize("cached", [False, True])
def test_patches_are_the_places_of_the_last_map_in_the_joint_space(
    kind: str, by_hand: Callable[[Tensor], Tensor], cached: bool
) -> None:
    b = open_clips.backbone(kind)
    bench = tiny.bench(b)
    bench = replace(bench, prefix=PrefixCache(b)) if cached else bench
    parts: dict[str, Part] = {"ours": ClassContext(3)}
    pack = pack_of(bench, [parts] * 3, [values_for(bench, parts, seed=i) for i in range(3)])
    for _ in range(2):  # computed, then read
        found = pack.patches(batch_of(bench, INDEX))
        pixels = bench.table.collate(INDEX[0])["pixel_values"].double()
        close(found[0], by_hand(pixels), 1e-10)
    assert found.shape == (3, 4, 4, 12)
    mean = found[0].mean(1)
    if kind == "convnext":  # of which a norm is taken, so that only the direction is alike
        assert F.cosine_similarity(mean, pack.images(batch_of(bench, INDEX))[0]).min() > 0.5


def test_a_tower_that_pools_in_another_way_gives_no_patches() -> None:
    b = open_clips.backbone("vit")
    bench = tiny.bench(b)
    parts: dict[str, Part] = {"ours": ClassContext(3)}
    pack = pack_of(bench, [parts], [values_for(bench, parts, seed=0)])
    with pytest.raises(UserError, match=r"^the tower of pictures of .* gives no embedding of single patches: choose") as e:
        pack.patches(batch_of(bench, INDEX[:1]))
    assert "\n" not in str(e.value)


# contexts --------------------------------------------------------------------------------------------------------------


def by_hand(kind: str, context: Tensor, pixels: Tensor, names: tuple[str, ...]) -> Tensor:
    """Logits [n, C] of open_clip's own model with a context between start token and class name."""
    import open_clip

    theirs, plain = open_clips.own(kind), open_clip.tokenizer.SimpleTokenizer()
    rows = []
    for name in names:
        row = [START, *[CONTEXT] * len(context), *plain.encode(name.replace("_", " ")), *plain.encode("."), END]
        rows.append(row + [0] * (77 - len(row)))
    texts = in_context(theirs.token_embedding, context, lambda ids: theirs.encode_text(ids, normalize=True), rows)
    return theirs.logit_scale.exp() * theirs.encode_image(pixels, normalize=True) @ texts.T


@pytest.mark.parametrize("kind", KINDS)
def test_promptfl_trains_on_it_and_its_model_is_open_clips_with_the_trained_context(kind: str) -> None:
    b = load(str(open_clips.folder(kind, False)), classes=tiny.names(3), device="cpu", precision="float64")
    method = PromptFL(tokens=3, batch=4, optim=FAST)
    plain = tiny.federation(method, b, rounds=2)
    before = plain.global_logits()
    plain.run()
    (context,) = plain.server.shared.values()
    assert isinstance(context, Tensor)
    pixels = plain.bench.table.collate(np.arange(len(plain.bench.table)))["pixel_values"].double()
    close(plain.global_logits().double(), by_hand(kind, context, pixels, tiny.names(3)), 1e-4)
    assert (plain.global_logits() - before).abs().max() > 1e-2
    cached = tiny.federation(method, b, rounds=2, prefix=True)
    with counted(b.model.vision_model) as seen:
        cached.run()
    assert seen == [len(cached.bench.table)], "every picture goes through its tower once"
    close(cached.global_logits(), plain.global_logits(), 1e-4)


def test_lora_in_its_text_tower_comes_back_from_its_export(tmp_path: Path) -> None:
    b = load(str(open_clips.folder("rn50", False)), classes=tiny.names(3), device="cpu", precision="float32")
    method = FedIT(rank=2, alpha=4.0, sites="text.q,text.v", batch=4, optim=FAST)
    run = tiny.federation(method, b, sizes=(5, 4, 0, 3), rounds=1)
    before = run.global_logits()
    after = run.run().global_logits()
    assert not torch.allclose(before, after, **RUN_CLOSE)
    assert exported(run, tmp_path).kind == "weft"
    rows = tiny.states((5, 4, 0, 3), reads="images")[0]
    torch.testing.assert_close(load_export(tmp_path, device="cpu", precision="float32").logits_of(rows), after, **RUN_CLOSE)


def test_its_tower_of_pictures_has_no_place_for_parts() -> None:
    b = open_clips.backbone("rn50")
    assert (b.blocks, b.linears, b.norms, b.outer, b.bottlenecks, b.reader) == ([], [], [], [], [], None)
    parts: list[Part] = [LoRA(2, 4.0, "q,v"), Bottleneck(8), Bottleneck(8, placement="ffn"), ImageTokens(2), Prefix(2)]
    for part in parts:
        with pytest.raises(UserError, match=r"^the tower of pictures of backbone .* is taken as a whole, with no place") as e:
            part.sites(b)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="is taken as a whole"):
        b.check_separate()


def test_its_tower_stands_beside_an_encoder_of_transformers() -> None:
    both = load(
        f"{open_clips.folder('rn50', False)}+{encoders.folder('vit')}", classes=tiny.names(3), device="cpu", precision="float64"
    )
    draw = np.random.default_rng(0)
    given = [draw.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8) for i in range(5)]
    rows = Rows(None, None, np.arange(5) % 3, np.arange(5), images=Images(given))
    found = both.model.embed_images(**both.to_model(tabulate(both, rows).collate(np.arange(5))))
    alone = open_clips.backbone("rn50")
    own = alone.embed(alone.to_model(tabulate(alone, rows).collate(np.arange(5))), "image").squeeze(1)
    close(found, torch.cat([own, encoders.side_by_side(["vit"], given)], 1), 1e-5)


def test_it_is_described() -> None:
    found = inventory(open_clips.backbone("rn50"))
    assert (found["task"], found["reads"], found["type"]) == ("similarity", "images", "open_clip")
    assert found["blocks"] | {"path": ""} == {
        "path": "",
        "count": 0,
        "hidden_size": 12,
        "separate": True,
        "shared": False,
        "tokens_of_a_picture": None,
        "maps": None,
    }
    assert found["text_tower"]["blocks"] == {"path": "text_model.encoder.layers", "count": 2}
    assert found["text_tower"]["joint_embedding"]["d_in"] == 12
    assert found["notes"] == [
        "its tower of pictures is taken as a whole: methods that put something inside it can't be used.",
        "there is no head: class names in the text tower stand for one.",
    ]


# folders ---------------------------------------------------------------------------------------------------------------


def test_the_command_line_shows_it_and_trains_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = open_clips.folder("rn50", False)
    shown = weft(capsys, "models", where)
    assert (shown.code, shown.err) == (0, "")
    assert "none, 12 features of a picture" in " ".join(shown.out.split())
    data = ("--data", "glyphs", "--limit", "60", "--rounds", "1", "--baselines", "none", "--set", "method.steps=1")
    trained = weft(capsys, "run", "--method", "promptfl", "--model", where, *data)
    assert trained.code == 0, trained.err


def broken(tmp_path: Path, change: Callable[[Path], None]) -> str:
    folder = tmp_path / "clip"
    shutil.copytree(open_clips.folder("rn50", False), folder)
    change(folder)
    return str(folder)


def edit(**text: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "open_clip_config.json"
        config = json.loads(file.read_text())
        config["model_cfg"]["text_cfg"] |= text
        file.write_text(json.dumps(config))

    return change


def cut(folder: Path) -> None:
    file = folder / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def pickled(folder: Path) -> None:
    """Weights that would run code."""
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": Image.new("RGB", (2, 2))}, folder / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "open_clip_config.json").write_text("{"), "could not be loaded: "),
        (lambda f: (f / "open_clip_config.json").write_text('{"preprocess_cfg": {}}'), "could not be loaded: "),
        (lambda f: (f / "open_clip_model.safetensors").unlink(), "holds neither open_clip_model.safetensors nor open_clip_"),
        (cut, "could not be loaded: "),
        (pickled, "are damaged, or hold more than tensors, which is never read"),
        (edit(width=24), "could not be loaded: .*width changed"),
        (edit(depth=3), "could not be loaded: .*depth"),
        (edit(hf_model_name="roberta-base"), r"is of a kind that Weft does not know \(hf_model_name\)"),
        (edit(no_causal_mask=True), r"is of a kind that Weft does not know \(no_causal_mask\)"),
    ],
)
def test_a_folder_that_is_broken_or_unknown_is_refused_in_a_sentence(
    change: Callable[[Path], None], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = broken(tmp_path, change)
    with pytest.raises(UserError, match=sentence) as e:
        load(where, classes=open_clips.NAMES, device="cpu", precision="float32")
    assert "\n" not in str(e.value)
    shown = weft(capsys, "models", where)
    assert shown.code == 2
    assert re.search(sentence, " ".join(shown.err.split()))


def test_a_task_without_class_names_is_refused() -> None:
    with pytest.raises(UserError, match="tells classes apart by their names alone: leave --task out"):
        load(str(open_clips.folder("rn50", False)), classes=3, device="cpu", precision="float32", task="classification")


def test_without_open_clip_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"which is not installed: .*'\.\[vision\]'\.$"):
        load(str(open_clips.folder("rn50", False)), classes=open_clips.NAMES, device="cpu", precision="float32")


def test_a_folder_that_is_a_clip_of_transformers_too_is_read_by_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    shutil.copytree(tiny.folder("clip"), folder)
    shutil.copy(open_clips.folder("rn50", False) / "open_clip_config.json", folder)
    b = load(str(folder), classes=tiny.names(3), device="cpu", precision="float32")
    assert type(b.model).__name__ == "SimilarityCLIP"


def test_the_tokenizer_in_the_folder_is_taken_before_open_clips(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(open_clips.folder("rn50", False), folder)
    open_clips.backbone("rn50").tokenizer.save_pretrained(folder)
    b = load(str(folder), classes=open_clips.NAMES, device="cpu", precision="float32")
    assert b.names is not None
    assert open_clips.backbone("rn50").names is not None
    assert torch.equal(b.names.ids(), open_clips.backbone("rn50").names.ids())
    assert Path(b.tokenizer.name_or_path) == folder
