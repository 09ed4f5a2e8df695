"""Settings that somebody gave and that have no effect on this run: they go with another one, which is not as they need it, or a
baseline stands in for the federation that they are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weft.devices.profiles import read
from weft.experiment.whole import SETTINGS

if TYPE_CHECKING:
    from weft.experiment.layers import Resolved

BY_METHOD = ("aggregation", "rule", "server_step")
"""What a baseline, which is no method, is not played with."""
OF_TRAINING = ("batch_norms",)
"""What a baseline that trains nothing but a head, or nothing, is not played with."""
OF_CLIENTS = ("dropout", "devices", "deadline", "robust", "codec", "download_codec", "keep_updates")
"""What there is none of where nobody is apart from anybody."""


def idle(resolved: Resolved, found: Mapping[str, Any]) -> list[str]:
    """A sentence for each.

    Args:
        found: what became of settings that the data decide (``task``, ``partition``).
    """
    x, sentences = resolved.experiment, []
    alone = () if x.baseline is None else BY_METHOD + (OF_CLIENTS if x.baseline in ("local", "central") else OF_TRAINING)
    for name, setting in SETTINGS.items():
        value = getattr(x, name)
        if resolved.origin.get(name) != "user" or value == setting.default:
            continue
        if name in alone:
            sentences.append(f"{name} = {value} has no effect: baseline {x.baseline} is played instead of the federation.")
        if setting.when is None or name in alone:
            continue
        other, suiting = setting.when
        now = found.get(other, getattr(x, other))
        if now in suiting or (not suiting and now != SETTINGS[other].default):
            continue
        with_what = f"{other} = {' or '.join(map(str, suiting))}" if suiting else other
        here = f"is {now} here" if now not in (None, "") else "is not given"
        sentences.append(f"{name} = {value} has no effect: it goes with {with_what}, and {other} {here}.")
    if x.devices is not None and x.grids is None and "devices" not in alone:
        sentences += [
            f"region = {device.region} of [{device.name}] has no effect: it goes with grids, and grids is not given."
            for device, _ in read(x.devices)
            if device.region
        ]
    return sentences
