"""The client × label table and its picture."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.image import imread

from command_line import table as written
from command_line import weft
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


def named(*classes: str) -> FederatedData:
    rows = Rows(texts=[str(i) for i in range(40)], labels=[i % len(classes) for i in range(40)])
    return partition(Source("toy $x^2$", classes, rows), clients=2, scheme="iid")


def drawn(fed: FederatedData, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the classes in the picture, drawn without a warning."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(self: Figure, *args: Any, **more: Any) -> None:
        figures.append(self)
        save(self, *args, **more)

    monkeypatch.setattr(Figure, "savefig", kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture(fed, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    return [text.get_text() for legend in figures[-1].legends for text in legend.get_texts()][::-1]


@pytest.mark.parametrize("names", [("$", "$$", "$$$"), ("_none", "__", "a"), ("\\frac", "{", "^_"), ("<b>", "[bold]", "%s")])
def test_names_are_drawn_as_they_are_written(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(named(*names), tmp_path / "deal.png", monkeypatch) == list(names)


def test_names_that_are_long_or_have_no_shape_leave_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn(named("x" * 5000, "a\nb\tc", "\x07"), tmp_path / "deal.png", monkeypatch)
    assert found == ["x" * 39 + "…", "a b c", " "]


def test_a_name_that_no_font_here_draws_is_replaced_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = [f for f in font_manager.fontManager.ttflist if f.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    assert drawn(named("好评", "Ärger", "差评"), tmp_path / "deal.png", monkeypatch) == ["class 0", "Ärger", "class 2"]


def test_a_table_is_printed_even_if_nothing_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "rows.csv")
    monkeypatch.chdir(tmp_path)
    line = ("data", tmp_path / "rows.csv", "--clients", 2, "--partition", "iid")
    plain = weft(capsys, *line)
    assert plain.code == 0
    assert list(tmp_path.glob("*.png")) == []  # nothing is written that nobody asked for
    monkeypatch.setattr("weft.data.deal_table._draw", lambda *_: 1 / 0)
    broken = weft(capsys, *line, "--out", "deal.png")
    assert broken.code == 2
    assert broken.out == plain.out
    assert "the picture was not drawn (division by zero): give --out another file" in broken.err
