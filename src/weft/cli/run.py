"""``weft run`` and ``weft resume``: train a federation and watch it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli.errors import out
from weft.cli.progress import starting, watching

if TYPE_CHECKING:
    from rich.console import Console

    from weft.runs.result import Run

WHAT, DEAL, ROUNDS, MACHINE, OUTPUT = "What", "Data and its deal", "Federation", "Machine", "Output"


def _option(panel: str, help: str, default: str = "", *flags: str) -> Any:
    """An option that stays None unless it is typed, so that recipes and files can have their say."""
    told = rf"{help} [dim]\[default: {default}][/dim]" if default else help
    return typer.Option(*flags, help=told, rich_help_panel=panel, show_default=False)


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=OUTPUT)]
Json = Annotated[
    bool, typer.Option("--json", help="Print summary.json on stdout and nothing else there.", rich_help_panel=OUTPUT)
]


def run(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[EXPERIMENT.toml]", help="Settings in a file; those typed here win.", show_default=False),
    ] = None,
    method: Annotated[str | None, _option(WHAT, "Slug of a method: weft methods lists them.", "fedit", "--method", "-m")] = None,
    model: Annotated[
        str | None,
        _option(WHAT, "Backbone: short name, hub id or local folder; several by commas, dealt to clients in turn.", "minilm"),
    ] = None,
    task: Annotated[
        str | None,
        _option(WHAT, "auto, classification (linear head) or similarity (a CLIP and the names of the classes).", "auto"),
    ] = None,
    template: Annotated[
        str | None, _option(WHAT, "Similarity: the sentence around the name of a class.", "a photo of a {}.")
    ] = None,
    blocks: Annotated[
        str | None, _option(WHAT, "Path of the backbone's list of blocks, if weft models NAME shows a wrong one.")
    ] = None,
    roles: Annotated[
        str | None, _option(WHAT, "Roles of its linear layers by the ends of their names, as Wqkv=q+k+v,wo=o,skip=none.")
    ] = None,
    head: Annotated[str | None, _option(WHAT, "Names of the modules that make its head, joined by commas.")] = None,
    data: Annotated[str | None, _option(WHAT, "Data set: name, hub id, local file or folder.", "pydocs")] = None,
    baseline: Annotated[
        str | None,
        _option(
            WHAT, "Run this instead: local (each client alone), central (all rows in one place), probe (linear head), zero-shot."
        ),
    ] = None,
    baselines: Annotated[
        str | None, _option(WHAT, "Run these beside it, joined by commas; none for no comparison.", "none")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting, for instance method.rank=16 or method.lr=1e-3; as often as you like.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    recipes: Annotated[
        bool | None,
        _option(WHAT, "Use the recipe for backbone and data, where there is one.", "recipes", "--recipes/--no-recipes"),
    ] = None,
    clients: Annotated[int | None, _option(DEAL, "Number of clients.", "8")] = None,
    partition: Annotated[
        str | None, _option(DEAL, "auto, iid, dirichlet, pathological or natural (whole keys to one client).", "auto")
    ] = None,
    alpha: Annotated[float | None, _option(DEAL, "Dirichlet: 0.1 is very skewed, 100 nearly even.", "0.5")] = None,
    classes_per_client: Annotated[int | None, _option(DEAL, "Pathological: classes of a client.", "2")] = None,
    min_rows: Annotated[int | None, _option(DEAL, "Fewest rows of a client.", "1")] = None,
    new_clients: Annotated[int | None, _option(DEAL, "Further clients, tested on but never trained.", "0")] = None,
    leave_out: Annotated[
        list[str] | None, _option(DEAL, "Test on this natural key as a new client, never train on it; may be repeated.")
    ] = None,
    keyless: Annotated[
        str | None,
        _option(DEAL, "Rows without a natural key, in a natural deal: leave-out, or apart (as one more key).", "leave-out"),
    ] = None,
    limit: Annotated[int | None, _option(DEAL, "Use at most so many rows of each split.")] = None,
    image: Annotated[str | None, _option(DEAL, "Column of the picture, if the guess is wrong.")] = None,
    text: Annotated[str | None, _option(DEAL, "Column of the text, if the guess is wrong.")] = None,
    pair: Annotated[str | None, _option(DEAL, "Column of a second text.")] = None,
    label: Annotated[str | None, _option(DEAL, "Column of the label.")] = None,
    key: Annotated[str | None, _option(DEAL, "Column of the natural client.")] = None,
    rounds: Annotated[int | None, _option(ROUNDS, "Exchanges between server and clients.", "10", "--rounds", "-r")] = None,
    participation: Annotated[float | None, _option(ROUNDS, "Share of the clients drawn for a round, 0 to 1.", "1.0")] = None,
    dropout: Annotated[float | None, _option(ROUNDS, "Chance that a client fails in the middle of its turn.", "0.0")] = None,
    start_head: Annotated[
        str | None, _option(ROUNDS, "random, or probe: warmed up by federated linear probing, billed as set-up.", "random")
    ] = None,
    codec: Annotated[str | None, _option(ROUNDS, "Of uploads: identity or quant8 (8-bit differences).", "identity")] = None,
    robust: Annotated[
        str | None,
        _option(ROUNDS, "Against malicious clients, for the mean: none, clip, median, trimmed, krum or multi-krum.", "none"),
    ] = None,
    robust_norm: Annotated[float | None, _option(ROUNDS, "Clip: largest norm of an update; left out: the median norm.")] = None,
    robust_share: Annotated[
        float | None, _option(ROUNDS, "Median, trimmed, krum: share of bad updates, below 0.5.", "0.2")
    ] = None,
    max_weight: Annotated[int | None, _option(ROUNDS, "Largest example count that is believed.", "1000000000")] = None,
    max_bytes: Annotated[int | None, _option(ROUNDS, "Largest message that is read.", "2147483648")] = None,
    seed: Annotated[int | None, _option(ROUNDS, "Of everything random.", "0")] = None,
    eval_every: Annotated[int | None, _option(ROUNDS, "Rounds between evaluations; 0: only after the last.", "1")] = None,
    eval_clients: Annotated[int | None, _option(ROUNDS, "Score at most so many clients by themselves.", "all")] = None,
    pack: Annotated[str | None, _option(MACHINE, "Clients trained in one pass, or auto (from memory).", "auto")] = None,
    device: Annotated[str | None, _option(MACHINE, "auto, cpu, cuda or mps.", "auto")] = None,
    precision: Annotated[str | None, _option(MACHINE, "Of the frozen backbone: auto, float32 or bfloat16.", "auto")] = None,
    max_length: Annotated[int | None, _option(MACHINE, "Tokens of a row; the rest is cut off.", "128")] = None,
    prefix_cache: Annotated[
        str | None, _option(MACHINE, "auto or off: compute frozen lower layers once per row.", "auto")
    ] = None,
    by_length: Annotated[
        bool | None, _option(MACHINE, "Batches of rows of like length.", "by-length", "--by-length/--no-by-length")
    ] = None,
    engine: Annotated[
        str | None,
        _option(
            MACHINE,
            "simulation; ray: packs on all cores, GPUs or machines that Ray has; flower: every client a process of its own.",
            "simulation",
        ),
    ] = None,
    debug: Annotated[
        bool | None, _option(MACHINE, "Clients one by one; errors say stage, client and batch.", "", "--debug")
    ] = None,
    trust_remote_code: Annotated[
        bool | None, _option(MACHINE, "Let a hub backbone run its own Python code.", "", "--trust-remote-code")
    ] = None,
    name: Annotated[str | None, _option(OUTPUT, "Of the run's folder.", "METHOD-DATA-MODEL-sSEED")] = None,
    runs: Annotated[str | None, _option(OUTPUT, "The folder above it.", "runs")] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="Run so often and check that the numbers are the same.", rich_help_panel=OUTPUT)
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print plan, sizes and bytes, train nothing.", rich_help_panel=OUTPUT),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a federation. Without arguments: fedit on minilm and pydocs with 8 clients, offline, in a few minutes.

    [bold]Examples[/bold]

      weft run
      weft run --method flora --set method.rank=8
      weft run --model roberta-base --data ag_news --clients 20 --alpha 0.3
      weft run --data reviews.csv --text body --label stars
      weft run experiment.toml --seed 1

    Settings come from the method's paper. A recipe for the backbone and data lies
    over them where there is one, and what you type over both; what differs
    from the paper is printed first. Results go to runs/NAME.
    """
    from weft import experiment

    typed = _typed(context, experiment.Experiment.model_fields) | dict(experiment.assignment(s) for s in set_ or ())
    screen = out(stderr=as_json)
    with starting(screen, quiet):
        resolved = experiment.resolve(typed, experiment.read(file) if file else None)
        from weft.cli import plan
        from weft.runs import execute
    if not quiet:
        plan.header(screen, resolved)
    if dry_run:
        with watching(screen, quiet) as observer:
            plan.rehearse(out(), resolved, as_json, observer)
        return
    with watching(screen, quiet) as observer:
        done = execute.start(resolved, observer=observer, repeat=repeat)
    show(done, screen, quiet, as_json)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, such as runs/fedit-pydocs-minilm-s0.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed; the numbers are those of a run that never was.

    [bold]Example[/bold]

      weft resume runs/fedit-pydocs-minilm-s0
    """
    screen = out(stderr=as_json)
    with starting(screen, quiet):
        from weft.runs import execute
        from weft.runs.result import load_run

        before = load_run(folder)
    with watching(screen, quiet) as observer:
        for line in before.rounds:
            observer.round_done(line)
        done = execute.resume(folder, observer=observer)
    show(done, screen, quiet, as_json)


def _typed(context: typer.Context, fields: Iterable[str]) -> dict[str, Any]:
    """The options that were given, by the names of the experiment's fields, which they share."""
    given = {n: v for n, v in context.params.items() if n in fields and v not in (None, [])}
    if "pack" in given and given["pack"].isdecimal():
        given["pack"] = int(given["pack"])
    if "baselines" in given:
        given["baselines"] = [] if given["baselines"] == "none" else given["baselines"].split(",")
    return given


def show(done: Run, screen: Console, quiet: bool, as_json: bool) -> None:
    """The outcome: for programs, for people, or not at all."""
    if as_json:
        typer.echo((done.folder / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        from weft.cli import plan

        plan.outcome(screen, done)
        plan.farewell(screen, done)
