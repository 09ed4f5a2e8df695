"""Chromium without a window, for pages: what it says of one, the page once its scripts have run, and pictures of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=20000"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


BROWSERS_OWN = "not an origin"
"""Who asked, where it was no page: browsers ask their makers about the time, accounts and versions."""


@dataclass(frozen=True)
class Opened:
    """A page as it is after its scripts have run.

    Attributes:
        dom: as HTML. console: lines that the page wrote, errors among them. asked: addresses that the page asked for.
    """

    dom: str
    console: list[str]
    asked: list[str]

    @property
    def body(self) -> dict[str, str]:
        """Attributes of the body."""
        parser = _Body()
        parser.feed(self.dom)
        return parser.found


def opened(page: Path, width: int = 1400, dark: bool = False) -> Opened:
    """What a browser makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        done = _chromium(page, folder, width, 1000, dark, ["--dump-dom", f"--log-net-log={log}"])
        events = json.loads(log.read_text(errors="replace"))["events"]
    told = [e["params"] for e in events if "initiator" in e.get("params", {})]
    asked = {str(one["url"]) for one in told if one["initiator"] != BROWSERS_OWN}
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Opened(done.stdout, console, sorted(asked))


def picture(page: Path, to: Path, width: int, height: int, dark: bool = False) -> Any:
    """A picture of a page, as pixels."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        _chromium(page, folder, width, height, dark, [f"--screenshot={to}"])
    return Image.open(to).convert("RGB")


def _chromium(
    page: Path, profile: str, width: int, height: int, dark: bool, what: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    theme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    more = [f"--user-data-dir={profile}/profile", f"--window-size={width},{height}", "--enable-logging=stderr", "--v=0"]
    command = [CHROMIUM, *QUIET, *theme, *more, *what, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


class _Body(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":
            self.found = {name: value or "" for name, value in attrs}
