"""Keys and certificates of a real federation: who the coordinator is to the sites, and who a site is to the coordinator.

The coordinator has an authority of its own (one certificate, which every site gets) and a TLS certificate signed by it; a site
has a key pair, of which the coordinator gets the public half. All keys are on the NIST curve P-384, as Flower wants those of its
nodes. The package ``cryptography`` makes and reads them; it comes with Flower.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from weft import distribution
from weft.errors import UserError
from weft.sites.key_files import absent, own_folder, write_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import PrivateFormat
    from cryptography.x509 import Certificate, GeneralName

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
ALWAYS = ("localhost", "127.0.0.1")  # where Flower's own processes beside the coordinator call it
DAYS = 825  # of the coordinator's certificate
AUTHORITY_DAYS = 3650
CLOCKS = timedelta(days=1)  # by which a site's clock may be behind when it is given a new certificate
LARGEST = 16_384  # bytes that are read of a key or certificate, which has one or two thousand


@dataclass(frozen=True)
class Coordinator:
    """Where the coordinator's keys are.

    Attributes:
        ca_key: private key of the authority; only new certificates need it. ca: its certificate, which goes to the sites.
        key, certificate: of the coordinator's TLS server. sites: folder of the sites' public keys.
    """

    ca_key: Path
    ca: Path
    key: Path
    certificate: Path
    sites: Path

    @classmethod
    def within(cls, folder: Path) -> Coordinator:
        """The places in ``folder``, whether anything is there or not."""
        return cls(*(folder / name for name in ("ca.key", "ca.pem", "server.key", "server.pem", "sites")))


@dataclass(frozen=True)
class SiteKeys:
    """A site's key pair: ``private`` never leaves it, ``public`` goes to the coordinator."""

    private: Path
    public: Path


def coordinator(folder: Path, hosts: Sequence[str], days: int = DAYS, renew: bool = False) -> Coordinator:
    """Make the authority and the coordinator's certificate.

    Args:
        folder: a new one, or one that only its owner may enter.
        hosts: names and IP addresses by which sites call the coordinator, besides those in `ALWAYS`. With ``renew`` it may be
            empty: those of the present certificate.
        days: for which the certificate holds, from now on. The authority holds for `AUTHORITY_DAYS`.
        renew: make the certificate anew under the authority that is there. The private keys stay; ``server.key`` is made anew
            only if it is gone.

    Raises:
        UserError: a file is there already, or missing for ``renew``; a host, ``days`` or the folder will not do.
    """
    needs_cryptography()
    from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat

    paths = Coordinator.within(folder)
    names = _names(hosts)
    now = datetime.now(UTC).replace(microsecond=0)  # certificates know seconds
    if renew:
        _need(folder, [paths.ca_key, paths.ca], "a new certificate needs the authority that signed the first")
        ca_key, ca = _private(paths.ca_key), certificate(paths.ca)
        if ca.public_key() != ca_key.public_key():
            raise UserError(f"{paths.ca_key} is not the key of {paths.ca}: put back the two that were made together.")
        if not names:
            _need(folder, [paths.certificate], "say again with --host by which names and addresses the sites call this machine")
            names = _names(certified(paths.certificate))
        key = _private(paths.key) if os.path.lexists(paths.key) else _new_key()
    else:
        if not names:
            raise UserError("say by which name or address the sites call this machine, as in --host fl.example.org.")
        advice = f"weft keys coordinator --renew --folder {folder} makes a new certificate with the keys that are there"
        absent([paths.ca_key, paths.ca, paths.key, paths.certificate], f"{advice}; other keys need another --folder")
        ca_key, key = _new_key(), _new_key()
        # A name of its own, so that a certificate of another federation is an unknown one, not one with a broken signature.
        ca = _certificate(ca_key, f"Weft federation {os.urandom(4).hex()}", now, AUTHORITY_DAYS)
    _check_days(days, ca, now)
    signed = _certificate(key, "Weft coordinator", now, days, (ca, ca_key), [*dict.fromkeys(names + _names(ALWAYS))])

    own_folder(folder)
    own_folder(paths.sites)
    if not renew:
        write_new(paths.ca_key, _bytes(ca_key, PrivateFormat.PKCS8), private=True)
        write_new(paths.ca, ca.public_bytes(Encoding.PEM))
    if not os.path.lexists(paths.key):
        write_new(paths.key, _bytes(key, PrivateFormat.PKCS8), private=True)
    new = paths.certificate.with_suffix(".new")
    new.unlink(missing_ok=True)
    write_new(new, signed.public_bytes(Encoding.PEM))
    new.replace(paths.certificate)
    return paths


