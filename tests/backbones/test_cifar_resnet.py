"""ResNets for CIFAR-10 from a file of arrays compute what the arrays say, and train, leave and come back like other backbones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from cifar_resnets import arrays, logits, saved
from command_line import flowing, refused, weft
from exporting import FAST, RUN_CLOSE, exported
from weft.backbones.backbone import Backbone, frozen_fingerprint
from weft.backbones.load import load
from weft.contract import Tune
from weft.errors import UserError
from weft.export import export_run
from weft.export import load as load_export
from weft.methods.full.fedavg import FedAvg

HERE: dict[str, Any] = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("weights") / "small.npz")


def of(file: str, classes: int = 3, precision: str = "float32") -> Backbone:
    return load(file, classes=tiny.names(classes), device="cpu", precision=precision)


def test_its_logits_are_what_numpy_makes_of_the_arrays(file: str) -> None:
    b = of(file, 10, "float64")
    pictures = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = logits({n: a.astype(np.float64) for n, a in arrays().items()}, pictures.numpy())
    torch.testing.assert_close(b.model(pictures).logits, torch.from_numpy(wanted), rtol=0.0, atol=1e-10)
    assert np.abs(wanted).max() > 0.5


@pytest.mark.parametrize(("depth", "width"), [(1, 4), (3, 16), (9, 2)])
def test_its_depth_and_width_are_read_from_the_file(depth: int, width: int, tmp_path: Path) -> None:
    b = of(saved(tmp_path / "w.npz", arrays(depth, width)))
    assert len(b.blocks) == 3 * depth
    sizes = [(width * 2**s, 32 // 2**s, 32 // 2**s) for s in range(3) for _ in range(depth)]
    entering = [sizes[0], *sizes[:-1]]
    assert b.maps == (*entering, sizes[-1])
    assert (b.map_starts, b.pools, b.d, len(b.norms), len(b.convolutions)) == (True, "mean", 4 * width, 6 * depth + 1, 6 * depth)
    assert [(s.name, s.d_in, s.d_out) for s in b.heads] == [("linear", 4 * width, 3)]
    assert b.linears == []


def test_pictures_are_brought_to_its_size_and_normalised(file: str) -> None:
    table = tiny.table(of(file))
    pixels = table.collate(np.arange(4))["pixel_values"]
    assert pixels.shape == (4, 3, 32, 32)
    b = of(file)
    assert (tuple(b.processor.image_mean), tuple(b.processor.image_std)) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_head_of_as_many_classes_is_where_training_starts_and_another_is_new(file: str) -> None:
    run = tiny.federation(FedAvg(tune=Tune("head"), optim=FAST), of(file, 10), rounds=1)
    assert torch.equal(run.server.shared["head/linear/weight"], torch.from_numpy(arrays()["linear.weight"]))
    other = of(file)
    assert (other.own_head, of(file, 10).own_head) == (True, False)
    assert not any(n.startswith("linear") for n in other.originals)


KINDS = ("weights", "head", "bias", "norm", "ssf", "bottleneck")


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_comes_back_from_our_files(kind: str, file: str, tmp_path: Path) -> None:
    b = of(file)
    frozen = frozen_fingerprint(b)
    run = tiny.federation(FedAvg(tune=Tune(kind, reduction=2), batch=4, epochs=1.0, optim=FAST), b, rounds=1)  # type: ignore[arg-type]
    before = run.global_logits()
    after = run.run().global_logits()
    assert not torch.allclose(after, before, rtol=0.0, atol=1e-3)
    assert frozen_fingerprint(b) == frozen
    report = exported(run, tmp_path)
    assert report.kind == "weft"
    rows = tiny.states(reads="images")[0]
    torch.testing.assert_close(load_export(tmp_path, **HERE).logits_of(rows), after, **RUN_CLOSE)
    with pytest.raises(UserError, match=r"--merged out\.$"):
        export_run(tmp_path, tmp_path / "out", merged=True)


def test_an_adapter_is_refused_on_another_file(file: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    exported(tiny.federation(FedAvg(tune=Tune("head"), optim=FAST), of(file), rounds=1).run(), tmp_path / "m")
    other = saved(tmp_path / "other.npz", arrays(seed=1))
    with pytest.raises(UserError, match=r"are not those that this model was trained on"):
        load_export(tmp_path / "m", base=other, **HERE)
    gone = saved(tmp_path / "gone.npz")
    exported(tiny.federation(FedAvg(tune=Tune("head"), optim=FAST), of(gone), rounds=1).run(), into(tmp_path / "n"))
    Path(gone).unlink()
    with pytest.raises(UserError, match=r"gone\.npz, which is gone"):
        load_export(tmp_path / "n", **HERE)


def into(folder: Path) -> Path:
    folder.mkdir()
    return folder


def without(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda w: {n: a for n, a in w.items() if n != name}


BROKEN: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = {
    "a norm is lacking": (without("layer2.0.bn1.running_var"), r"blocks\.2\.bn1\.running_var, which is lacking"),
    "a block is lacking": (
        lambda w: {n: a for n, a in w.items() if not n.startswith("layer3.1.")},
        r"three stages of as many blocks each",
    ),
    "projections in shortcuts": (lambda w: w | {"layer2.0.downsample.0.weight": w["conv1.weight"]}, r"which it does not have"),
    "another width": (lambda w: w | {"layer1.0.conv1.weight": w["layer2.0.conv1.weight"]}, r"of shape \[4, 4, 3, 3\]"),
    "nothing of it": (lambda w: {"a": w["conv1.weight"]}, r"three stages"),
    "not finite": (lambda w: w | {"bn1.bias": w["bn1.bias"] * np.nan}, r"bn1\.bias"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_of_something_else_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    change, words = BROKEN[case]
    with pytest.raises(UserError, match=words) as refused:
        of(saved(tmp_path / "w.npz", change(arrays())))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"conv1.weight": 1})])
def test_a_damaged_file_is_refused_and_nothing_is_unpickled(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"can't be read .*: give a \.npz file of NumPy arrays\.$"):
        of(str(path))
    with pytest.raises(UserError, match=r'there is no file "none\.npz" of the weights'):
        of("none.npz")


def test_it_gives_classes_and_nothing_else(file: str) -> None:
    with pytest.raises(UserError, match=r"gives classes to pictures and nothing else: leave --task out\.$"):
        load(file, task="generation", **HERE)


def test_a_run_on_the_command_line_finds_its_file_again(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(file).parent)
    card = flowing(weft(capsys, "models", "small.npz").out)
    for words in (
        "maps of 16 × 8 × 8 leave the last",
        "convolutions 13",
        "the mean of a map",
        "keep the checkpoint's statistics",
    ):
        assert words in card
    runs = tmp_path / "runs"
    line = ["run", "--model", "small.npz", "--data", "digits", "--limit", 60, "--clients", 2, "--rounds", 1, "--device", "cpu"]
    line += ["--precision", "float32", "--quiet", "--runs", runs]
    got = weft(capsys, *line, "--method", "fedit")
    refused(got, "has no linear layers in its blocks, but 13 convolutions, 13 norms and a head")
    done = weft(capsys, *line, "--method", "fedavg", "--set", "method.tune.kind=norm", "--name", "a")
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path)
    assert weft(capsys, "eval", runs / "a", "--data", "digits").code == 0
