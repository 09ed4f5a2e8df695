"""Keys and certificates of a real federation, for which the package ``cryptography`` is needed (extra ``flower``)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from patience import patience
from weft.errors import UserError, printable
from weft.sites import keys

Capture = pytest.CaptureFixture[str]
HOSTS = ("FL.example.org", "10.0.0.7", "2001:db8::7", "weft_server")
REACHED = ("fl.example.org", "10.0.0.7", "2001:db8::7", "weft_server", "localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> keys.Coordinator:
    """A coordinator's keys, not to be changed."""
    return keys.coordinator(tmp_path_factory.mktemp("made") / "keys", HOSTS)


def own(made: keys.Coordinator, where: Path) -> keys.Coordinator:
    """A copy of them to be changed."""
    shutil.copytree(made.ca.parent, where / "keys")
    return keys.find(where / "keys")


@pytest.fixture
def years_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Turn the clock of ``weft keys`` on by so many days."""

    def turn(days: int) -> None:
        class Later(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + timedelta(days=days)

        monkeypatch.setattr(keys, "datetime", Later)

    return turn


# TLS --------------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(keys_: keys.Coordinator) -> Iterator[int]:
    """A TLS server on loopback that greets; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys_.certificate, keys_.key)

    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), context.wrap_socket(self.request, server_side=True) as talk:  # the client may hang up
                talk.sendall(b"weft")

    with socketserver.TCPServer(("127.0.0.1", 0), Greeter) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(timeout=patience(10))