def check_name(name: str) -> None:
    """See that a site can have this name.

    Raises:
        UserError: it can't.
    """
    if not NAME.fullmatch(name):
        rule = "at most 64 letters (a to z), digits, dots, dashes and underscores, of which a letter or digit is the first"
        raise UserError(f'"{name}" is no name for a site: take {rule}.')


def site(folder: Path, name: str) -> SiteKeys:
    """Make the key pair by which the coordinator knows the site ``name``, in OpenSSH's format, which Flower reads.

    Raises:
        UserError: a name that will not do, a file that is there already, or a folder that others may enter.
    """
    check_name(name)
    needs_cryptography()
    from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

    made = SiteKeys(folder / f"{name}.key", folder / f"{name}.pub")
    absent([made.private, made.public], "use it, or give another name, or move both files of the pair away first")
    key = _new_key()
    own_folder(folder)
    write_new(made.private, _bytes(key, PrivateFormat.OpenSSH), private=True)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_new(made.public, public + f" {name}\n".encode())
    return made


def find(folder: Path) -> Coordinator:
    """The coordinator's keys in ``folder``. The authority's private key may be elsewhere, since serving does not need it.

    Raises:
        UserError: naming what is missing, does not belong together or is out of date.
    """
    needs_cryptography()
    from cryptography.exceptions import InvalidSignature

    paths = Coordinator.within(folder)
    make = f"weft keys coordinator --host NAME --folder {folder}"
    if not any(os.path.lexists(p) for p in (paths.ca, paths.key, paths.certificate)):
        raise UserError(f"there are no keys of a coordinator in {folder}: make them with {make}.")
    again = f"{make} --renew makes anew what is gone, except the authority"
    _need(folder, [paths.ca, paths.key, paths.certificate, paths.sites], again)
    ca, server = certificate(paths.ca), certificate(paths.certificate)
    if server.public_key() != _private(paths.key).public_key():
        raise UserError(
            f"{paths.key} is not the key of {paths.certificate}: weft keys coordinator --renew --folder {folder} makes a "
            "certificate for it."
        )
    try:
        server.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise UserError(
            f"{paths.certificate} is not signed by the authority in {paths.ca}: put back what belongs together."
        ) from None
    if server.not_valid_after_utc <= datetime.now(UTC):  # before the authority's end, or with it
        raise UserError(
            f"{paths.certificate} ended on {server.not_valid_after_utc:%Y-%m-%d}: weft keys coordinator --renew "
            f"--folder {folder} makes a new one."
        )
    return paths


def public_keys(folder: Path) -> dict[str, Path]:
    """The sites' public keys in ``folder``, by the name of the site (the file without its ``.pub``), sorted. Hidden files are
    passed over: file managers leave some, and copies are made in some.

    Raises:
        UserError: naming a file there that is a private key or no site's public key, or two that hold the same key.
    """
    needs_cryptography()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: the public keys of the sites belong there.")
    found: dict[str, Path] = {}
    keys: list[EllipticCurvePublicKey] = []
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        text = _read(path) if path.is_file() else b""
        if b"PRIVATE KEY-" in text:
            raise UserError(
                f"{path} is a private key, which must never leave its site: delete it here, and let the site make a new pair "
                "and send the .pub file alone."
            )
        key = _public(text)
        if key is None or path.suffix != ".pub" or not NAME.fullmatch(path.stem):
            raise UserError(f"{path} is no public key of a site (NAME.pub, from weft keys site NAME): take it away.")
        if key in keys:
            twin = [*found.values()][keys.index(key)]
            raise UserError(f"{twin} and {path} are the same key: every site needs its own, so take one away.")
        found[path.stem] = path
        keys.append(key)
    return found


