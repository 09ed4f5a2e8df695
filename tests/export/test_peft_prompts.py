"""Soft words and prefixes leave a PEFT adapter for prompt learning where PEFT alone gives the same logits, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as st
from torch import Tensor

import tiny
import weft
from exporting import FAST, INFO, RUN_CLOSE, by_peft, by_readme, exported, tensors_in
from language_exports import PROMPTS, finished
from language_exports import by_readme as answer_by_readme
from weft.backbones import rotary
from weft.backbones.load import load as load_backbone
from weft.contract import Tune
from weft.data.rows import Rows
from weft.data.tagged import rows_of
from weft.errors import UserError
from weft.export import export, export_run, load, merge, peft_files
from weft.export.write import OTHERWISE
from weft.federation.method import Method
from weft.methods.full.fedavg import FedAvg
from weft.methods.prompts.fedprompt import FedPrompt
from weft.methods.prompts.mfpt import MFPT

M = 3
HERE: dict[str, Any] = {"device": "cpu", "precision": "float32"}
WORDS = MFPT(tokens=M, where="front", encoder="none", batch=4, optim=FAST)
MADE = MFPT(tokens=M, where="front", hidden=5, batch=4, optim=FAST)
BEHIND = MFPT(tokens=M, batch=4, optim=FAST)
PREFIX = FedAvg(tune=Tune("prefix", tokens=M), batch=4, epochs=1.0, optim=FAST)
MADE_PREFIX = FedAvg(tune=Tune("prefix", tokens=M, hidden=5), batch=4, epochs=1.0, optim=FAST)
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


def played(method: Method, kind: str, task: str = "auto", where: Path | None = None, **shape: Any) -> tiny.Federation:
    """Two rounds of a federation on float32 weights."""
    model: Any = kind
    if shape:
        model = load_backbone(tiny.folder(kind, **shape), classes=tiny.names(3), **HERE)
    return tiny.federation(method, model, task=task, precision="float32").run()


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


def own_logits(run: tiny.Federation, logits: Tensor) -> Tensor:
    """Of what the run tags, out of logits [n, m + T, C]; others as they are."""
    if logits.dim() == 2:
        return logits
    table, rows = run.bench.table, np.arange(len(run.bench.table))
    width = table.collate(rows)["input_ids"].shape[1]
    return logits[:, -width:].flatten(0, 1)[run.bench.task.targets(table, rows[None])[1][0]]


FITTING = [
    *((WORDS, kind, "auto") for kind in ("bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert")),
    *((MADE, kind, "auto") for kind in ("bert", "roberta")),
    *(
        (WORDS, kind, "tokens")
        for kind in ("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama", "bloom")
    ),
    *((BEHIND, kind, "tokens") for kind in ("bert", "llama")),  # nowhere but in front, where no single token is read
    *((PREFIX, kind, "auto") for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "gpt_neox")),
    *((MADE_PREFIX, kind, "auto") for kind in ("llama", "phi")),
    *((PREFIX, kind, "tokens") for kind in ("llama", "phi")),
]
TYPES = {id(WORDS): "PROMPT_TUNING", id(MADE): "P_TUNING", id(BEHIND): "P_TUNING"}


@pytest.mark.parametrize(("method", "kind", "task"), FITTING)
def test_peft_alone_gives_the_logits_of_the_run_and_so_does_weft(method: Method, kind: str, task: str, tmp_path: Path) -> None:
    run = played(method, kind, task)
    report = exported(run, tmp_path)
    assert report.kind == "peft"
    assert report.difference <= 1e-5
    assert report.notes == []
    assert config(tmp_path)["peft_type"] == TYPES.get(id(method), "PREFIX_TUNING")
    b, table = run.bench.backbone, run.bench.table
    name = "TokenClassification" if task == "tokens" else "SequenceClassification"
    inputs = table.collate(np.arange(len(table)))
    classes = len(run.bench.task.classes)
    got = own_logits(run, by_peft(b.path, tmp_path, inputs, classes, b.tokenizer.pad_token_id, name))
    expected = run.global_logits()
    torch.testing.assert_close(got, expected, **RUN_CLOSE)
    again = load(tmp_path, **HERE).trained.logits(b, run.bench.task, table, np.arange(len(table)))
    torch.testing.assert_close(again, expected, **RUN_CLOSE)
    start = tiny.federation(method, b, task=task, precision="float32").global_logits()
    assert not torch.allclose(got, start, rtol=0.0, atol=1e-2)  # and it was worth exporting


@pytest.mark.parametrize(("method", "kind"), [(MADE, "bert"), (PREFIX, "llama"), (MADE_PREFIX, "gpt_neox")])
def test_in_float64_peft_and_weft_are_one(method: Method, kind: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run = tiny.federation(method, kind).run()
    assert exported(run, tmp_path).kind == "peft"
    b, table = run.bench.backbone, run.bench.table
    assert b.dtype == torch.float64
    base = AutoModelForSequenceClassification.from_pretrained(b.path, num_labels=3, dtype=torch.float64)
    base.config.pad_token_id = b.tokenizer.pad_token_id
    with torch.no_grad():
        got = PeftModel.from_pretrained(base, tmp_path).double().eval()(**table.collate(np.arange(len(table)))).logits
    torch.testing.assert_close(got, run.global_logits(dtype=torch.float64), rtol=0.0, atol=1e-6)  # values are float32


@pytest.mark.parametrize("method", [PREFIX, MADE_PREFIX], ids=["plain", "made"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "phi"])
def test_a_language_model_with_a_prefix_writes_by_peft_alone_what_it_writes_by_weft(
    kind: str, method: Method, tmp_path: Path
) -> None:
    run = finished(tmp_path / "out", kind, method)
    folder, b, table = tmp_path / "out", run.bench.backbone, run.bench.table
    assert config(folder)["task_type"] == "CAUSAL_LM"
    assert config(folder)["num_virtual_tokens"] == tune_of(method).tokens
    rows = np.arange(8)
    logits = by_peft(b.path, folder, table.collate(rows), None, b.tokenizer.pad_token_id, "CausalLM")
    torch.testing.assert_close(logits[table.places(rows)], run.global_logits(rows), rtol=0.0, atol=5e-5)  # up to 10
    model = load(folder, **HERE)
    written = model.generate(PROMPTS, new_tokens=6)
    assert [answer_by_readme(folder, prompt, tokens=6) for prompt in PROMPTS] == written
    plain = load_backbone(b.path, classes=("answer",), task="generation", **HERE)
    model.backbone, model.trained = plain, type(model.trained)({}, {}, {})
    assert model.generate(PROMPTS, new_tokens=6) != written, "the prefix does nothing"


def tune_of(method: Method) -> Tune:
    assert isinstance(method, FedAvg)
    return method.tune


@pytest.mark.parametrize(
    ("method", "kind", "task", "why"),
    [
        (BEHIND, "bert", "auto", "before a row's first token, and these stand behind it"),
        (BEHIND, "distilbert", "auto", "these stand behind it"),
        (WORDS, "llama", "auto", "it would read padding"),
        (WORDS, "gpt2", "auto", "it would read padding"),
        (WORDS, "qwen2", "auto", "it would read padding"),
        (PREFIX, "gpt2", "auto", r"those that can be turned back \(rotary\)"),
        (PREFIX, "bert", "auto", r"those that can be turned back \(rotary\)"),
        (PREFIX, "opt", "auto", r"those that can be turned back \(rotary\)"),
        (PREFIX, "roberta", "tokens", r"those that can be turned back \(rotary\)"),
        (PREFIX, "modernbert", "auto", "attention reaches 4 tokens back"),
        (WORDS, "t5", "auto", "a class of Weft's own"),
        (PREFIX, "vit", "auto", "PEFT has prefixes for no such model"),
    ],
)
def test_elsewhere_a_model_is_in_wefts_own_files_and_the_card_says_why(
    method: Method, kind: str, task: str, why: str, tmp_path: Path
) -> None:
    run = played(method, kind, task)
    report = exported(run, tmp_path)
    assert report.kind == "weft"
    assert report.files == ["README.md", "weft.json", "weft_adapter.json", "weft_adapter.safetensors"]
    (note,) = report.notes
    assert note.startswith("It is in Weft's own files, as ")
    assert note in (tmp_path / "README.md").read_text()
    assert re.search(why, note)
    table = run.bench.table
    again = load(tmp_path, **HERE).trained.logits(run.bench.backbone, run.bench.task, table, np.arange(len(table)))
    torch.testing.assert_close(again, run.global_logits(), **RUN_CLOSE)


def test_the_prefix_of_a_model_that_reads_and_writes_apart_stays_with_weft(tmp_path: Path) -> None:
    """PEFT has none in its encoder."""
    finished(tmp_path / "out", "t5", PREFIX)
    assert "PEFT has prefixes for no such model" in (tmp_path / "out" / "README.md").read_text()


def test_where_peft_does_not_run_nothing_of_the_try_is_left(tmp_path: Path) -> None:
    """ModernBERT has rotary positions, and no place for keys of others."""
    report = exported(played(PREFIX, "modernbert", local_attention=512), tmp_path)
    assert report.files == ["README.md", "weft.json", "weft_adapter.json", "weft_adapter.safetensors"]
    assert report.notes == [f"It is in Weft's own files, as {OTHERWISE}."]


@pytest.mark.parametrize("difference", [1.0, float("nan")])
def test_where_peft_gives_other_logits_the_model_is_in_wefts_own_files(
    difference: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = peft_files.logits_of
    monkeypatch.setattr(peft_files, "logits_of", lambda *args: own(*args) + difference)
    report = exported(played(WORDS, "bert"), tmp_path)
    assert report.kind == "weft"
    assert report.notes == [f"It is in Weft's own files, as {OTHERWISE}."]


def test_words_that_fill_in_a_masked_model_stay_with_weft(tmp_path: Path) -> None:
    b = load_backbone(
        tiny.folder("bert", "mlm"), classes=tiny.names(3), task="fill", label_words=tiny.label_words(tiny.names(3)), **HERE
    )
    report = exported(tiny.federation(FedPrompt(tokens=M, batch=4, optim=FAST), b, precision="float32").run(), tmp_path)
    assert (report.kind, len(report.notes)) == ("weft", 1)
    assert "a class of Weft's own" in report.notes[0]


# the README -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "kind"), [(WORDS, "bert"), (MADE, "roberta"), (PREFIX, "llama"), (PREFIX, "gpt_neox")])
@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_the_lines_in_the_readme_give_the_logits(method: Method, kind: str, pairs: bool, tmp_path: Path) -> None:
    run = played(method, kind)
    export(run.method, run.server, tmp_path, INFO | {"pairs": pairs})
    rows = tiny.rows(9, pairs=pairs)
    torch.testing.assert_close(by_readme(tmp_path, rows), load(tmp_path, **HERE).logits_of(rows), **RUN_CLOSE)


def test_the_readme_leaves_room_for_the_words_where_a_text_is_as_long_as_the_base_takes(tmp_path: Path) -> None:
    run = played(WORDS, "bert")
    export(run.method, run.server, tmp_path, {"run": "a-run", "settings": {"max_length": 64}})
    rows = Rows([" ".join(f"w{i % 90}" for i in range(200)), "w1"], None, np.zeros(2), np.arange(2))
    torch.testing.assert_close(by_readme(tmp_path, rows), load(tmp_path, **HERE).logits_of(rows), **RUN_CLOSE)


def test_the_lines_of_a_tagger_leave_out_what_it_says_of_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(played(BEHIND, "bert", "tokens"), tmp_path)
    texts = [["w3", "w40", "w7"], ["w60", "w2"]]
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {"FOLDER": tmp_path, "TEXTS": texts}
    exec(code, scope)
    printed = [eval(line) for line in capsys.readouterr().out.splitlines()]
    model = load(tmp_path, **HERE)
    rows = rows_of([tuple(t) for t in texts], [np.zeros(len(t), np.int64) for t in texts])
    expected = model.logits_of(rows)
    own = torch.cat([row[1 : 1 + len(text)] for row, text in zip(scope["logits"], texts, strict=True)])  # behind [CLS]
    torch.testing.assert_close(own, expected, **RUN_CLOSE)
    tags = [model.classes[i] for i in expected.argmax(-1).tolist()]
    assert [tag for row in printed for _, tag in row] == tags
    assert [word for row in printed for word, _ in row] == [word for text in texts for word in text]


# files ----------------------------------------------------------------------------------------------------------------


def test_the_files_are_those_that_peft_saves_itself(tmp_path: Path) -> None:
    """Loaded by PEFT and saved again, names, values and what the configuration says are the same."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    for method, kind in ((WORDS, "bert"), (MADE, "bert"), (PREFIX, "llama"), (MADE_PREFIX, "llama")):
        ours, theirs = tmp_path / f"{id(method)}", tmp_path / f"{id(method)}-again"
        ours.mkdir()
        run = played(method, kind)
        exported(run, ours)
        base = AutoModelForSequenceClassification.from_pretrained(run.bench.backbone.path, num_labels=3)
        PeftModel.from_pretrained(base, ours).save_pretrained(str(theirs))
        again, wrote = (tensors_in(f / "adapter_model.safetensors") for f in (theirs, ours))
        assert again.keys() == wrote.keys()
        assert all(torch.equal(again[name], wrote[name]) for name in wrote)
        told, said = config(theirs), config(ours)
        filled = {n for n in said if said[n] != told[n]}
        assert filled <= {
            "modules_to_save",
            "encoder_hidden_size",
        }  # with names that no module has, and a width that nobody reads


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("prompt_embeddings"), "prompt_embeddings"),
        (lambda t: t.update(prompt_embeddings=t["prompt_embeddings"][:, :5].clone()), "split|unflatten|shape"),
        (lambda t: t.pop("base_model.score.weight"), "head/score/weight is missing"),
        (lambda t: t.update(prompt_embeddings=t["prompt_embeddings"] * float("nan")), "not finite"),
    ],
)
@pytest.mark.parametrize(("method", "kind"), [(PREFIX, "llama"), (BEHIND, "llama")])
def test_damaged_files_are_told_from_whole_ones(method: Method, kind: str, change: Any, words: str, tmp_path: Path) -> None:
    task = "tokens" if method is BEHIND else "auto"
    exported(played(method, kind, task), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = tensors_in(path)
    change(tensors)
    path.write_bytes(st.save(tensors))
    about = json.loads((tmp_path / "weft.json").read_text())
    about["files"]["adapter_model.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "weft.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="is damaged") as found:
        load(tmp_path, **HERE)
    assert re.search(words, str(found.value))


def test_what_no_weights_can_stand_for_is_not_merged_nor_added_up_nor_begun_from(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    exported(played(PREFIX, "llama"), folder)
    with pytest.raises(UserError, match="leave --merged out"):
        export_run(folder, tmp_path / "merged", merged=True)
    with pytest.raises(UserError, match="PEFT's type PREFIX_TUNING, and not LoRA alone"):
        merge([folder, folder], tmp_path / "sum")
    with pytest.raises(UserError, match="PEFT's type PREFIX_TUNING, and not LoRA alone"):
        weft.run(start=str(folder), rounds=1, runs=tmp_path / "runs")


# rotary positions -----------------------------------------------------------------------------------------------------


def test_a_prefix_of_a_stretched_model_is_turned_and_not_stretched(tmp_path: Path) -> None:
    """YaRN multiplies what is turned; a prefix is in the cache as it is."""
    run = played(PREFIX, "llama", rope_parameters=YARN)
    assert exported(run, tmp_path).kind == "peft"
    b, table = run.bench.backbone, run.bench.table
    got = by_peft(b.path, tmp_path, table.collate(np.arange(len(table))), 3, b.tokenizer.pad_token_id)
    torch.testing.assert_close(got, run.global_logits(), **RUN_CLOSE)


def test_what_was_trained_in_low_precision_is_compared_on_exact_angles(tmp_path: Path) -> None:
    report = exported(tiny.federation(PREFIX, tiny.backbone("llama", precision="bfloat16"), precision="bfloat16").run(), tmp_path)
    assert report.kind == "peft"
    assert report.difference <= 1e-5


@pytest.mark.parametrize("kind", ["llama", "phi", "gpt_neox"])
def test_keys_are_turned_back_to_where_they_were_and_in_steps(kind: str) -> None:
    b = tiny.backbone(kind)
    width = b.attentions[0].d_in
    keys = {s.name: torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(i)).double() for i, s in enumerate(b.attentions)}
    assert width % 8 == 0
    once, twice = (rotary.turned(b, keys, n) for n in (3, 6))
    assert once is not None
    steps, back = rotary.turned(b, once, 3), rotary.turned(b, once, -3)
    assert twice is not None
    assert steps is not None
    assert back is not None
    for name, key in keys.items():
        assert not torch.allclose(once[name], key, atol=1e-2)
        torch.testing.assert_close(steps[name], twice[name], rtol=0.0, atol=1e-6)
        torch.testing.assert_close(back[name], key, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(once[name].norm(dim=-1), key.norm(dim=-1), rtol=1e-6, atol=0.0)


def test_bfloat16_rounds_no_angle() -> None:
    exact, rounded = (tiny.backbone("llama", precision=p) for p in ("float32", "bfloat16"))
    keys = {s.name: torch.ones(2, 3, 8) for s in exact.attentions}
    one, other = rotary.turned(exact, keys, 5), rotary.turned(rounded, keys, 5)
    assert one is not None
    assert other is not None
    for name, key in one.items():
        torch.testing.assert_close(other[name], key, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape", "why"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "rotary"),
        ("mistral", {"sliding_window": 66}, "reaches 66 tokens back"),
    ],
)
def test_positions_and_windows_that_a_prefix_moves_are_known_before_a_long_row_comes(
    kind: str, shape: dict[str, Any], why: str, tmp_path: Path
) -> None:
    report = exported(played(PREFIX, kind, **shape), tmp_path)
    assert report.kind == "weft"
    assert why in report.notes[0]


def test_a_window_as_wide_as_the_longest_row_and_the_prefix_hides_nothing(tmp_path: Path) -> None:
    run = played(PREFIX, "mistral", sliding_window=67)
    export(run.method, run.server, tmp_path, {"run": "a-run", "settings": {"max_length": 64}})
    assert config(tmp_path)["peft_type"] == "PREFIX_TUNING"
    rows = Rows([" ".join(f"w{i % 90}" for i in range(200)), "w1"], None, np.zeros(2), np.arange(2))
    torch.testing.assert_close(by_readme(tmp_path, rows), load(tmp_path, **HERE).logits_of(rows), **RUN_CLOSE)
