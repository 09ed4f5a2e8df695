"""Short runs of language models that are exported, for tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tiny
from weft.adaptation.optim import Optim
from weft.backbones.load import load as load_backbone
from weft.export import export
from weft.federation.method import Method
from weft.methods.reparameterized.fedit import FedIT
from weft.testing.data import answered
from weft.testing.models import PAIRED

FAST = Optim("adamw", lr=0.05)
FEDIT = FedIT(rank=2, batch=4, optim=FAST)
PROMPTS = ["w3 w4", "w20 w9 w11 w2", "w7"]
HERE: dict[str, Any] = {"device": "cpu", "precision": "float32"}
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def finished(folder: Path, kind: str = "llama", method: Method = FEDIT, template: str = "", base: str = "") -> tiny.Federation:
    """A federation whose model is exported into a new folder."""
    base = base or tiny.folder(kind, "pair" if kind in PAIRED else "lm")
    backbone = load_backbone(base, classes=("answer",), task="generation", template=template, **HERE)
    run = tiny.federation(method, backbone, task="generation", precision="float32", rounds=3).run()
    folder.mkdir()
    export(run.method, run.server, folder, {"run": "a-run", "settings": {"max_length": 32}})
    return run


def chatty(where: Path) -> str:
    """A decoder whose tokenizer brings a chat template along."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny.folder("llama", "lm")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(where)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(where)
    return str(where)


def by_readme(folder: Path, prompt: str, second: str = "", tokens: int = 64) -> str:
    """What the lines in the README print, word for word but for the number of new tokens."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {"FOLDER": folder, "PROMPT": prompt, "INPUT": second}
    exec(code.replace("max_new_tokens=64", f"max_new_tokens={tokens}"), scope)
    found: str = scope["answer"]
    return found


def rows_file(path: Path, n: int = 24) -> Path:
    """Prompts with answers that can be learnt."""
    rows = answered(tiny.rows(n))
    lines = [json.dumps({"prompt": t, "response": a}) for t, a in zip(rows.texts or (), rows.answers or (), strict=True)]
    path.write_text("\n".join(lines))
    return path
