"""Settings of the data: where they are, what their columns mean, and how rows are dealt out to clients."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from weft.experiment.declare import Count, Fraction, Group, Name, Names, Positive, Share, Whole, setting


def _apart(given: Any) -> Any:
    """Pairs of languages that were typed in one word, joined by commas."""
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return given
    return [pair.strip() for word in words for pair in word.split(",") if pair.strip()]


class Deal(Group):
    """The data and how they are dealt out, see :func:`weft.data.partition`."""

    title: ClassVar[str] = "Data and its deal"

    data: Name = setting("pydocs", "Data set: name, hub id, local file or folder.", everyday=True)
    classes: Names = setting(
        [],
        "The label set, in the order of the indices.",
        "A [real federation](deployment.md) has to declare it, and a row with any other label is refused.",
        unset="those of the data, in alphabetical order",
        option=False,
        common=True,
    )
    image: str | None = setting(None, "Column of the picture, if the guess is wrong.", unset="guessed")
    text: str | None = setting(None, "Column of the text, if the guess is wrong.", unset="guessed", everyday=True)
    pair: str | None = setting(None, "Column of a second text.", unset="guessed")
    label: str | None = setting(None, "Column of the label.", unset="guessed", everyday=True)
    key: str | None = setting(None, "Column of the natural client.", unset="guessed")
    pairs: Annotated[list[str], Field(strict=False), BeforeValidator(_apart)] = setting(
        [],
        "Translations: the directions that are read, joined by commas, as `en-de,de-en,en-fr`.",
        "Of aligned sentences, each training row goes to one of them, in turns: see [translations](data.md#translations).",
        unset="that of the data",
    )
    limit: Count | None = setting(None, "Use at most so many rows of each split.", everyday=True)
    core: Whole = setting(
        0,
        "Next item: leave out users and items with fewer interactions, until none is left that has; 5 is usual.",
        "Of the sequences in files; `0` leaves all in, but for users of fewer than three items.",
        common=True,
    )
    public: Name | None = setting(
        None,
        "Public rows that the server itself trains on, if the method does so: name, hub id, local file or folder.",
        "Their training split is taken. No client gets them, and rows that are among `data` too are left out: see "
        "[public rows](data.md#public-rows-at-the-server).",
        unset="none",
    )
    public_rows: Count | None = setting(None, "Use at most so many public rows, drawn at random.", unset="all")
    clients: Count = setting(8, "Number of clients.", everyday=True)
    partition: Literal["auto", "iid", "dirichlet", "pathological", "natural"] = setting(
        "auto",
        "`auto`, `iid`, `dirichlet`, `pathological` or `natural`.",
        "`natural` gives whole keys to one client; `auto` is natural where the data have clients of their own, else dirichlet.",
        everyday=True,
    )
    alpha: Positive = setting(
        0.5, "Dirichlet: 0.1 is very skewed, 100 nearly even.", everyday=True, when=("partition", ["dirichlet"])
    )
    classes_per_client: Count = setting(2, "Pathological: classes of a client.", when=("partition", ["pathological"]))
    min_rows: Whole = setting(1, "Fewest rows of a client.")
    new_clients: Whole = setting(0, "Further clients, tested on but never trained.")
    leave_out: Names = setting(
        [],
        "Test on this natural key as a new client, never train on it; may be repeated.",
        "A natural key is, for instance, a domain.",
    )
    shots: Count | None = setting(
        None, "Few-shot: at most so many training rows of each class at each client, drawn by the seed.", unset="all"
    )
    views: Whole = setting(
        0,
        "Augmentation: train on so many random crops of each picture, in turns, in the place of the picture; 0: on the picture.",
        "Each is made once, and what lies below the parts is computed once for each. Tests are on the pictures themselves.",
        common=True,
    )
    view_scale: Share = setting(
        0.08, "Smallest share of a picture's area in a view.", common=True, option=False, when=("views", [])
    )
    view_flip: bool = setting(True, "Mirror every other view.", common=True, option=False, when=("views", []))
    novel: Fraction = setting(
        0.0,
        "Base-to-novel: this share of the classes, the last ones, is never trained on, and tested on apart.",
        "A row is told apart among the classes of its own side; see [protocols](data.md#few-shots-and-new-classes).",
    )
    test_on: Names = setting(
        [],
        "Cross-dataset: test on this set too, by the names of its classes; may be repeated.",
        "Never trained on; a row is told apart among the classes of its own set.",
    )
    periods: Count = setting(
        1,
        "Rows arrive in so many periods: in each, clients train on new ones, and never again on earlier ones.",
        "Rounds are shared out among periods; forgetting and backward transfer are told. See [periods](data.md#periods).",
        common=True,
    )
    periods_by: Literal["classes", "own-classes", "keys", "rows"] = setting(
        "classes",
        "What arrives in a period: `classes`, the same for all clients; `own-classes`; natural `keys`; or `rows` at random.",
        common=True,
        when=("periods", []),
    )
    incremental: Literal["class", "task"] = setting(
        "class",
        "`class`: a row is told apart among all classes; `task`: among those of its own period alone.",
        common=True,
        when=("periods", []),
    )
    keyless: Literal["leave-out", "apart"] = setting(
        "leave-out",
        "Rows without a natural key, in a natural deal: `leave-out`, or `apart` (as one more key).",
        when=("partition", ["natural"]),
    )
    label_spaces: Literal["own", "all"] = setting(
        "own",
        "Of tags: a row is trained and scored among the types of its natural client (`own`), or among `all`.",
        "`own` suits corpora that were labelled with different types, `all` clients that labelled alike.",
        option=False,
        common=True,
        when=("task", ["tokens"]),
    )
    val_fraction: Fraction = setting(
        0.1, "Share of a client's rows to validate on, stratified by natural key and label.", option=False, common=True
    )
    test_fraction: Fraction = setting(
        0.2,
        "Share of a client's rows to test on, likewise.",
        "None are taken where the data have test rows of their own.",
        option=False,
        common=True,
    )
