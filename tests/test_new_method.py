"""A new method is three files of its own: no other file is edited, and all that lists or tests methods finds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

METHOD = '''
"""CopyCat: FedIT under another name.

Nobody, "A paper that is not there".
"""

from __future__ import annotations

from typing import ClassVar

from weft.federation.info import MethodInfo
from weft.methods.reparameterized.fedit import FedIT


class CopyCat(FedIT):
    """FedIT once more."""

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="copy-cat",
        title="A copy of FedIT",
        paper="Nobody, 2030",
        family="full",
        challenges=("communication efficiency",),
        deviations="It does nothing new.",
        sends="both LoRA factors of every site, the head, and the number of examples",
    )
'''

TEST = """
from __future__ import annotations

from bytes_of import SITES, Case, factors_and_head

BYTES = Case(SITES | {"rank": 2}, factors_and_head, factors_and_head)
"""

FIGURE = """
setting = "a made-up one"
command = "weft run --method copy-cat"
figure = "0.123 accuracy (interval 0.10 to 0.15) on the common test rows"
commit = "0000000000000000000000000000000000000000"
seconds = 1.0

[versions]
weft = "1"
torch = "1"
transformers = "1"

[hardware]
cores = 2
cpu = "a processor"
device = "cpu"
precision = "float32"
"""

FILES = {
    "docs/figures/copy-cat.toml": FIGURE,
    "src/weft/methods/full/copy_cat.py": METHOD,
    "tests/methods/full/test_copy_cat.py": TEST,
}

LISTED = """
import json, sys
import bytes_of, figure_files, methods_pages, of_methods
sys.argv = ["methods_pages.py", "--check"]
print(json.dumps({
    "checker": methods_pages.main(),
    "bytes": isinstance(of_methods.said("BYTES").get("copy-cat"), bytes_of.Case),
    "index": "[`copy-cat`](methods/copy-cat.md)" in methods_pages.index(methods_pages.INDEX.read_text()),
    "nav": any({"copy-cat": "methods/copy-cat.md"} in family.get("Full", []) for family in methods_pages.nav()),
}))
"""

PAGE = """
import figure_files, method_page
print(method_page.page("copy-cat", figure_files.read(figure_files.FOLDER / "copy-cat.toml")))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout as it stands, committed in a folder of its own, and three new files in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    folder = tmp_path_factory.mktemp("copy")
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "--no-verify", "--message", "all")
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).parent.mkdir(exist_ok=True)  # the first of its family brings the folder of the tests
        (folder / name).write_text(text.lstrip("\n"), encoding="utf-8")
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout


def python(folder: Path, *words: str) -> str:
    """What a process of the copy prints."""
    paths = os.pathsep.join(str(folder / name) for name in ("src", "scripts", "tests/helpers"))
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def touched(folder: Path) -> list[str]:
    """All that is not as it was committed."""
    return sorted(git(folder, "status", "--porcelain", "--untracked-files=all").splitlines())


def test_a_new_method_is_listed_checked_and_collected_and_nothing_but_its_three_files_is_touched(copy: Path) -> None:
    cards = json.loads(python(copy, "-m", "weft", "methods", "--family", "full", "--json"))
    assert [card["title"] for card in cards if card["slug"] == "copy-cat"] == ["A copy of FedIT"]
    assert "copy-cat" in python(copy, "-m", "weft", "methods")
    assert json.loads(python(copy, "-c", LISTED)) == {"checker": 0, "bytes": True, "index": True, "nav": True}
    python(copy, "scripts/methods_pages.py")
    assert touched(copy) == [f"?? {name}" for name in sorted(FILES)]


@pytest.mark.slow
def test_the_page_of_a_new_method_is_made_and_the_tests_of_bytes_and_laws_run_over_it(copy: Path) -> None:
    page = python(copy, "-c", PAGE)
    assert "# CopyCat: A copy of FedIT" in page
    assert "| figure, indicative | 0.123 accuracy (interval 0.10 to 0.15) on the common test rows |" in page
    run = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "copy-cat")
    assert " passed" in python(copy, *run, "tests/methods/test_bytes.py", "tests/test_laws.py")
    assert touched(copy) == [f"?? {name}" for name in sorted(FILES)]
