"""Export a trained model: written, re-loaded and compared before it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft import distribution
from weft.backbones.backbone import Backbone
from weft.backbones.load import load as load_backbone
from weft.backbones.reply_table import Replies
from weft.data.rows import BOTH
from weft.errors import UserError, WeftError
from weft.export import adapterhub_files, language_card, peft_files, peft_ia3, peft_prompts, weft_files
from weft.export.about import About, Base, brings_code, hashes, settings_of
from weft.export.card import card, ours, plain
from weft.export.trained import Trained, capture, not_finite, untrained
from weft.federation.bench import Bench
from weft.federation.common_facts import nobody
from weft.federation.exchange import DIVERGED
from weft.federation.info import common
from weft.storage import files

if TYPE_CHECKING:
    from weft.backbones.run_table import Table
    from weft.federation.client import ClientState
    from weft.federation.method import Method
    from weft.federation.server import ServerState

TOLERANCE = 1e-4
"""Largest difference of a re-loaded model's logits from the run's, as a share of the largest logit (at least 1); float32."""
ROWS = 8
"""Rows that are compared, from the shortest to the longest of the run's data."""
OTHER_KINDS = (peft_prompts, peft_ia3)
"""Of PEFT's adapters beside LoRA: who writes and reads them."""
OTHERWISE = "PEFT's forward pass gives other logits on this architecture, or does not run there"


@dataclass(frozen=True)
class ExportReport:
    """What an export is, and how well it came back.

    Attributes:
        kind: ``peft`` (loads with ``PeftModel.from_pretrained``), ``adapters`` (loads with AdapterHub's library of this name),
            ``weft`` (loads with :func:`weft.export.load`) or ``merged`` (a whole model, loads with transformers alone).
        view: the way to predict. client: whose model; None = the server's.
        base: hub id or folder of the base. sha256: of its weights.
        rows: compared. difference: largest of their logits, re-loaded against the run's. tolerance: that was allowed.
        files: written. notes: sentences for people.
    """

    kind: str
    view: str
    client: str | None
    base: str
    sha256: str
    rows: int
    difference: float
    tolerance: float
    files: list[str]
    notes: list[str]


def export(
    method: Method,
    server: ServerState,
    folder: Path,
    info: Mapping[str, Any],
    *,
    client: ClientState | None = None,
    view: str | None = None,
) -> ExportReport:
    """Write the model of a run into ``folder``, load it anew in float32 and compare its logits.

    Parts that are low-rank, and a head, make a PEFT LoRA adapter; soft words, a prefix or scales make one of their kind, where
    PEFT predicts the same; bottleneck adapters make one of AdapterHub's, where its library has them at the same place; anything
    else goes to ``weft_adapter.*``. ``weft.json`` lies beside each, with base, classes and method.

    Args:
        folder: an existing, empty folder.
        info: ``run`` (its name), ``settings``, of which ``max_length`` and ``label_spaces`` are kept, and ``pairs`` (whether rows
            are pairs of texts), if the table of the bench does not tell; ``start``, if it began from an adapter; ``lifetime``.
        client: with its memory loaded: export its own model. view: which of the method's views; the first one that fits.

    Raises:
        UserError: a view or a client that the method has no model for, a base that was never loaded from anywhere, or a model
            that is not finite.
        WeftError: the re-loaded model predicts something else.
    """
    bench = server.bench if client is None else server.bench.of(client)
    view = choose_view(method.info.slug, method.views, view, client is not None)
    if not bench.backbone.path:
        raise UserError("this backbone was made in memory: save it with save_pretrained and load it from there to export on it.")
    trained = capture(method, server, view, client)
    if odd := not_finite(trained.values):
        raise UserError(
            f"{odd} is not finite, since training diverged: there is no model to export; try a lower --set method.lr."
        )
    facts = (nobody(server.clients) if client is None else client.info(method.info.asks)).facts
    about, compared = replace(about_of(method, bench, view, info, client), untrained=untrained(trained, bench)), None
    if peft_files.fits(trained, bench.backbone):
        trained = peft_files.settled(trained, bench.backbone)
        peft_files.write(trained, bench.backbone, about.base, folder)
        about = replace(about, kind="peft", files=hashes(folder, peft_files.FILES))
    elif kind := next((kind for kind in OTHER_KINDS if kind.alone(trained) is not None), None):
        about, compared = as_peft(kind, trained, about, bench, folder)
    elif adapterhub_files.concerns(trained):
        if why := adapterhub_files.against(trained, bench.backbone):
            about = replace(about, why=why)
        else:
            names = adapterhub_files.write(trained, bench.backbone, about, folder)
            about = replace(about, kind="adapters", files=hashes(folder, names))
    if not about.kind:
        weft_files.write(trained, method, view, facts, bench.backbone, folder)
        about = replace(about, kind="weft", files=hashes(folder, weft_files.FILES))
    difference, tolerance, rows = compared or compare(trained, about, bench, folder)
    if not difference <= tolerance:  # NaN is no agreement
        raise WeftError(
            f"the model exported to {folder} predicts something else than the run's (logits differ by {difference:.2g}, "
            f"{tolerance:.2g} would be rounding): do not use it."
        )
    about = replace(about, checked={"rows": rows, "difference": difference, "tolerance": tolerance})
    about.write(folder)
    room = sum(part.room(bench.backbone) for part in trained.parts.values())
    lines = code(about, bench.backbone, room)
    files.write(folder / "README.md", card(about, notes(about), lines, about.kind).encode())
    return report_of(about, folder)


