"""CLIP as a classifier is transformers' CLIP, and its pictures are those of its own image processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import images_by_hand as hand
import tiny
from by_hand import close
from weft.backbones.backbone import Backbone
from weft.backbones.clip import ClassNames
from weft.backbones.load import load
from weft.backbones.pixels import pixels
from weft.data.images import Images
from weft.data.rows import Rows
from weft.errors import UserError


def clip_with(names: list[str], template: str = "w1 w2 {}.", precision: str = "float64") -> Backbone:
    return load(tiny.folder("clip"), classes=names, device="cpu", precision=precision, template=template)


NAMES = ["w7", "w8 w9 w10", "w11 w12"]  # of unequal length, so that rows are padded


def logits_per_image(b: Backbone, prompts: list[str], pixel_values: torch.Tensor) -> torch.Tensor:
    """[n, C] of transformers' CLIPModel, each prompt read by itself and without padding."""
    found = []
    for prompt in prompts:
        words = b.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[b.tokenizer.bos_token_id, *words, b.tokenizer.eos_token_id]])
        found.append(hand.clip(b.path)(input_ids=ids, pixel_values=pixel_values.double()).logits_per_image)
    return torch.cat(found, 1)


def test_logits_are_those_of_transformers_clip_for_the_same_prompts() -> None:
    b = clip_with(NAMES)
    inputs = b.to_model(tiny.table(b).collate(np.arange(24)))
    found = b.model(**inputs | b.class_inputs()).logits
    wanted = logits_per_image(b, [f"w1 w2 {n}." for n in NAMES], inputs["pixel_values"])
    close(found, wanted, 1e-10)
    assert found.std(dim=1).min() > 0.1, "logits that are all alike would prove nothing"


def test_in_single_precision_they_are_the_same_to_five_digits() -> None:
    b = clip_with(NAMES, precision="float32")
    inputs = b.to_model(tiny.table(b).collate(np.arange(24)))
    wanted = logits_per_image(b, [f"w1 w2 {n}." for n in NAMES], inputs["pixel_values"])
    torch.testing.assert_close(b.model(**inputs | b.class_inputs()).logits.double(), wanted, rtol=1e-4, atol=1e-4)


def test_one_copy_of_the_class_names_for_each_share_of_the_images() -> None:
    """Images of two clients, and two copies of the token rows: each share meets its own copy."""
    b = clip_with(NAMES)
    assert b.names is not None
    inputs = b.to_model(tiny.table(b).collate(np.arange(6)))
    one, other = b.names.ids(), replace(b.names, template="w5 {}.").ids()
    other = torch.nn.functional.pad(other, (0, one.shape[1] - other.shape[1]))
    found = b.model(**inputs, input_ids=torch.cat([one, other]), classes=3).logits
    for rows, template in ((slice(0, 3), "w1 w2 {}."), (slice(3, 6), "w5 {}.")):
        wanted = logits_per_image(b, [template.format(n) for n in NAMES], inputs["pixel_values"][rows])
        close(found[rows], wanted, 1e-10)


def test_its_tensors_have_the_names_of_clip_model_so_that_checkpoints_fit_both_ways(tmp_path: Path) -> None:
    from transformers import CLIPModel

    b = clip_with(NAMES)
    assert set(b.model.state_dict()) == set(hand.clip(b.path).state_dict())
    b.model.save_pretrained(tmp_path)
    again, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(v.double(), b.model.state_dict()[n]) for n, v in again.state_dict().items())


def test_an_underscore_in_a_class_name_is_a_space() -> None:
    under, spaced = clip_with(["w7", "w8_w9_w10", "w11_w12"]), clip_with(NAMES)
    assert under.names is not None
    assert spaced.names is not None
    assert torch.equal(under.names.ids(), spaced.names.ids())
    assert under.names.names[1] == "w8_w9_w10", "the name itself stays as the data give it"


def test_a_template_without_a_place_for_the_name_is_refused() -> None:
    with pytest.raises(UserError, match=r'"a photo of it" has no \{\} for the name'):
        clip_with(NAMES, "a photo of it")


def test_a_clip_for_similarity_needs_names_instead_of_a_number() -> None:
    with pytest.raises(UserError, match="names of the classes"):
        load(tiny.folder("clip"), classes=3, device="cpu", precision="float64")


def test_a_class_name_that_does_not_fit_into_the_text_tower_is_named() -> None:
    long = "_".join(["w1"] * 70)
    with pytest.raises(UserError, match=f'class "{long}" makes a text of 75 tokens, but the text tower takes 64'):
        clip_with(["w7", long])


@dataclass
class Words:
    """A tokenizer of whole words w0 … w93 as 4 … 97, with special tokens of choice."""

    bos_token_id: int
    eos_token_id: int
    pad_token_id: int | None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [4 + int(w[1:]) for w in text.split()]}


@pytest.mark.parametrize("padding", [None, -1, 0, 50])
def test_what_stands_behind_the_end_token_changes_nothing(padding: int | None) -> None:
    b = clip_with(NAMES)
    names = ClassNames(Words(2, 3, padding), tuple(NAMES), "w1 w2 {}", 64)
    rows = names.ids()
    assert rows.min() >= 0
    found = b.model.embed_texts(rows)
    for name, text in zip(NAMES, found, strict=True):
        close(text, hand.text_embedding(b, hand.framed(b, hand.word_embeddings(b, f"w1 w2 {name}"))), 1e-10)


