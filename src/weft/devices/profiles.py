"""Profiles of devices, and files of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Le

from weft.devices import small_tables
from weft.devices.availability import windows
from weft.devices.shares import of_text
from weft.errors import UserError, nearest
from weft.typed import NonNegative, Positive, check

UTILISATION = 0.3
"""Share of its peak that a device reaches in training where nothing else is said: a third or so is usual on well-fed accelerators
(Chowdhery et al., "PaLM", arXiv 2204.02311, tell 0.46 of their own and 0.21 to 0.33 of three earlier large runs), and small
batches on small devices are below rather than above it. Padding, norms and activations are in it, for they are not counted.
"""


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Attributes:
        speed: TFLOP/s in half precision, at its peak. memory: GiB. bandwidth: of its uplink, Mbit/s.
        downlink: Mbit/s; None = as its uplink. latency: seconds that a round takes beside computing and carrying bytes.
        watts: while it computes. joules_per_byte: that it sends or receives. utilisation: share of the peak that is reached.
        available: hours of the day at which it can be reached, as ``22-6``; empty = all. region: of its grid; empty = any.
        battery: joules of a full one; None = it has none. recharge: watts that come into it. name: of its kind.
    """

    speed: Positive
    memory: Positive
    bandwidth: Positive
    downlink: Positive | None = None
    latency: NonNegative = 0.1
    watts: NonNegative = 10.0
    joules_per_byte: NonNegative = 0.0
    utilisation: Annotated[float, Gt(0), Le(1)] = UTILISATION
    available: str = ""
    region: str = ""
    battery: Positive | None = None
    recharge: NonNegative = 0.0
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check(self)

    def seconds(self, flops: float, down: float, up: float) -> float:
        """Of a round: bytes down, operations, bytes up, and what it takes besides."""
        carried = 8e-6 * (down / (self.downlink or self.bandwidth) + up / self.bandwidth)
        return self.latency + carried + self.computing(flops)

    def computing(self, flops: float) -> float:
        """Seconds."""
        return flops / (1e12 * self.speed * self.utilisation)

    def joules(self, flops: float, down: float, up: float) -> float:
        """Of a round: what it draws while it computes, and for its bytes."""
        return self.watts * self.computing(flops) + self.joules_per_byte * (down + up)


PROFILES = {
    d.name: d
    for d in (
        Device(0.47, 4, 10, watts=10, name="jetson-nano"),
        Device(1.33, 8, 10, watts=15, name="jetson-tx2"),
        Device(1.69, 8, 20, watts=20, name="jetson-nx"),
        Device(2.8, 32, 50, watts=30, name="jetson-agx"),
        Device(1.0, 8, 20, watts=5, name="phone"),
        Device(2.0, 16, 50, watts=30, name="laptop"),
        Device(80.0, 24, 200, watts=350, name="workstation"),
        Device(300.0, 80, 1000, watts=400, name="server"),
    )
}
"""Peak speeds, memories and most power of makers' data sheets, rounded; bandwidths are orders of size."""

FLEETS = ("phones", "edge-boxes", "hospital-servers")
"""Files that come with Weft, each with its sources."""


def read(text: str) -> list[tuple[Device, float]]:
    """Devices with their shares: ``jetson-tx2:3,jetson-nx`` of :data:`PROFILES`, one of :data:`FLEETS`, or the path of a file.

    A file of TOML has a table ``[NAME]`` for each kind, with ``speed``, ``memory`` and ``bandwidth``, what else a :class:`Device`
    has where that is not the default, and a ``share`` if that is not 1.

    Raises:
        UserError: no such profile or file, or a number in it that cannot be.
    """
    if text.endswith(".toml"):
        return _in_file(Path(text))
    if text in FLEETS:
        with resources.as_file(resources.files(__package__) / f"{text}.toml") as file:
            return _in_file(file)
    found = []
    for name, share in of_text(text, "devices", "jetson-tx2:3,laptop").items():
        if name in FLEETS:
            raise UserError(
                f'devices = "{text}" has {name}, a fleet, which stands alone: give it without shares and other kinds.'
            )
        if name not in PROFILES:
            raise UserError(
                f'there is no device "{name}": use {", ".join((*PROFILES, *FLEETS))}, or a .toml file of your own.'
                f"{nearest(name, (*PROFILES, *FLEETS))}"
            )
        found.append((PROFILES[name], share))
    return found


def _in_file(path: Path) -> list[tuple[Device, float]]:
    tables = small_tables.tables(path, "devices")
    found = [_entry(path, name, about) for name, about in tables.items()]
    if not found:
        raise UserError(f"the file of devices {path} has none: give it a table with speed, memory and bandwidth for each kind.")
    return found


NEEDED = ("speed", "memory", "bandwidth")
MAY_BE_ZERO = ("latency", "watts", "joules_per_byte", "recharge")
TEXTS = ("available", "region")
LEAST, MOST = 1e-12, 1e12
"""Of what is no 0 in a file: no clock runs full by it."""
KNOWN = (*NEEDED, "downlink", *MAY_BE_ZERO, "utilisation", "battery", *TEXTS, "share")


def _entry(path: Path, name: str, about: Any) -> tuple[Device, float]:
    how = f"give each a table with speed, memory and bandwidth, and of {', '.join(KNOWN[3:])} what you like"
    if not isinstance(about, dict):
        raise UserError(f"{path} says {name} = {about!r} of no device: {how}.")
    if odd := [*(n for n in NEEDED if n not in about), *(n for n in about if n not in KNOWN)]:
        what = "is not there" if odd[0] in NEEDED else "is nothing that devices have"
        raise UserError(f"[{name}] in {path} is no device, as {odd[0]} {what}: {how}.")
    _hours(path, name, about.get("available", "0-24"))
    if not isinstance(region := about.get("region", "any"), str) or not region.strip():
        raise UserError(f"[{name}] in {path} has region = {region!r}: give the name of a region of --grids.")
    for key, value in ((k, v) for k, v in about.items() if k not in TEXTS):
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        if not number or value < 0 or (value == 0 and key not in MAY_BE_ZERO):
            least = "of 0 or more" if key in MAY_BE_ZERO else "above 0"
            raise UserError(f"[{name}] in {path} has {key} = {value!r}: give it a number {least}.")
        if value and not LEAST <= value <= MOST:
            raise UserError(f"[{name}] in {path} has {key} = {value!r}: give it a number from {LEAST:g} to {MOST:g}.")
        if key == "utilisation" and value > 1:
            raise UserError(f"[{name}] in {path} has utilisation = {value!r}: give it a share of the peak, up to 1.")
    if "recharge" in about and "battery" not in about:
        raise UserError(f"[{name}] in {path} has recharge and no battery: give it one, as in battery = 40000 (joules).")
    return Device(**{n: v for n, v in about.items() if n != "share"}, name=name), float(about.get("share", 1.0))


def _hours(path: Path, name: str, value: Any) -> None:
    try:
        windows(str(value))
    except ValueError:
        raise UserError(
            f'[{name}] in {path} has available = {value!r}: give hours of the day, from 0 to 24, as in "22-6" or "9-12,13.5-17".'
        ) from None
