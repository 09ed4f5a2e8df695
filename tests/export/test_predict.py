"""A trained model answers for new texts, is scored on other data by label name, and leaves its run on request."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score

import tiny
import weft
from command_line import weft as weft_command
from weft.adaptation.optim import Optim
from weft.engines.observer import Observer
from weft.errors import UserError
from weft.export import Predictor, evaluate_run, export, export_run, load, predict
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.selective.fedbf import FedBF
from weft.tasks.classification import Classification

CLASSES = ("zebra", "ant", "mole")  # not in the order in which a file's labels are numbered
NAMES = ("ant", "bee", "cat")
FAST = Optim("adamw", lr=0.02)
METHODS = {
    "peft": FedIT(rank=2, alpha=4.0, sites="all", epochs=3, batch=8, optim=FAST),
    "weft": FedBF(epochs=3, batch=8, optim=FAST),
}


def finished(folder: Path, kind: str = "peft", model: str = "bert", pairs: bool = False) -> Path:
    """An exported model in a folder."""
    run = tiny.federation(METHODS[kind], model, precision="float32", sizes=(16, 16, 16), rounds=3, seed=1).run()
    run.bench.task = Classification(CLASSES)
    folder.mkdir()
    export(run.method, run.server, folder, {"settings": {"max_length": 12}, "pairs": pairs})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: finished(root / kind, kind) for kind in METHODS}


def here(folder: Path) -> Predictor:
    return load(folder, device="cpu", precision="float32")


def write(path: Path, texts: Sequence[str], labels: Sequence[str]) -> str:
    with open(path, "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["text", "label"])
        table.writerows(zip(texts, labels, strict=True))
    return str(path)


# predicting -----------------------------------------------------------------------------------------------------------


def test_a_prediction_is_the_label_that_transformers_and_peft_give(models: dict[str, Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = [*tiny.rows(20, seed=5).texts, "", " ".join(["w3"] * 40)]  # an empty one, and one that has to be cut
    base = tiny.folder("bert")
    about = json.loads((models["peft"] / "weft.json").read_text())
    labels = {int(i): name for i, name in about["id2label"].items()}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, id2label=labels)
    model = PeftModel.from_pretrained(model, models["peft"]).eval()
    inputs = AutoTokenizer.from_pretrained(base)(texts, truncation=True, max_length=12, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    predictor = here(models["peft"])
    torch.testing.assert_close(predictor.logits(texts), expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(predictor.probabilities(texts), expected.softmax(-1), rtol=0.0, atol=1e-5)
    assert predictor.predict(texts) == [labels[i] for i in expected.argmax(-1).tolist()]
    assert len(set(predictor.predict(texts))) > 1


@pytest.mark.parametrize("kind", ["peft", "weft"])
def test_an_answer_does_not_depend_on_what_else_is_asked(kind: str, models: dict[str, Path]) -> None:
    texts = list(tiny.rows(30, seed=6).texts)
    predictor = here(models[kind])
    together = predictor.logits(texts)
    torch.testing.assert_close(predictor.logits(texts[::-1]).flip(0), together, rtol=0.0, atol=1e-5)
    alone = torch.cat([predictor.logits([t]) for t in texts])
    torch.testing.assert_close(alone, together, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(predictor.probabilities(texts).sum(-1), torch.ones(30), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("model", ["bert", "roberta", "llama"])
def test_pairs_are_read_as_the_tokenizer_reads_pairs(model: str, tmp_path: Path) -> None:
    folder = finished(tmp_path / "m", model=model, pairs=True)
    rows = tiny.rows(8, seed=7, pairs=True)
    pairs = list(zip(rows.texts, rows.pairs or (), strict=True))
    predictor = here(folder)
    b = predictor.backbone
    table = b.tokenizer([p[0] for p in pairs], [p[1] for p in pairs], truncation=True, max_length=12)
    got = predictor.logits(pairs)
    for i, ids in enumerate(table["input_ids"]):
        one = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if model == "bert":
            one["token_type_ids"] = torch.tensor([table["token_type_ids"][i]])
        pack = predictor.trained.on(tiny.bench(b))
        with pack._weave.attached(None, 1, predictor.trained.use):
            expected = b.model(**one).logits
        torch.testing.assert_close(got[i], expected[0].detach(), rtol=0.0, atol=1e-5)


def test_a_model_knows_whether_it_reads_single_texts_or_pairs(models: dict[str, Path], tmp_path: Path) -> None:
    single, paired = here(models["peft"]), here(finished(tmp_path / "m", pairs=True))
    assert (single.about.pairs, paired.about.pairs) == (False, True)
    for model, given, words in (
        (paired, ["w1 w2"], r"trained on pairs of texts: give pairs, as in predict\(\[\(text, second\)\]\)"),
        (single, [("w1", "w2")], "trained on single texts, not on pairs"),
    ):
        with pytest.raises(UserError, match=words):
            model.predict(given)  # type: ignore[arg-type]
    with open(tmp_path / "pairs.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [["premise", "hypothesis", "label"], *([f"w{i} w2", f"w{i + 9}", CLASSES[i % 3]] for i in range(9))]
        )
    single_file = write(tmp_path / "single.csv", [f"w{i}" for i in range(9)], list(CLASSES) * 3)
    place = {"device": "cpu", "precision": "float32"}
    assert len(evaluate_run(tmp_path / "m", str(tmp_path / "pairs.csv"), **place)) == 3  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pairs"):
        evaluate_run(tmp_path / "m", single_file, **place)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="single texts"):
        evaluate_run(models["peft"], str(tmp_path / "pairs.csv"), **place)  # type: ignore[arg-type]


def test_a_model_that_does_not_say_what_it_reads_takes_either(models: dict[str, Path], tmp_path: Path) -> None:
    """One exported before that was noted, or by a coordinator, who never sees a row."""
    folder = tmp_path / "model"
    shutil.copytree(models["peft"], folder)
    about = json.loads((folder / "weft.json").read_text())
    del about["pairs"]
    (folder / "weft.json").write_text(json.dumps(about))
    model = here(folder)
    assert len(model.predict(["w1"])) == len(model.predict([("w1", "w2")])) == 1


def test_what_a_run_was_scored_by_scores_its_model_on_other_data(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["peft"], folder)
    about = json.loads((folder / "weft.json").read_text())
    assert (about["task"], about["metrics"]) == ("classification", ["accuracy", "macro_f1"])
    data = write(tmp_path / "other.csv", ["w1", "w2", "w3"], ["ant", "mole", "zebra"])

    def scored(**changes: Any) -> list[str]:
        (folder / "weft.json").write_text(json.dumps({n: v for n, v in (about | changes).items() if v is not None}))
        return [r["metric"] for r in evaluate_run(folder, data, device="cpu", precision="float32")]

    assert scored(metrics=["matthews", "f1:ant"]) == ["matthews", "f1:ant", "loss"]
    assert scored(metrics=None, task=None) == ["accuracy", "macro_f1", "loss"]  # as a version before wrote it
    with pytest.raises(UserError, match="is damaged"):
        scored(task="poetry")


def test_no_texts_give_no_answers(models: dict[str, Path]) -> None:
    assert here(models["peft"]).predict([]) == []
    assert here(models["peft"]).logits([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("a text", "give a list"),
        (["a", ("b", "c")], "all texts, or all pairs"),
        ([("a", "b", "c")], "all pairs"),
        ([1], "all texts"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, words: str, models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=words):
        here(models["peft"]).predict(texts)


# loading --------------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nothing of a run was saved in"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"holds no weft\.json"):
        load(tmp_path)
    (tmp_path / "experiment.toml").write_text("")
    with pytest.raises(UserError, match="weft resume"):
        load(tmp_path)
    with pytest.raises(UserError, match="weft resume"):
        predict(tmp_path, ["w1"])


def test_a_model_of_several_tasks_is_not_one_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is scored on either, and a text alone does not say of which task it is."""
    texts = tiny.rows(24).texts
    assert texts is not None
    single = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    double = [{"premise": text, "hypothesis": texts[i - 1], "label": i % 2} for i, text in enumerate(texts)]
    for name, rows in (("one", single), ("two", double)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, tasks in (("both", ("one", "two")), ("one", ("one",)), ("two", ("two",))):
        (tmp_path / f"{name}.toml").write_text("".join(f'[{task}]\ndata = "{task}.jsonl"\n' for task in tasks))
    run = weft.run(
        "mt-fedadapter", model=tiny.folder(), data=str(tmp_path / "both.toml"), clients=2, rounds=1, runs=str(tmp_path / "runs"),
        device="cpu", precision="float32", baselines=[], start_head="random", quiet=True,
    )  # fmt: skip
    for name in ("one", "two"):
        scored = evaluate_run(run.folder, str(tmp_path / f"{name}.toml"), device="cpu", precision="float32")
        assert {f"{name}:accuracy", "mean"} <= {one["metric"] for one in scored}
    for given in (["w1 w2"], ["w1 w2", "w3"]):
        assert "does not say of which" in weft_command(capsys, "predict", run.folder, *given).err


def test_a_base_with_other_weights_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "base"
    shutil.copytree(tiny.folder("bert"), other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="are not those that this model was trained on"):
        load(models["peft"], base=str(other), device="cpu", precision="float32")


def test_a_base_that_has_moved_is_found_where_it_is_said_to_be(models: dict[str, Path], tmp_path: Path) -> None:
    texts = ["w1 w2", "w50"]
    base = tmp_path / "base"
    shutil.copytree(tiny.folder("bert"), base)
    folder = tmp_path / "model"
    shutil.copytree(models["peft"], folder)
    about = json.loads((folder / "weft.json").read_text())
    about["base"]["path"] = about["base"]["name"] = str(tmp_path / "gone")
    (folder / "weft.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="which is gone: say where it is now, as --base PATH"):
        load(folder, device="cpu", precision="float32")
    moved = load(folder, base=str(base), device="cpu", precision="float32")
    assert torch.equal(moved.logits(texts), here(models["peft"]).logits(texts))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 1, "base": 3}'])
def test_a_damaged_description_is_one_sentence(content: str, models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["peft"], folder)
    (folder / "weft.json").write_text(content)
    with pytest.raises(UserError, match="is damaged") as e:
        load(folder)
    assert "\n" not in str(e.value)


# scoring on other data ------------------------------------------------------------------------------------------------


class Ear(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


def value(records: list[dict[str, Any]], metric: str) -> float:
    (found,) = [r["value"] for r in records if r["metric"] == metric]
    return float(found)


@pytest.mark.parametrize("kind", ["peft", "weft"])
def test_scores_are_those_of_the_predicted_names_whatever_the_files_own_order(
    kind: str, models: dict[str, Path], tmp_path: Path
) -> None:
    texts = list(tiny.rows(40, seed=8).texts)
    predictor = here(models[kind])
    answers = predictor.predict(texts)
    turned = dict(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))
    truth = [a if i % 3 else turned[a] for i, a in enumerate(answers)]
    data = write(tmp_path / "other.csv", texts, truth)
    ear = Ear()
    records = evaluate_run(models[kind], data, device="cpu", precision="float32", observer=ear)
    assert value(records, "accuracy") == pytest.approx(accuracy_score(truth, answers), abs=1e-12)
    macro = f1_score(truth, answers, average="macro", labels=sorted(set(truth)), zero_division=0)
    assert value(records, "macro_f1") == pytest.approx(macro, abs=1e-12)
    logits = predictor.logits(texts)
    index = torch.tensor([CLASSES.index(t) for t in truth])
    assert value(records, "loss") == pytest.approx(float(torch.nn.functional.cross_entropy(logits, index)), abs=1e-5)
    assert {(r["view"], r["people"], r["n"]) for r in records} == {("global", "other.csv (train)", 40)}
    assert ear.heard  # which columns were guessed


def test_a_label_that_the_model_does_not_know_is_refused_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "other.csv", ["w1", "w2", "w3"], ["ant", "mole", "zebro"])
    with pytest.raises(UserError) as e:
        evaluate_run(models["peft"], data, device="cpu", precision="float32")
    for words in ('the label "zebro"', "zebra, ant, mole", 'Did you mean "zebra"?'):
        assert words in str(e.value)


