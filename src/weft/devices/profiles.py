"""Profiles of devices, and files of them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft.devices.shares import of_text
from weft.errors import UserError, nearest
from weft.typed import Positive, check


@dataclass(frozen=True)
class Device:
    """What a device can do.

    Attributes:
        speed: TFLOP/s in half precision, at its peak. memory: GiB. bandwidth: of its uplink, Mbit/s.
    """

    speed: Positive
    memory: Positive
    bandwidth: Positive

    def __post_init__(self) -> None:
        check(self)


PROFILES = {
    "jetson-nano": Device(0.47, 4, 10),
    "jetson-tx2": Device(1.33, 8, 10),
    "jetson-nx": Device(1.69, 8, 20),
    "jetson-agx": Device(2.8, 32, 50),
    "phone": Device(1.0, 8, 20),
    "laptop": Device(2.0, 16, 50),
    "workstation": Device(80.0, 24, 200),
    "server": Device(300.0, 80, 1000),
}
"""Peak speeds and memories of makers' data sheets, rounded; bandwidths are orders of size."""


def read(text: str) -> list[tuple[Device, float]]:
    """Devices with their shares: ``jetson-tx2:3,jetson-nx`` of :data:`PROFILES`, or the path of a TOML file.

    A file has a table ``[NAME]`` for each kind, with ``speed``, ``memory`` and ``bandwidth`` (see :class:`Device`), and a
    ``share`` if that is not 1.

    Raises:
        UserError: no such profile or file, or a number in it that cannot be.
    """
    if text.endswith(".toml"):
        return _in_file(Path(text))
    found = []
    for name, share in of_text(text, "devices", "jetson-tx2:3,laptop").items():
        if name not in PROFILES:
            raise UserError(
                f'there is no device "{name}": use {", ".join(PROFILES)}, or a .toml file of your own.{nearest(name, PROFILES)}'
            )
        found.append((PROFILES[name], share))
    return found


def _in_file(path: Path) -> list[tuple[Device, float]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"the file of devices {path} can't be read: {e.strerror}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"the file of devices {path} is no TOML: {e}.") from e
    found = [_entry(path, name, about) for name, about in tables.items()]
    if not found:
        raise UserError(f"the file of devices {path} has none: give it a table with speed, memory and bandwidth for each kind.")
    return found


def _entry(path: Path, name: str, about: Any) -> tuple[Device, float]:
    names = ("speed", "memory", "bandwidth")
    how = "give each a table with speed, memory and bandwidth, and a share if you like"
    if not isinstance(about, dict):
        raise UserError(f"{path} says {name} = {about!r} of no device: {how}.")
    if odd := [*(n for n in names if n not in about), *(n for n in about if n not in {*names, "share"})]:
        what = "is not there" if odd[0] in names else "is nothing that devices have"
        raise UserError(f"[{name}] in {path} is no device, as {odd[0]} {what}: {how}.")
    for key, value in {"share": 1.0, **about}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(f"[{name}] in {path} has {key} = {value!r}: give it a number above 0.")
    return Device(*(about[n] for n in names)), float(about.get("share", 1.0))
