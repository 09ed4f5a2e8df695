"""How long a page of runs takes to open in a browser.

    python benchmarks/page.py [--runs 20] [--repeats 5] [--browser chromium] [--quick]

A small run is played once and stands on the page as often as asked for, under labels of four methods. A local server gives the
page to a browser without a window, with a script beside it that tells when the text could be read, when the first plot was drawn,
and when all were, counted from the moment at which the browser began to load it. Aim: read in less than a second, with 20 runs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import parse_qsl

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["WEFT_REPORT"] = "0"

import weft
from weft.report import page

WATCH = """<script>
let first = null;
const read = new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0)));
const wait = setInterval(async () => {
  if (first === null && document.querySelector("[data-drawn]")) first = performance.now();
  if (document.body.dataset.drawn !== "all") return;
  clearInterval(wait);
  fetch(`/told?read=${await read}&first=${first}&all=${performance.now()}`);
}, 5);
</script></body>"""
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--remote-debugging-port=0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--quick", action="store_true", help="two runs, once")
    args = parser.parse_args()
    if args.quick:
        args.runs, args.repeats = 2, 1
    found = shutil.which(args.browser)
    if found is None:
        print(f"there is no {args.browser} here: nothing to measure")
        return
    with tempfile.TemporaryDirectory() as root:
        text = made(Path(root), args.runs)
        server, told = serving(text)
        times = []
        for number in range(args.repeats):
            command = [found, *QUIET, f"--user-data-dir={root}/profile-{number}", f"http://127.0.0.1:{server.server_port}/"]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                times.append(told.get(timeout=120))
                process.terminate()
        server.shutdown()
    print(
        f"a page of {args.runs} runs, {len(text) / 1e6:.2f} MB, opened {args.repeats} times by a browser that was just started\n"
    )
    print("| until | median, s | slowest, s |")
    print("|---|---|---|")
    for name, meaning in (("read", "the text can be read"), ("first", "the first plot is drawn"), ("all", "all plots are drawn")):
        mine = [one[name] / 1e3 for one in times]
        print(f"| {meaning} | {statistics.median(mine):.2f} | {max(mine):.2f} |")


def made(root: Path, number: int) -> str:
    """A page of so many runs, without the policy that would keep the watching script out."""
    run = weft.run(rounds=20, clients=8, limit=200, max_length=16, parameters={"steps": 1}, runs=str(root), quiet=True)
    labels = [f"method {i % 4} · seed {i // 4}" for i in range(number)]
    page.write(root / "report.html", [run] * number, labels=labels)
    text = (root / "report.html").read_text(encoding="utf-8")
    before, after = re.sub(r"<meta http-equiv[^>]*>", "", text, count=1).rsplit("</body>", 1)
    return before + WATCH + after


def serving(text: str) -> tuple[ThreadingHTTPServer, Queue[dict[str, float]]]:
    """A server of this page, and what its script tells."""
    told: Queue[dict[str, float]] = Queue()
    body = text.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/told":
                told.put({n: float(v) for n, v in parse_qsl(query)})
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body) if path == "/" else 0))
            self.end_headers()
            if path == "/":
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, told


if __name__ == "__main__":
    main()
