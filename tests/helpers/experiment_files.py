"""Experiment files for sites."""

from __future__ import annotations

from pathlib import Path

import tiny


def experiment(where: Path, method: str, *lines: str) -> Path:
    file = where / "experiment.toml"
    file.write_text("\n".join([*lines, "max_length = 16", "[method]", f'name = "{method}"']) + "\n")
    return file


def texts(where: Path, method: str) -> Path:
    return experiment(where, method, f'model = "{tiny.folder("bert")}"', 'classes = ["class 0", "class 1", "class 2"]')
