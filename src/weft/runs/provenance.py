"""What a run's numbers were made with: versions, threads, device, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from weft import distribution

PACKAGES = ("torch", "transformers", "peft", "datasets", "flwr-datasets", "safetensors", "numpy")


def environment(device: str) -> dict[str, Any]:
    """For ``summary.json``."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "versions": {"weft": distribution.version()} | {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of the checkout that Weft runs from, marked ``-dirty`` if it was changed; None if it is installed."""
    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    if package.parent.name != "src" or not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may change the last digits of a run that is continued."""
    words = {"python": "Python", "threads": "threads", "device": "device"}
    found = [f"{word} {before.get(n)} → {now[n]}" for n, word in words.items() if before.get(n) != now[n]]
    versions = before.get("versions", {})
    return found + [f"{n} {versions.get(n)} → {v}" for n, v in now["versions"].items() if versions.get(n) != v]