def as_peft(
    kind: ModuleType, trained: Trained, about: About, bench: Bench, folder: Path
) -> tuple[About, tuple[float, float, int] | None]:
    """Write what is trained as PEFT has it, and :func:`compare`.

    Args:
        kind: of ``OTHER_KINDS``.

    Returns:
        what is said of the model, and the comparison. Where PEFT predicts something else, nothing is written: there is no
        comparison, and ``why`` tells the reason.
    """
    if why := kind.against(trained, bench.backbone):
        return replace(about, why=why), None
    kind.write(trained, bench.backbone, about.base, folder)
    tried = replace(about, kind="peft", files=hashes(folder, kind.FILES))
    try:
        compared = compare(trained, tried, bench, folder)
    except UserError:
        raise
    except WeftError:  # PEFT does not run
        compared = math.inf, 0.0, 0
    if compared[0] <= compared[1]:
        return tried, compared
    for name in kind.FILES:
        (folder / name).unlink()
    return replace(about, why=OTHERWISE), None


def about_of(method: Method, bench: Bench, view: str, info: Mapping[str, Any], client: ClientState | None) -> About:
    """What a run's model is, but for its files.

    Args:
        info: see :func:`export`.
    """
    settings = info.get("settings", {})
    return About(
        kind="",
        base=Base.of(bench.backbone),
        classes=bench.task.classes,
        max_length=max_length(settings, bench.backbone),
        method=_described(method),
        view=view,
        client=None if client is None else client.id,
        run=info.get("run"),
        weft=distribution.version() or "",
        pairs=info["pairs"] if "pairs" in info else getattr(bench.table, "pairs", False),
        task=bench.task.kind,
        metrics=bench.task.metrics,
        label_spaces=settings.get("label_spaces", "own"),
        task_settings=settings_of(bench.task),
        quantised=bench.backbone.quantised,
        start=info.get("start"),
        lifetime=info.get("lifetime"),
    )


def report_of(about: About, folder: Path) -> ExportReport:
    """The report on a finished export."""
    base, written = about.base, sorted(p.name for p in folder.iterdir())
    return ExportReport(
        about.kind, about.view, about.client, base.reference, base.sha256, **about.checked, files=written, notes=notes(about)
    )


def code(about: About, backbone: Backbone, room: int = 0) -> str:
    """The lines of Python that load an exported model.

    Args:
        room: tokens of its own in each row.
    """
    plain_class = peft_files.plain_class(backbone)
    if about.kind not in ("peft", "adapters") or plain_class is None:
        return ours(about)
    return (
        language_card.plain(about, backbone, plain_class)
        if about.writes
        else plain(about, plain_class, room, backbone.max_length)
    )


def max_length(settings: Mapping[str, Any], backbone: Backbone) -> int:
    """Tokens that the run's texts were cut to, which is never more than the backbone takes."""
    wanted = int(settings.get("max_length", backbone.max_length))
    return min(wanted, backbone.max_length) if backbone.reads in ("texts", BOTH) else wanted


