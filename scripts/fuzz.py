"""Look for bytes that the reader of messages does not refuse in a sentence, guided by the branches that they reach.

    python scripts/fuzz.py [--seconds 600] [CORPUS]

Needs `pip install atheris` (Linux and macOS), which is in none of the extras. tests/communication/test_wire_fuzz.py is what
runs with the other tests; this one is for a night. CORPUS is a folder that inputs of interest are kept in. Each input is read
twice: as a message and as its three layers (header, table, numbers), of which a message is made with the lengths right. A
crash leaves its input in a file, and its name on the screen.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("scripts/fuzz.py needs atheris: pip install atheris")

with atheris.instrument_imports(include=["weft.communication", "weft.federation.exchange"]):
    import torch

    from weft.communication import codecs, strict, wire

from weft.communication.frame import Expected, Header
from weft.tensors.keyed import generator
from weft.tensors.lowrank import LowRank

SHAPES = {"lora/q/A": (2, 3), "lora/q/B": (4, 2), "head/bias": (5,), "base/q": (4, 3), "prototype/1": (None, 3)}
EXPECTED = Expected(
    "fedit", 3, "train", "up", SHAPES, frozenset({"lora/q/A"}), frozenset({"counts", "seed"}), 1 << 16, max_weight=100
)
HELD = {"lora/q/A": torch.ones(2, 3), "lora/q/B": torch.ones(4, 2) / 3, "head/bias": torch.ones(5)}
SEPARATOR = b"\n--\n"


def seeds() -> list[bytes]:
    """Valid messages of every codec, and their layers."""
    tensors = {
        "lora/q/A": torch.arange(6.0).reshape(2, 3),
        "lora/q/B": torch.ones(4, 2),
        "head/bias": torch.arange(5.0).double(),
        "base/q": LowRank(torch.ones(4, 2), torch.ones(2, 3), 0.3),
        "prototype/1": torch.ones(2, 3),
    }
    header = Header("fedit", 3, "train", "up", "client-1", 12)
    found = []
    for codec in codecs.CODECS.values():
        frame = wire.encode(header, tensors, {"seed": 2**62, "counts": [1, 2.5]}, codec(), reference=HELD, generator=generator(0))
        (length,) = struct.unpack_from("<I", frame.data, 6)
        body = frame.data[10 + length :]
        (inner,) = struct.unpack_from("<Q", body)
        found += [frame.data, SEPARATOR.join([frame.data[10 : 10 + length], body[8 : 8 + inner], body[8 + inner :]])]
    return found


def check(data: bytes) -> bool:
    """A refusal in one line, or a message that is all it should be. Returns whether it is the latter."""
    try:
        received = wire.decode(data, EXPECTED, reference=HELD)
    except strict.Refused as refusal:
        text = str(refusal)
    else:
        text = ""
    if text:
        assert text.isprintable()
        assert len(text) < 500
        return False
    assert 0 <= received.header.weight <= EXPECTED.max_weight
    assert set(received.facts) <= EXPECTED.facts
    for name, value in received.tensors.items():
        assert all(w in (None, d) for d, w in zip(value.shape, SHAPES[name], strict=True))
        for tensor in (value.A, value.B) if isinstance(value, LowRank) else (value,):
            assert bool(tensor.isfinite().all())
    return True


def one_input(data: bytes) -> None:
    check(data)
    layers = data.split(SEPARATOR, 2)
    if len(layers) == 3:
        header, table, numbers = layers
        preamble = struct.pack("<4sHI", wire.MAGIC, wire.VERSION, len(header))
        check(preamble + header + struct.pack("<Q", len(table)) + table + numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = args.corpus or Path(temporary)
        corpus.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds()):
            assert check(seed) == (SEPARATOR not in seed)
            (corpus / f"seed-{i}").write_bytes(seed)
        options = [f"-max_total_time={args.seconds}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
