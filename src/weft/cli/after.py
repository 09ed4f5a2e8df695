"""``weft eval``, ``predict`` and ``export``: what a finished run is good for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.checks.table_files import typed
from weft.cli.listings import Json, show_json
from weft.errors import UserError
from weft.report.console import out
from weft.report.progress import starting
from weft.words import count

if TYPE_CHECKING:
    from weft.export import Predictor
    from weft.export.found import Entity

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of an exported model.")]
Base = Annotated[
    str | None,
    typer.Option(help="Where the frozen backbone is, if not where it was: short name, hub id or folder.", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option(help="Of the frozen backbone: auto, float32 or bfloat16.")]
NewTokens = Annotated[
    int | None, typer.Option(help="Of a model that writes text: longest answer, in tokens.", show_default="as in the run")
]
Temperature = Annotated[
    float | None, typer.Option(help="Of a model that writes text: of sampling; 0 samples nothing.", show_default="as in the run")
]
TopP = Annotated[
    float | None,
    typer.Option(help="Of a model that writes text: sample among tokens of this share.", show_default="as in the run"),
]


def evaluate(
    folder: Folder,
    data: Annotated[str, typer.Option(help="Labelled rows: catalogue name, hub id, file or folder. Labels match by name.")],
    split: Annotated[str | None, typer.Option(help="test, validation or train; the first there is.", show_default=False)] = None,
    image: Annotated[str | None, typer.Option(help="Column of the picture, if the guess is wrong.", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text, if the guess is wrong.", show_default=False)] = None,
    pair: Annotated[str | None, typer.Option(help="Column of a second text.", show_default=False)] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many rows.", show_default=False)] = None,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Score a run's model on other labelled data: accuracy with its 95 % interval, macro-F1, loss; or perplexity and texts.

    [bold]Examples[/bold]

      weft eval runs/fedit-pydocs-minilm-s0 --data more.csv --label area
      weft eval runs/fedit-docstrings-smollm2-s0 --data more.jsonl
    """
    from rich.text import Text

    from weft.cli.grids import grid
    from weft.report.progress import Lines

    screen = out(stderr=as_json)
    with starting(screen, as_json):
        from weft.export import evaluate_run
        from weft.export.predictor import model_folder

        model_folder(folder.expanduser())  # said before the data are read, which takes longer
        found = evaluate_run(
            folder,
            data,
            split=split,
            image=image,
            text=text,
            pair=pair,
            label=label,
            limit=limit,
            base=base,
            device=device,
            precision=precision,
            observer=Lines(screen),
        )
    if as_json:
        show_json(found)
        return
    sizes = {e["n"] for e in found}
    table = grid("", ">value", "95 % interval", *([">rows"] if len(sizes) > 1 else []))
    for e in found:
        interval = f"{e['low']:.3f} to {e['high']:.3f}" if "low" in e else ""
        over = [f"{e['n']:,}"] if len(sizes) > 1 else []
        table.add_row(Text(e["metric"].replace("_", " "), style="cyan"), f"{e['value']:.4f}", interval, *over)
    screen.print(table)
    if found:
        screen.print()
        screen.print(Text(_behind(found), style="dim"), soft_wrap=True)


def _behind(found: Sequence[Mapping[str, Any]]) -> str:
    """Which rows the numbers of an evaluation are over."""
    from weft.tasks import judging

    most = max(e["n"] for e in found)
    written = next((e["n"] for e in found if e["metric"] in judging.TEXT), most)
    why = ""
    if written < most:
        why = f"; texts were written for {written:,} of them, drawn at random (--samples of the run)"
    return f"view {found[0]['view']}, {count(most, 'row')} of {found[0]['people']}, pooled{why}"


