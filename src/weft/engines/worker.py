"""A resident process of a site: it holds what is slow to load, and answers bytes with bytes through a socket of its owner alone.

Flower starts a fresh process for each message; that process only forwards to this one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from weft.communication.strict import Refused
from weft.federation import files

HEADER = 9  # one byte, 0 = an answer and 1 = a refusal, and the length
PATIENCE = 30.0  # seconds that somebody who has begun to speak may be silent


class Worker:
    """Serves one question at a time.

    Args:
        folder: made with mode 0700; the socket in it has mode 0600. answer: bytes to bytes. limit: bytes of a question.

    Raises:
        OSError: the folder is another user's, or its path is too long for a socket.
    """

    def __init__(self, folder: Path, answer: Callable[[bytes], bytes], limit: int):
        files.make_folder(folder)
        os.chmod(folder, 0o700)
        self.path, self.answer, self.limit = folder / "site.sock", answer, limit
        self.path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(self.path))  # nobody else can enter the folder in the meantime
        os.chmod(self.path, 0o600)
        self.socket.listen(8)

    def serve_one(self) -> None:
        """Wait for a question and answer it; whoever breaks off or says too much harms nobody but themselves."""
        peer, _ = self.socket.accept()
        with peer:
            peer.settimeout(PATIENCE)
            try:
                _, question = _receive(peer, self.limit)
                try:
                    refused, said = 0, self.answer(question)
                except Refused as e:
                    refused, said = 1, str(e).encode()
                _send(peer, refused, said)
            except (OSError, Refused):
                return

    def close(self) -> None:
        """Stop listening, and take the socket away."""
        self.socket.close()
        self.path.unlink(missing_ok=True)


def forward(path: Path, question: bytes, limit: int, timeout: float | None = None) -> bytes:
    """Ask a worker.

    Raises:
        Refused: by the worker, or its answer is longer than ``limit``. OSError: nobody is there, or silent for ``timeout`` seconds.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(timeout)
        peer.connect(str(path))
        _send(peer, 0, question)
        refused, said = _receive(peer, limit)
    if refused:
        raise Refused(said.decode(errors="replace"))
    return said


def _send(peer: socket.socket, kind: int, data: bytes) -> None:
    peer.sendall(bytes([kind]) + len(data).to_bytes(HEADER - 1, "little") + data)


def _receive(peer: socket.socket, limit: int) -> tuple[int, bytes]:
    head = _exactly(peer, HEADER)
    length = int.from_bytes(head[1:], "little")
    if length > limit:
        raise Refused(f"A message of {length} bytes is more than the {limit} that are allowed.")
    return head[0], _exactly(peer, length)


def _exactly(peer: socket.socket, n: int) -> bytes:
    found = bytearray()
    while len(found) < n:
        some = peer.recv(min(n - len(found), 1 << 20))
        if not some:
            raise Refused("The message ended too early.")
        found += some
    return bytes(found)