def test_an_early_clip_whose_configuration_names_a_wrong_end_token_is_read_at_its_highest_token() -> None:
    """OpenAI's configurations say 2, and the end token is the last of the vocabulary; transformers goes by the latter."""
    b = tiny.fresh("clip")
    b.model.text_model.eos_token_id = 2
    names = ClassNames(Words(98, 99, 99), tuple(NAMES), "w1 w2 {}", 64)
    found = b.model.embed_texts(names.ids())
    for name, text in zip(NAMES, found, strict=True):
        ids = [98, 5, 6, *(4 + int(w[1:]) for w in name.split()), 99]
        close(text, hand.text_embedding(b, hand.token_embeddings(b, ids)), 1e-10)


def test_the_image_tower_alone_classifies_with_a_head_of_its_own() -> None:
    b = tiny.backbone("clip", task="classification")
    assert (b.names, b.embedding, [h.name for h in b.heads]) == (None, None, ["classifier"])
    assert not any("text" in s.name for s in b.linears + b.norms + b.outer)


def test_a_backbone_without_a_text_tower_can_not_compare() -> None:
    with pytest.raises(UserError, match="has no text tower"):
        load(tiny.folder("vit"), classes=NAMES, device="cpu", precision="float64", task="similarity")


def test_the_similarity_of_a_bfloat16_backbone_is_taken_in_float32() -> None:
    b = clip_with(NAMES, precision="bfloat16")
    inputs = b.to_model(tiny.table(b).collate(np.arange(24)))
    assert inputs["pixel_values"].dtype == torch.bfloat16
    z = b.model.embed_images(**inputs)
    texts = b.class_inputs()["text_embeds"]
    found = b.model(**inputs | b.class_inputs()).logits
    assert (texts.dtype, found.dtype) == (torch.float32, torch.float32)
    cosine = torch.nn.functional.cosine_similarity(z.double().unsqueeze(1), texts.double(), dim=-1)
    torch.testing.assert_close(found.double(), b.model.logit_scale.double().exp() * cosine, rtol=1e-5, atol=1e-4)


# pictures -------------------------------------------------------------------------------------------------------------


def photographs() -> list[Image.Image]:
    """Of several sizes and shapes, so that they must be resized and cropped."""
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (31, 17), (9, 40), (64, 64), (5, 5)]
    return [Image.fromarray(rng.integers(0, 256, size=(h, w, 3), dtype=np.uint8)) for h, w in sizes]


def processors() -> dict[str, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return {
        "vit": ViTImageProcessorPil(size={"height": 8, "width": 8}),
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        "larger crop": CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 8, "width": 8}),
        "not normalised": ViTImageProcessorPil(size={"height": 8, "width": 8}, do_normalize=False),
    }


@pytest.mark.parametrize("kind", ["vit", "clip", "larger crop", "not normalised"])
def test_pictures_are_the_processors_own_output_scaled_and_normalised(kind: str) -> None:
    processor = processors()[kind]
    b = replace(tiny.backbone("clip"), processor=processor)
    own = photographs()
    images = Images([np.asarray(p) for p in own])
    table = pixels(b, Rows(None, None, np.zeros(len(own), np.int64), np.arange(len(own)), images=images))
    assert table.values.dtype == np.uint8
    found = table.collate(np.arange(len(own)))["pixel_values"]
    wanted = torch.stack([torch.as_tensor(processor(images=p, return_tensors="np")["pixel_values"][0]) for p in own])
    torch.testing.assert_close(found, wanted.float(), rtol=0.0, atol=1e-6)


def test_a_processor_that_makes_pictures_of_another_size_is_found_out_before_training() -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    b = replace(tiny.backbone("vit"), processor=ViTImageProcessorPil(size={"height": 16, "width": 16}))
    with pytest.raises(UserError, match="16×16 pixels, but the backbone takes 8×8"):
        tiny.table(b)


def test_an_empty_row_of_a_batch_is_a_picture_of_zeros() -> None:
    table = tiny.table(tiny.backbone("vit"))
    found = table.collate(np.array([3, -1, 0]))["pixel_values"]
    assert not found[1].any()
    assert torch.equal(found[0], table.collate(np.array([3]))["pixel_values"][0])


def test_pictures_beyond_the_memory_limit_lie_in_a_file_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    b = tiny.backbone("vit")
    plain = tiny.table(b)
    monkeypatch.setattr("weft.backbones.pixels.IN_MEMORY", 100)
    filed = tiny.table(b)
    assert isinstance(filed.values, np.memmap)
    assert not isinstance(plain.values, np.memmap)
    assert np.array_equal(filed.values, plain.values)


def test_texts_for_a_picture_backbone_and_the_other_way_round_are_refused() -> None:
    from weft.backbones.run_table import tabulate

    with pytest.raises(UserError, match=r'the data are texts, but backbone ".*" reads images'):
        tabulate(tiny.backbone("vit"), tiny.rows(3))
    with pytest.raises(UserError, match=r'the data are images, but backbone ".*" reads texts'):
        tabulate(tiny.backbone("bert"), tiny.rows(3, reads="images"))


def test_a_padding_row_has_a_direction_where_the_cache_gives_embeddings() -> None:
    run = tiny.bench("clip", prefix=True)
    assert run.prefix is not None
    inputs, hidden = run.prefix.gather(run.table, np.array([2, -1]), len(run.backbone.blocks) + 1)
    assert hidden is None
    logits = run.backbone.model(**inputs | run.backbone.class_inputs()).logits
    assert bool(torch.isfinite(logits).all())
