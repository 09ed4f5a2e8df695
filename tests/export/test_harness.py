"""One task of lm-evaluation-harness, on a model that a run left: as an adapter, and merged.

The package is in no extra, as Weft does not need it; `make test-all` skips this without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import language_exports as exports
import tiny
from weft.export import export_run

pytestmark = pytest.mark.slow
ROWS = 40


def questions(path: Path) -> list[dict[str, Any]]:
    """In the form of ARC: a question, and four choices of different lengths."""
    rows = []
    for i in range(ROWS):
        texts = [" ".join(f"w{(5 * i + 11 * c + j) % 90}" for j in range(1 + (i + c) % 3)) for c in range(4)]
        question = f"w{(7 * i) % 90} w{(3 * i + 1) % 90}"
        rows.append({"question": question, "choices": {"text": texts, "label": list("ABCD")}, "answerKey": "ABCD"[i % 4]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of questions whose right choice has the largest summed log-probability, one sequence at a time."""
    right = 0
    for row in rows:
        start = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        scores = []
        for choice in row["choices"]["text"]:
            ids = torch.tensor([[*start, *tokenizer(" " + choice, add_special_tokens=False)["input_ids"]]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logs[t - 1, ids[0, t]]) for t in range(len(start), ids.shape[1])))
        right += scores.index(max(scores)) == "ABCD".index(row["answerKey"])
    return right / len(rows)


def test_the_harness_scores_an_exported_model_as_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = pytest.importorskip("lm_eval")
    import yaml
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = questions(tmp_path / "arc.jsonl")
    text = (Path(harness.__file__).parent / "tasks" / "arc" / "arc_easy.yaml").read_text()
    files = {"data_files": {"test": str(tmp_path / "arc.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    task = yaml.safe_load(text) | {"task": "arc_here", "tag": None, "dataset_path": "json", "dataset_name": None}
    task |= {"dataset_kwargs": files, "training_split": None, "validation_split": None}

    exports.finished(tmp_path / "adapter")
    export_run(tmp_path / "adapter", tmp_path / "merged", merged=True)
    base = tiny.folder("llama", "lm")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    found = []
    for about in ({"pretrained": base, "peft": str(tmp_path / "adapter")}, {"pretrained": str(tmp_path / "merged")}):
        model = HFLM(**about, device="cpu", dtype="float32", batch_size=4)
        result = harness.simple_evaluate(model=model, tasks=[dict(task)], bootstrap_iters=0)
        assert result["n-samples"]["arc_here"]["effective"] == ROWS
        found.append(result["results"]["arc_here"]["acc,none"])
    assert found[0] == found[1] == pytest.approx(accuracy(plain, tokenizer, rows))
    untrained = accuracy(AutoModelForCausalLM.from_pretrained(base).eval(), tokenizer, rows)
    assert found[0] != untrained, "the adapter must be seen"
