"""A checkpoint is compared with its model: whatever it lacks, or has in another size, is said before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from model_folders import VIT, copy, images, loaded, refused
from weft.backbones.freeze import describe_model
from weft.backbones.inventory import inventory
from weft.backbones.load import load
from weft.backbones.reading import model_class
from weft.checks import checkpoints
from weft.errors import UserError


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, values: dict[str, Tensor]) -> None:
    save_file(values, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


OUTSIDE = {
    "bert": ["word_embeddings", "position_embeddings", "token_type_embeddings", "embeddings.LayerNorm.bias"],
    "gpt2": ["wte", "wpe", "ln_f.weight"],
    "llama": ["embed_tokens", "norm.weight"],
    "deberta-v2": ["rel_embeddings", "encoder.LayerNorm.weight"],
    "albert": ["embedding_hidden_mapping_in.weight"],
    "t5": ["shared", "encoder.final_layer_norm"],
    "vit": ["cls_token", "position_embeddings", "patch_embeddings.projection.weight", "layernorm.bias"],
    "clip": [
        "vision_model.embeddings.class_embedding",
        "text_model.embeddings.token_embedding",
        "text_model.encoder.layers.1.mlp.fc1.bias",
        "text_projection",
        "logit_scale",
    ],
}
CASES = [(kind, part) for kind, parts in OUTSIDE.items() for part in parts]


@pytest.mark.parametrize(("kind", "part"), CASES)
def test_any_tensor_that_a_checkpoint_lacks_is_named(kind: str, part: str, tmp_path: Path) -> None:
    folder = copy(kind, tmp_path / "m")
    values = tensors(folder)
    (gone,) = [n for n in values if part in n and not n.startswith("decoder.") and ".layer" not in n.replace(part, "")][:1]
    rewrite(folder, {n: t for n, t in values.items() if n != gone})
    refused(folder, rf"lacks [12] tensors?, such as \S*{gone.split('.')[-1]}|lacks 2 tensors, such as encoder\.embed_tokens")


def test_what_memory_happened_to_hold_in_a_tensor_that_is_lacking_is_not_taken_for_damage() -> None:
    ours = loaded(tiny.folder("bert"))
    (name,) = (n for n, _ in ours.model.named_parameters() if "position_embeddings" in n)
    with torch.no_grad():
        ours.model.get_parameter(name).fill_(torch.nan)
    with pytest.raises(UserError, match=rf"lacks 1 tensor, such as {name}"):
        describe_model(ours.model, ours.tokenizer, {name}, name="torn")
    with pytest.raises(UserError, match=rf"NaN, infinite or huge values in 1 tensor, such as {name}"):
        describe_model(ours.model, ours.tokenizer, set(), name="torn")


@pytest.mark.parametrize(("kind", "part"), [c for c in CASES if "norm" not in c[1].lower()])
def test_any_tensor_of_another_size_is_named_with_both_sizes(kind: str, part: str, tmp_path: Path) -> None:
    folder = copy(kind, tmp_path / "m")
    values = tensors(folder)
    (name,) = [n for n in values if part in n and not n.startswith("decoder.") and ".layer" not in n.replace(part, "")][:1]
    whole = values[name]
    values[name] = torch.cat([whole, whole[-1:]]) if whole.dim() else torch.ones(2)
    rewrite(folder, values)
    have, want = ("×".join(map(str, t.shape)) or "1" for t in (values[name], whole))
    refused(folder, rf"of another size than its config\.json says, such as \S+, {have} instead of {want}")


def test_a_pooler_and_a_head_may_be_new_but_not_half_of_a_pooler(tmp_path: Path) -> None:
    folder = copy("bert", tmp_path / "m")
    values = tensors(folder)
    rewrite(folder, {n: t for n, t in values.items() if not n.startswith("pooler")})
    assert [h.name for h in loaded(folder).heads] == ["bert.pooler.dense", "classifier"]
    rewrite(folder, {n: t for n, t in values.items() if n != "pooler.dense.weight"})
    refused(folder, r"lacks 1 tensor, such as bert\.pooler\.dense\.weight")


@pytest.mark.parametrize("kind", sorted(tiny.SHAPES))
@pytest.mark.parametrize("checkpoint", ["base", "lm", "mlm"])
def test_what_transformers_derives_or_ties_is_not_missing(kind: str, checkpoint: str, tmp_path: Path) -> None:
    """Of every architecture, checkpoints with and without a head of their own."""
    if checkpoint == "lm" and kind not in tiny.DECODERS:
        checkpoint = "base"
    if checkpoint == "mlm" and kind not in ("bert", "roberta", "distilbert", "albert", "deberta-v2", "modernbert"):
        checkpoint = "base"
    notes = loaded(Path(tiny.folder(kind, checkpoint))).notes
    assert [n for n in notes if "common to all rows" not in n] == []  # DeBERTa's table of positions


def test_a_tensor_that_no_logit_depends_on_may_be_missing(tmp_path: Path) -> None:
    """A token for masked patches, which only pretraining uses: published checkpoints leave it out."""
    folder = images("dinov2", tmp_path / "m", VIT)
    values = tensors(folder)
    (mask,) = [n for n in values if "mask_token" in n]
    rewrite(folder, {n: t for n, t in values.items() if n != mask})
    assert [h.name for h in loaded(folder).heads] == ["classifier"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3e30])
@pytest.mark.parametrize(
    ("kind", "part"), [("bert", "layer.1.output.dense.weight"), ("clip", "text_projection"), ("vit", "cls_token")]
)
def test_a_weight_that_is_not_finite_is_said_before_training(kind: str, part: str, value: float, tmp_path: Path) -> None:
    folder = copy(kind, tmp_path / "m")
    values = tensors(folder)
    name = next(n for n in values if part in n)
    values[name].view(-1)[3] = value
    rewrite(folder, values)
    refused(folder, r"holds NaN, infinite or huge values in 1 tensor, such as \S+")


def test_weights_so_large_that_logits_overflow_are_said_before_training(tmp_path: Path) -> None:
    folder = copy("gpt2", tmp_path / "m")
    values = tensors(folder)
    values["h.1.mlp.c_fc.weight"][:] = 1e17
    values["h.1.mlp.c_proj.weight"][:] = 1e17
    rewrite(folder, values)
    refused(folder, "are not finite: its weights are damaged")


def test_weights_stored_as_whole_numbers_are_refused_unless_the_configuration_explains_them(tmp_path: Path) -> None:
    folder = copy("bert", tmp_path / "m")
    values = tensors(folder)
    name = "encoder.layer.1.output.dense.weight"
    rewrite(folder, values | {name: (values[name] * 100).to(torch.int8)})
    refused(folder, rf"stores 1 tensor as whole numbers \(I8\), such as {name}")
    checkpoints.numbers("x", {name: "I8", "embeddings.position_ids": "I64"}, quantised=True)
    checkpoints.numbers("x", {name: "BF16", "embeddings.position_ids": "I64"}, quantised=False)


@pytest.mark.parametrize(
    "change", [{"size": {"height": "many", "width": 8}}, {"image_std": [0.0, 0.5, 0.5]}, {"image_mean": "x"}]
)
def test_an_image_processor_that_can_not_be_used_is_refused_before_training(change: dict[str, Any], tmp_path: Path) -> None:
    folder = copy("vit", tmp_path / "m")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(folder, r"the image processor of \S+ could not be loaded: ")


def test_blocks_that_the_configuration_leaves_out_are_said(tmp_path: Path) -> None:
    folder = copy("bert", tmp_path / "m")
    configure(folder, num_hidden_layers=2)
    assert loaded(folder).notes == ("the checkpoint holds 3 blocks and config.json says 2: the others are left out.",)


def test_tensors_of_blocks_that_an_architecture_has_no_place_for_are_said(tmp_path: Path) -> None:
    """A Qwen2 taken for a LLaMA: the biases of its queries, keys and values would be dropped without a word."""
    folder = copy("qwen2", tmp_path / "m")
    configure(folder, model_type="llama", architectures=["LlamaModel"])
    (note,) = loaded(folder).notes
    assert note.startswith("the checkpoint holds 9 tensors that its architecture has no place for, such as layers.0.self_attn.")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_in_the_folder_of_a_backbone_is_refused(file: str, tmp_path: Path) -> None:
    folder = copy("bert", tmp_path / "m")
    (folder / file).write_text("{}")
    refused(folder, rf"holds an adapter \({file}\) beside the backbone")
    (folder / "config.json").unlink()
    refused(folder, "holds a PEFT adapter and no backbone")


def test_a_damaged_file_of_tensors_that_no_one_asked_for_is_named(tmp_path: Path) -> None:
    """It counts in the hash of the weights."""
    folder = copy("bert", tmp_path / "m")
    (folder / "more.safetensors").write_text("")
    refused(folder, r"more\.safetensors is damaged")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": "many"}, "could not be loaded: .*hidden_size"),
        ({"num_attention_heads": 0}, "could not be loaded: "),
        ({"num_hidden_layers": 0}, "could not be loaded|no stack of transformer blocks"),
        ({"intermediate_size": 65}, "of another size than its config"),
        ({"vocab_size": 99}, "of another size than its config"),
    ],
)
def test_a_configuration_that_makes_no_model_is_one_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = copy("bert", tmp_path / "m")
    configure(folder, **change)
    refused(folder, words)


# image models ----------------------------------------------------------------------------------------------------------

STAGES = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2}


@pytest.mark.parametrize("kind", ["swin", "swinv2"])
def test_the_blocks_of_stages_are_those_inside_them(kind: str, tmp_path: Path) -> None:
    b = loaded(images(kind, tmp_path / "m", STAGES))
    assert (len(b.blocks), [s.d_in for s in b.entries], b.staged_blocks) == (4, [16, 16, 32, 32], True)
    assert {s.per_row for s in b.linears if "position_bias" not in s.name} == {True}


def test_other_models_of_two_towers_do_not_compare_with_names() -> None:
    from transformers import AutoConfig

    with pytest.raises(
        UserError, match=r"compares them in a way of its own \(siglip2\): .* use a CLIP, or --task classification"
    ):
        model_class(AutoConfig.for_model("siglip2"), "it", "similarity")


@pytest.mark.parametrize(("template", "many"), [("a {} of {}.", "more than one"), ("a photo", "no"), ("{name}", "no")])
def test_a_template_without_one_place_for_the_name_is_refused_before_anything_is_loaded(template: str, many: str) -> None:
    with pytest.raises(UserError, match=rf"has {many} {{}} for the name of a class: write one"):
        load("no-such-model", template=template)


def test_a_template_is_taken_literally_but_for_its_one_place() -> None:
    b = load(tiny.folder("clip"), classes=["w7", "{0}"], device="cpu", precision="float32", template="{a name} {w1 } {} {0:>3}")
    assert b.names is not None
    for row, text in zip(b.names.ids().tolist(), ("{a name} {w1 } w7 {0:>3}", "{a name} {w1 } {0} {0:>3}"), strict=True):
        words = b.names.words(text)
        assert row[1 : len(words) + 2] == [*words, b.tokenizer.eos_token_id]


# what is printed -------------------------------------------------------------------------------------------------------


def test_the_inventory_tells_what_was_compared(tmp_path: Path) -> None:
    folder = copy("roberta", tmp_path / "m")
    found = inventory(loaded(folder))
    assert found["checked"] == {
        "tensors": len(tensors(folder)) - 2,  # the pooler, which a classifier of this kind does not use
        "new": ["classifier.dense", "classifier.out_proj"],
        "tokens": 98,
        "rows_of_the_embedding": 100,
        "longest_row": 64,
    }
