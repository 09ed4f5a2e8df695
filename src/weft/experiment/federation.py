"""Settings of the federation: rounds and cohorts, what is sent, and which updates the server believes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weft.experiment.declare import Count, Fraction, Group, Name, Positive, Whole, setting


class Federation(Group):
    """Rounds, and what server and clients do in them."""

    title: ClassVar[str] = "Federation"

    rounds: Count = setting(10, "Exchanges between server and clients.", flags=("-r",), everyday=True, common=True)
    participation: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0, "Share of the clients drawn for a round, 0 to 1.", everyday=True, common=True
    )
    dropout: Fraction = setting(
        0.0, "Chance that a client fails in the middle of its turn.", "Beside [availability](devices.md#availability)."
    )
    ranks: str | None = setting(
        None,
        "Ranks of LoRA dealt out to the clients, for methods that take several: `4,8,16`, or with shares `4:2,16:1`.",
        unset="as the method deals them",
    )
    peers: str | None = setting(
        None,
        "A `.toml` file of the peers that serve the stages of the model, for methods of that kind (swarm-parallelism).",
        "Samples a second, retries and bytes are [simulated](devices.md#peers-that-serve-stages).",
        unset="nobody plays peers",
    )
    seed: Whole = setting(0, "Of everything random.", everyday=True, common=True)
    start: Name | None = setting(
        None,
        "Begin from this PEFT LoRA adapter, or finished run.",
        "It is a folder that Weft exported or PEFT saved; what it holds is handed out in set-up, and billed: see "
        "[starting from an adapter](#starting-from-an-adapter).",
        everyday=True,
    )
    start_head: Literal["auto", "random", "probe"] = setting(
        "auto",
        "`random`; `probe`: warmed up by federated linear probing, billed as set-up; or `auto`: that of `--start`, else random.",
        "With `probe` the head is first trained on frozen features. A recipe's `probe` gives way to `--start`.",
        common=True,
    )
    probe_rounds: Count = setting(
        60, "Rounds of that probing, an epoch each.", "The baseline `probe` has as many.", option=False, common=True
    )
    probe_lr: Annotated[float, Field(ge=0)] = setting(0.1, "Learning rate of that probing.", option=False, common=True)
    robust: Literal["none", "clip", "median", "trimmed", "krum", "multi-krum"] = setting(
        "none",
        "Against malicious clients, for the mean: `none`, `clip`, `median`, `trimmed`, `krum` or `multi-krum`.",
        "See [strangers' updates](security.md#strangers-updates).",
    )
    robust_norm: Positive | None = setting(None, "Clip: largest norm of an update; left out: the median norm of the round.")
    robust_share: Annotated[float, Field(ge=0, lt=0.5)] = setting(
        0.2,
        "Median, trimmed, krum: share of bad updates, below 0.5.",
        "Also of `multi-krum`. It is rounded up.",
        when=("robust", ["median", "trimmed", "krum", "multi-krum"]),
    )
    max_weight: Count = setting(
        1_000_000_000, "Largest example count that is believed.", "An update that claims more is refused.", common=True
    )
    max_bytes: Count = setting(2_147_483_648, "Largest message that is read.", "A longer one is refused.", common=True)
    class_counts: bool = setting(
        False,
        "Sites tell how many of their test rows have and are given each class, so that there is a macro-F1.",
        "That is a histogram of their labels. A simulation has it anyway.",
        option=False,
        common=True,
    )
    max_factor: Annotated[float, Field(gt=1, strict=False)] | Literal["auto", "off"] = setting(
        "auto",
        "Largest update that is believed, in times of the usual one: a number, `auto` or `off`.",
        "The usual one is the running median of those accepted; a state on which most clients fail is taken back. `auto` is 1000 "
        "for [sites](security.md#updates-of-absurd-size) and off in a simulation.",
    )
    codec: Name = setting(
        "identity",
        "Of uploads: `identity`, `quant8`, others.",
        "`quant8` sends differences in 8 bits; others as in `topk:share=0.1+qsgd:levels=7+entropy`: see [codecs](codecs.md).",
        everyday=True,
        common=True,
    )
    download_codec: Name = setting(
        "identity",
        "Of downloads, as `half` or `quant8`: a quantiser, alone or, if it makes levels, with an entropy coder.",
        "Values go down whole, and the server goes on with what arrives of them: see [codecs](codecs.md#downloads).",
        common=True,
    )
    eval_every: Whole = setting(1, "Rounds between scores; 0: only after the last.", everyday=True)
    keep: Literal["last", "best"] = setting(
        "last",
        "The round whose model is exported: `last`, or `best` by its score on the validation rows.",
        "Of rounds that are scored alike the first, and only of those that are scored at all (`eval_every`).",
        option=False,
    )
    stop_after: Count | None = setting(
        None,
        "Stop after so many rounds without a better score on the validation rows.",
        "It is the score by which `keep` chooses, and looked at where a round is scored (`eval_every`). Not for sites.",
        unset="never",
    )
    stop_delta: Annotated[float, Field(ge=0)] = setting(
        0.0, "By how much a score must be better to count as such for `stop_after`.", option=False, when=("stop_after", [])
    )
    diagnostics: bool = setting(
        True,
        "Record the aggregation error, the drift of clients and the effective rank of every round.",
        "[They](methods.md#what-a-round-says-of-its-updates) take the server some milliseconds for each layer with LoRA, more "
        "than 5 % of a round of very few steps, and as much memory as the round's LoRA factors have together.",
        option=False,
    )
    eval_clients: Count | None = setting(
        None, "Score at most so many clients by themselves.", "They are drawn at random each time.", unset="all"
    )
