"""Libraries talk to whoever is there: warnings, logs and bars of theirs stay off the terminal. What matters, Weft says itself."""

from __future__ import annotations

import logging
import os
import sys
import warnings

SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TORCH_LOGS": "-all",  # errors alone: it sets the levels of its own loggers when it is imported
}
TALKERS = ("matplotlib", "PIL", "torch", "torchao", "bitsandbytes", "fsspec", "numexpr")


def hush() -> None:
    """To be called before they are imported. Whoever wants to hear them sets PYTHONWARNINGS, or a variable of ``SETTINGS``."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not sys.stderr or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # at a terminal, a long download should be seen
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
