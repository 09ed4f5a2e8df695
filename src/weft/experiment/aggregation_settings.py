"""Settings of a server that waits for nobody."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weft.experiment.declare import Count, Group, Positive, Share, setting


class Asynchronous(Group):
    """When the server updates its model, and what an update counts that began from an older one."""

    title: ClassVar[str] = "Asynchronous aggregation"

    aggregation: Literal["synchronous", "fedasync", "fedbuff"] = setting(
        "synchronous",
        "`synchronous`; on `--devices` also `fedasync` (with every update that comes) or `fedbuff` (with `--buffer`).",
        "A round is then one update of the server's: see [asynchronous aggregation](devices.md#asynchronous-aggregation).",
    )
    concurrency: Count | None = setting(
        None,
        "Clients that train at any moment; whoever comes makes room for another.",
        unset="as many as --participation draws",
    )
    buffer: Count | None = setting(
        None,
        "FedBuff: updates that the server takes in at once.",
        unset="10, or as many as train at a time where these are fewer",
    )
    mixing: Share | None = setting(
        None, "FedAsync: weight of the model that comes, 0 to 1, before its staleness counts.", unset="0.6"
    )
    staleness: Literal["constant", "polynomial", "hinge"] = setting(
        "polynomial",
        "What an update counts that began τ updates of the server ago: `constant`, `polynomial` or `hinge`.",
        "1; (1 + τ)^-a; or 1 up to τ = b, then 1 / (a (τ - b) + 1).",
        when=("aggregation", ["fedasync", "fedbuff"]),
    )
    staleness_a: Positive | None = setting(
        None,
        "a of `polynomial` and `hinge`.",
        option=False,
        unset="0.5, and 10 of `hinge`",
        when=("staleness", ["polynomial", "hinge"]),
    )
    staleness_b: Annotated[float, Field(ge=0)] = setting(4.0, "b of `hinge`.", option=False, when=("staleness", ["hinge"]))
