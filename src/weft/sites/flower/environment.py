"""Flower as a guest that keeps to itself: no telemetry, no question after updates, and its files in a folder of ours.

Flower posts usage events and asks for newer versions unless told otherwise; it reads both switches when it is imported, so this
module is imported before any of Flower's.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from weft import distribution
from weft.errors import UserError

SILENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
# Each opens a port beside the one that has a gate, without a key, or makes Flower ask somebody else who may come in.
CLOSED = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API", "FLWR_OIDC_ENABLED", "FLWR_ENABLE_EVENT_LOG")


def ready() -> None:
    """Switch off what leaves the process.

    Raises:
        UserError: Flower is not installed.
    """
    os.environ |= SILENT
    if find_spec("flwr") is None:
        raise UserError(f"Flower is not installed, and real federations go over it: {distribution.install('flower')}.")


def ready_for_ray() -> None:
    """The same for Flower's simulation engine and the Ray that it runs on.

    Raises:
        UserError: one of them is not installed.
    """
    os.environ |= SILENT | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # or it warns of what it will do some day
    if find_spec("flwr") is None or find_spec("ray") is None:
        raise UserError(f"Ray is not installed, and --engine ray runs on it: {distribution.install('ray')}.")


def of(home: Path) -> dict[str, str]:
    """The environment of one of Flower's own processes.

    Args:
        home: what Flower keeps goes there.
    """
    kept = {name: value for name, value in os.environ.items() if name not in CLOSED}
    return {**kept, **SILENT, "FLWR_HOME": str(home), "FLWR_LOG_LEVEL": os.environ.get("FLWR_LOG_LEVEL", "INFO")}


def eager() -> None:
    """Let Flower ask again soon for what is still being sent: it waits a second, then two, for what is not there yet."""
    from flwr.supercore.inflatable import inflatable_utils

    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        assert pull.__kwdefaults__ is not None
        pull.__kwdefaults__.update(initial_backoff=0.05, backoff_cap=1.0, max_tries_per_object=None)
