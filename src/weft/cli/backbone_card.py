"""How the description of one backbone looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from weft.cli.grids import facts, grid

if TYPE_CHECKING:
    from rich.console import Console

POOLED = {"first": "the first token", "last": "the last token of a row", "all": "all tokens"}


def backbone_card(out: Console, found: dict[str, Any]) -> None:
    """What :func:`weft.backbones.inventory.inventory` found."""
    blocks, norms, biases, head = found["blocks"], found["norms"], found["biases"], found["head"]
    tokens = f", {blocks['tokens_of_a_picture']} tokens a picture" if blocks["tokens_of_a_picture"] else ""
    read = "what the encoders make of a picture, side by side" if found["encoders"] else POOLED[head["reads"]]
    outside = f" and {', '.join(norms['outside'])}" if norms["outside"] else ""
    out.print(Text.assemble((found["name"], "bold cyan"), f"  {found['type']}, {found['class']}"))
    facts(
        out,
        {
            "parameters": f"{found['parameters']:,}",
            "reads": found["reads"],
            "task": found["task"],
            "input": "not found" if found["input"] is None else _site(found["input"]),
            "blocks": f"none, {blocks['hidden_size']} features of a picture"
            if not blocks["count"]
            else f"{blocks['count']} in {blocks['path']}, hidden size {blocks['hidden_size']}{tokens}",
            **{f"encoder {i}": _encoder(one) for i, one in enumerate(found["encoders"], 1)},
            "norms": f"{norms['in_blocks']} in blocks{outside}",
            "biases": f"{biases['vectors']} vectors, {biases['elements']:,} elements",
            "bottlenecks": f"{found['bottlenecks']['count']}, {found['bottlenecks']['place']}",
            "other linear layers": ", ".join(map(_site, found["outside"])) or "none",
            **(
                {"head": ", ".join(map(_site, head["modules"])) or "none", "head reads": read}
                if found["output_layer"] is None
                else {"output layer": _output(found["output_layer"])}
            ),
            "checked": _checked(found["checked"]),
        },
    )
    if blocks["count"]:
        _linears(out, "Linear layers of a block", found["linears"])
    tower = found["text_tower"]
    if tower is not None:
        _linears(out, f"Text tower: {tower['blocks']['count']} blocks in {tower['blocks']['path']}", tower["linears"], "text.")
    for note in found["notes"]:
        out.print()
        out.print(Text(note, style="yellow"))
    if found["encoders"]:
        return
    out.print()
    out.print(Text("Wrong? --blocks, --roles and --head put it right, here and in weft run.", style="dim"))


def _linears(out: Console, title: str, linears: list[dict[str, Any]], prefix: str = "") -> None:
    out.print()
    out.print(Text(title, style="bold"))
    table = grid("role", "name", ">from", ">to", "bias", ">count")
    for s in linears:
        role = "+".join(prefix + r for r in s["role"].split("+"))
        table.add_row(
            Text(role, style="cyan"), s["name"], str(s["d_in"]), str(s["d_out"]), "yes" if s["bias"] else "-", str(s["count"])
        )
    out.print(table)


def _encoder(one: dict[str, Any]) -> str:
    return f"{one['name']} ({one['type']}), {one['features']} features of {one['height']}×{one['width']} pixels"


def _output(layer: dict[str, Any]) -> str:
    read = "read in chunks" if layer["plain"] else "its logits are changed further, so that all of an answer's are made at once"
    return f"{layer['name']}, {layer['size']:,} tokens; {read}"


def _checked(found: dict[str, Any]) -> str:
    words = [f"{found['tensors']} tensors, all there and finite"]
    if found["tokens"] is not None:
        words.append(f"{found['tokens']:,} tokens for {found['rows_of_the_embedding']:,} rows of the embedding")
    if found["longest_row"] is not None:
        words.append(f"rows of up to {found['longest_row']:,} tokens")
    return "; ".join(words)


def _site(site: dict[str, Any]) -> str:
    return f"{site['name']} ({site['d_in']} → {site['d_out']})"
