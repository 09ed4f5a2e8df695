"""Settings of rules that hold over any method whose server needs nothing but sums."""

from __future__ import annotations

from typing import ClassVar, Literal

from weft.experiment.declare import Fraction, Group, Positive, setting


class Rules(Group):
    """What clients and server do beside what the method says."""

    title: ClassVar[str] = "Rules over every method"

    rule: Literal["none", "scaffold", "feddyn", "mime", "mimelite"] = setting(
        "none",
        "Over the method, at its clients: `none`, `scaffold`, `feddyn`, `mime` or `mimelite`.",
        "See [rules over every method](methods.md#rules-over-every-method). FedProx is `--set method.prox=0.01`.",
        common=True,
    )
    feddyn_alpha: Positive = setting(
        0.01,
        "FedDyn: weight α of its regulariser; its paper tries 0.1, 0.01 and 0.001.",
        option=False,
        common=True,
        when=("rule", ["feddyn"]),
    )
    batch_norms: Literal["frozen", "averaged", "static"] = setting(
        "frozen",
        "Statistics of a backbone's batch norms: `frozen` (the checkpoint's), `averaged` or `static`.",
        "See [batch norms](methods.md#statistics-of-batch-norms).",
        common=True,
    )
    server_step: Literal["none", "avgm", "adam", "yogi", "adagrad"] = setting(
        "none",
        "What the server makes of a mean: `none` (the mean), `avgm`, `adam`, `yogi` or `adagrad`.",
        "FedAvgM, FedAdam, FedYogi and FedAdagrad: see [rules over every method](methods.md#a-step-at-the-server).",
    )
    server_lr: Positive | None = setting(None, "Of that step.", unset="1 for `avgm`, 0.001 for the others")
    server_beta1: Fraction | None = setting(None, "Momentum of that step.", option=False, unset="0.9, and 0 for `adagrad`")
    server_beta2: Fraction = setting(
        0.99, "Of that step: decay of the squares, of `adam` and `yogi`.", option=False, when=("server_step", ["adam", "yogi"])
    )
    server_tau: Positive = setting(
        1e-3,
        "Of that step: what is added to their root; the smaller, the more adaptive.",
        option=False,
        when=("server_step", ["adam", "yogi", "adagrad"]),
    )
