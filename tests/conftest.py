"""Settings of the whole suite: no network, one thread per process, and tiny random backbones made on the spot."""

from __future__ import annotations

import os

# Before anything imports transformers, datasets or torch.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "WEFT_REPORT": "0",  # a page of each of hundreds of runs takes longer than most of them
}.items():
    os.environ[name] = value

import gc  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from weft.backbones.torchvision_operators import declare  # noqa: E402

# A deadline of each example fails on a machine that is busy with something else.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

declare()  # before a test imports a part of transformers that wants torchvision

# timm and open_clip bring a torchvision that spoils other packages beside a torch of another build: the Makefile lets these tests
# alone see them
if find_spec("timm") is None:
    collect_ignore = ["backbones/test_open_clip.py", "backbones/test_timm.py"]

if TYPE_CHECKING:
    from machines import Machines


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Imports and collected tests are a million objects that stay: no garbage collection walks through them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., str]:
    """``tiny("bert", num_hidden_layers=2)`` -> folder of a saved tiny random model with its tokenizer."""
    import torch

    from tiny import folder

    torch.set_num_threads(1)
    return folder


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Sites in this process, which a coordinator does not wait for."""
    from machines import Machines
    from weft.sites import roll

    monkeypatch.setattr(roll, "SOON", 0.0)
    monkeypatch.setattr(roll, "POLL", 0.01)
    return Machines(tmp_path)
