"""Devices that clients train on: profiles, how they (or ranks of LoRA) are dealt out to clients, and a clock that they keep."""

from __future__ import annotations

from weft.devices.availability import ALWAYS, Hours, Trace, read_trace, windows
from weft.devices.clock import Clock, Spent, Tick
from weft.devices.grids import Grid, read_grids
from weft.devices.profiles import FLEETS, PROFILES, Device, read
from weft.devices.shares import dealt, of_text
from weft.devices.spending import Budget
from weft.devices.strength import STRENGTH, sized
from weft.devices.thrift import Thrift
from weft.devices.timeline import Flight, Timeline
from weft.devices.told import span, total

__all__ = [
    "ALWAYS",
    "FLEETS",
    "PROFILES",
    "STRENGTH",
    "Budget",
    "Clock",
    "Device",
    "Flight",
    "Grid",
    "Hours",
    "Spent",
    "Thrift",
    "Tick",
    "Timeline",
    "Trace",
    "dealt",
    "of_text",
    "read",
    "read_grids",
    "read_trace",
    "sized",
    "span",
    "total",
    "windows",
]
