"""What libraries say of their own accord stays off the terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_a_library_that_transformers_reads_along_is_silent() -> None:
    pytest.importorskip("torchao")
    code = "from weft.cli.hush import hush; hush(); import torchao.quantization"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