def notes(about: About) -> list[str]:
    found = []
    if about.quantised:
        found.append(
            f"It was trained on its base in {about.quantised}; on the base as it is, which is loaded with it, it may predict "
            "something else than in its run."
        )
    if about.start is not None:
        whole = "LoRA and head" if about.start["head"] else "LoRA"
        found.append(f"Its run began from the {whole} of an adapter (sha256 `{about.start['sha256']}` of its files).")
    if about.kind == "adapters":
        found.append(
            "It loads with AdapterHub's library adapters (1.3), which rests on an older transformers than Weft: install it in an "
            "environment of its own. weft.export.load reads it here."
        )
    if about.why is not None:
        found.append(f"It is in Weft's own files, as {about.why}.")
    if about.unlearnt is not None:
        found.append(about.unlearnt)
    if common(about.view) or about.client is not None:
        return found
    return [
        *found,
        f"{about.method['slug']} gives every client a model of its own: this is the one that a new client starts from.",
    ]


def choose_view(slug: str, views: tuple[str, ...], view: str | None, personal: bool) -> str:
    """The asked-for view, or the first that is about one model for all, or about a client.

    Raises:
        UserError: there is none.
    """
    if view is not None and view not in views:
        raise UserError(f'{slug} has no view "{view}": use {", ".join(views)}.')
    fitting = [v for v in views if not personal or not common(v)]
    if not fitting or (personal and common(view or "")):
        raise UserError(f"{slug} has one model for all clients: leave the client out.")
    return view or fitting[0]


def compare(trained: Trained, about: About, bench: Bench, folder: Path) -> tuple[float, float, int]:
    """How far the logits of the files are from those of the model they were written from, what is allowed, and the rows."""
    backbone = in_float32(bench.backbone, about.classes)
    table = bench.table
    order = np.argsort(table.lengths, kind="stable")
    rows = order[np.unique(np.linspace(0, len(order) - 1, ROWS).round().astype(int))]
    read_back = read(folder, about, backbone)
    anybody = peft_files.plain_model(folder, backbone, about) if about.kind == "peft" else None
    room = sum(part.room(backbone) for part in trained.parts.values())
    cut = {"most": backbone.max_length - room} if room else {}
    largest, differences = 1.0, [0.0]
    # logits of a language model are over its vocabulary, at every token of a row: one row at a time is enough to hold
    for some in np.split(rows, len(rows)) if about.writes else [rows]:
        expected = trained.logits(backbone, about.predicts, table, some)
        if not bool(torch.isfinite(expected).all()):
            raise UserError(f"the model's logits are not finite: {DIVERGED}.")
        found = [read_back.logits(backbone, about.predicts, table, some)]
        if anybody is not None:
            with peft_files.plainly(folder):
                logits = peft_files.logits_of(anybody, backbone, table.collate(some, **cut))
            own = logits[:, room:] if logits.dim() == 3 else logits  # of each token, of which soft words are none to tag
            found.append(at_things(own, about, table, some))
        largest = max(largest, float(expected.abs().max()))
        differences += [float((again - expected).abs().max()) for again in found]
    return max(differences, key=lambda d: (math.isnan(d), d)), TOLERANCE * largest, len(rows)


def at_things(logits: Tensor, about: About, table: Table, rows: np.ndarray) -> Tensor:
    """Logits [n, C] or [n, T, C] of whole rows, at what there is to predict in them: [m, C]."""
    if isinstance(table, Replies):
        return logits[table.places(rows)]
    return logits.flatten(0, -2)[about.predicts.targets(table, rows[None])[1][0]]


def in_float32(backbone: Backbone, classes: Sequence[str]) -> Backbone:
    """The backbone itself if it computes in float32 (or better) on the CPU, else a copy that does, loaded anew, not quantised."""
    if backbone.dtype in (torch.float32, torch.float64) and backbone.device.type == "cpu" and not backbone.quantised:
        return backbone
    options = asdict(backbone.options) | {"trust_remote_code": brings_code(backbone)}
    return load_backbone(backbone.name, classes=classes, device="cpu", precision="float32", **options)


def read(folder: Path, about: About, backbone: Backbone) -> Trained:
    """The model in an exported folder.

    Raises:
        UserError: it is damaged.
    """
    if about.kind == "peft":
        kind: ModuleType = next((kind for kind in OTHER_KINDS if kind.wrote(folder)), peft_files)
        found: Trained = kind.read(folder, backbone)
        return found
    if about.kind == "adapters":
        return adapterhub_files.read(folder, backbone)
    return weft_files.read(folder, backbone, about.predicts)


def _described(method: Method) -> dict[str, Any]:
    from weft.methods import registry

    info = method.info
    return {"slug": info.slug, "title": info.title, "paper": info.paper, "settings": registry.values(method)}
