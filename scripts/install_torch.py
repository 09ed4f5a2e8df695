"""Install torch first and alone, from one index, and refuse a CUDA build on a machine without a GPU.

Run with the Python that torch is to be installed into::

    .venv/bin/python scripts/install_torch.py           # install the version pinned in constraints.txt
    .venv/bin/python scripts/install_torch.py --check   # only check what is installed

A plain requirement on torch makes pip fetch gigabytes of CUDA libraries on Linux. The environment variable
``TORCH_INDEX`` names the index to take torch from. Unset, it is PyTorch's own CPU index where no NVIDIA
device is seen (pip's default index if that one can't be reached), and pip's default index elsewhere.

Standard library only: it runs before anything else is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Seconds without a byte before an index counts as unreachable: pip's own retries would hang for minutes.
TIMEOUT = "15"
ADVICE = "Set TORCH_INDEX to an index with a CPU build of torch, `make clean`, and run the command again."


def pinned_version() -> str:
    """The version of torch in constraints.txt."""
    found = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"{CONSTRAINTS.name} has no line `torch==VERSION`: run `make lock`.")
    return found.group(1)


def nvidia_device_seen() -> bool:
    """Whether the driver lists a GPU (a container can have ``nvidia-smi`` without one)."""
    if Path("/dev/nvidia0").exists():
        return True
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    try:
        listed = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "GPU 0" in listed.stdout


def is_cuda_library(name: str) -> bool:
    """Whether a distribution carries CUDA binaries (``nvidia-ml-py`` only asks a driver)."""
    name = name.lower().replace("_", "-")
    return name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py"


def installed_torch() -> tuple[str, str | None] | None:
    """Version and CUDA version of the installed torch, read from its files: it may not be importable yet."""
    try:
        dist = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    source = Path(str(dist.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    cuda = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", source, re.MULTILINE)
    return dist.version, cuda.group(1) if cuda else None


def problem() -> str | None:
    """What is wrong with the torch in this environment, as one sentence, or None."""
    torch = installed_torch()
    if torch is None:
        return "torch is not installed: run `make install`."
    version, cuda = torch
    pinned = pinned_version()
    if version.split("+")[0] != pinned:
        return f"torch {version} is installed, constraints.txt asks for {pinned}: `make clean` and run again."
    if nvidia_device_seen():
        return None
    if cuda is not None:
        return f"torch {version} is a CUDA {cuda} build, and no NVIDIA device is seen here. {ADVICE}"
    names = (dist.metadata["Name"] or "" for dist in importlib.metadata.distributions())
    libraries = sorted({name for name in names if is_cuda_library(name)})
    if libraries:
        found = ", ".join(libraries)
        return f"CUDA libraries are installed ({found}), and no NVIDIA device is seen here. {ADVICE}"
    return None


def install_from(index: str | None, version: str) -> bool:
    """Install torch alone from an index (None: pip's default); its dependencies come later, with the rest.

    Alone also means that a CUDA build in the wrong place is noticed before its gigabytes of libraries come.
    """
    print(f"torch {version} from {index or 'the default package index'}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    # Bytecode is left to the first import: compiling all of it takes longer than the rest of the install.
    command += ["--retries", "0", "--timeout", TIMEOUT, "--no-deps", "--no-compile", "--force-reinstall"]
    command += ["--index-url", index] if index else []
    return subprocess.run([*command, f"torch=={version}"], check=False).returncode == 0


def install() -> None:
    """Install the pinned torch, unless it is there and right."""
    if problem() is None:
        return
    version, chosen = pinned_version(), os.environ.get("TORCH_INDEX")
    if chosen:
        if not install_from(chosen, version):
            sys.exit(f"torch {version} could not be had from TORCH_INDEX={chosen} (pip's message is above).")
        return
    if not nvidia_device_seen():
        if install_from(CPU_INDEX, version):
            return
        print("PyTorch's CPU index can't be used from here; trying the default one.", flush=True)
    if not install_from(None, version):
        sys.exit(f"torch {version} could not be installed (pip's message is above). {ADVICE}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Install torch first and alone, or check what is installed.")
    parser.add_argument("--check", action="store_true", help="install nothing, only check")
    if not parser.parse_args().check:
        install()
    wrong = problem()
    if wrong is not None:
        sys.exit(wrong)


if __name__ == "__main__":
    main()
