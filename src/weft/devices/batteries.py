"""Batteries of clients: how full they are, when they are full enough, and when they run out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from weft.devices.profiles import Device

EMPTY = 0.01
"""Share of its battery below which a device is off, whoever is drawn."""


class Batteries:
    """Those of clients whose devices have one, which are full in the beginning.

    Args:
        floor: share below which a client is not drawn.

    Attributes:
        levels: joules, by client.
    """

    def __init__(self, devices: Mapping[str, Device], floor: float = EMPTY):
        self.devices = {c: d for c, d in devices.items() if d.battery is not None}
        self.floor = max(floor, EMPTY)
        self.levels = {c: d.battery or 0.0 for c, d in self.devices.items()}

    def wait(self, client: str) -> float:
        """Seconds until it can be drawn, if nothing draws from it; infinity = never."""
        if client not in self.devices:
            return 0.0
        device = self.devices[client]
        lacks = self.floor * (device.battery or 0.0) - self.levels[client]
        return 0.0 if lacks <= 0 else lacks / device.recharge if device.recharge else math.inf

    def lasts(self, client: str, joules: float, seconds: float) -> float:
        """Seconds after which it is empty, if so much is drawn evenly over so many seconds; infinity = it is not."""
        if client not in self.devices or not seconds:
            return math.inf
        net = joules / seconds - self.devices[client].recharge
        return self.levels[client] / net if net > 0 else math.inf

    def passed(self, seconds: float, drawn: Mapping[str, float]) -> None:
        """Time has passed, in which clients have drawn joules: all charge."""
        for client, device in self.devices.items():
            level = self.levels[client] + device.recharge * seconds - drawn.get(client, 0.0)
            self.levels[client] = min(max(level, 0.0), device.battery or 0.0)
