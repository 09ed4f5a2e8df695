"""Devices that clients train on: a small table of profiles, and how they, or ranks of LoRA, are dealt out to clients."""

from __future__ import annotations

from weft.devices.profiles import PROFILES, Device, read
from weft.devices.shares import dealt, of_text

__all__ = ["PROFILES", "Device", "dealt", "of_text", "read"]
