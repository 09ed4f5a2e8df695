"""The only door to ``flwr_datasets``: its telemetry, on by default, is switched off before the import."""

from __future__ import annotations

import os
from typing import Any


def flower_partitioners() -> Any:
    """The module ``flwr_datasets.partitioner``, imported with its telemetry switched off.

    A process that imported ``flwr_datasets`` before us has its switch set in place, since the variable was
    read by then.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    from flwr_datasets import partitioner
    from flwr_datasets.common import telemetry

    telemetry.FLWR_TELEMETRY_ENABLED = "0"
    return partitioner
