"""Short runs that are exported, for tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as st
from torch import Tensor

import tiny
from weft.adaptation.optim import Optim
from weft.backbones.backbone import Backbone
from weft.data.rows import BOTH, Rows
from weft.export import ExportReport, Predictor, export
from weft.federation.method import Method
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.reparameterized.flora import FLoRA

INFO = {"run": "a-run", "settings": {"max_length": 32}}
FAST = Optim("adamw", lr=0.05)
FEDIT = FedIT(rank=2, alpha=6.0, sites="all", batch=4, optim=FAST)
FLORA = FLoRA(rank=2, ranks=(1, 2, 3), sites="q,v", batch=4, optim=FAST)
RUN_CLOSE = {"rtol": 0.0, "atol": 2e-5}  # logits of a few units, float32


def trained(method: Method, model: Backbone | str = "bert", **more: Any) -> tiny.Federation:
    return tiny.federation(method, model, **({"precision": "float32"} | more)).run()


def exported(run: tiny.Federation, folder: Path, **more: Any) -> ExportReport:
    return export(run.method, run.server, folder, INFO, **more)


def assert_answers_about_pictures_as(run: tiny.Federation, predictor: Predictor, *, of_everybody: bool) -> None:
    """What an exported model makes of questions about pictures is what the run makes of them, and pairs give what rows give.

    Args:
        run: of clients with 6 and 5 rows. of_everybody: its global logits are the predictor's; else these are a new client's.
    """
    rows = tiny.states((6, 5), reads=BOTH)[0]
    assert rows.texts is not None
    assert rows.images is not None
    expected = predictor.logits_of(rows)
    if of_everybody:
        torch.testing.assert_close(expected, run.global_logits(), **RUN_CLOSE)
    items = [(text, rows.images[i]) for i, text in enumerate(rows.texts)]
    torch.testing.assert_close(predictor.logits(items), expected, rtol=0.0, atol=0.0)
    assert predictor.predict(items[:2]) == [predictor.classes[i] for i in expected[:2].argmax(-1).tolist()]


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Read at once: a file that is mapped into memory must not be written over."""
    return st.load(path.read_bytes())


def by_readme(folder: Path, rows: Rows) -> Tensor:
    """By the lines in the README of the export, word for word."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {"FOLDER": folder, "TEXTS": rows.texts, "SECOND": rows.pairs}
    if rows.images is not None:
        scope["IMAGES"] = [rows.images[i] for i in range(len(rows))]
    torch.manual_seed(98)
    exec(code, scope)
    found: Tensor = scope["logits"]
    return found


def by_peft(
    base: str, folder: Path, inputs: dict[str, Tensor], classes: int | None, pad: int, task: str = "SequenceClassification"
) -> Tensor:
    """What anybody writes who has never heard of Weft.

    Args:
        classes: None where there is no head of a new task.
    """
    import transformers
    from peft import PeftModel

    torch.manual_seed(99)
    labels = {} if classes is None else {"num_labels": classes}
    model = getattr(transformers, f"AutoModelFor{task}").from_pretrained(base, **labels)
    model.config.pad_token_id = pad
    with torch.no_grad():
        found: Tensor = PeftModel.from_pretrained(model, folder).eval()(**inputs).logits
    return found
