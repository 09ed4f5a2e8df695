"""``weft audit``: what can be learnt from what a run has sent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from weft.cli.listings import Json, show_json
from weft.errors import UserError
from weft.report.console import out
from weft.report.progress import starting


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    attack: Annotated[
        Literal["tokens"],
        typer.Option(help="`tokens`: the words of texts, out of the activations that clients of split learning (fedbert) send."),
    ] = "tokens",
    noise: Annotated[
        str | None,
        typer.Option(
            metavar="SD,SD,...",
            help="Standard deviations of noise that clients add to what they send, each tried.",
            show_default="the run's own",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Training rows of each client at most.")] = 32,
    as_json: Json = False,
) -> None:
    """Attack the clients of a finished run, as one who sees what they send and knows the model does.

    [bold]Examples[/bold]

      weft audit runs/fedbert-docstrings-docs-mlm-s0
      weft audit runs/fedbert-docstrings-docs-mlm-s0 --noise 0,0.5,1,2
    """
    from dataclasses import asdict

    from rich.text import Text

    screen = out(stderr=as_json)
    with starting(screen, as_json):
        from weft.audits import token_recovery

        found = token_recovery.audit(run, () if noise is None else _numbers(noise), rows)
    if as_json:
        show_json({"attack": attack, "results": [asdict(one) | {"share": one.share} for one in found]})
        return
    for one in found:
        line = f"noise {one.noise:g}: {one.found:,} of {one.tokens:,} tokens recovered ({one.share:.1%})."
        screen.print(Text(line), soft_wrap=True)
    what = f"what clients send has a root mean square of {found[0].scale:.2g}"
    screen.print(Text(f"Hidden and special tokens are not counted; {what}.", style="dim"), soft_wrap=True)


def _numbers(text: str) -> list[float]:
    """
    Raises:
        UserError: one of those that commas join is none.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f'noise is "{text}", but must be numbers joined by commas, as in --noise 0,0.5,1.') from None
