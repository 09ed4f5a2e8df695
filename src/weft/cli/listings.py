"""``weft methods``, ``data``, ``models`` and ``env``: what there is. Lists must stay instant: no torch before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weft.errors import UserError
from weft.report.console import out

if TYPE_CHECKING:
    from weft.data import FederatedData

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, in full.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Size it for this backbone: elements trained, bytes per round.", show_default=False),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, max=1000, help="With --model: clients that take part in a round.")] = 8,
    classes: Annotated[int, typer.Option(min=2, max=100_000, help="With --model: classes that the head tells apart.")] = 12,
    family: Annotated[
        str | None,
        typer.Option(help="List those of one family: reparameterized, adapters, prompts, selective or full.", show_default=False),
    ] = None,
    needs: Annotated[str | None, typer.Option(help="List those that need this: images, say.", show_default=False)] = None,
    challenge: Annotated[str | None, typer.Option(help="List those that address this.", show_default=False)] = None,
    privacy: Annotated[
        bool,
        typer.Option("--privacy", help="List which mechanism of --privacy keeps its promise over which method, and why not."),
    ] = False,
    as_json: Json = False,
) -> None:
    """The published methods: paper, what each addresses, and what leaves the client.

    [bold]Examples[/bold]

      weft methods                        all of them, by family
      weft methods --family prompts       those of one family
      weft methods flora                  one: settings with defaults, what travels, what it reveals
      weft methods flora --model minilm   the same, with elements and bytes for that backbone
      weft methods --privacy              which can be hidden by what
    """
    from dataclasses import asdict

    from weft.cli import cards, matrix
    from weft.methods import registry

    filters = {"family": family, "needs": needs, "challenge": challenge}
    if name is None:
        from weft.methods.filters import chosen

        infos = list(chosen(registry.infos(), **filters).values())
        if privacy:
            matrix.show(out(), [info.slug for info in infos], as_json)
        elif as_json:
            show_json([asdict(info) for info in infos])
        else:
            cards.method_list(out(), infos)
            for fault in registry.broken():
                out(stderr=True).print(f"Left out: {fault.reason}", style="yellow", markup=False)
        return
    if given := [f"--{option}" for option, word in filters.items() if word is not None]:
        raise UserError(f"{' and '.join(given)} choose among all methods: leave out the name {name}, or the options.")
    if privacy:
        matrix.show(out(), [registry.info(name).slug], as_json)
        return
    info = registry.info(name)
    method = registry.build(name)
    settings = registry.parameters(type(method))
    sizes = None
    if model is not None:
        from weft.cli.sizes import made_up, measure

        sizes = measure(method, *made_up(model, clients, classes, info.needs))
    if as_json:
        listed = [
            {"name": s.name, "type": s.type, "default": _plain(s.default), "doc": s.doc}
            | ({"choices": s.choices} if s.choices else {})
            for s in settings
        ]
        show_json(asdict(info) | {"sums": method.sums, "settings": listed} | ({"sizes": asdict(sizes)} if sizes else {}))
    else:
        cards.method_card(out(), method, settings, sizes)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def data(
    name: Annotated[
        str | None,
        typer.Argument(help="A name from the list, a hub id, or a local file or folder.", show_default=False),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 8,
    partition: Annotated[
        str,
        typer.Option(help="auto (natural where the set has a key, else dirichlet), iid, dirichlet, pathological or natural."),
    ] = "auto",
    alpha: Annotated[float, typer.Option(help="Dirichlet: 0.1 is very skewed, 100 nearly even.")] = 0.5,
    classes_per_client: Annotated[int, typer.Option(help="Pathological: classes that each client holds.")] = 2,
    new_clients: Annotated[int, typer.Option(help="Further clients that are tested on but never trained.")] = 0,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Test on this natural key as a new client, never train on it; may be repeated.", show_default=False),
    ] = None,
    keyless: Annotated[
        str, typer.Option(help="Rows without a natural key, in a natural deal: leave-out, or apart (as one more key).")
    ] = "leave-out",
    min_rows: Annotated[int, typer.Option(help="Fewest rows a client may get.")] = 1,
    limit: Annotated[int | None, typer.Option(help="Use at most so many rows of each split.", show_default=False)] = None,
    image: Annotated[str | None, typer.Option(help="Column of the picture, if the guess is wrong.", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text, if the guess is wrong.", show_default=False)] = None,
    pair: Annotated[str | None, typer.Option(help="Column of a second text.", show_default=False)] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label.", show_default=False)] = None,
    key: Annotated[str | None, typer.Option(help="Column of the natural client.", show_default=False)] = None,
    core: Annotated[
        int, typer.Option(min=0, help="Of sequences of items: leave out users and items with fewer interactions.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the deal.")] = 0,
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Draw the deal into this file (PNG).", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """The data sets, or how one of them is dealt out to clients: a client × label table, and a picture with --out.

    [bold]Examples[/bold]

      weft data                                          what is there
      weft data pydocs --out deal.png                    eight clients, whole modules each, and a picture of it
      weft data ag_news --clients 20 --alpha 0.3         label skew
      weft data reviews.csv --text body --label stars    your own file: csv, jsonl or parquet
      weft data ./pacs --clients 3 --leave-out sketch    a folder of domain/class/picture, one domain for testing
    """
    from weft.cli import cards

    if name is None:
        from dataclasses import asdict

        from weft.data import catalogue

        if as_json:
            show_json([asdict(entry) for entry in catalogue()])
        else:
            cards.data_list(out(), catalogue())
        return
    from weft.cli.deals import deal_record, show_deal
    from weft.data import load
    from weft.data import partition as deal

    columns: dict[str, Any] = {"image": image, "text": text, "pair": pair, "label": label, "key": key}
    source = load(name, seed=seed, **columns, limit=limit, wanted="any", core=core)
    dealt = deal(
        source,
        clients=clients,
        scheme=partition,
        alpha=alpha,
        classes_per_client=classes_per_client,
        seed=seed,
        min_rows=min_rows,
        new_clients=new_clients,
        leave_out=leave_out or (),
        keyless=keyless,
    )
    if not as_json:
        show_deal(out(), dealt)
    problem = None if out_ is None else _drawn(dealt, out_)  # whatever becomes of it, there is the table
    if as_json:
        show_json(deal_record(dealt) | {"picture": None if out_ is None or problem else str(out_)})
    if problem:
        raise UserError(f"the picture was not drawn ({problem}): give --out another file.")
    if out_ is not None and not as_json:
        typer.echo(f"Picture: {out_}")


def _drawn(dealt: FederatedData, path: Path) -> str | None:
    """Draw a deal; why that was not possible, if so."""
    from weft.data import picture

    try:
        picture(dealt, path)
    except Exception as error:  # of matplotlib, which raises all kinds
        return str(error).strip().split("\n")[0][:200] or type(error).__name__
    return None


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One backbone: what was found in it. A name from the list, a hub id or a local folder.", show_default=False
        ),
    ] = None,
    task: Annotated[
        Literal["auto", "classification", "similarity", "fill", "tokens", "generation", "masked"],
        typer.Option(metavar="TASK", help="auto, classification, similarity (a CLIP), fill, tokens, generation or masked."),
    ] = "auto",
    blocks: Annotated[str, typer.Option(help="Path of its list of blocks, if the guess is wrong.", show_default=False)] = "",
    roles: Annotated[
        str,
        typer.Option(help="Roles of linear layers by the ends of their names: Wqkv=q+k+v,wo=o,skip=none.", show_default=False),
    ] = "",
    head: Annotated[str, typer.Option(help="Names of the modules that make its head, by commas.", show_default=False)] = "",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a hub backbone run its own Python code.", show_default=False)
    ] = False,
    as_json: Json = False,
) -> None:
    """The backbones known by a short name, or what was found in one of them; any hub id or local folder does too.

    [bold]Examples[/bold]

      weft models                                        what is there
      weft models minilm                                 its blocks, linear layers by role, biases, head
      weft models smollm2 --task generation              the same of a model that writes
      weft models ./my-folder --roles Wqkv=q+k+v,wo=o    with a wrong guess put right
      weft run --model ./my-folder --roles Wqkv=q+k+v,wo=o
    """
    from dataclasses import asdict

    from weft.backbones.short_names import KNOWN
    from weft.cli import cards

    if name is not None:
        from weft.cli.backbone_card import backbone_card
        from weft.report.progress import starting

        with starting(out(stderr=as_json), as_json):
            from weft.backbones.inventory import inventory
            from weft.backbones.load import load

            found = inventory(
                load(
                    name,
                    classes=("one", "two"),
                    device="cpu",
                    precision="float32",
                    task=task,
                    blocks=blocks,
                    roles=roles,
                    head=head,
                    trust_remote_code=trust_remote_code,
                )
            )
        show_json(found) if as_json else backbone_card(out(), found)
    elif as_json:
        show_json([asdict(k) | {"installed": cards.installed(k.package)} for k in KNOWN.values()])
    else:
        cards.model_list(out(), list(KNOWN.values()))


def env(as_json: Json = False) -> None:
    """Versions, threads and device, for bug reports."""
    from weft.backbones.hardware import pick_device, pick_precision
    from weft.cli.grids import facts
    from weft.runs.provenance import environment

    device = pick_device("auto")
    found = environment(str(device)) | {"precision": str(pick_precision("auto", device)).removeprefix("torch.")}
    if as_json:
        show_json(found)
        return
    versions = {name: value or "not installed" for name, value in found.pop("versions").items()}
    facts(out(), found | versions)
