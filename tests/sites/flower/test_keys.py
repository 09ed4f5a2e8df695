"""Flower reads what ``weft keys`` makes. These tests need Flower: install Weft with its extra ``flower``."""

from __future__ import annotations

import http.server
import ssl
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.args import try_obtain_root_certificates, try_obtain_server_certificates
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.supercore.primitives import asymmetric
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication
from flwr.supernode.fleet_http_client import FleetHttpClient

from patience import patience
from weft.sites import keys

pytestmark = pytest.mark.processes


def as_a_node(private: Path) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    """What ``flower-supernode --auth-supernode-private-key`` makes of a file."""
    read = _try_setup_client_authentication(Namespace(auth_supernode_private_key=str(private), auth_supernode_public_key=None))
    assert read is not None
    return read


def test_flower_knows_a_site_by_the_public_half_of_the_key_with_which_the_site_signs(tmp_path: Path) -> None:
    made, other = keys.site(tmp_path, "hospital-a"), keys.site(tmp_path, "hospital-b")
    private, public = as_a_node(made.private)
    assert isinstance(private.curve, ec.SECP384R1)
    assert asymmetric.uses_nist_ec_curve(public)
    registered = try_load_public_key(made.public)  # flwr supernode register hospital-a.pub
    assert registered == asymmetric.public_key_to_bytes(public)
    signature = asymmetric.sign_message(private, b"2026-01-01")
    known, stranger = (asymmetric.bytes_to_public_key(try_load_public_key(p)) for p in (made.public, other.public))
    assert asymmetric.verify_signature(known, b"2026-01-01", signature)
    assert not asymmetric.verify_signature(stranger, b"2026-01-01", signature)


def test_flower_can_register_every_key_that_public_keys_lets_pass(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    for name in ("a", "b"):
        public = keys.site(tmp_path, name).public
        public.rename(tmp_path / "sites" / public.name)
    found = keys.public_keys(tmp_path / "sites")
    assert {n: try_load_public_key(p) for n, p in found.items()} == {
        n: asymmetric.public_key_to_bytes(as_a_node(tmp_path / f"{n}.key")[1]) for n in ("a", "b")
    }


@contextmanager
def superlink(made: keys.Coordinator) -> Iterator[int]:
    """A web server with the coordinator's certificate, as Flower's SuperLink is one, that knows no page."""
    read = try_obtain_server_certificates(
        Namespace(ssl_certfile=str(made.certificate), ssl_keyfile=str(made.key), ssl_ca_certfile=str(made.ca))
    )
    assert read == tuple(p.read_bytes() for p in (made.ca, made.certificate, made.key))

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(timeout=patience(10))


def call(ca: Path, address: str) -> None:
    """A SuperNode's first request, with ``--root-certificates`` as it reads them."""
    root = try_obtain_root_certificates(Namespace(root_certificates=str(ca), insecure=False), address)
    with FleetHttpClient.from_server_address(address, False, root, interceptors=[]) as client:
        client.RegisterNode(RegisterNodeFleetRequest())


def test_a_supernode_reaches_the_coordinator_with_ca_pem_and_no_other(tmp_path: Path) -> None:
    made, other = (keys.coordinator(tmp_path / name, ["fl.example.org"]) for name in ("made", "other"))
    with superlink(made) as port:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(httpx.HTTPStatusError, match="404"):  # an answer, so the certificate was good
                call(made.ca, f"{host}:{port}")
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                call(other.ca, f"{host}:{port}")


def test_flower_still_has_the_waits_that_are_shortened() -> None:
    """Otherwise a round would lose seconds, and nobody would know why."""
    import inspect

    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supernode import start_client_internal

    from weft.sites.flower import environment

    environment.eager()
    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        defaults = {n: p.default for n, p in inspect.signature(pull).parameters.items()}
        assert defaults["initial_backoff"] == 0.05
        assert defaults["max_tries_per_object"] is None
    assert "time.sleep(3)" in inspect.getsource(start_client_internal)
    assert "time.sleep(0.5)" in inspect.getsource(start_client_internal)