def fingerprint(path: Path) -> str:
    """SHA-256 of the certificate in a PEM file, as 32 pairs of hexadecimal digits joined by colons. Raises as `certificate`."""
    needs_cryptography()
    from cryptography.hazmat.primitives.hashes import SHA256

    return certificate(path).fingerprint(SHA256()).hex(":").upper()


def certified(path: Path) -> list[str]:
    """The names and IP addresses for which the certificate in a PEM file holds. Raises as `certificate`."""
    needs_cryptography()
    from cryptography import x509

    try:
        names = certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise UserError(f"{path} is no certificate of a coordinator: it holds for no name or address.") from None
    return [str(n.value) for n in names if isinstance(n, x509.DNSName | x509.IPAddress)]


def certificate(path: Path) -> Certificate:
    """The (first) certificate in a PEM file.

    Raises:
        UserError: the file is missing or holds no certificate.
    """
    needs_cryptography()
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise UserError(f"{path} holds no certificate in PEM format.") from None


def needs_cryptography() -> None:
    """Raises: UserError: the package is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UserError(f"keys need the package cryptography: {distribution.install('flower')}.") from None


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _names(hosts: Sequence[str]) -> list[GeneralName]:
    from cryptography import x509

    found: list[GeneralName] = []
    for host in hosts:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            name = host.lower()
            if len(name) > 253 or not HOST.fullmatch(name) or name.rpartition(".")[2].isdecimal():
                raise UserError(
                    f'"{host}" is no name or IP address of a machine: give it alone, without https:// and port, as in '
                    "--host fl.example.org or --host 10.0.0.7."
                ) from None
            found.append(x509.DNSName(name))
        else:
            if address.is_unspecified or "%" in host:
                raise UserError(f'no site can call "{host}": give the address that this machine has in their network.')
            found.append(x509.IPAddress(address))
    return found


def _certificate(
    key: EllipticCurvePrivateKey,
    name: str,
    now: datetime,
    days: int,
    above: tuple[Certificate, EllipticCurvePrivateKey] | None = None,
    names: Sequence[GeneralName] = (),
) -> Certificate:
    """Of a server for ``names``, signed by the authority ``above``; or of an authority, which signs its own."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.x509.oid import ExtendedKeyUsageOID

    root = above is None
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, signer = (subject, key) if above is None else (above[0].subject, above[1])
    kinds = "digital_signature content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    usage = dict.fromkeys(kinds.split(), False) | {"digital_signature": not root, "key_cert_sign": root, "crl_sign": root}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=root, path_length=0 if root else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not root:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signer, SHA384())


def _check_days(days: int, ca: Certificate, now: datetime) -> None:
    left = (ca.not_valid_after_utc - now).days
    if left < 1:
        advice = "make new keys in another --folder and send its ca.pem to every site"
        raise UserError(f"the authority ends or ended on {ca.not_valid_after_utc:%Y-%m-%d}: {advice}.")
    if not 1 <= days <= left:
        raise UserError(f"the certificate can't hold for {days} days: give 1 to {left}, for which the authority lasts.")


def _private(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(_read(path), password=None)
        if isinstance(key, EllipticCurvePrivateKey):
            return key
    raise UserError(f"{path} holds no private key of the kind that weft keys makes: put back the one that was made.")


def _public(text: bytes) -> EllipticCurvePublicKey | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        key = load_ssh_public_key(text)
        if isinstance(key, EllipticCurvePublicKey):
            return key
    return None


def _bytes(key: EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption

    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _need(folder: Path, paths: Sequence[Path], advice: str) -> None:
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        raise UserError(f"there is no {' and no '.join(missing)} in {folder}: {advice}.")


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST)
    except OSError as e:
        raise UserError(f"{path} can't be read ({e.strerror}): give a file that is there and that you may read.") from None
