"""Views of pictures: crops within the picture, always the same, trained on in turns and kept like other rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

import tiny
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import tabulate
from weft.backbones.views import Views
from weft.contract import Batch, Method, Pack
from weft.errors import UserError
from weft.methods import FedIT, PFedPrompt, PromptFL
from weft.testing.compare import assert_same, state
from weft.testing.sites import remote

VIEWS = Views(3, 0.1, True, 0)
SEEN: list[tuple[str, int, np.ndarray]] = []


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Red says how far to the right a pixel is, and green how far down."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([across * 4, down * 6, 0 * down], -1).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(60, 40), (7, 90), (100, 3), (1, 1), (5, 5)])
def test_crops_lie_within_the_picture_and_have_no_less_than_the_share_of_its_area(width: int, height: int) -> None:
    for seed in range(200):
        left, top, right, bottom = VIEWS.box(width, height, np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if (width, height) == (60, 40):
            assert (right - left) * (bottom - top) > 0.09 * 2400
            assert 0.7 < (right - left) / (bottom - top) < 1.4


def test_sizes_and_places_of_crops_are_spread() -> None:
    boxes = np.array([Views(1, 0.08, False, 0).box(60, 40, np.random.default_rng(seed)) for seed in range(2000)])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 2400
    assert area.min() < 0.1
    assert area.max() > 0.85
    assert 0.3 < area.mean() < 0.6  # fewer of the largest, which do not fit in every shape
    middle = (boxes[:, 0] + boxes[:, 2]) / 2
    assert abs(middle.mean() - 30) < 1


def test_a_view_is_the_crop_and_mirrored_half_of_the_time() -> None:
    flipped = 0
    for key in range(60):
        (view,) = Views(1, 0.3, True, 0).of(picture(), str(key), (20, 20))
        right, down = (np.diff(view[c].astype(int).mean(axis)).mean() for c, axis in ((0, 0), (1, 1)))
        assert down > 0, "never upside down"
        flipped += right < 0
        (straight,) = Views(1, 0.3, False, 0).of(picture(), str(key), (20, 20))
        assert np.abs(straight.astype(int) - (view[:, :, ::-1] if right < 0 else view)).max() == 0
    assert 15 < flipped < 45


def test_a_view_follows_from_seed_picture_and_number_alone() -> None:
    first = VIEWS.of(picture(), "a", (8, 8))
    assert np.array_equal(first, VIEWS.of(picture(), "a", (8, 8)))
    assert np.array_equal(first[:2], replace(VIEWS, number=2).of(picture(), "a", (8, 8)))
    assert not np.array_equal(first, VIEWS.of(picture(), "b", (8, 8)))
    assert not np.array_equal(first, replace(VIEWS, seed=1).of(picture(), "a", (8, 8)))
    assert len({v.tobytes() for v in first}) == 3


class Watched(FedIT):
    """Notes the rows of each step."""

    info: ClassVar = FedIT.info

    def objective(self, pack: Pack, batch: Batch) -> Any:
        SEEN.append((pack.clients[0].id, pack.round.index, batch.index.copy()))
        return super().objective(pack, batch)


def viewed(method: Method, number: int = 3, where: Any = tiny.federation, **more: Any) -> Any:
    """A federation whose table has views."""
    made = where(method, **more)
    run = made[0] if isinstance(made, tuple) else made
    bench = run.bench
    rows = tiny.rows(len(bench.table), 3, 0, bench.table.labels.tolist(), reads="images")
    bench.table = tabulate(bench.backbone, rows, 32, replace(VIEWS, number=number) if number else None)
    return made


def test_the_table_has_the_rows_as_they_were_and_views_beside_them() -> None:
    plain, run = viewed(FedIT(rank=2), 0, model="vit"), viewed(FedIT(rank=2), model="vit")
    n, table = len(plain.bench.table), run.bench.table
    assert len(table) == n
    assert np.array_equal(table.values[:n], plain.bench.table.values)
    assert len(table.values) == len(table.labels) == len(table.lengths) == 4 * n
    index = np.array([[0, 5, -1], [n - 1, 2, n + 5]])
    found = table.viewed(index, np.array([[0, 4, 1], [2, -1, 0]]))
    assert found.tolist() == [[n, 2 * n + 5, -1], [4 * n - 1, 3 * n + 2, n + 5]]
    assert table.row_of(found).tolist() == [[0, 5, -1], [n - 1, 2, 5]]
    assert np.array_equal(table.labels[found[found >= 0]], table.labels[table.row_of(found[found >= 0])])


def test_each_step_trains_on_one_of_the_views_of_each_row_and_tests_are_on_the_rows() -> None:
    SEEN.clear()
    run = viewed(Watched(rank=2, epochs=8.0, batch=4), model="vit", rounds=2, pack=1)
    n = len(run.bench.table)
    run.run()
    assert {row % n for _, _, index in SEEN for row in index.ravel() if row >= 0} == set(
        np.concatenate([c.data.train for c in run.clients]).tolist()
    )
    numbers = np.concatenate([index[index >= 0] // n for *_, index in SEEN])
    assert set(numbers.tolist()) == {1, 2, 3}
    assert min(np.bincount(numbers)[1:]) > 0.25 * len(numbers)
    SEEN.clear()
    logits = run.global_logits()
    assert len(logits) == n


def test_packs_sites_and_one_by_one_agree_and_so_does_the_cache() -> None:
    method = PromptFL(tokens=2)
    whole = viewed(method, model="clip", pack=3, rounds=2).run()
    one = viewed(method, model="clip", pack=1, rounds=2).run()
    assert_same(state(whole), state(one), 1e-9)
    cached = viewed(method, model="clip", pack=3, rounds=2)
    cached.bench.prefix = PrefixCache(cached.bench.backbone)
    assert_same(state(whole), state(cached.run()), 1e-9)
    away = viewed(method, where=remote, model="clip", rounds=2)[0].run()
    assert_same(whole.server.shared, away.server.shared, 1e-9)  # type: ignore[arg-type]
    plain = viewed(method, 0, model="clip", pack=3, rounds=2).run()
    assert any(not np.allclose(v, plain.server.shared[n]) for n, v in whole.server.shared.items())


def test_a_memory_of_pictures_knows_a_row_by_its_views() -> None:
    """Of its own picture a row sees nothing in the memory, whichever view it is."""
    run = viewed(PFedPrompt(in_training=True), model="clip", rounds=1, pack=1)
    from weft.methods.prompts import pfedprompt

    pack = run.pack([0])
    batch = next(iter(pack.batches(1.0, None, 4)))
    assert (batch.index[0] >= len(run.bench.table)).all()
    seen = pfedprompt.others(pack, batch)[0]
    mine = run.clients[0].data.train
    for i, row in enumerate(run.bench.table.row_of(batch.index)[0]):
        assert seen[i].tolist() == (mine != row).tolist()


def test_views_of_texts_are_refused() -> None:
    run = tiny.federation(FedIT(rank=2))
    with pytest.raises(UserError, match="leave --views out"):
        tabulate(run.bench.backbone, tiny.rows(6, 3, 0), 32, VIEWS)
