"""A tab of Chromium without a window that stays open, for pages that change: driven over a pipe, by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser


class Tab:
    """
    Attributes:
        console: errors and warnings of all pages since it was opened. asked: addresses that they asked for.
    """

    def __init__(self, to: int, of: int):
        self._to, self._of = to, of
        self._number, self._rest = 0, b""
        self._session: str | None = None
        self.console: list[str] = []
        self.asked: list[str] = []
        found = self.call("Target.createTarget", url="about:blank")
        self._session = self.call("Target.attachToTarget", targetId=found["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do something, and take note of what happened until then."""
        self._number += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._number, "method": method, "params": parameters} | session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])
            self._note(str(told.get("method")), told.get("params", {}))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._of, 1 << 16)
            assert more, "the browser has gone"
            self._rest += more
        first, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(first))

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        elif event == "Log.entryAdded":
            self.console.append(about["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.console.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.console.append(str(about["args"]))

    def open(self, url: str, width: int = 1400, height: int = 1000) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)

    def says(self, expression: str) -> Any:
        """The value of an expression in the page that is there; None while another one is being loaded."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return None if "exceptionDetails" in told else told["result"].get("value")

    def picture(self, to: Path) -> None:
        to.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]))


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """
    Args:
        profile: an empty folder for what the browser writes.
    """
    assert browser.CHROMIUM is not None
    theirs, to = os.pipe()
    of, answers = os.pipe()
    quiet = [option for option in browser.QUIET if not option.startswith("--virtual-time-budget")]
    command = [browser.CHROMIUM, *quiet, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    # the protocol's file descriptors are 3 and 4, whatever is there already
    wrapped = ["bash", "-c", f'exec 3<&{theirs} 4>&{answers}; exec "$@"', "bash", *command]
    process = subprocess.Popen(wrapped, pass_fds=(theirs, answers), stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(answers)
    try:
        yield Tab(to, of)
    finally:
        process.terminate()
        process.wait(timeout=60)
        os.close(to)
        os.close(of)
