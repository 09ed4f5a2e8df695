"""A coordinator's open port, under TLS and with keys, as a stranger finds it: nothing answers but what a site needs.

A real SuperLink, Flower's own command line, and raw bytes. Needs the extra ``flower``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from patience import patience, until
from weft.sites import keys
from weft.sites.flower import environment, proof
from weft.sites.flower.gate import ADMIT, KNOWN, PUSH, SITE
from weft.sites.flower.grid import Grid
from weft.sites.flower.link import CONNECTION, Link, app, connection
from weft.sites.flower.processes import LOOPBACK, Child, free_port

environment.ready()

from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES  # noqa: E402
from flwr.superlink.main import create_app  # noqa: E402

pytestmark = pytest.mark.processes

LARGEST = 2_000_000
MEMORY = 200_000_000  # bytes by which a SuperLink may grow over all of these tests
COMMANDS = """\
import contextlib, io, json, sys
from flwr.cli.app import app
said = []
for command in json.loads(sys.argv[1]):
    with io.StringIO() as words, contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
        try:
            app(command)
            code = 0
        except SystemExit as e:
            code = e.code
        said.append((code, words.getvalue()))
print(json.dumps(said))
"""
PROTOBUF = {"content-type": "application/x-protobuf"}


@dataclass
class Scene:
    root: Path
    link: Link
    grid: Grid
    keys: keys.Coordinator
    said: list[str]

    @property
    def port(self) -> int:
        return self.link.child.port

    def client(self) -> httpx.Client:
        """Of somebody who has the certificate, which is public."""
        context = ssl.create_default_context(cafile=str(self.keys.ca))
        return httpx.Client(verify=context, base_url=f"https://localhost:{self.port}", trust_env=False, timeout=patience(120))

    def proof(self, name: str) -> dict[str, str]:
        return proof.headers(proof.private(self.root / name / f"{name}.key")) | PROTOBUF

    def raw(self, data: bytes) -> bytes:
        """What comes back for bytes under TLS."""
        context, found = ssl.create_default_context(cafile=str(self.keys.ca)), b""
        with (
            socket.create_connection((LOOPBACK, self.port), timeout=patience(60)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as line,
            contextlib.suppress(OSError),
        ):
            line.sendall(data)
            while part := line.recv(1 << 16):
                found += part
        return found

    def state(self) -> tuple[set[int], dict[int, bytes]]:
        """Runs and sites, asked with the secret."""
        control = self.link.register._flower
        assert control is not None
        return set(control.runs()), dict(control.nodes())

    def flwr(self, commands: list[list[str]]) -> list[tuple[int, str]]:
        """Exit code and words of Flower's own commands, in a home that knows address and certificate."""
        home = self.root / "stranger-home"
        connection(home, f"localhost:{self.port}", self.keys)
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            env=environment.of(home) | {"NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [tuple(said) for said in json.loads(done.stdout)]

    def memory(self) -> int:
        assert self.link.child.process is not None
        text = Path(f"/proc/{self.link.child.process.pid}/status").read_text()
        return 1024 * int(text.split("VmRSS:")[1].split()[0])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root = tmp_path_factory.mktemp("port")
    made, said = keys.coordinator(root / "keys", ["localhost"]), list[str]()
    for name in ("north", "stranger"):
        pair = keys.site(root / name, name)
        if name == "north":
            (made.sites / "north.pub").write_bytes(pair.public.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        for name in environment.CLOSED[:2]:  # they would open ports that know no gate
            patch.setenv(name, "1")
        link = Link(root / "link", LOOPBACK, free_port(), made, lambda: keys.public_keys(made.sites), said.append, LARGEST)
        with link.open() as grid:
            found = Scene(root, link, grid, made, said)
            before, memory = found.state(), found.memory()
            yield found
            assert found.state() == before
            assert found.memory() - memory < MEMORY
            assert said == []  # nobody did anything that had to be put right


def routes() -> list[tuple[str, str]]:
    """Method and path of all that Flower's SuperLink serves, those that its description hides included."""
    made = create_app()
    found = {(m.upper(), path) for path, item in made.openapi()["paths"].items() for m in item}
    found |= set(PROTOBUF_REQUEST_TYPES)
    found |= {("GET", p) for p in ("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc", "/health", "/")}
    return sorted(found)


def test_of_all_routes_a_stranger_finds_none_and_a_site_its_own(scene: Scene) -> None:
    all_of_them = routes()
    assert len(all_of_them) > 60
    assert {("POST", path) for path in SITE} <= set(all_of_them)
    with scene.client() as client:
        for proved in ({}, scene.proof("stranger")):
            for method, path in all_of_them:
                said = client.request(method, path, headers=PROTOBUF | proved, content=b"")
                wanted = 401 if (method, path) in {("POST", p) for p in SITE} else 404
                assert (said.status_code, said.content) == (wanted, b"unknown" if wanted == 401 else b""), path
        for method, path in all_of_them:
            said = client.request(method, path, headers=scene.proof("north"), content=b"")
            assert (said.status_code == 404) == (path not in SITE), path  # an empty message is none that Flower takes
        assert client.post(KNOWN, headers=scene.proof("north")).status_code == 200


def test_flowers_command_line_finds_nothing(scene: Scene) -> None:
    run = str(scene.link.register._run)
    node = str(next(iter(scene.link.register.numbers.values())))
    public, there = str(scene.root / "stranger" / "stranger.pub"), str(scene.keys.sites / "north.pub")
    big = app(scene.root / "big")
    (big / "more.py").write_text("x = 1\n" * 1_000_000)
    before = scene.state()
    commands = [
        ["list", CONNECTION],
        ["stop", run, CONNECTION],
        ["log", run, CONNECTION, "--show"],
        ["supernode", "list", CONNECTION],
        ["supernode", "register", public, CONNECTION, "--name", "north"],
        ["supernode", "register", there, CONNECTION, "--name", "other"],
        ["supernode", "unregister", node, CONNECTION],
        ["run", str(app(scene.root / "app")), CONNECTION],
        ["run", str(big), CONNECTION],
        ["federation", "list", CONNECTION],
        ["login", CONNECTION],
    ]
    for command, (code, words) in zip(commands, scene.flwr(commands), strict=True):
        assert code != 0, (command, words)
        assert "404" in words, (command, words)  # the gate's answer, not a slip of ours
    assert scene.state() == before


def test_only_one_port_is_open_whatever_the_environment_says(scene: Scene) -> None:
    assert scene.link.child.process is not None
    sockets = set()
    for handle in Path(f"/proc/{scene.link.child.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(handle))
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                listening.add(int(words[1].rsplit(":", 1)[1], 16))
    assert listening == {scene.port}


def test_what_is_much_is_refused_before_it_is_taken_in(scene: Scene) -> None:
    before = scene.memory()
    head = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000000\r\n"
    known = "".join(f"{n}: {v}\r\n" for n, v in scene.proof("north").items())
    for more in ("", known):
        scene.raw((head + more + "\r\n").encode() + b"x" * 50_000_000)
    with scene.client() as client:
        for path in ("/v1/control/start-run", "/v1/runtime/push-object", PUSH):
            with contextlib.suppress(httpx.TransportError):  # it hangs up in the middle
                client.post(path, headers=PROTOBUF, content=b"x" * 100_000_000)
    assert scene.memory() - before < MEMORY / 2


def test_messages_at_random_are_answered_and_nobody_is_harmed(scene: Scene) -> None:
    draw = random.Random(0)
    with scene.client() as client:
        for method, path in routes() * 2:
            body = draw.randbytes(draw.choice([0, 1, 7, 50, 3000]))
            for proved in ({}, scene.proof("north")):
                said = client.request(method, path, headers=PROTOBUF | proved, content=body)
                assert proved or said.status_code in (401, 404)
                assert said.status_code != 200 or path in SITE
        assert client.post(ADMIT, headers=PROTOBUF, content=b"[]").status_code == 404


def test_silent_connections_keep_nobody_out(scene: Scene) -> None:
    with contextlib.ExitStack() as stack:
        for i in range(200):
            line = stack.enter_context(socket.create_connection((LOOPBACK, scene.port), timeout=patience(60)))
            with contextlib.suppress(OSError):
                line.sendall([b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n"][i % 3])
        with scene.client() as client:
            assert client.post(KNOWN, headers=scene.proof("north")).status_code == 200


def test_the_port_of_a_sites_own_supernode_answers_nobody_but_the_site(scene: Scene) -> None:
    """It listens on its machine alone, which others may use as well."""
    arguments = ["--superlink", f"localhost:{scene.port}", "--root-certificates", str(scene.keys.ca)]
    key = str(scene.root / "north" / "north.key")
    child = Child("supernode", scene.root / "node", LOOPBACK, free_port(), [*arguments, "--auth-supernode-private-key", key])
    child.start()
    try:
        child.wait()
        with httpx.Client(base_url=f"http://{child.address}", trust_env=False, timeout=patience(120)) as client:
            for method, path in routes():
                assert client.request(method, path, headers=PROTOBUF).status_code == 404, path
        until(lambda: "north" in scene.grid.present().values(), 120, child.last_words, pause=0.2)
    finally:
        child.stop()


def test_a_gate_that_is_not_there_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were Flower's server to change so that no gate stood before it, nobody would be let in rather than everybody."""
    import uvicorn

    from weft.sites.flower.control import Control
    from weft.sites.flower.tasks import Runtime

    server = uvicorn.Server(uvicorn.Config(create_app(), host=LOOPBACK, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        control = Control(Runtime(f"{LOOPBACK}:{server.servers[0].sockets[0].getsockname()[1]}", b"secret"))
        assert control.runs() == set()
        with pytest.raises(httpx.HTTPStatusError):
            control.admit([])
    finally:
        server.should_exit = True
        thread.join(patience(60))
