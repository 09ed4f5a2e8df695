"""``weft merge``: several adapters as one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from weft.cli.listings import Json, show_json
from weft.errors import UserError
from weft.report.console import out
from weft.report.progress import starting
from weft.words import count


def merge(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...",
            help="Folders of PEFT LoRA adapters of one base, exported by Weft or saved by PEFT; or of finished runs.",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="One for each adapter, as they are: 1,1 adds up, 0.5,0.5 is a mean.",
            show_default="equal shares of 1, a plain mean",
        ),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide the weights by their sum: numbers of examples give a federated mean.")
    ] = False,
    rank: Annotated[
        int | None,
        typer.Option(help="Cut each module to the best so many ranks, by SVD.", show_default="the sum of all ranks, exactly"),
    ] = None,
    to: Annotated[Path, typer.Option("--to", "-o", help="A new folder.")] = Path("merged-adapter"),
    as_json: Json = False,
) -> None:
    """Add up LoRA adapters of one base, exactly, or cut to a rank: any mix of ranks, scales and modules.

    The result is a PEFT folder: its factors are the adapters' own, stacked, so that it
    is their weighted sum and no mean of factors. Heads are averaged, in the same proportions.

    [bold]Examples[/bold]

      weft merge north south east -o all
      weft merge north south --weights 1200,800 --normalise --rank 16 -o all
      weft merge runs/fedit-pydocs-minilm-s0 --rank 4 -o smaller
    """
    from dataclasses import asdict

    from rich.text import Text

    screen = out()
    chosen = None if weights is None else _numbers(weights)
    with starting(screen, as_json):
        from weft.export import merge as merged

        report = merged(adapters, to, weights=chosen, normalise=normalise, rank=rank)
    if as_json:
        show_json(asdict(report))
        return
    low, high = min(report.ranks.values()), max(report.ranks.values())
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    what = f"{count(len(report.adapters), 'adapter')} of {report.base or 'a base without a name'}"
    screen.print(Text(f"{to}: {what}, {count(len(report.ranks), 'module')} of {ranks}."), soft_wrap=True)
    shares = ", ".join(f"{w:.4g}" for w in report.weights)
    screen.print(Text(f"Weights: {shares}.", style="dim"), soft_wrap=True)
    if not normalise and abs(total := sum(report.weights)) and abs(total - 1) > 1e-6:
        line = f"They add up to {total:.4g}, and so many times a mean is what this is: --normalise makes a mean."
        screen.print(Text(line, style="dim"), soft_wrap=True)
    if report.saved:
        screen.print(Text(f"Averaged: {', '.join(report.saved)}.", style="dim"), soft_wrap=True)
    if report.worst is None:
        screen.print(Text("Exact: every factor is kept, rounded once to float32.", style="dim"))
    else:
        name, error = report.worst
        line = f"Cut: relative error {report.error:.3g} over all modules; at most {error:.3g}, at {name}."
        screen.print(Text(line, style="dim"), soft_wrap=True)
    screen.print(Text(", ".join(report.files), style="dim"))
    screen.print(
        Text(f"Load it with PEFT, or go on from it: weft run --start {shlex.quote(str(to))} …", style="dim"), soft_wrap=True
    )


def _numbers(text: str) -> list[float]:
    """Numbers that commas join.

    Raises:
        UserError: one is none.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f'weights are "{text}", but must be numbers joined by commas, as in --weights 1,2,0.5.') from None
