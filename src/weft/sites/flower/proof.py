"""How a site proves in each call which key it has, as Flower's SuperNodes do: it signs the time, beside its public key."""

from __future__ import annotations

import binascii
import ssl
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import UserError
from weft.sites.flower import environment

environment.ready()

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE  # noqa: E402
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER  # noqa: E402
from flwr.supercore.primitives.asymmetric import (  # noqa: E402
    bytes_to_public_key,
    public_key_to_bytes,
    sign_message,
    verify_signature,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

KEY, TIME, SIGNATURE = (h.lower().encode() for h in (FLEET_HTTP_PUBLIC_KEY_HEADER, TIMESTAMP_HEADER, FLEET_HTTP_SIGNATURE_HEADER))
Known = dict[bytes, "EllipticCurvePublicKey"]  # public keys by their bytes as Flower writes them


class Verdict(Enum):
    """What the headers of a call prove."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CLOCK = "clock"  # a known key, but the time that it has signed is too far from ours


def read(keys: Iterable[bytes]) -> Known:
    """Public keys from bytes as Flower writes them."""
    return {key: bytes_to_public_key(key) for key in keys}


def of_file(path: Path) -> bytes:
    """A public key in the file that ``weft keys site`` made, as Flower writes it.

    Raises:
        ValueError: there is none in it. OSError: it can't be read.
    """
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    key = load_ssh_public_key(path.read_bytes())
    return public_key_to_bytes(key)  # type: ignore[arg-type]  # what is no such key has been refused by keys.public_keys


def private(path: Path) -> EllipticCurvePrivateKey:
    """A site's private key, in the file that ``weft keys site`` made.

    Raises:
        UserError: there is none in it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_ssh_private_key(path.read_bytes(), password=None)
        if isinstance(key, EllipticCurvePrivateKey):
            return key
    raise UserError(f"{path} holds no private key of a site: put back the one that weft keys site made, or make another.")


def headers(key: EllipticCurvePrivateKey) -> dict[str, str]:
    """What a call of a site carries."""
    now = datetime.now(UTC).isoformat()
    values = (public_key_to_bytes(key.public_key()), sign_message(key, now.encode()))
    public, signature = (b64encode(v).decode() for v in values)
    return {KEY.decode(): public, TIME.decode(): now, SIGNATURE.decode(): signature}


def judge(given: Mapping[bytes, list[bytes]], known: Known) -> Verdict:
    """Whether a call comes from one of the known keys.

    Args:
        given: all values of each header of the call.
    """
    try:
        (key,), (time,), (signature,) = (given[name] for name in (KEY, TIME, SIGNATURE))
        public = known.get(b64decode(key, validate=True))
        if public is None or not verify_signature(public, time, b64decode(signature, validate=True)):
            return Verdict.UNKNOWN
        age = (datetime.now(UTC) - datetime.fromisoformat(time.decode("ascii"))).total_seconds()
    except (KeyError, ValueError, TypeError, UnicodeError, binascii.Error):
        return Verdict.UNKNOWN
    ahead, behind = -SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
    return Verdict.KNOWN if ahead < age < behind else Verdict.CLOCK


def trusting(root: bytes | None) -> ssl.SSLContext | bool:
    """What ``httpx`` takes for ``verify``: this certificate vouches, and no other; without one there is no TLS.

    Raises:
        UserError: it is none.
    """
    if root is None:
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=root.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise UserError("ca.pem holds no certificate: get it from the coordinator again.") from None
    return context
