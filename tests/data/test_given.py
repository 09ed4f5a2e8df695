"""Rows from Python: taken by position, checked at the door with a sentence each, and frames read as files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from PIL import Image

import toy_runs
import weft
from command_line import table as written
from weft.data import ClientData, FederatedData, Rows, Source, load, partition
from weft.errors import UserError


def refusal(make: Any) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def frame(n: int = 40) -> pandas.DataFrame:
    """Texts that tell their label and their hospital, shuffled together with the index."""
    rows = [{"text": f"text {i} of {i % 2}", "label": i % 2, "hospital": f"h{i % 4}"} for i in range(n)]
    return pandas.DataFrame(rows).sample(frac=1, random_state=0)


# columns with an index of their own -----------------------------------------------------------------------------------------


def test_columns_of_a_shuffled_frame_are_taken_by_position() -> None:
    df = frame()
    rows = Rows(texts=df.text, pairs=df.text, labels=df.label, ids=df.index, keys=df.hospital)
    assert [int(t[-1]) for t in rows.texts or ()] == rows.labels.tolist()
    assert rows.texts == rows.pairs == df.text.tolist()
    assert rows.ids.tolist() == df.index.tolist()
    assert rows.keys == df.hospital.tolist()
    taken = rows.take(np.array([3, 1]))
    assert taken.texts == [df.text.iloc[3], df.text.iloc[1]]
    assert taken.labels.tolist() == [df.label.iloc[3], df.label.iloc[1]]
    images = Rows(
        images=pandas.Series([np.full((2, 2), i, np.uint8) for i in range(3)], index=[2, 0, 1]), labels=[0, 1, 2]
    ).images
    assert [images[i].getpixel((0, 0))[0] for i in range(3)] == [0, 1, 2]  # type: ignore[index]


@pytest.mark.parametrize("kind", ["list", "tuple", "array", "arrow", "generator", "index"])
def test_any_column_does(kind: str) -> None:
    make: dict[str, Any] = {
        "list": list, "tuple": tuple, "array": np.array, "arrow": pyarrow.array, "index": pandas.Index, "generator": iter
    }  # fmt: skip
    texts, labels = make[kind](["a", "b", "c"]), make[kind]([0, 1, 0])
    if kind == "arrow":
        texts, labels = texts.to_pylist(), labels.to_pylist()
    rows = Rows(texts=texts, labels=labels)
    assert (rows.texts, rows.labels.tolist(), rows.ids.tolist()) == (["a", "b", "c"], [0, 1, 0], [0, 1, 2])


# the door -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"labels": [0, 0.5, 1]}, "labels must be whole numbers, but row 1 holds 0.5"),
        ({"labels": ["spam", "ham", "ham"]}, "labels must be whole numbers, but row 0 holds 'spam'"),
        ({"labels": [0, None, 1]}, "row 1 holds None"),
        ({"labels": [0, float("nan"), 1]}, "row 1 holds nan"),
        ({"labels": pandas.Series([0, pandas.NA, 1], dtype="Int64")}, "row 1 holds <NA>"),
        ({"labels": np.array([-1, 0, 1])}, "labels must not be negative, but row 0 holds -1"),
        ({"labels": [0, 2**70, 1]}, "labels hold a number of more than 64 bits"),
        ({"labels": [[0], [1], [0]]}, "row 0 holds [0]"),
        ({"labels": np.zeros((3, 2))}, "labels must have one dimension"),
        ({"labels": {"a": 0}}, "labels must be a list with a value for each row, not a dict"),
        ({"labels": 3}, "labels must be a list with a value for each row, not a int"),
        ({"labels": None}, "rows need labels"),
        ({"labels": [0, 1]}, "labels has 2 entries for 3 texts"),
        ({"texts": ["a", float("nan"), "c"]}, "texts have no text in row 1 (nan)"),
        ({"texts": ["a", None, "c"]}, "texts have no text in row 1 (None)"),
        ({"texts": ["a", 7, "c"]}, "texts must be texts, but row 1 holds 7, a int"),
        ({"texts": "abc"}, "texts must be a list with a value for each row, not a str"),
        ({"texts": ["a", "\ud83d", "c"]}, "texts hold half of a surrogate pair in row 1"),
        ({"pairs": ["a", None, "c"]}, "pairs have no text in row 1"),
        ({"ids": ["a", "b", "c"]}, "ids must be whole numbers, but row 0 holds 'a'"),
        ({"ids": [1, 2]}, "ids has 2 entries for 3 texts"),
        ({"keys": ["a", {}, "c"]}, "keys must be texts or numbers, but row 1 holds {}"),
        ({"keys": ["a"]}, "keys has 1 entries for 3 texts"),
        ({"texts": None}, "rows are texts, images, or texts about images"),
        ({"texts": None, "images": [np.zeros((2, 2))] * 3}, "picture 0 is float64"),
    ],
)
def test_what_is_no_row_is_one_sentence(changed: dict[str, Any], words: str) -> None:
    columns: dict[str, Any] = {"texts": ["a", "b", "c"], "labels": [0, 1, 0]}
    assert words in refusal(lambda: Rows(**columns | changed))


def test_whole_numbers_of_any_kind_are_labels_and_numbers_are_keys() -> None:
    for labels in ([0.0, 1.0, 2.0], np.array([0, 1, 2], np.uint8), [np.int32(0), np.float32(1), 2], pandas.Series([0, 1, 2.0])):
        assert Rows(texts=["a", "b", "c"], labels=labels).labels.tolist() == [0, 1, 2]
    assert Rows(texts=["a", "b"], labels=[False, True]).labels.tolist() == [0, 1]
    assert Rows(texts=["a"] * 4, labels=[0] * 4, keys=[7, 8.0, None, float("nan")]).keys == ["7", "8", "", ""]


def test_labels_are_compared_with_the_classes() -> None:
    def source(labels: list[int], classes: Any = ("a", "b")) -> Source:
        return Source("toy", classes, Rows(texts=["x"] * len(labels), labels=labels))

    assert refusal(lambda: source([1, 2])) == (
        "the labels of toy go from 1 to 2, but it has 2 classes, which are counted from 0: subtract 1 from each."
    )
    assert "name all classes, in the order of the numbers" in refusal(lambda: source([0, 5]))
    assert "two classes called" in refusal(lambda: source([0], ("a", "a")))
    assert "needs a name for each" in refusal(lambda: source([0], ()))
    assert "needs a name for each" in refusal(lambda: source([0], ("a", " ")))
    assert "classes of toy must be a list" in refusal(lambda: source([0], "ab"))
    assert source([0, 1], np.array([3, 4])).classes == ("3", "4")
    assert "train rows of toy must be weft.data.Rows" in refusal(lambda: Source("toy", ("a",), ["x"]))  # type: ignore[arg-type]
    mixed = Rows(images=[np.zeros((2, 2), np.uint8)], labels=[0])
    assert "differ in what they hold" in refusal(lambda: Source("toy", ("a",), Rows(texts=["x"], labels=[0]), test=mixed))


def test_ids_are_unique_over_all_splits_and_numbered_where_they_are_left_out() -> None:
    def rows(ids: Any) -> Rows:
        return Rows(texts=["a", "b"], labels=[0, 1], ids=ids)

    assert "two rows of toy have the id 3 (in train and test)" in refusal(
        lambda: Source("toy", ("x", "y"), rows([3, 4]), test=rows([5, 3]))
    )
    assert "have the id 3 (in train)" in refusal(lambda: Source("toy", ("x", "y"), rows([3, 3])))
    source = Source("toy", ("x", "y"), rows(None), test=rows(None), unseen={"k": rows(None)})
    assert source.test is not None
    found = [source.train.ids.tolist(), source.test.ids.tolist(), source.unseen["k"].ids.tolist()]
    assert found == [[0, 1], [2, 3], [4, 5]]


def test_a_deal_by_hand_is_checked_too() -> None:
    def rows(texts: list[str], ids: list[int], labels: list[int] | None = None) -> Rows:
        return Rows(texts=texts, labels=labels or [0] * len(texts), ids=ids)

    none = rows([], [])

    def dealt(second: ClientData, test: Rows = none) -> FederatedData:
        return FederatedData("toy", ("x", "y"), [ClientData("c0", rows(["a"], [0]), none, none), second], test, none, [])

    assert dealt(ClientData("c1", rows(["b"], [1]), none, none), rows(["b"], [1])).test.texts == ["b"]
    said = "two different rows of toy have the id 0"
    assert said in refusal(lambda: dealt(ClientData("c1", rows(["b"], [0]), none, none)))
    assert said in refusal(lambda: dealt(ClientData("c1", rows(["a"], [0], [1]), none, none)))
    assert 'two clients called "c0"' in refusal(lambda: dealt(ClientData("c0", rows(["b"], [1]), none, none)))
    assert "go from 2 to 2" in refusal(lambda: dealt(ClientData("c1", rows(["b"], [1], [2]), none, none)))


# frames and sets --------------------------------------------------------------------------------------------------------------


def same(one: Source, other: Source) -> None:
    assert (one.classes, one.fingerprint, one.key_name) == (other.classes, other.fingerprint, other.key_name)
    assert one.train.ids.tolist() == other.train.ids.tolist()


def test_a_frame_is_read_like_the_file_that_it_was_written_to(tmp_path: Path) -> None:
    import datasets

    df = frame()
    df.to_csv(tmp_path / "rows.csv", index=False)
    file = load(str(tmp_path / "rows.csv"))
    plain = df.reset_index(drop=True)
    forms = [df, pyarrow.table(plain), datasets.Dataset.from_pandas(plain), {"train": df}, tmp_path / "rows.csv"]
    forms += [datasets.DatasetDict({"train": datasets.Dataset.from_pandas(plain)})]
    for form in forms:
        same(load(form), file)
    both = load({"train": df.iloc[:30], "test": df.iloc[30:]})
    assert both.test is not None
    assert (len(both.train), both.test.texts) == (30, df.text.tolist()[30:])
    assert len(load(df, limit=10).train) == 10
    assert load(df.rename(columns={"text": "t", "label": "l"}), text="t", label="l").train.texts == df.text.tolist()


def test_missing_values_of_a_frame_are_dropped_and_counted() -> None:
    df = frame()
    df.iloc[3, 0], df.iloc[5, 1] = None, None
    source = load(df)
    assert len(source.train) == 38
    assert source.classes == ("0", "1")
    assert any("dropped 2 of 40 train rows" in note for note in source.notes)


def test_frames_and_sets_may_hold_pictures(tmp_path: Path) -> None:
    import datasets

    pictures = [Image.new("L", (4, 4), 10 * i) for i in range(4)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    forms = [
        pandas.DataFrame({"image": files, "label": [0, 1, 0, 1]}),
        pandas.DataFrame({"image": pictures, "label": [0, 1, 0, 1]}),
        datasets.Dataset.from_dict({"image": files, "label": [0, 1, 0, 1]}, features=features),
    ]
    for form in forms:
        images = load(form).train.images
        assert images is not None
        assert [images[i].getpixel((0, 0)) for i in range(4)] == [(10 * i,) * 3 for i in range(4)]
    assert load(forms[2]).classes == ("no", "yes")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([("a", 1)], "data are a list: give a name, a path, a pandas or polars frame"),
        (7, "data are a int"),
        ({"training set": frame()}, 'data have a part "training set": call the parts train, test and validation'),
        ({"test": frame()}, "none called train"),
        (frame().drop(columns="label"), "frame has no column that looks like a label"),
        (pandas.DataFrame([["a b", 1, 2]], columns=["text", "label", "label"]), "two columns of the same name"),
    ],
)
def test_what_cannot_be_read_from_python_is_one_sentence(data: Any, words: str) -> None:
    assert words in refusal(lambda: load(data))


def test_a_run_takes_a_path_a_frame_or_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)
    file = tmp_path / "rows.csv"
    written(file)
    df = pandas.read_csv(file).sample(frac=1, random_state=1)
    df.to_csv(file, index=False)
    by_name = toy_runs.run(tmp_path / "a", data=str(file))
    for i, data in enumerate((file, df)):
        run = toy_runs.run(tmp_path / f"b{i}", data=data)
        assert run.metrics == by_name.metrics
        assert run.summary["data"]["fingerprint"] == by_name.summary["data"]["fingerprint"]
    source = Source("toy", ("a", "b"), Rows(texts=df.text, labels=[0, 1] * (len(df) // 2) + [0] * (len(df) % 2)))
    assert any("at most 20 rows" in note for note in toy_runs.run(tmp_path / "c", data=source, limit=20).summary["data"]["notes"])
    assert "leave label out" in refusal(lambda: toy_runs.run(tmp_path / "d", data=source, label="label"))
    assert "leave limit out" in refusal(
        lambda: toy_runs.run(tmp_path / "d", data=partition(source, clients=2), limit=9, clients=None)
    )


# repeats and test rows --------------------------------------------------------------------------------------------------------


def contents(rows: Rows) -> set[Any]:
    return {rows.content(i) for i in range(len(rows))}


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_equal_rows_are_drawn_into_one_split(scheme: str) -> None:
    """Sixty texts, each six times, with labels by chance: nothing that is tested on was trained on."""
    labels = np.random.default_rng(0).integers(0, 2, 360)
    source = Source("toy", ("a", "b"), Rows(texts=[f"text {i % 60}" for i in range(360)], labels=labels))
    sizes = []
    for seed in range(20):
        fed = partition(source, clients=4, scheme=scheme, seed=seed)
        parts = [Rows.concatenate([getattr(c, part) for c in fed.clients]) for part in ("train", "val", "test")]
        train, val, test = map(contents, parts)
        assert not train & val | train & test | val & test
        assert sum(map(len, parts)) == 360
        sizes.append([len(part) for part in parts])
    assert np.abs(np.mean(sizes, axis=0) / 360 - [0.7, 0.1, 0.2]).max() < 0.02
    assert any("300 of 360 rows repeat the text of another; equal rows are drawn into one split" in n for n in fed.notes)
    assert any("rows have an equal one with another label" in n for n in fed.notes)


def test_equal_pictures_are_drawn_into_one_split(tmp_path: Path) -> None:
    for i in range(80):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (i % 20, 0, 0)).save(folder / f"{i}.png")
    fed = partition(load(str(tmp_path)), clients=2, scheme="iid")
    train = Rows.concatenate([c.train for c in fed.clients])
    assert not contents(train) & (contents(fed.test) | contents(fed.val))
    assert any("60 of 80 rows repeat the picture of another" in note for note in fed.notes)


def test_the_share_of_own_test_rows_that_also_stand_in_training_is_said() -> None:
    train = Rows(texts=[f"text {i}" for i in range(50)], labels=[i % 2 for i in range(50)])
    test = Rows(texts=["text 0", "text 1", "new", "newer"], labels=[0, 1, 0, 1])
    notes = partition(Source("toy", ("a", "b"), train, test=test), clients=2, scheme="iid", val_fraction=0).notes
    assert notes == ("toy: 2 of 4 test rows (50 %) also stand in training: what they measure is memory.",)


def test_rows_of_new_clients_stand_in_training_only_if_somebody_is_trained_on_equal_ones() -> None:
    train = Rows(texts=[f"text {i}" for i in range(40)], labels=[i % 2 for i in range(40)])
    toy = Source("toy", ("a", "b"), train, unseen={"late": Rows(texts=["text 0"], labels=[0])}, key_name="site")
    trained = partition(toy, clients=2, scheme="iid", test_fraction=0, val_fraction=0)
    assert trained.notes[0] == "toy: 1 of 1 new clients' rows (100 %) also stand in training: what they measure is memory."
    toy = Source("toy", ("a", "b"), train)
    assert partition(toy, clients=2, new_clients=2, scheme="iid").notes == ()


def test_a_text_that_is_most_of_a_set_stays_in_training() -> None:
    texts = ["n/a"] * 300 + [f"text {i}" for i in range(100)]
    for seed in range(10):
        fed = partition(Source("toy", ("a", "b"), Rows(texts=texts, labels=[i % 2 for i in range(400)])), clients=2, seed=seed)
        assert "n/a" not in contents(fed.test) | contents(fed.val)
        assert 0 < len(fed.test) < 60


def test_shares_hold_where_each_user_has_one_row_of_a_label() -> None:
    """Ten thousand users, twenty-two thousand rows."""
    rng = np.random.default_rng(0)
    users = np.sort(np.concatenate([np.arange(10_000), rng.integers(0, 10_000, 12_000)]))
    labels = np.arange(22_000) - np.searchsorted(users, users)  # counted within each user
    source = Source("toy", [f"l{i}" for i in range(int(labels.max()) + 1)], Rows(  # type: ignore[arg-type]
        texts=[f"text {i}" for i in range(22_000)], labels=labels, keys=users
    ))  # fmt: skip
    fed = partition(source, clients=10, scheme="natural")
    assert abs(len(fed.test) / 22_000 - 0.2) < 0.01
    assert abs(len(fed.val) / 22_000 - 0.1) < 0.01
    trained = np.unique(np.concatenate([c.train.labels for c in fed.clients]))
    assert trained.tolist() == np.unique(labels).tolist()  # the rarest label has a row or two


def test_a_run_without_test_rows_goes_to_its_end_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from weft.report import terminal

    toy_runs.light(monkeypatch)
    run = toy_runs.run(tmp_path, test_fraction=0, val_fraction=0, baselines=["local"])
    assert run.finished
    assert run.metrics == {}
    assert any("there are no test rows" in note for note in run.summary["data"]["notes"])
    terminal.closing(Console(width=100), run.summary, run.rounds)
    assert "there were no test rows, so that nothing was scored" in capsys.readouterr().out
    assert str(terminal.round_row(run.rounds[-1])).split()[2] == "-"
    assert weft.load_run(run.folder).finished
