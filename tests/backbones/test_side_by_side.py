"""Several encoders as one backbone: what transformers makes of the same pictures, concatenated, and a head on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import by_hand
import encoders
import picture_folders
import tiny
from command_line import flowing, refused, weft
from every_method import METHODS, short
from exporting import FAST, RUN_CLOSE, exported
from machines import Machines, coordinate
from toy_runs import Told
from weaving import batch_of, pack_of, values_for
from weft import Observer, resume
from weft import run as play
from weft.adaptation.head import Head
from weft.adaptation.optim import Optim
from weft.adaptation.tune import Tune
from weft.backbones.backbone import frozen_fingerprint
from weft.backbones.inventory import inventory
from weft.backbones.load import load
from weft.backbones.prefix import PrefixCache
from weft.backbones.run_table import tabulate
from weft.backbones.short_names import encoders as named
from weft.backbones.views import Views
from weft.data.images import Images
from weft.data.rows import Rows
from weft.errors import Interrupted, UserError
from weft.export import load as load_export
from weft.federation.bench import Bench
from weft.methods import FedAvg, FedPCL
from weft.runs.checkpoint import digest
from weft.runs.suited import suited
from weft.tasks.classification import Classification
from weft.testing.compare import assert_same, state
from weft.testing.sites import remote

TWO = ("vit", "clip")
PLAY = ("cell", "fedavg", "fedpcl", "fedpm", "fedselect", "lotteryfl")
"""Methods that need no place inside an encoder."""
HEAD = FedAvg(tune=Tune(kind="head"), batch=4, optim=Optim("sgd", lr=0.1, schedule="constant"))


def pictures(n: int = 6) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (9 + i, 14 - i, 3), dtype=np.uint8) for i in range(n)]


def rows_of(given: list[np.ndarray]) -> Rows:
    n = np.arange(len(given))
    return Rows(None, None, n % 3, n, images=Images(given))


@contextmanager
def counted(*models: Any) -> Iterator[list[int]]:
    """Notes how many pictures go through each of these models."""
    seen = [0] * len(models)

    def note(i: int) -> Any:
        def hook(_m: Any, args: Any, kwargs: Any) -> None:
            seen[i] += len(args[0] if args else kwargs["pixel_values"])

        return hook

    handles = [m.register_forward_pre_hook(note(i), with_kwargs=True) for i, m in enumerate(models)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# what is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [TWO, ("clip", "vit"), ("dinov2", "swin", "vit"), ("beit", "siglip")])
def test_what_is_read_is_what_the_heads_of_all_would_read_side_by_side(kinds: tuple[str, ...]) -> None:
    b, given = encoders.backbone(*kinds), pictures()
    wanted = encoders.side_by_side(kinds, given)
    assert b.d == wanted.shape[1]
    table = tabulate(b, rows_of(given))
    for prefix in (None, PrefixCache(b)):
        bench = Bench(b, Classification(tiny.names(3)), table, 0, prefix)
        parts = {"head": Head()}
        pack = pack_of(bench, [parts], [values_for(bench, parts, seed=0)])
        batch = batch_of(bench, np.arange(len(given))[None])
        by_hand.close(pack.features(batch, use={})[0], wanted, 1e-5)  # pictures are normalised in float32
        w, bias = (pack.tensors[f"head/classifier/{n}"][0] for n in ("weight", "bias"))
        by_hand.close(pack(batch).logits[0], wanted @ w.T + bias, 1e-5)


def test_what_is_read_is_what_each_gives_alone_with_the_same_task() -> None:
    """A CLIP has a head of its own where a head is asked for, which reads something else."""
    for task in ("auto", "classification"):
        both, given = encoders.backbone(*TWO, task=task), rows_of(pictures())
        found = both.model.embed_images(**both.to_model(tabulate(both, given).collate(np.arange(6))))
        alone = []
        for kind in TWO:
            b = load(encoders.folder(kind), classes=tiny.names(3), device="cpu", precision="float64", task=task)
            bench = Bench(b, Classification(tiny.names(3)), tabulate(b, given), 0)
            pack = pack_of(bench, [{}], [{}])
            alone.append(pack.features(batch_of(bench, np.arange(6)[None]), use={})[0])
        by_hand.close(found, torch.cat(alone, 1), 1e-9)


def test_views_are_the_same_crops_for_each_encoder() -> None:
    """Of a picture whose colours tell where a place is: the corners of a crop are the same, whatever it is scaled to."""
    y, x = np.mgrid[0:200, 0:200]
    given = [np.stack([x, y, np.full_like(x, 10 * i)], -1).astype(np.uint8) for i in range(3)]
    views = Views(4, 0.2, True, 0)
    table = tabulate(encoders.backbone(*TWO), rows_of(given), views=views)
    (other,) = table.others  # type: ignore[union-attr]
    assert table.values.shape[1:] == (3, 16, 16)  # type: ignore[union-attr]
    assert other.values.shape[1:] == (3, 8, 8)
    assert len(table.values) == len(other.values) == 15  # type: ignore[union-attr]
    for number in range(3, 15):
        large, little = table.values[number].astype(float), other.values[number].astype(float)  # type: ignore[union-attr]
        halved = large.reshape(3, 8, 2, 8, 2).mean((2, 4))
        assert np.abs(halved - little).max() <= 3
        assert np.ptp(little[0]) < 190, "it is a crop"
    for kind, own in zip(TWO, (table, other), strict=True):
        alone = tabulate(load(encoders.folder(kind), classes=tiny.names(3), device="cpu"), rows_of(given), views=views)
        assert np.array_equal(own.values, alone.values)  # type: ignore[union-attr]


# runs -------------------------------------------------------------------------------------------------------------------


def test_a_round_of_a_head_is_pytorchs_on_concatenated_features() -> None:
    run = tiny.federation(HEAD, encoders.backbone(*TWO), rounds=1, sizes=(7, 0, 5))
    labels, inputs = torch.from_numpy(run.bench.table.labels), run.bench.table.collate(np.arange(len(run.bench.table)))
    read = torch.cat(
        [
            encoders.read(kind, encoders.plain(kind)[0], inputs[n].double())
            for kind, n in zip(TWO, ("pixel_values", "pixel_values_1"), strict=True)
        ],
        1,
    )
    total, mean = 0, dict[str, Tensor]()
    for k in (0, 2):
        w = {n: v.clone().requires_grad_(True) for n, v in by_hand.start_of(run, k).items()}
        optimizer = torch.optim.SGD(list(w.values()), lr=0.1)
        for rows in by_hand.steps_of(run, k, 0):
            loss = F.cross_entropy(read[rows] @ w["head/classifier/weight"].T + w["head/classifier/bias"], labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        n = run.clients[k].n
        total += n
        mean = {name: mean.get(name, 0) + n * v.detach() for name, v in w.items()}
    run.run()
    for name, v in by_hand.shared(run).items():
        by_hand.close(v, mean[name] / total, 1e-9)


def test_their_own_weights_can_be_trained_as_pytorch_trains_them() -> None:
    method = replace(HEAD, tune=Tune(kind="weights"), batch=8, epochs=1.0)
    b = encoders.backbone(*TWO)
    run = tiny.federation(method, b, rounds=1, sizes=(6,))
    start, (rows,) = by_hand.start_of(run), by_hand.steps_of(run, 0, 0)
    models = [by_hand.own_copy(encoders.plain(kind)[0]).requires_grad_(True) for kind in TWO]
    head = {n: start[f"head/classifier/{n}"].clone().requires_grad_(True) for n in ("weight", "bias")}
    inputs = run.bench.table.collate(rows)
    read = torch.cat(
        [
            encoders.read(kind, model, inputs[n].double())
            for kind, model, n in zip(TWO, models, ("pixel_values", "pixel_values_1"), strict=True)
        ],
        1,
    )
    F.cross_entropy(read @ head["weight"].T + head["bias"], by_hand.labels(run, rows)).backward()
    run.run()
    moved = by_hand.shared(run)
    for kind, model, at in zip(TWO, models, ("encoders.0.vit.", "encoders.1."), strict=True):
        seen = 0
        for name, p in model.named_parameters():
            if p.grad is not None and (own := f"weights/{at}{name}".rpartition(".")) and f"{own[0]}/{own[2]}" in moved:
                by_hand.close(moved[f"{own[0]}/{own[2]}"], (p - 0.1 * p.grad).detach(), 1e-9)
                seen += 1
        assert seen > 30, kind
    packed, alone = (tiny.federation(method, b, rounds=2, pack=pack).run() for pack in (6, 1))
    assert_same(state(packed), state(alone), 1e-9)


@pytest.mark.parametrize("views", [0, 2])
def test_every_picture_and_view_goes_through_each_encoder_once_in_a_run(views: int) -> None:
    b, runs = encoders.backbone(*TWO), []
    before = frozen_fingerprint(b)
    for prefix in (True, False):
        run = tiny.federation(HEAD, b, rounds=3, prefix=prefix)
        if views:
            given = tiny.rows(len(run.bench.table), 3, 0, run.bench.table.labels.tolist(), reads="images")
            run.bench.table = tabulate(b, given, views=Views(views, 0.2, True, 0))
        with counted(b.model.encoders[0], b.model.encoders[1].vision_model) as seen:
            run.run().global_logits()
        if prefix:
            assert seen == [len(run.bench.table) * (1 + views)] * 2
        runs.append(run)
    by_hand.close(runs[0].global_logits(dtype=torch.float64), runs[1].global_logits(dtype=torch.float64), 1e-9)
    assert frozen_fingerprint(b) == before
    assert not list(tiny.hooks(b.model))


@pytest.mark.parametrize("slug", METHODS)
def test_a_method_plays_or_says_in_a_sentence_why_not(slug: str) -> None:
    method = short(slug)
    if slug in PLAY:
        tiny.federation(method, encoders.backbone(*TWO), rounds=1, sizes=(4, 3)).run()
        return
    with pytest.raises(UserError) as e:
        suited(method, tiny.federation(method, encoders.backbone(*TWO), rounds=1, sizes=(4, 3)).bench)
    assert "\n" not in str(e.value)
    assert str(e.value).endswith(".")


def test_clients_with_one_encoder_stand_beside_clients_with_two() -> None:
    method = FedPCL(width=6, batch=4, optim=FAST)
    one = load(encoders.folder("vit"), classes=tiny.names(3), device="cpu", precision="float64")
    two = encoders.backbone(*TWO)
    runs = [tiny.mixed_federation(method, [two, one], rounds=2, pack=pack).run() for pack in (6, 1)]
    assert_same(state(runs[0]), state(runs[1]), 1e-9)
    widths = {v["projection/values/weight"].shape[1] for v in by_hand.kept(runs[0]).values() if v}
    assert widths == {one.d, two.d}


def test_sites_message_by_message_give_the_same() -> None:
    here = tiny.federation(HEAD, encoders.backbone(*TWO), rounds=2).run()
    away = remote(HEAD, model=encoders.backbone(*TWO), rounds=2)[0].run()
    assert_same(here.server.shared, away.server.shared, 1e-9)  # type: ignore[arg-type]


def test_sites_agree_on_encoders_by_their_weights_in_their_order(machines: Machines) -> None:
    for name in ("north", "south", "odd"):
        picture_folders.two_domains(machines.root / "pictures" / name)
    own = [shutil.copytree(encoders.folder(k), machines.root / f"own {k}") for k in TWO]
    for name, model in (("north", None), ("south", "+".join(map(str, own))), ("odd", encoders.name(*TWO[::-1]))):
        machines.join(name, data=str(machines.root / "pictures" / name), **({"model": model} if model else {}))
    told, classes = Told(), list(picture_folders.CLASSES)
    more = {"method.rank": None, "method.width": 6, "max_length": None}
    done = coordinate(machines, told, method="fedpcl", model=encoders.name(*TWO), classes=classes, **more)
    assert done.finished
    assert sorted(site["id"] for site in done.summary["served"]["sites"]) == ["north", "south"]
    refusal = "odd does not take part: it refuses: its backbone has other weights: get the same; its log says which."
    assert refusal in told.sentences


# names, hashes, descriptions ----------------------------------------------------------------------------------------------


def test_names_are_split_at_plus_signs_that_are_in_no_folders_own_name(tmp_path: Path) -> None:
    assert named("glyph-vit") == ["glyph-vit"]
    assert named("a+owner/name + c") == ["a", "owner/name", "c"]
    place = tmp_path / "c++" / "one+two"
    place.mkdir(parents=True)
    assert named(str(place)) == [str(place)]
    assert named(f"x+{place}+{place}") == ["x", str(place), str(place)]
    assert named("a+") == ["a", ""]


def test_the_hash_is_of_all_weights_in_their_order() -> None:
    digests = {encoders.backbone(*kinds).weight_hash for kinds in (TWO, ("clip", "vit"), ("beit", "siglip"))}
    assert len(digests) == 3
    again = load(encoders.name(*TWO), classes=tiny.names(3), device="cpu", precision="float64")
    assert again.weight_hash == encoders.backbone(*TWO).weight_hash


def test_it_is_described() -> None:
    b = encoders.backbone(*TWO)
    assert (b.blocks, b.linears, b.norms, b.outer, b.bottlenecks, b.attentions) == ([], [], [], [], [], [])
    assert not any("text" in n or "classifier" in n for n in b.own), "no text tower, and no heads of their own"
    found = inventory(b)
    assert (found["type"], found["task"], found["reads"]) == ("side-by-side", "classification", "images")
    assert [(e["type"], e["height"], e["features"]) for e in found["encoders"]] == [("vit", 16, 32), ("clip", 8, 16)]
    assert found["head"]["modules"] == [{"name": "classifier", "d_in": 48, "d_out": 3, "bias": True}]
    assert found["notes"] == ["its encoders are taken as they are: methods that put something inside them can't be used."]


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("vit+bert", {}, r'reads texts, and only encoders of pictures go side by side: leave it out of ".*\+.*", or use'),
        ("vit+clip", {"task": "similarity"}, "is several encoders under one head, which does nothing else than"),
        ("vit+clip", {"task": "fill"}, "is several encoders under one head"),
        ("vit+clip", {"head": "classifier"}, "correct the description of one backbone: give a single --model with them"),
        ("vit+clip", {"blocks": "layers"}, "give a single --model with them"),
        ("vit+", {}, '^unknown model ""'),
        ("vit+nobody", {}, '^unknown model "nobody"'),
        ("vit+clip", {"quantise": "int8"}, "are for language models"),
    ],
)
def test_what_does_not_go_side_by_side_is_refused_in_a_sentence(name: str, more: dict[str, Any], sentence: str) -> None:
    known = {"vit": encoders.folder("vit"), "clip": encoders.folder("clip"), "bert": tiny.folder("bert")}
    whole = "+".join(known.get(n, n) for n in name.split("+"))
    with pytest.raises(UserError, match=sentence) as e:
        load(whole, classes=tiny.names(3), device="cpu", **more)
    assert "\n" not in str(e.value)


def test_a_head_that_reads_more_than_one_vector_is_refused() -> None:
    from weft.backbones import side_by_side
    from weft.backbones.options import Options

    one, other = (load(encoders.folder(k), classes=tiny.names(3), device="cpu") for k in TWO)
    one.heads = [replace(one.heads[0], d_in=31)]
    with pytest.raises(UserError, match="reads more than one vector of a picture"):
        side_by_side.joined("a+b", 3, Options(), [one, other])


# what is written ------------------------------------------------------------------------------------------------------------


def test_a_head_comes_back_from_its_export_and_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    places = [Path(shutil.copytree(encoders.folder(k), tmp_path / f"my {k}")) for k in TWO]
    b = load("+".join(map(str, places)), classes=tiny.names(3), device="cpu", precision="float32")
    run = tiny.federation(replace(HEAD, optim=FAST), b, sizes=(5, 4, 0, 3), rounds=1)
    before = run.global_logits()
    after = run.run().global_logits()
    assert not torch.allclose(before, after, **RUN_CLOSE)
    where = tmp_path / "model"
    where.mkdir()
    assert exported(run, where).kind == "weft"
    assert json.loads((where / "weft.json").read_text())["base"]["path"] == "+".join(map(str, places))
    rows = tiny.states((5, 4, 0, 3), reads="images")[0]
    found = load_export(where, device="cpu", precision="float32")
    torch.testing.assert_close(found.logits_of(rows), after, **RUN_CLOSE)
    moved = places[1].rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"was in {places[1]}, which is gone: .* as --base '.*my vit\+PATH'"):
        load_export(where, device="cpu")
    again = load_export(where, base=f"{places[0]}+{moved}", device="cpu", precision="float32")
    torch.testing.assert_close(again.logits_of(rows), after, **RUN_CLOSE)
    with pytest.raises(UserError, match="would predict at random: give the right base"):
        load_export(where, base=f"{moved}+{places[0]}", device="cpu")


class StopAfter(Observer):
    """Presses Ctrl-C once the first round is done."""

    def round_done(self, record: dict[str, Any]) -> None:
        raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_from_anywhere_as_one_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture_folders.two_domains(tmp_path / "pictures")
    for kind, place in zip(TWO, ("one", "other"), strict=True):
        shutil.copytree(encoders.folder(kind), tmp_path / place)
    given: dict[str, Any] = {"method": "fedpcl", "model": "one+other", "data": "pictures", "clients": 2, "partition": "iid"}
    given |= {"rounds": 3, "views": 2, "device": "cpu", "quiet": True}
    whole = play(**given, name="whole")
    with pytest.raises(Interrupted):
        play(**given | {"quiet": False}, name="stopped", observer=StopAfter())
    monkeypatch.chdir(tmp_path / "runs")
    again = resume("stopped", quiet=True)
    assert digest(tmp_path / "runs" / "stopped") == digest(tmp_path / "runs" / "whole")
    assert again.summary["headline"] == whole.summary["headline"]


def test_the_command_line_runs_predicts_and_exports(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture_folders.two_domains(tmp_path / "pictures")
    both, alone = encoders.name(*TWO), encoders.folder("vit")
    shown = weft(capsys, "models", both)
    assert (shown.code, shown.err) == (0, "")
    assert "none, 48 features of a picture" in flowing(shown.out)
    assert "16 features of 8×8 pixels" in flowing(shown.out)
    data = ["--data", tmp_path / "pictures", "--clients", 2, "--partition", "iid", "--rounds", 2, "--device", "cpu"]
    line = ["run", "--method", "fedpcl", "--model", both, *data, "--baselines", "probe", "--views", 2, "--name", "two"]
    plan = weft(capsys, *line, "--dry-run")
    assert plan.code == 0, plan.err
    assert f"{256 * 49:,}" in plan.out, "the projection"
    trained = weft(capsys, *line)
    assert trained.code == 0, trained.err
    assert "--method flora" not in trained.out, "nothing is recommended that would be refused"
    scored = weft(capsys, "eval", "runs/two", "--data", tmp_path / "pictures")
    assert scored.code == 0, scored.err
    (picture, *_) = sorted((tmp_path / "pictures").rglob("*.png"))
    said = weft(capsys, "predict", "runs/two", picture)
    assert said.code == 0, said.err
    refused(weft(capsys, "export", "runs/two", "--merged", "--to", "merged"), "leave --merged out")
    (listed,) = json.loads(weft(capsys, "runs", "--json").out)
    assert listed["model"] == both
    several = ("--model", f"{both},{alone}", *data, "--baselines", "none", "--name", "mixed")
    mixed = weft(capsys, "run", "--method", "fedpcl", *several)
    assert mixed.code == 0, mixed.err
    lacks = weft(capsys, "run", "--method", "fedit", "--model", both, *data)
    assert lacks.code == 2
    assert "no place for parts inside: use a method that trains a head" in lacks.err.splitlines()[-1]
    nobody = weft(capsys, "run", "--method", "fedpcl", "--model", f"{both}+nobody", *data)
    assert (nobody.code, 'unknown model "nobody"' in nobody.err) == (2, True)
