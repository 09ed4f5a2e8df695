"""A backbone that brings its own code, in which nothing has a usual name: the guesses about it are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import tiny

CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class OddConfig(PretrainedConfig):
    model_type = "odd"

    def __init__(self, vocab_size=100, width=32, depth=3, **more):
        self.vocab_size, self.width, self.depth = vocab_size, width, depth
        super().__init__(**more)


class Step(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.before, self.after = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mix, self.back, self.weigh = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, d)
        self.big, self.small = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x, mask):
        q, k, v = self.mix(self.before(x)).chunk(3, -1)
        scores = q @ k.mT / q.shape[-1] ** 0.5 + mask
        x = x + self.back(scores.softmax(-1) @ v) * self.weigh(x).sigmoid()
        return x + self.small(torch.relu(self.big(self.after(x))))


class Trunk(nn.Module):
    def __init__(self, config):
        super().__init__()
        d = config.width
        self.table = nn.Embedding(config.vocab_size, d)
        self.notes = nn.ModuleList(nn.Linear(d, 40 * d) for _ in range(4))  # larger than the stack
        self.steps = nn.ModuleList(Step(d) for _ in range(config.depth))
        self.readout = nn.Linear(d, config.num_labels)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids)
        for note in self.notes:
            x = x + note(x).unflatten(-1, (40, -1)).mean(-2)
        mask = (1.0 - attention_mask.to(x.dtype))[:, None, :] * -1e4
        for step in self.steps:
            x = step(x, mask)
        return self.readout(x[:, 0])


class OddForSequenceClassification(PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "trunk"

    def __init__(self, config):
        super().__init__(config)
        self.trunk = Trunk(config)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids=None, attention_mask=None, **_):
        return SequenceClassifierOutput(logits=self.trunk(input_ids, attention_mask))
"""


def folder(where: Path) -> str:
    """Write it, with random weights, those of a head for three classes too."""
    scope: dict[str, type] = {}
    exec(CODE, scope)
    config = scope["OddConfig"](pad_token_id=0, num_labels=3)
    model = scope["OddForSequenceClassification"](config)
    assert isinstance(model, torch.nn.Module)
    tiny.scramble(model)
    model.save_pretrained(where)  # type: ignore[operator]
    tiny.tokenizer("bert").save_pretrained(where)
    (where / "modeling_odd.py").write_text(CODE)
    settings = json.loads((where / "config.json").read_text())
    own = {"AutoConfig": "OddConfig", "AutoModelForSequenceClassification": "OddForSequenceClassification"}
    settings["auto_map"] = {auto: f"modeling_odd.{name}" for auto, name in own.items()}
    (where / "config.json").write_text(json.dumps(settings))
    return str(where)
