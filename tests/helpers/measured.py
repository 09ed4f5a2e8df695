"""What it costs to read a message: memory and time, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from patience import patience

MEASURED = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from weft.communication.strict import Refused
from weft.communication.wire import decode
from weft.communication.frame import Expected

def memory(of):
    # bytes resident: VmRSS now, VmHWM at most since the mark was wiped
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(of))

def wipe():
    if sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")

limit, shapes = json.loads(sys.stdin.buffer.readline())
shapes = {n: None if s is None else tuple(s) for n, s in shapes.items()}
expected = Expected("fedit", 0, "train", "up", shapes, max_bytes=limit, max_weight=10)
found = []
while line := sys.stdin.buffer.readline():
    data = sys.stdin.buffer.read(int(line))
    wipe()
    before, began = memory("VmRSS"), time.perf_counter()
    try:
        decode(data, expected)
        said = ""
    except Refused as e:
        said = str(e)
    found.append((memory("VmHWM") - before, time.perf_counter() - began, said))
    del data
print(json.dumps(found))
"""


def measured(messages: list[bytes], limit: int, shapes: dict[str, Any]) -> list[tuple[int, float, str]]:
    """Peak memory above that before in bytes, seconds, and the refusal ("" for none) of each message, in a process of its own."""
    feed = json.dumps([limit, shapes]).encode() + b"\n" + b"".join(b"%d\n" % len(m) + m for m in messages)
    done = subprocess.run([sys.executable, "-c", MEASURED], input=feed, capture_output=True, timeout=patience(60), check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [tuple(x) for x in json.loads(done.stdout)]


def plain_header(marks: str = "f", **changes: Any) -> dict[str, Any]:
    header = {
        "method": "fedit",
        "round": 0,
        "kind": "train",
        "direction": "up",
        "client": "c",
        "weight": 1.0,
        "codec": "identity",
    }
    return header | {"meta": {}, "marks": marks, "base": "", "scales": {}, "facts": {}} | changes