def trusting(ca: Path) -> ssl.SSLContext:
    """A site's side: it has ca.pem and nothing else, and is as strict as Python 3.13."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def greeted(port: int, context: ssl.SSLContext, host: str) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=patience(10)) as plain,
        context.wrap_socket(plain, server_hostname=host) as talk,
    ):
        return talk.recv(16)


def test_a_site_that_trusts_ca_pem_alone_reaches_the_coordinator_by_each_of_its_names(made: keys.Coordinator) -> None:
    context = trusting(made.ca)
    with serving(made) as port:
        assert [greeted(port, context, host) for host in REACHED] == [b"weft"] * len(REACHED)


@pytest.mark.parametrize("host", ["other.example.org", "example.org", "a.fl.example.org", "10.0.0.8", "::1"])
def test_a_site_refuses_a_name_or_address_that_was_not_given(made: keys.Coordinator, host: str) -> None:
    with serving(made) as port, pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for|mismatch"):
        greeted(port, trusting(made.ca), host)


def test_a_site_refuses_the_certificate_of_a_strangers_authority(made: keys.Coordinator, tmp_path: Path) -> None:
    stranger = keys.coordinator(tmp_path / "stranger", HOSTS)
    with serving(stranger) as port:
        assert greeted(port, trusting(stranger.ca), "localhost") == b"weft"
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            greeted(port, trusting(made.ca), "localhost")


def test_only_the_authoritys_certificate_may_sign_others(made: keys.Coordinator) -> None:
    def authorities(path: Path) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(path)
        return context.cert_store_stats()["x509_ca"]

    assert (authorities(made.ca), authorities(made.certificate)) == (1, 0)


def test_after_a_renewal_sites_need_nothing_new_and_call_the_new_names(made: keys.Coordinator, tmp_path: Path) -> None:
    mine = own(made, tmp_path)
    site = trusting(mine.ca)  # before the renewal
    before = {p: p.read_bytes() for p in (mine.ca_key, mine.ca, mine.key)}
    assert keys.coordinator(tmp_path / "keys", ["new.example.org"], days=30, renew=True) == mine == keys.find(tmp_path / "keys")
    assert {p: p.read_bytes() for p in before} == before
    assert sorted(p.name for p in mine.ca.parent.iterdir()) == ["ca.key", "ca.pem", "server.key", "server.pem", "sites"]
    with serving(mine) as port:
        assert [greeted(port, site, h) for h in ("new.example.org", "localhost", "127.0.0.1")] == [b"weft"] * 3
        with pytest.raises(ssl.SSLCertVerificationError):
            greeted(port, site, "fl.example.org")


def test_a_renewal_without_hosts_keeps_them_and_makes_a_lost_key_anew(made: keys.Coordinator, tmp_path: Path) -> None:
    mine = own(made, tmp_path)
    mine.key.unlink()
    keys.coordinator(tmp_path / "keys", [], renew=True)
    assert mine.key.read_bytes() != made.key.read_bytes()
    assert mine.key.stat().st_mode & 0o777 == 0o600
    with serving(mine) as port:
        assert [greeted(port, trusting(made.ca), host) for host in REACHED] == [b"weft"] * len(REACHED)


# times ------------------------------------------------------------------------------------------------------------------


def span(path: Path) -> tuple[float, float]:
    """Days from now to the first and the last moment of a certificate."""
    certificate, now = keys.certificate(path), datetime.now(UTC)
    return (certificate.not_valid_before_utc - now) / timedelta(days=1), (certificate.not_valid_after_utc - now) / timedelta(
        days=1
    )


@pytest.mark.parametrize(("given", "days"), [({}, 825), ({"days": 1}, 1), ({"days": 3650}, 3650)])
def test_a_certificate_holds_for_the_days_asked_for(given: dict[str, int], days: int, tmp_path: Path) -> None:
    mine = keys.coordinator(tmp_path / "keys", ["a"], **given)
    assert span(mine.certificate) == pytest.approx((-1, days), abs=0.01)
    assert span(mine.ca) == pytest.approx((-1, 3650), abs=0.01)


@pytest.mark.parametrize("days", [0, -1, 3651, 10**12])
def test_days_that_no_certificate_can_hold_for_are_refused_and_nothing_is_made(days: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"days: give 1 to 3650"):
        keys.coordinator(tmp_path / "keys", ["a"], days=days)
    assert list(tmp_path.iterdir()) == []


def test_a_renewal_lasts_no_longer_than_the_authority(
    made: keys.Coordinator, tmp_path: Path, years_later: Callable[[int], None]
) -> None:
    mine = own(made, tmp_path)
    years_later(3000)
    with pytest.raises(UserError, match=r"ended on .* --renew"):
        keys.find(tmp_path / "keys")
    with pytest.raises(UserError, match=r"825 days: give 1 to (649|650)"):
        keys.coordinator(tmp_path / "keys", [], renew=True)
    keys.coordinator(tmp_path / "keys", [], days=600, renew=True)
    assert keys.find(tmp_path / "keys") == mine
    assert span(mine.certificate)[1] == pytest.approx(3600, abs=0.01)
    years_later(4000)
    with pytest.raises(UserError, match=r"authority .*ended .*every site"):
        keys.coordinator(tmp_path / "keys", [], renew=True)


# files ------------------------------------------------------------------------------------------------------------------


def test_private_keys_and_their_folders_are_the_owners_alone_from_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[int, int]] = {}
    real = os.open

    def noting(path: Path, flags: int, mode: int = 0o777) -> int:
        handle = real(path, flags, mode)
        assert flags & os.O_EXCL
        about = os.fstat(handle)
        seen[Path(path).name] = (about.st_size, about.st_mode & 0o777)
        return handle

    before = os.umask(0)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(keys.os, "open", noting)
            keys.coordinator(tmp_path / "coordinator", ["a"])
            keys.site(tmp_path / "site", "s")
    finally:
        os.umask(before)
    assert {n: seen[n] for n in ("ca.key", "server.key", "s.key")} == dict.fromkeys(("ca.key", "server.key", "s.key"), (0, 0o600))
    for path in tmp_path.rglob("*"):
        private = path.is_file() and b"PRIVATE KEY" in path.read_bytes()
        assert private == (path.suffix == ".key")
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600 if private else 0o644), path


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "server.key", "server.pem"])
def test_no_file_of_a_coordinator_is_ever_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{name} is there already .* --renew"):
        keys.coordinator(tmp_path, ["a"])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"mine")]


@pytest.mark.parametrize("name", ["s.key", "s.pub"])
def test_no_file_of_a_site_is_ever_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"{name} is there already"):
        keys.site(tmp_path, "s")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_key_that_appears_in_between_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.os.path, "lexists", lambda path: False)
    (tmp_path / "s.key").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"s\.key is there already"):
        keys.site(tmp_path, "s")
    assert (tmp_path / "s.key").read_bytes() == b"mine"


def test_a_full_disk_leaves_no_half_key_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def full(handle: int, mode: str) -> object:
        file = real(handle, "wb", buffering=0)
        file.write(b"-----BEGIN")
        file.close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(keys.os, "fdopen", full)
        with pytest.raises(OSError, match="No space"):
            keys.site(tmp_path, "s")
    assert list(tmp_path.iterdir()) == []
    keys.site(tmp_path, "s")


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o707])
def test_a_folder_that_others_may_enter_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    folder.chmod(mode)
    for make in (lambda: keys.site(folder, "s"), lambda: keys.coordinator(folder, ["a"])):
        with pytest.raises(UserError, match=rf"mode {mode:o}\): close it with chmod 700"):
            make()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "keys"):
        with pytest.raises(UserError, match=r"can't be made \((File exists|Not a directory)\).*--folder"):
            keys.site(folder, "s")


# names ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "Hospital-A", "site_1.example.org", "0", "a" * 64])
def test_letters_digits_dots_dashes_and_underscores_name_a_site(name: str, tmp_path: Path) -> None:
    made = keys.site(tmp_path, name)
    assert (made.private.name, made.public.name) == (f"{name}.key", f"{name}.pub")
    (tmp_path / "sites").mkdir()
    shutil.copy(made.public, tmp_path / "sites")
    assert keys.public_keys(tmp_path / "sites") == {name: tmp_path / "sites" / made.public.name}


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "a b", "a\n", "ä", "٣", "-a", ".a", "a" * 65, "a\0", 'a"'])
def test_any_other_name_of_a_site_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no name for a site: take at most 64 letters"):
        keys.site(tmp_path / "keys", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "host",
    [
        *("", "https://a.org", "a.org:9092", "10.0.0.7:9092", "a..org", "-a.org", "a.org-", "a b", "ä.org", "*.a.org", "a.org."),
        *("300.1.1.1", "10.0.0", "a" * 64, ".".join(["a" * 60] * 5), "a.org\n", "[::1]", "10.0.0.0/8"),
    ],
)
def test_what_is_no_name_or_address_of_a_machine_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(chr(34) + printable(host) + chr(34))} is no name or IP address"):
        keys.coordinator(tmp_path / "keys", ["a.org", host])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "fe80::1%eth0"])
def test_an_address_that_sites_cannot_call_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no site can call"):
        keys.coordinator(tmp_path / "keys", [host])


def test_a_host_given_twice_is_certified_once(tmp_path: Path) -> None:
    made = keys.coordinator(tmp_path / "keys", ["A.org", "a.org", "127.0.0.1", "::1", "0:0:0:0:0:0:0:1"])
    assert keys.certified(made.certificate) == ["a.org", "127.0.0.1", "::1", "localhost"]


# what is there ----------------------------------------------------------------------------------------------------------


def test_find_gives_what_was_made_and_can_do_without_the_authoritys_key(made: keys.Coordinator, tmp_path: Path) -> None:
    mine = own(made, tmp_path)
    mine.ca_key.unlink()
    assert keys.find(tmp_path / "keys") == mine
    assert [p.name for p in (mine.ca_key, mine.ca, mine.key, mine.certificate, mine.sites)] == [
        *("ca.key", "ca.pem", "server.key", "server.pem", "sites")
    ]
    with pytest.raises(UserError, match=r"there is no ca\.key in "):
        keys.coordinator(tmp_path / "keys", [], renew=True)


@pytest.mark.parametrize("name", ["ca.pem", "server.key", "server.pem", "sites"])
def test_find_names_what_is_missing(name: str, made: keys.Coordinator, tmp_path: Path) -> None:
    mine = own(made, tmp_path)
    path = tmp_path / "keys" / name
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=rf"there is no {re.escape(name)} in .*: weft keys coordinator --host NAME .*--renew"):
        keys.find(tmp_path / "keys")
    if name != "ca.pem":
        keys.coordinator(tmp_path / "keys", ["a"], renew=True)
        assert keys.find(tmp_path / "keys") == mine


def test_find_says_how_to_make_keys_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no keys .*: make them with weft keys coordinator --host NAME --folder "):
        keys.find(tmp_path / "none")


@pytest.mark.parametrize(
    ("taken", "sentence"),
    [
        ("server.key", r"server\.key is not the key of .*server\.pem"),
        ("ca.pem", r"server\.pem is not signed by the authority in .*ca\.pem"),
    ],
)
def test_find_refuses_files_that_do_not_belong_together(
    taken: str, sentence: str, made: keys.Coordinator, tmp_path: Path
) -> None:
    mine = own(made, tmp_path)
    stranger = keys.coordinator(tmp_path / "stranger", HOSTS)
    shutil.copy(stranger.ca.parent / taken, mine.ca.parent / taken)
    with pytest.raises(UserError, match=sentence):
        keys.find(tmp_path / "keys")


def test_a_renewal_refuses_the_key_of_another_authority(made: keys.Coordinator, tmp_path: Path) -> None:
    mine = own(made, tmp_path)
    shutil.copy(keys.coordinator(tmp_path / "stranger", HOSTS).ca_key, mine.ca_key)
    with pytest.raises(UserError, match=r"ca\.key is not the key of .*ca\.pem"):
        keys.coordinator(tmp_path / "keys", [], renew=True)
    assert mine.certificate.read_bytes() == made.certificate.read_bytes()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("ca.pem", r"ca\.pem holds no certificate"), ("server.key", r"server\.key holds no private key of the kind")],
)
@pytest.mark.parametrize("text", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_with_something_else_in_it_is_named(
    name: str, sentence: str, text: bytes, made: keys.Coordinator, tmp_path: Path
) -> None:
    own(made, tmp_path)
    (tmp_path / "keys" / name).write_bytes(text)
    with pytest.raises(UserError, match=sentence):
        keys.find(tmp_path / "keys")


def test_the_fingerprint_is_the_sha_256_of_the_certificate(made: keys.Coordinator, tmp_path: Path) -> None:
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(made.ca.read_text())).hexdigest()
    got = keys.fingerprint(made.ca)
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", got)
    assert got.replace(":", "").lower() == digest
    with pytest.raises(UserError, match="holds no certificate"):
        keys.fingerprint(made.ca_key)
    with pytest.raises(UserError, match="can't be read"):
        keys.fingerprint(tmp_path / "none.pem")


def sites(where: Path, *names: str) -> Path:
    """A folder with the public keys of some sites."""
    folder = where / "sites"
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(keys.site(where / name, name).public, folder)
    return folder


def test_public_keys_are_found_by_the_name_of_their_site(made: keys.Coordinator, tmp_path: Path) -> None:
    assert keys.public_keys(made.sites) == {}
    folder = sites(tmp_path, "b.c", "a", "B")
    (folder / ".DS_Store").write_bytes(b"\0\1")
    assert list(keys.public_keys(folder).items()) == [(n, folder / f"{n}.pub") for n in ("B", "a", "b.c")]
    with pytest.raises(UserError, match="there is no folder"):
        keys.public_keys(tmp_path / "none")


@pytest.mark.parametrize("name", ["s.key", "s.pub", "ca.key"])
def test_a_private_key_among_the_public_ones_is_refused_by_name(name: str, made: keys.Coordinator, tmp_path: Path) -> None:
    folder = sites(tmp_path, "a")
    text = made.ca_key.read_bytes() if name == "ca.key" else keys.site(tmp_path / "s", "s").private.read_bytes()
    (folder / name).write_bytes(text)
    with pytest.raises(UserError, match=rf"{re.escape(str(folder / name))} is a private key, which must never leave"):
        keys.public_keys(folder)


def foreign(made: keys.Coordinator) -> dict[str, bytes]:
    """Files that are no site's public key."""
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    other = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    key = load_pem_private_key(made.key.read_bytes(), None).public_key()
    good = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return {
        "ed25519.pub": other,
        "pem.pub": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "cut.pub": good[:-9],
        "empty.pub": b"",
        "certificate.pub": made.ca.read_bytes(),
        "key.txt": good,
        "key": good,
        "a b.pub": good,
        f"{'a' * 65}.pub": good,
    }


def test_what_is_no_public_key_of_a_site_is_refused_by_name(made: keys.Coordinator, tmp_path: Path) -> None:
    folder = sites(tmp_path, "a")
    for name, text in foreign(made).items():
        (folder / name).write_bytes(text)
        with pytest.raises(UserError, match=rf"{re.escape(str(folder / name))} is no public key of a site"):
            keys.public_keys(folder)
        (folder / name).unlink()
    (folder / "folder.pub").mkdir()
    with pytest.raises(UserError, match=r"folder\.pub is no public key"):
        keys.public_keys(folder)


def test_two_sites_with_the_same_key_are_refused(tmp_path: Path) -> None:
    folder = sites(tmp_path, "a", "b")
    shutil.copy(folder / "a.pub", folder / "c.pub")
    with pytest.raises(UserError, match=r"a\.pub and .*c\.pub are the same key"):
        keys.public_keys(folder)
