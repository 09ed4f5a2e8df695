"""Settings of what hides rows and clients."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from weft.experiment.declare import Group, Name, Positive, setting


class Private(Group):
    """A chain of mechanisms, and the budget that it keeps."""

    title: ClassVar[str] = "Privacy"

    privacy: Name = setting(
        "none",
        "Hide rows or clients: `dp-sgd`, `ldp`, `dp-fedavg`, `dp-ftrl`, `secagg`, `ckks`.",
        "Several are joined by `+`, with settings of their own, as in `dp-sgd:clip=0.5,noise=1.1`: see [privacy](privacy.md).",
        everyday=True,
        common=True,
    )
    epsilon: Positive | None = setting(
        None,
        "Budget ε of differential privacy: noise is found for the planned rounds, and no round goes beyond it.",
        "With a `noise` of the chain's own that one is used, and the run ends before a round that would exceed the budget.",
        unset="no budget: the noise is the chain's",
        common=True,
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = setting(
        1e-5,
        "δ of differential privacy, less than one over the number of rows or clients that are hidden among each other.",
        common=True,
    )
    insecure_noise: bool = setting(
        False,
        "Make noise and lots of the run's seed, so that the run can be repeated: they hide nothing from who knows the seed.",
        "For simulations on data that are no secret.",
        common=True,
    )