def predict(
    folder: Folder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Texts, prompts, or files of pictures; without any, one a line from stdin. Of a model of pairs, each text and "
            "its second one in turn; on stdin with a tab between them.",
            show_default=False,
        ),
    ] = None,
    types: Annotated[
        str, typer.Option(help="Of a model that tags words: look for entities of these types alone, joined by commas.")
    ] = "",
    new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    beams: Annotated[
        int | None,
        typer.Option(help="Of a model that writes text: beams of the search.", show_default="as in the run"),
    ] = None,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Classes of new texts or pictures by a run's model, with its probability; or numbers, entities in texts, or answers.

    [bold]Examples[/bold]

      weft predict runs/fedit-pydocs-minilm-s0 "Open a socket and listen." "Parse a date."
      weft predict runs/fedit-pydocs-minilm-s0 < lines.txt
      weft predict runs/fedit-nli-minilm-s0 "It rains." "The sun shines."
      weft predict runs/fedbf-digits-glyph-vit-s0 one.png two.png
      weft predict runs/feddat-glyph_questions-glyph-vilt-s0 "which colour is the b?" one.png
      weft predict runs/fedit-medicine-minilm-s0 --types Disease,Chemical "Aspirin against headache."
      weft predict runs/fedit-docstrings-smollm2-s0 --new-tokens 40 "def area(r): return 3.14 * r * r"
    """
    from rich.text import Text

    from weft.cli.grids import grid
    from weft.report.progress import Lines

    if not texts and sys.stdin.isatty():
        raise UserError('there is nothing to classify: give texts, as in weft predict RUN "a text", or lines on stdin.')
    for text in texts or ():
        typed(text)
    given = texts or _lines()
    if not given:
        raise UserError('nothing was asked: give texts, as in weft predict RUN "a text", or lines on stdin.')
    screen = out()
    with starting(screen, as_json):
        from weft.export import load

        model = load(folder, base=base, device=device, precision=precision, observer=Lines(out(stderr=True)))
        asked = {"new_tokens": new_tokens, "temperature": temperature, "top_p": top_p, "beams": beams}
        written = {name: value for name, value in asked.items() if value is not None}
        if model.writes:
            if types:
                raise UserError("this model writes text and finds no entities: leave --types out.")
            _answers(model, given, bool(texts), written, as_json)
            return
        if written:
            option = f"--{next(iter(written)).replace('_', '-')}"
            raise UserError(f"this model writes no text, which alone {option} is for: leave it out.")
        words: tuple[str, ...] = (model.about.base.reads.removesuffix("s"),)
        items: list[tuple[str, ...]] = [(text,) for text in given]
        if model.about.pairs or model.pictured:
            words = ("question", "picture") if model.pictured else ("text", "pair")
            items = in_pairs(given, bool(texts), model.pictured)
        if model.tags_words:
            _entities(given, model.entities(given, [kind.strip() for kind in types.split(",") if kind.strip()]), as_json)
            return
        if types:
            raise UserError("this model gives each row a class and finds no entities: leave --types out.")
        given_to = [list(item) if len(words) == 2 else item[0] for item in items]
        if model.gives_numbers:
            _numbers(words, items, model.logits(given_to)[:, 0].tolist(), as_json)
            return
        chances = model.probabilities(given_to).tolist()
    found: list[dict[str, Any]] = [
        {
            **dict(zip(words, item, strict=True)),
            "label": max(zip(row, model.classes, strict=True))[1],
            "probabilities": dict(zip(model.classes, row, strict=True)),
        }
        for item, row in zip(items, chances, strict=True)
    ]
    if as_json:
        show_json(found)
        return
    table = grid("label", ">probability", *words)
    for one in found:
        label = Text(one["label"], style="bold cyan")
        table.add_row(label, f"{one['probabilities'][one['label']]:.2f}", *(Text(one[w]) for w in words))
    screen.print(table)


def _answers(model: Predictor, given: Sequence[str], typed: bool, how: Mapping[str, Any], as_json: bool) -> None:
    """What a language model writes after prompts.

    Lines of the standard input may have an input after a tab, if the rows had one that the model was trained on.
    """
    from rich.text import Text

    from weft.report.console import visible

    apart = bool(model.about.pairs) and not typed
    prompts: list[Any] = [tuple(one.split("\t")) if apart and one.count("\t") == 1 else one for one in given]
    names = ("question", "picture") if model.pictured else ("prompt", "input")
    if model.pictured:
        prompts = in_pairs(list(given), typed, True)
    found = model.generate(prompts, **how)
    both = [one if isinstance(one, tuple) else (one,) for one in prompts]
    if as_json:
        show_json([dict(zip(names, one, strict=False)) | {"text": t} for one, t in zip(both, found, strict=True)])
        return
    for i, (one, text) in enumerate(zip(both, found, strict=True)):
        if i:
            out().print()
        out().print(Text(visible("\t".join(one)), style="bold cyan"), soft_wrap=True)
        out().print(Text(visible(text)), soft_wrap=True)


def _numbers(words: Sequence[str], items: Sequence[tuple[str, ...]], numbers: Sequence[float], as_json: bool) -> None:
    """What a regression gives each row."""
    from rich.text import Text

    from weft.cli.grids import grid

    if as_json:
        show_json([dict(zip(words, item, strict=True)) | {"number": n} for item, n in zip(items, numbers, strict=True)])
        return
    table = grid(">number", *words)
    for item, n in zip(items, numbers, strict=True):
        table.add_row(Text(f"{n:.4g}", style="bold cyan"), *map(Text, item))
    out().print(table)


def _entities(texts: Sequence[str], found: Sequence[Sequence[Entity]], as_json: bool) -> None:
    """What a model of tags finds in texts."""
    from dataclasses import asdict

    from rich.text import Text

    from weft.cli.grids import grid

    if as_json:
        show_json([{"text": text, "entities": [asdict(one) for one in own]} for text, own in zip(texts, found, strict=True)])
        return
    table = grid("type", "entity", "text")
    for text, own in zip(texts, found, strict=True):
        shown = text
        for one in own:
            table.add_row(Text(one.type, style="bold cyan"), Text(one.text), Text(shown))
            shown = ""
        if not own:
            table.add_row(Text("-"), Text("-"), Text(text))
    out().print(table)


def in_pairs(given: list[str], typed: bool, pictured: bool) -> list[tuple[str, ...]]:
    """Two texts each: arguments in turn, or the halves of lines.

    Args:
        pictured: they are questions and pictures.

    Raises:
        UserError: a text without its second one.
    """
    what, each = ("pairs of texts", "text and its second")
    if pictured:
        what, each = ("questions about pictures", "question and its picture")
    if typed and len(given) % 2:
        raise UserError(
            f"this model was trained on {what}, and an odd number of texts was given ({len(given)}): give each {each} in turn."
        )
    found: list[tuple[str, ...]] = [tuple(line.split("\t")) for line in given]
    if typed:
        found = list(zip(given[::2], given[1::2], strict=True))
    odd = next((i for i, pair in enumerate(found, 1) if len(pair) != 2), None)
    if odd is not None:
        raise UserError(
            f"this model was trained on {what}, and line {odd} is no pair: write both on a line, with a tab between them."
        )
    swapped = next((one for one in found if pictured and Path(one[0]).is_file() and not Path(one[1]).is_file()), None)
    if swapped is not None:
        raise UserError(f"{swapped[0]} is a file, and stands where its question should: give each question before its picture.")
    return found


def _lines() -> list[str]:
    """Texts on the standard input, one a line.

    Raises:
        UserError: it is not UTF-8.
    """
    from weft.data.formats import decoded
    from weft.data.separated import NEWLINE

    lines = NEWLINE.split(decoded(sys.stdin.buffer.read(), "the standard input"))
    return [line.strip() for line in lines if line.strip()]


def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="A new folder.")],
    client: Annotated[
        str | None, typer.Option(help="The own model of this client, where the method gives it one.", show_default=False)
    ] = None,
    view: Annotated[str | None, typer.Option(help="One of the method's views.", show_default=False)] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole model, with the adapter in its weights: transformers loads it without PEFT.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="Of a merged model: auto (as the base's files), float32, bfloat16 or float16.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Write the adapter alone, for use elsewhere. It is loaded again and its logits compared before this says it is done.

    Low-rank parts and a head load with plain PEFT (PeftModel.from_pretrained), bottleneck
    adapters with AdapterHub's library where it has the same, anything else with
    weft.export.load; README.md in the folder shows how.

    [bold]Examples[/bold]

      weft export runs/fedit-pydocs-minilm-s0 --to my-adapter
      weft export runs/fedit-docstrings-smollm2-s0 --to my-model --merged
    """
    from dataclasses import asdict

    from rich.text import Text

    screen = out()
    with starting(screen, as_json):
        from weft.export import export_run

        report = export_run(folder, to, client=client, view=view, merged=merged, precision=precision)
    if as_json:
        show_json(asdict(report))
        return
    how = {
        "peft": "PeftModel.from_pretrained",
        "adapters": "load_adapter of AdapterHub's adapters",
        "weft": "weft.export.load",
        "merged": "transformers alone",
    }[report.kind]
    whose = "the federation's model" if report.client is None else f"client {report.client}'s own model"
    screen.print(Text(f"{to}: {whose}, view {report.view}, on {report.base}; loads with {how}."), soft_wrap=True)
    screen.print(
        Text(f"Loaded again: logits of {count(report.rows, 'row')} differ by {report.difference:.1g} at most.", style="dim"),
    )
    for note in report.notes:
        screen.print(Text(note, style="dim"))
    screen.print(Text(", ".join(report.files), style="dim"))