def test_rows_of_one_class_can_be_scored_too(models: dict[str, Path], tmp_path: Path) -> None:
    texts = list(tiny.rows(10, seed=8).texts)
    data = write(tmp_path / "one.csv", texts, [CLASSES[1]] * len(texts))
    records = evaluate_run(models["peft"], data, device="cpu", precision="float32")
    answers = here(models["peft"]).predict(texts)
    assert value(records, "accuracy") == pytest.approx(answers.count(CLASSES[1]) / len(texts), abs=1e-12)


def test_the_test_split_is_taken_unless_another_is_asked_for(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    names = list(CLASSES)
    write(folder / "train.csv", [f"w{i}" for i in range(9)], names * 3)
    write(folder / "test.csv", [f"w{i}" for i in range(6)], names * 2)

    def n(split: str | None) -> set[tuple[str, int]]:
        records = evaluate_run(models["peft"], str(folder), split=split, device="cpu", precision="float32")
        return {(r["people"], r["n"]) for r in records}

    assert n(None) == {("set (test)", 6)}
    assert n("train") == {("set (train)", 9)}
    with pytest.raises(UserError, match="no validation rows: it has test, train"):
        n("validation")


# from a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> weft.Run:
    """A finished run of a method with personal parts, on a file."""
    root = tmp_path_factory.mktemp("run")
    rows = tiny.rows(60)
    data = write(root / "data.csv", rows.texts, [NAMES[i] for i in rows.labels])
    return weft.run(
        method="fedsa-lora",
        model=tiny.folder("bert"),
        data=data,
        clients=3,
        rounds=2,
        runs=str(root / "runs"),
        parameters={"batch": 4, "steps": 2, "rank": 2},
        start_head="random",
        baselines=[],
        device="cpu",
        precision="float32",
        max_length=32,
    )


def test_a_finished_run_predicts_by_its_own_class_names(run: weft.Run) -> None:
    texts = ["w1 w2 w3", "w40 w50", "w90"]
    assert run.adapter is not None
    assert run.predict(texts) == here(run.adapter).predict(texts) == predict(run.adapter, texts)
    assert set(run.predict(texts)) <= set(NAMES)
    assert run.summary["adapter"]["difference"] <= run.summary["adapter"]["tolerance"]


def test_a_second_prediction_does_not_load_the_model_again(run: weft.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.export import predictor

    loads: list[Path] = []
    monkeypatch.setattr(predictor, "load", lambda folder: loads.append(folder) or here(folder))
    predictor._loaded.cache_clear()
    first, second = run.predict(["w1"]), run.predict(["w1"])
    assert first == second
    assert len(loads) == 1


def test_exporting_a_run_copies_its_adapter(run: weft.Run, tmp_path: Path) -> None:
    assert run.adapter is not None
    report = export_run(run.folder, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in run.adapter.iterdir()
    }
    assert report.difference == run.summary["adapter"]["difference"]
    assert (report.kind, report.view, report.client) == ("peft", "personal", None)


def test_exporting_a_client_rebuilds_its_own_model_from_the_runs_folder(run: weft.Run, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    texts = list(tiny.rows(10, seed=3).texts)
    report = export_run(run.folder, tmp_path / "c1", client="c1")
    assert report.client == "c1"
    assert report.difference <= report.tolerance
    one = here(tmp_path / "c1")
    assert one.classes == NAMES
    assert not torch.allclose(one.logits(texts), here(run.folder).logits(texts), rtol=0.0, atol=1e-4)
    # B and head are what the client's file holds
    (path,) = (run.folder / "clients").glob("c1*")
    from weft.storage.files import tensors_in

    kept = {n.removeprefix("kept:"): t for n, t in tensors_in(path.read_bytes(), path)[0].items()}
    for name, tensor in kept.items():
        if name.startswith("head/"):
            assert torch.equal(one.trained.values[name], tensor)  # type: ignore[arg-type]
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("more", "words"),
    [({"client": "c9"}, 'no client "c9": it has c0, c1, c2'), ({"view": "global"}, 'no view "global": use personal')],
)
def test_a_client_or_view_that_is_not_there_leaves_nothing_behind(
    more: dict[str, str], words: str, run: weft.Run, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        export_run(run.folder, tmp_path / "out", **more)
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_writes_over_anything(run: weft.Run, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_run(run.folder, taken)
    with pytest.raises(UserError, match="exists already"):
        export_run(run.folder, taken / "mine.txt")
    assert (taken / "mine.txt").read_text() == "mine"


def test_a_probe_alone_leaves_an_adapter_of_a_trained_head_and_nothing_else(run: weft.Run, tmp_path: Path) -> None:
    settings = {n: s["value"] for n, s in run.summary["settings"].items()}
    probe = weft.run(
        method="fedsa-lora",
        model=settings["model"],
        data=settings["data"],
        clients=3,
        runs=str(tmp_path / "runs"),
        baseline="probe",
        baselines=[],
        probe_rounds=3,
        device="cpu",
        precision="float32",
        max_length=32,
    )
    assert probe.adapter is not None
    report = export_run(probe.folder, tmp_path / "out")
    assert (report.kind, report.view) == ("peft", "global")
    assert report.difference <= probe.summary["adapter"]["tolerance"]
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    low_rank = [n for n in weights if "lora_B" in n]
    assert all(not weights[n].any() for n in low_rank)
    head = next(v for n, v in weights.items() if n.endswith("classifier.weight"))
    assert float(head.std()) > 0
    records = evaluate_run(tmp_path / "out", settings["data"], device="cpu", precision="float32")
    assert value(records, "accuracy") > 1 / 3


def test_a_run_is_scored_on_its_own_file_again(run: weft.Run) -> None:
    data = run.summary["settings"]["data"]["value"]
    records = evaluate_run(run.folder, data, device="cpu", precision="float32")
    assert {r["n"] for r in records} == {60}
    # in the same precision: a row whose logits are nearly even is another class in another
    answers = load(run.folder, device="cpu", precision="float32").predict(list(tiny.rows(60).texts))
    truth = [NAMES[i] for i in tiny.rows(60).labels]
    assert value(records, "accuracy") == pytest.approx(
        float(np.mean([a == t for a, t in zip(answers, truth, strict=True)])), abs=1e-12
    )


def test_a_merged_folder_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a whole model without weft\.json, as weft export --merged writes it: transformers"):
        load(tmp_path)
