"""Break a folder of a tiny backbone in one place, and look for what is not refused in a sentence.

    python scripts/fuzz_inputs.py models [--seconds 600]

A tensor is dropped, renamed or resized, or holds NaN; a file is dropped or cut; a number in a json file is changed; bytes are
flipped. Then the folder is loaded, described, and reads a few rows. Either that is refused in one sentence, or nothing that is
frozen was drawn at random, and the hidden states are those of the whole folder unless something was said. Where the numbers
themselves were changed (bytes of weights, a setting such as an epsilon) nobody can know better, and any finite result will do.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import torch as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import tiny
from weft.backbones.backbone import Backbone
from weft.backbones.inventory import inventory
from weft.backbones.load import load
from weft.backbones.reading import transformers_model
from weft.backbones.run_table import tabulate
from weft.errors import UserError

KINDS = tuple(tiny.SHAPES)
WEIGHTS = "model.safetensors"
CLASSES = tiny.names(3)


@dataclass(frozen=True)
class Fault:
    """What was done to a folder; ``numbers``: it changes what is computed, and nothing else in the folder contradicts it."""

    what: str
    numbers: bool = False


def state(folder: Path) -> tuple[Backbone, Tensor, dict[str, Tensor]]:
    """The backbone, its last hidden states [n, T, d] of a few rows, and every frozen tensor."""
    b = load(str(folder), classes=CLASSES, device="cpu", precision="float32")
    inventory(b)
    rows = tiny.rows(5, reads=b.reads)
    inputs = tabulate(b, rows, 32).collate(np.arange(5)) | b.class_inputs()
    seen: list[Tensor] = []

    def keep(_m: Any, _a: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    handle = b.module(b.blocks[-1]).register_forward_hook(keep)
    with torch.no_grad():
        logits = b.model(**inputs).logits
    handle.remove()
    assert bool(logits.isfinite().all()), "logits are not finite"
    own = tuple(h.name + "." for h in b.heads)
    frozen = {n: p for n, p in b.model.named_parameters() if not n.startswith(own) or not own}
    return b, torch.cat([seen[-1].flatten(), b.class_inputs().get("text_embeds", torch.zeros(0)).flatten()]), frozen


def check(folder: Path, fault: Fault, whole: Tensor) -> str:
    """``refused``, ``the same``, ``said`` or ``another``.

    Raises:
        AssertionError: something else than a sentence was raised, or a change went by without a word.
    """
    words = ""
    try:
        b, hidden, frozen = state(folder)
    except UserError as e:
        words = str(e)
    if words:
        assert words.isprintable(), f"not one line: {words!r}"
        assert len(words) < 700, f"too long: {words}"
        return "refused"
    again = transformers_model(str(folder), "again", len(CLASSES), "auto", False, seed=1).model
    drawn = [n for n, p in again.named_parameters() if n in frozen and not torch.equal(p, frozen[n])]
    assert not drawn, f"frozen weights were drawn at random: {drawn[:3]}"
    if hidden.shape == whole.shape and torch.allclose(hidden, whole, rtol=1e-4, atol=1e-5):
        return "the same"
    if b.notes:
        return "said"
    assert fault.numbers, "other hidden states, and not a word"
    return "another"


# what is done to a folder ------------------------------------------------------------------------------------------------


def tensors(folder: Path, rng: random.Random) -> Fault:
    """Drop, rename, resize or spoil one."""
    path = folder / WEIGHTS
    values = st.load(path.read_bytes())
    name = rng.choice(sorted(values))
    value, how = values[name], rng.choice(["drop", "rename", "longer", "shorter", "flat", "nan", "half", "whole numbers"])
    if how in ("drop", "rename"):
        del values[name]
        if how == "rename":
            values["odd." + name] = value
    elif not value.dim() and how in ("longer", "shorter", "flat"):
        values[name] = torch.ones(3)
    elif how == "longer":
        values[name] = torch.cat([value, value[:1]])
    elif how == "shorter":
        values[name] = value[:-1].clone()
    elif how == "flat":
        values[name] = value.flatten()[: max(value.numel() - 1, 1)].clone()
    elif how == "nan":
        value.view(-1)[rng.randrange(value.numel())] = float(rng.choice(["nan", "inf", "-inf"]))
    else:
        values[name] = value.to(torch.float16 if how == "half" else torch.int32)
    path.write_bytes(st.save(values, {"format": "pt"}))
    return Fault(f"{how} {name}", numbers=how == "half")


def weight_bytes(folder: Path, rng: random.Random) -> Fault:
    """Flip some, or cut the file."""
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little") + 8
    if rng.random() < 0.2:
        path.write_bytes(data[: rng.randrange(len(data))])
        return Fault("cut weights")
    where = [rng.randrange(header if rng.random() < 0.5 else len(data)) for _ in range(rng.randint(1, 3))]
    for i in where:
        data[i] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return Fault(f"flip bytes {where} of weights", numbers=True)  # a header may name another place for a tensor


def drop_file(folder: Path, rng: random.Random) -> Fault:
    path = rng.choice(sorted(folder.iterdir()))
    path.unlink()
    return Fault(f"drop {path.name}")


def add_file(folder: Path, rng: random.Random) -> Fault:
    name = rng.choice(["adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
    (folder / name).write_text(rng.choice(["", "{}", "[]", "x"]))
    return Fault(f"add {name}")


ODD: tuple[Callable[[Any], Any], ...] = (
    lambda v: v + 1,
    lambda v: v - 1,
    lambda v: v * 2,
    lambda v: v // 2 if isinstance(v, int) else v / 2,
    lambda v: 0,
    lambda v: -1,
    lambda v: 4096,
    lambda v: 0.5,
    lambda v: "many",
    lambda v: None,
    lambda v: [v],
)


def settings(folder: Path, rng: random.Random) -> Fault:
    """Another value of a number, or a value less, in one of the json files."""
    path = rng.choice(sorted(p for p in folder.glob("*.json") if p.name != "tokenizer.json"))
    content = json.loads(path.read_text())
    inside = [content, *(v for v in content.values() if isinstance(v, dict))]
    places = [(one, n) for one in inside for n, v in one.items() if not isinstance(v, dict)]
    numbers = [(o, n) for o, n in places if isinstance(o[n], (int, float)) and not isinstance(o[n], bool)]
    if numbers and rng.random() < 0.8:
        one, name = rng.choice(numbers)
        old = one[name]
        one[name] = rng.choice(ODD)(old)
        what = f"{path.name}: {name} {old} -> {one[name]}"
    else:
        one, name = rng.choice(places)
        what = f"{path.name}: without {name}"
        del one[name]
    path.write_text(json.dumps(content))
    return Fault(what, numbers=True)


def text_bytes(folder: Path, rng: random.Random) -> Fault:
    """Flip some in one of the json files, or cut it."""
    path = rng.choice(sorted(folder.glob("*.json")))
    data = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        path.write_bytes(data[: rng.randrange(len(data))])
        return Fault(f"cut {path.name}")
    where = [rng.randrange(len(data)) for _ in range(rng.randint(1, 4))]
    for i in where:
        data[i] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return Fault(f"flip bytes {where} of {path.name}", numbers=True)


FAULTS = (tensors, tensors, settings, settings, weight_bytes, text_bytes, drop_file, add_file)


@functools.cache
def whole(kind: str) -> Tensor:
    """What a folder that is not broken gives."""
    return state(tiny.folder(kind))[1]


def one(rng: random.Random, folder: Path) -> str:
    """Break a copy of a model in an empty folder in one place, and load it; raises for a finding."""
    kind = rng.choice(KINDS)
    broken = folder / "model"
    shutil.copytree(tiny.folder(kind), broken)
    with quiet():
        wanted = whole(kind)
        fault = rng.choice(FAULTS)(broken, rng)
        try:
            return check(broken, fault, wanted)
        except Exception as e:
            raise AssertionError(f"{kind}, {fault.what}: {type(e).__name__}: {e}") from e


@contextlib.contextmanager
def quiet() -> Any:
    """Without what transformers says of a damaged folder."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
