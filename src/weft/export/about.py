"""``weft.json``, which lies beside every exported model: what it is, which base it sits on, what its classes are called."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.backbones.options import Options
from weft.backbones.short_names import KNOWN
from weft.backbones.token_table import glues
from weft.data.rows import BOTH
from weft.errors import UserError
from weft.federation.info import common
from weft.storage import files
from weft.tasks.generation_settings import Decoding
from weft.tasks.kinds import CLASSES, GENERATION, PREFERENCE, TOKENS, make

if TYPE_CHECKING:
    from weft.backbones.backbone import Backbone, Piece
    from weft.tasks.task import Task

FORMAT = 1
NAME = "weft.json"


@dataclass(frozen=True)
class Base:
    """The frozen model that an adapter sits on.

    Attributes:
        name: as it was typed. hub_id: canonical id, or None for a folder. path: of that folder, or None. Of
            several that are joined there is no id; the path is theirs, joined by plus signs, if one of them is a folder.
        sha256: of its weights. pad_token_id: that rows of tokens are padded with; None for images.
        options: it was loaded with. reads: ``texts`` or ``images``.
        own_padding: the padding id that its own configuration names. own_head: it has a head for another number of classes.
        segments: it tells the two texts of a pair apart by ids of their own. code: it brings Python code along.
        glues: words that are given to its tokenizer one by one need the space before them.
    """

    name: str
    hub_id: str | None
    path: str | None
    sha256: str
    pad_token_id: int | None
    options: Options = field(default_factory=Options)
    reads: str = "texts"
    own_padding: int | None = None
    own_head: bool = False
    segments: bool = False
    code: bool = False
    glues: bool = False

    @classmethod
    def of(cls, backbone: Backbone) -> Base:
        each: Sequence[Backbone | Piece] = backbone.encoders or backbone.pieces or (backbone,)
        places = [_place(one) for one in each]
        path = "+".join(place or one.name for place, one in zip(places, each, strict=True)) if any(places) else None
        padding = int(backbone.model.config.pad_token_id) if backbone.reads in ("texts", BOTH) else None
        return cls(
            backbone.name,
            backbone.hub_id,
            path,
            backbone.weight_hash,
            padding,
            backbone.options,
            backbone.reads,
            backbone.own_padding,
            backbone.own_head,
            backbone.segments,
            brings_code(backbone),
            backbone.options.task == TOKENS and glues(backbone.tokenizer),
        )

    @property
    def reference(self) -> str:
        """What to give to ``from_pretrained``; of a backbone that comes with Weft, its short name."""
        return self.hub_id or self.path or self.name


@dataclass(frozen=True)
class About:
    """The contents of ``weft.json``.

    Attributes:
        kind: ``peft``, ``adapters`` or ``weft``. classes: in index order. max_length: tokens that a text is cut to.
        method: slug, title, paper, settings. view: the way to predict. client: whose model, None = the server's.
        run: name of the run. weft: version that wrote it. checked: how far the re-loaded logits were off.
        pairs: it was trained on pairs of texts; None = nobody knows. files: name -> sha256 of what else makes the model.
        task: its kind. metrics: that the run was scored by, the headline first.
        label_spaces: what a row with tags is scored among, as the run was.
        task_settings: what else the run's task was told, as how it writes texts; none = as usual.
        quantised: how the base's weights were while it was trained; "" = as they are.
        start: the adapter that its run began from, see :class:`weft.runs.beginning.Beginning`; None = from none.
        untrained: ``model`` or ``head``, where nothing was learnt of it, see :func:`weft.export.trained.untrained`.
        lifetime: what its run and those before it have cost, see :func:`weft.runs.lifetime.of`; None = nobody knows.
        why: it is in Weft's own files though PEFT or AdapterHub has parts of its kind; None = it is not, or they have none.
    """

    kind: str
    base: Base
    classes: tuple[str, ...]
    max_length: int
    method: dict[str, Any]
    view: str
    client: str | None = None
    run: str | None = None
    weft: str = ""
    checked: dict[str, Any] = field(default_factory=dict)
    pairs: bool | None = None
    files: dict[str, str] = field(default_factory=dict)
    task: str = CLASSES
    metrics: tuple[str, ...] = ()
    label_spaces: str = "own"
    task_settings: dict[str, Any] = field(default_factory=dict)
    quantised: str = ""
    start: dict[str, Any] | None = None
    why: str | None = None
    untrained: str = ""
    lifetime: dict[str, Any] | None = None

    @property
    def predicts(self) -> Task:
        """What the model predicts."""
        more = dict(self.task_settings)
        if "decoding" in more:
            more["decoding"] = Decoding(**more["decoding"])
        return make(self.classes, self.task, self.metrics, **more)

    @property
    def unlearnt(self) -> str | None:
        """The sentence that says so where nothing was learnt of the model, or of its head, which then guesses."""
        if not self.untrained:
            return None
        what = {"model": "This model is untrained"}.get(self.untrained, "The head of this model is untrained, so that it guesses")
        if self.client is not None:
            return f"{what}: client {self.client} has learnt nothing of it."
        if common(self.view):
            return f"{what}: its run has changed no value of it."
        return (
            f"{what}: {self.method['slug']} trains a model of each client's own; weft export RUN --client ID gives one, of a "
            "simulation."
        )

    @property
    def writes(self) -> bool:
        """Whether it writes text."""
        return self.task in (GENERATION, PREFERENCE)

    @property
    def decoding(self) -> Decoding:
        """How it writes."""
        return getattr(self.predicts, "decoding", Decoding())

    def write(self, folder: Path) -> None:
        labels = {str(i): name for i, name in enumerate(self.classes)}
        content = {"format": FORMAT} | asdict(self) | {"id2label": labels}
        files.write(folder / NAME, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> About:
        """
        Raises:
            UserError: there is no exported model, or a damaged one, or one of another format.
        """
        path = folder / NAME
        if not path.is_file() and (folder / "config.json").is_file():
            raise UserError(
                f"{folder} is a whole model without {NAME}, as weft export --merged writes it: transformers loads it, as its "
                "README.md says."
            )
        if not path.is_file():
            raise UserError(f"{folder} holds no {NAME}: give the folder of a run or of an exported model.")
        try:
            content = files.parsed(files.read(path))
            check_format(path, content.pop("format"))
            content.pop("id2label")
            base = content["base"]
            content["base"] = Base(**base | {"options": Options(**base.get("options", {}))})
            content["classes"] = tuple(content["classes"])
            content["metrics"] = tuple(content.get("metrics", ()))
            found = cls(**content)
            _ = found.predicts  # a kind that there is
            return found
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise damaged(path, e) from e


def _place(backbone: Backbone | Piece) -> str | None:
    """The folder that a backbone was loaded from; None if it is found by its name on any machine."""
    return None if backbone.hub_id or backbone.name in KNOWN else os.path.abspath(backbone.path)


def settings_of(task: Task) -> dict[str, Any]:
    """What a task was told beside its classes and metrics, as JSON."""
    told = asdict(task)  # type: ignore[call-overload]
    return {f.name: told[f.name] for f in fields(task) if f.name not in ("classes", "metrics")}  # type: ignore[arg-type]


def brings_code(backbone: Backbone) -> bool:
    return any(type(one.model).__module__.startswith("transformers_modules.") for one in (backbone, *backbone.encoders))


def hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The sha256 of each file."""
    return {name: files.sha256(files.read(folder / name)) for name in names}


def check_hashes(folder: Path, about: About) -> list[str]:
    """Every file is the one that was exported; a note, where nothing is known of that.

    Raises:
        UserError: one is not.
    """
    for name, digest in about.files.items():
        files.read_whole(folder / Path(name).name, digest)
    return [] if about.files else [f"{folder} has no record of its files, so nobody knows whether they are what was exported."]


def check_format(path: Path, found: Any) -> None:
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, and this version of Weft reads format {FORMAT}: use the version that wrote it."
        )


def damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}): export the model again with weft export.")
