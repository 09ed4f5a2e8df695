"""drawings: what is drawn, in which domains; and drawn-clip and drawn-vit, which saw some of its classes and domains only."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

import shipped
from shipped import by_nearest_mean, folder, pixels, plain, prepared
from weft.data import brushes
from weft.data.brushes import FINE, SIZE
from weft.data.drawings import CLASSES, DOMAINS, EACH, KNOWN, KNOWN_DOMAINS, LEFT_OUT, drawings, mask
from weft.data.outlines import OUTLINES
from weft.data.rows import Source


@pytest.fixture(scope="module")
def source() -> Source:
    return drawings()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return shipped.script("pretrain_drawn")


def of(source: Source, domain: str) -> np.ndarray:
    """Pictures of a domain as numbers in 0 … 1."""
    table = source.unseen[LEFT_OUT] if domain == LEFT_OUT else source.train
    return pixels(table, np.array(table.keys) == domain) / 255


# the set ------------------------------------------------------------------------------------------------------------------


def test_every_domain_has_the_same_number_of_pictures_of_each_class(source: Source) -> None:
    assert len(source.classes) == len(set(source.classes)) == 20
    assert all(name.isalpha() and name.islower() for name in source.classes)
    tables = [source.train, *source.unseen.values()]
    found = Counter((key, label) for t in tables for key, label in zip(t.keys or (), t.labels.tolist(), strict=True))
    assert found == {(domain, label): EACH for domain in DOMAINS for label in range(20)}
    ids = np.concatenate([t.ids for t in tables])
    assert sorted(ids.tolist()) == list(range(len(found) * EACH))


def test_a_domain_is_a_natural_client_and_the_one_left_out_is_not_trained_on(source: Source) -> None:
    assert source.key_name == "domain"
    assert set(source.train.keys or ()) == {"filled", "sketch", "textured", "painting", "neon", "noisy"}
    assert {name: set(rows.keys or ()) for name, rows in source.unseen.items()} == {"mosaic": {"mosaic"}}


def test_pictures_are_small_coloured_and_all_different(source: Source) -> None:
    every = np.concatenate([pixels(source.train), pixels(source.unseen[LEFT_OUT])])
    assert every.shape == (2800, SIZE, SIZE, 3)
    assert len({each.tobytes() for each in every}) == len(every)
    coloured = np.abs(every[..., 0].astype(int) - every[..., 2]).max((1, 2)) > 30
    assert coloured.mean() > 0.8


def test_the_same_pictures_are_drawn_every_time_and_no_global_stream_is_touched(source: Source) -> None:
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = (np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index]  # noqa: NPY002
    again = drawings.__wrapped__()
    after = (np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index]  # noqa: NPY002
    assert again is not source
    assert again.fingerprint == source.fingerprint
    assert np.array_equal(pixels(again.train), pixels(source.train))
    assert after[0] == before[0]
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("name", CLASSES)
def test_a_thing_lies_within_the_picture_and_no_two_are_the_same(name: str) -> None:
    draw = np.random.default_rng(3)
    masks = np.stack([mask(OUTLINES[name](draw), draw) for _ in range(12)])
    assert masks.shape == (12, FINE, FINE)
    assert len({each.tobytes() for each in masks}) == 12
    share = masks.mean((1, 2))
    assert share.min() > 0.03
    assert share.max() < 0.7
    assert not np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]).any()


def test_what_is_cut_out_shows_the_ground() -> None:
    draw = np.random.default_rng(0)
    strokes = OUTLINES["ring"](draw)
    ring, disc = (mask(each, np.random.default_rng(1)) for each in (strokes, strokes[:1]))
    rows, columns = np.nonzero(disc > 0.5)
    middle = round(rows.mean()), round(columns.mean())
    assert disc[middle] == 1
    assert ring[middle] == 0


def test_a_thing_can_be_told_from_its_ground_in_the_plain_domain(source: Source) -> None:
    grey = of(source, "filled").mean(-1)
    assert np.ptp(grey, axis=(1, 2)).min() > 0.2


def test_domains_look_as_they_are_called(source: Source) -> None:
    shade = {domain: of(source, domain).mean((1, 2, 3)) for domain in DOMAINS}
    assert shade["sketch"].min() > 0.75  # mostly paper
    assert shade["neon"].max() < 0.35  # mostly night
    others = [d for d in DOMAINS if d not in ("sketch", "neon")]
    assert all(0.3 < shade[d].mean() < 0.7 for d in others)
    # two pixels that lie side by side in a corner show the ground alone: they differ by grain
    corner = {domain: of(source, domain)[:, 0, :2] for domain in DOMAINS}
    grain = {domain: float(np.abs(np.diff(c, axis=1)).mean()) for domain, c in corner.items()}
    assert grain["noisy"] > 2 * max(grain[d] for d in ("filled", "sketch", "textured", "neon"))
    assert grain["mosaic"] == 0  # one stone


def test_a_mosaic_is_of_stones_of_two_by_two_pixels(source: Source) -> None:
    pictures = of(source, "mosaic")
    stones = pictures[:, ::2, ::2]
    assert np.array_equal(pictures, stones.repeat(2, 1).repeat(2, 2))


def test_a_rim_runs_along_the_border_alone() -> None:
    square = np.zeros((1, FINE, FINE), np.float32)
    square[:, 20:40, 20:40] = 1
    line = brushes.rim(square)[0]
    assert not line[22:38, 22:38].any()
    assert not line[:19].any()
    assert line[19:21, 20:40].all()


def test_patterns_are_marks_of_which_about_half_is_covered() -> None:
    draw = np.random.default_rng(0)
    for kind, (low, high) in enumerate(((0.4, 0.6), (0.2, 0.45), (0.4, 0.6))):
        marks = brushes.pattern(draw, np.full(20, kind), 20)
        assert set(np.unique(marks).tolist()) == {0.0, 1.0}
        assert low < marks.mean() < high


# drawn-clip and drawn-vit -------------------------------------------------------------------------------------------------


def test_pretraining_saw_neither_the_classes_nor_the_domains_that_its_card_names(script: ModuleType) -> None:
    others = [c for c in CLASSES if c not in KNOWN], [d for d in DOMAINS if d not in KNOWN_DOMAINS]
    assert (len(others[0]), len(others[1])) == (6, 4)
    assert not {*others[0]} & {*script.NAMES}
    assert not {*others[1]} & {*script.BRUSHES}
    assert LEFT_OUT in others[1]
    vit, clip = ((folder(name) / "README.md").read_text(encoding="utf-8") for name in ("drawn-vit", "drawn-clip"))
    assert f"the classes {', '.join(others[0])}, and the domains {', '.join(others[1])}" in vit
    assert f"the classes boat, mushroom, and the domains {', '.join(others[1])}" in clip
    assert "hardly seen, in 1% of the pictures of its last steps: diamond, umbrella, crown, key" in clip
    assert said(script, 0.0).isdisjoint({*others[0], *others[1]})
    assert said(script, 0.9).isdisjoint({"boat", "mushroom", *others[1]})
    assert said(script, 0.9) >= {*script.RARE}


def said(script: ModuleType, rare: float) -> set[str]:
    """Words of captions in pretraining."""
    endless = script.Endless(seed=1, pool=200, rare=rare)
    return {w for _ in range(4) for line in endless.captions(endless.draw(50)[1]) for w in line.split()}


def test_pretraining_never_draws_the_same_picture_twice(script: ModuleType) -> None:
    endless = script.Endless(seed=1, pool=100)
    (x, what), (y, _) = endless.draw(60), endless.draw(60)
    assert x.shape == (60, 3, SIZE, SIZE)
    assert (float(x.min()) >= -1, float(x.max()) <= 1) == (True, True)
    assert len({each.numpy().tobytes() for each in (*x, *y)}) == 120
    assert Counter(what["domain"].tolist()) == dict.fromkeys(range(5), 12)
    again, _ = script.Endless(seed=1, pool=100).draw(60)
    assert torch.equal(again, x)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(folder("drawn-clip"))


def test_every_class_and_domain_is_one_word_of_the_vocabulary(tokenizer: Any) -> None:
    ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in (*CLASSES, *DOMAINS)]
    assert {len(row) for row in ids} == {1}
    assert len({row[0] for row in ids}) == len(ids)
    assert tokenizer.unk_token_id not in {row[0] for row in ids}


@torch.no_grad()
def accuracies(tokenizer: Any, x: Tensor, labels: Tensor, names: tuple[str, ...]) -> tuple[float, float]:
    """Zero-shot of drawn-clip, by its class token and by the mean of its patches' cosines with the texts."""
    clip = plain("drawn-clip")[0].eval()
    texts = tokenizer([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
    out = clip(pixel_values=x, **texts)
    patches = clip.visual_projection(clip.vision_model.post_layernorm(out.vision_model_output.last_hidden_state[:, 1:]))
    by_patch = torch.nn.functional.normalize(patches, dim=-1) @ out.text_embeds.T  # [n, patches, names]
    scores = out.logits_per_image, by_patch.mean(1)
    first, second = (float((each.argmax(1) == labels).float().mean()) for each in scores)
    return first, second


def test_drawn_clip_names_what_it_was_trained_on_by_its_class_token_and_by_its_patches_alike(
    script: ModuleType, tokenizer: Any
) -> None:
    x, what = script.Endless(seed=20_000, pool=1000).draw(1000)  # a seed that pretraining does not use
    by_token, by_patches = accuracies(tokenizer, x, what["thing"], script.NAMES)
    assert by_token >= 0.75
    assert by_patches >= by_token - 0.05


def test_drawn_clip_leaves_room_on_the_set_and_knows_least_of_what_it_has_not_seen(
    script: ModuleType, source: Source, tokenizer: Any
) -> None:
    x, labels = prepared("drawn-clip", source.train, 1200)
    by_token, by_patches = accuracies(tokenizer, x, labels, CLASSES)
    assert 0.4 < by_token < 0.7
    assert by_patches >= by_token - 0.05

    def among(classes: tuple[str, ...]) -> float:
        here = torch.isin(labels, torch.tensor([CLASSES.index(c) for c in classes]))
        return accuracies(tokenizer, x[here], labels[here], CLASSES)[0]

    assert among(("boat", "mushroom")) < 0.1 < 0.3 < among(script.RARE) < among(KNOWN) - 0.1


def test_drawn_vit_tells_things_apart_also_on_the_set(script: ModuleType, source: Source) -> None:
    """By the nearest class mean, which finds 1/64 and 1/20 of them in a ViT that was not trained."""
    vit = plain("drawn-vit")[0].eval()
    assert vit.config.num_hidden_layers == 12
    x, what = script.Endless(seed=20_000, pool=2000).draw(2000)
    assert by_nearest_mean(vit, x, what["thing"]) >= 0.45
    assert by_nearest_mean(vit, *prepared("drawn-vit", source.train, 2400)) >= 0.48
