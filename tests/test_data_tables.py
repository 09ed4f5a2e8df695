"""The client × label table and its picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from weft.data import FederatedData, Rows, Source, partition, picture, table


def deal(clients: int, classes: int, n: int = 400) -> FederatedData:
    rows = Rows([str(i) for i in range(n)], None, np.arange(n) % classes, np.arange(n))
    return partition(Source("toy", tuple(f"class {i}" for i in range(classes)), rows), clients=clients, scheme="iid")


def test_the_table_counts_every_row_of_every_client_once() -> None:
    fed = deal(clients=5, classes=3)
    counts = table(fed)
    assert counts.shape == (5, 3)
    assert counts.sum() == 400
    for row, client in zip(counts, fed.clients, strict=True):
        labels = [*client.train.labels.tolist(), *client.val.labels.tolist(), *client.test.labels.tolist()]
        assert dict(enumerate(row.tolist())) == {label: Counter(labels)[label] for label in range(3)}


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (8, 12), (100, 5), (6, 60)])
def test_the_picture_is_a_png_that_is_not_blank(clients: int, classes: int, tmp_path: Path) -> None:
    path = picture(deal(clients, classes), tmp_path / "deal.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = imread(path)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > classes  # a colour a class, and the paper


def test_a_picture_of_clients_without_rows_can_be_drawn(tmp_path: Path) -> None:
    rows = Rows(["a", "b", "c", "d"], None, np.array([0, 1, 0, 1]), np.arange(4))
    fed = partition(Source("toy", ("x", "y"), rows), clients=4, scheme="dirichlet", alpha=0.05, min_rows=0)
    assert 0 in table(fed).sum(axis=1)
    assert picture(fed, tmp_path / "deal.png").stat().st_size > 0


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    picture(deal(2, 2), tmp_path / "deal.png")
    assert plt.get_fignums() == before
