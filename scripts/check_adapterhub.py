"""Hold exports of bottleneck adapters to AdapterHub's library ``adapters``, which no environment of Weft's can have.

Make an environment for it, and give its interpreter to this script, which is run with Weft's::

    python3 -m venv OTHER && OTHER/bin/pip install torch adapters==1.3.0
    .venv/bin/python scripts/check_adapterhub.py OTHER/bin/python

A small random model of each architecture and placement is trained for a few rounds and exported. The other interpreter runs
the lines of its README that load it, and computes the logits of the same rows. They may differ by 1e-5 of the largest of them
(at least 1), and those without the adapter have to differ by more. A difference of exactly 0 is one where both libraries add and
multiply in the same order.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch as st
import torch

TOLERANCE = 1e-5
ROWS = "rows.safetensors"
KINDS: dict[str, tuple[str, ...]] = {
    "auto": (
        *("albert", "beit", "bert", "clip", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "mistral", "roberta", "vit"),
        "xlm-roberta",
    ),
    "tokens": ("bert", "roberta", "llama"),
    "generation": ("bart", "gpt2", "llama", "mbart", "mistral", "t5"),
}
"""Task -> architectures."""
TUNED: dict[str, dict[str, Any]] = {
    "block": {"kind": "bottleneck", "placement": "block", "reduction": 8},
    "ffn": {"kind": "bottleneck", "placement": "ffn", "activation": "gelu_new", "reduction": 5, "scaling": 0.7},
    "sublayers": {"kind": "bottleneck", "placement": "sublayers", "reduction": 6, "scaling": "learned"},
    "parallel": {"kind": "bottleneck", "placement": "parallel", "reduction": 8},
    "compacter, block": {"kind": "compacter", "placement": "block", "reduction": 7},
    "compacter, sublayers": {"kind": "compacter", "placement": "sublayers", "reduction": 7, "products": 2},
}


def made(folder: Path, task: str, kind: str, tuned: dict[str, Any]) -> str | None:
    """Train and export a model, with rows and their logits beside it; returns why it is no export in AdapterHub's form."""
    import numpy as np

    from weft.adaptation.optim import Optim
    from weft.backbones.load import load
    from weft.contract import Tune
    from weft.export import export
    from weft.export.about import About
    from weft.export.write import at_things
    from weft.methods.full.fedavg import FedAvg
    from weft.testing.federation import federation
    from weft.testing.models import PAIRED
    from weft.testing.models import folder as base

    method = FedAvg(tune=Tune(**tuned), batch=4, epochs=1.0, optim=Optim("adamw", lr=0.05))
    model: Any = kind
    if task == "generation":
        stored = base(kind, "pair" if kind in PAIRED else "lm")
        model = load(stored, classes=("answer",), task=task, device="cpu", precision="float32")
    run = federation(method, model, task=task, precision="float32").run()
    report = export(run.method, run.server, folder, {"run": "a-run", "settings": {"max_length": 32}})
    if report.kind != "adapters":
        return report.notes[0]
    backbone, table = run.bench.backbone, run.bench.table
    rows = np.arange(6)
    inputs = dict(table.collate(rows))
    if backbone.names is not None:
        inputs["input_ids"] = backbone.names.ids()
    # where in the logits of a whole row those are that are predicted from
    tokens = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    shape = tokens.shape if task != "auto" and tokens is not None else (len(rows),)
    places = torch.arange(int(np.prod(shape))).view(*shape, 1)
    found = at_things(places, About.read(folder), table, rows) if task != "auto" else places
    expected = run.global_logits(rows)
    kept = {"logits": expected, "places": found[:, 0]} | {f"in.{n}": t.contiguous() for n, t in inputs.items()}
    st.save_file(kept, folder / ROWS)
    return None


@torch.no_grad()
def read(folder: Path) -> dict[str, float]:
    """What the library makes of an export: how far its logits are from the run's, with the adapter and without it."""
    readme = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)^(?:reader|inputs) = ", readme, flags=re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {"FOLDER": folder}
    exec(code, scope)
    model, kept = scope["model"], st.load_file(folder / ROWS)
    inputs = {n.removeprefix("in."): t for n, t in kept.items() if n.startswith("in.")}

    def apart() -> float:
        out = model(**inputs)
        logits = out.logits_per_image if hasattr(out, "logits_per_image") else out.logits
        return float((logits.flatten(0, -2)[kept["places"]] - kept["logits"]).abs().max())

    active = apart()
    model.set_active_adapters(None)
    return {"difference": active, "without": apart(), "largest": float(kept["logits"].abs().max())}


def cases() -> Iterator[tuple[str, str, str]]:
    for task, kinds in KINDS.items():
        yield from ((task, kind, how) for kind in kinds for how in TUNED)


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold exports of bottleneck adapters to AdapterHub's library.")
    parser.add_argument("interpreter", help="Python of an environment that has the library adapters")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)  # what this script asks the other interpreter for
    given = parser.parse_args()
    if given.read:
        found = {path.name: read(path) for path in sorted(Path(given.interpreter).iterdir()) if (path / ROWS).is_file()}
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as root:
        names = {}
        for task, kind, how in cases():
            folder = Path(root) / f"{len(names):03}"
            folder.mkdir()
            names[folder.name] = (task, kind, how, made(folder, task, kind, TUNED[how]))
        ran = subprocess.run([given.interpreter, __file__, root, "--read"], capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(ran.stderr[-4000:])
        seen = json.loads(ran.stdout.splitlines()[-1])
    bad = 0
    for name, (task, kind, how, why) in names.items():
        what = f"{kind:12} {task:11} {how:22}"
        if why is not None:
            print(f"{what} {why}")
            continue
        one = seen[name]
        good = one["difference"] <= TOLERANCE * max(1.0, one["largest"]) < one["without"]
        bad += not good
        print(f"{what} {one['difference']:.1e} of {one['largest']:.1f}, without {one['without']:.1e}{'' if good else '  WRONG'}")
    sys.exit(f"{bad} of {len(seen)} are not what AdapterHub's library makes of them." if bad else 0)


if __name__ == "__main__":
    main()
