"""What is run: every setting of an experiment, checked, in three layers, and as a TOML file.

A setting comes from the method or this file (``default``), from a recipe for the backbone and data at hand (``recipe``), or
from a person (``user``); the later layer wins, and the origin of each is kept. Settings have flat names; those of the method
start with ``method.``, as in ``method.rank``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from weft import recipes
from weft.errors import UserError, nearest

if TYPE_CHECKING:
    from weft.federation.method import Method

FORMAT = 1
Baseline = Literal["local", "central", "probe", "zero-shot"]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[str], Field(strict=False), BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class Experiment(BaseModel):
    """All settings of one run.

    Attributes:
        method: slug. parameters: its own settings by full name (``rank``, ``optim.lr``).
        baseline: run this instead of the federation: ``local`` (each client alone), ``central`` (all rows at one client; both
            with as many turns as the federation gives), ``probe`` (a linear head on the frozen backbone, federated), or
            ``zero-shot`` (a CLIP as it is).
        baselines: run these beside the method, for comparison.
        model: short name, hub id or folder; several, joined by commas, are dealt to the clients in turn.
        data: catalogue name, hub id, file or folder.
        task: what tells classes apart: ``classification``, a linear head; ``similarity``, the text tower of a CLIP and the names
            of the classes in ``template``; ``auto``: similarity where there is a text tower, unless the method trains a head.
        blocks, roles, head: where the description of the backbone is wrong: path of its list of blocks, roles of linear layers by
            the ends of their names (``Wqkv=q+k+v,wo=o``), names of the modules of its head.
        classes: the label set, in the order of the indices; empty = those of the data, in alphabetical order. A real federation
            has to declare it, and a row with any other label is refused.
        image, text, pair, label, key: columns of the data, where the guess is wrong. limit: rows of each split at most.
        clients, partition, alpha, classes_per_client, min_rows, new_clients, leave_out, keyless, val_fraction, test_fraction: how
            the data are dealt out, see :func:`weft.data.partition`; leave_out: a natural key or a list of them.
        rounds: exchanges between server and cohort. participation: fraction of the clients in a sampled cohort.
        dropout: chance that a client fails in the middle of its turn. seed: of everything random.
        start_head: start value of the head: ``random``, or ``probe``: trained by ``probe_rounds`` rounds of federated linear
            probing on frozen features, an epoch each, with learning rate ``probe_lr``; billed as set-up.
        robust: what the server does with updates of clients that may be malicious, instead of their plain mean: ``clip``,
            ``median``, ``trimmed``, ``krum`` or ``multi-krum``, see :class:`weft.federation.robust.Robust`. robust_norm: largest
            norm of an update for ``clip``; None = the median of the round. robust_share: of the updates that is taken for bad.
        max_weight: largest example count, max_bytes: largest message that is believed; an update above either is refused.
        class_counts: sites of a real federation tell for each class how many of their test rows have it and are given it, so that
            there is a macro-F1: a histogram of their labels. A simulation has it anyway.
        max_factor: an update so many times as large as the running median is refused, and a state on which most clients fail is
            taken back; ``auto``: 1000 for clients that are elsewhere, off in a simulation; ``off``.
        codec: of uploads. pack: clients per pass, or ``auto`` (from memory). max_length: tokens of a row.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``. precision: of the frozen backbone: ``auto``, ``float32``, ``bfloat16``.
        eval_every: rounds between evaluations; 0 = only after the last. eval_clients: so many clients at most are scored by
            themselves each time, drawn at random; None = all.
        prefix_cache: keep what lies below every trained part: ``auto`` or ``off``. by_length: batches of rows of like length, or
            of rows at random.
        engine: ``simulation``, in this process; ``ray``: packs of clients on all cores or GPUs of this machine, or of a Ray
            cluster, by Flower's simulation; ``flower``: every client is a process of its own on this machine, over Flower.
        debug: clients one by one; errors say stage, client and batch.
        trust_remote_code: let a backbone from the hub run its own Python code.
        recipes: apply recipes.
        name: of the run's folder; None = made from method, data, model and seed. runs: the folder above it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    method: str = "fedit"
    parameters: dict[str, Any] = {}
    baseline: Baseline | None = None
    baselines: Annotated[list[Baseline], Field(strict=False), AfterValidator(lambda given: list(dict.fromkeys(given)))] = []
    model: Name = "minilm"
    task: Literal["auto", "classification", "similarity"] = "auto"
    template: str = "a photo of a {}."
    blocks: str = ""
    roles: str = ""
    head: str = ""
    data: Name = "pydocs"
    classes: Names = []
    image: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    key: str | None = None
    limit: Count | None = None
    clients: Count = 8
    partition: Literal["auto", "iid", "dirichlet", "pathological", "natural"] = "auto"
    alpha: Annotated[float, Field(gt=0)] = 0.5
    classes_per_client: Count = 2
    min_rows: Annotated[int, Field(ge=0)] = 1
    new_clients: Annotated[int, Field(ge=0)] = 0
    leave_out: Names = []
    keyless: Literal["leave-out", "apart"] = "leave-out"
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    rounds: Count = 10
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    dropout: Fraction = 0.0
    seed: Annotated[int, Field(ge=0)] = 0
    start_head: Literal["random", "probe"] = "random"
    probe_rounds: Count = 60
    probe_lr: Annotated[float, Field(ge=0)] = 0.1
    robust: Literal["none", "clip", "median", "trimmed", "krum", "multi-krum"] = "none"
    robust_norm: Annotated[float, Field(gt=0)] | None = None
    robust_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    max_weight: Count = 1_000_000_000
    max_bytes: Count = 2_147_483_648
    class_counts: bool = False
    max_factor: Annotated[float, Field(gt=1, strict=False)] | Literal["auto", "off"] = "auto"
    codec: Name = "identity"
    pack: Count | Literal["auto"] = "auto"
    max_length: Count = 128
    device: Name = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    eval_every: Annotated[int, Field(ge=0)] = 1
    eval_clients: Count | None = None
    prefix_cache: Literal["auto", "off"] = "auto"
    by_length: bool = True
    engine: Literal["simulation", "ray", "flower"] = "simulation"
    debug: bool = False
    trust_remote_code: bool = False
    recipes: bool = True
    name: str | None = None
    runs: Name = "runs"

    @property
    def models(self) -> list[str]:
        """The backbones of the federation."""
        return list(dict.fromkeys(name.strip() for name in self.model.split(",")))

    def flat(self) -> dict[str, Any]:
        """Every setting under its flat name: ``method``, ``method.rank``, …, ``rounds``, …"""
        own = self.model_dump()
        parameters = own.pop("parameters")
        return {"method": own.pop("method"), **{f"method.{n}": v for n, v in parameters.items()}, **own}


@dataclass(frozen=True)
class Resolved:
    """An experiment with all settings spelt out.

    Attributes:
        method: built from ``experiment.parameters``, or as given.
        origin: flat name -> ``default``, ``recipe`` or ``user``. notes: sentences for the person who typed it.
        given: the method came as an object that no slug stands for, so that only its giver can make it again.
    """

    experiment: Experiment
    method: Method
    origin: Mapping[str, str]
    notes: tuple[str, ...] = ()
    given: bool = False


def resolve(
    typed: Mapping[str, Any] | None = None, file: Mapping[str, Any] | None = None, method: Method | None = None
) -> Resolved:
    """Lay a person's settings over a file's, over recipes, over defaults.

    Args:
        typed: settings by flat name, or nested as in a file. file: contents of an experiment file.
        method: an object instead of a slug. What was written where it was made was typed; the rest of it comes from the file,
            from recipes or from the object, so that ``FLoRA(rank=8)`` is the same experiment as ``method.rank=8`` of ``flora``.

    Raises:
        UserError: unknown names, wrong types or ranges; all that can be said at once in one sentence.
    """
    from weft.methods import registry

    notes: list[str] = []
    asked, stored = flatten(typed or {}), flatten(file or {})
    own: dict[str, Any] = {}
    if method is not None:
        asked["method"] = method.info.slug
        written, every = registry.written(method), registry.values(method)
        own = {f"method.{n}": v for n, v in every.items() if n in written}
    of_file = stored.get("method", Experiment().method)
    if asked.get("method", of_file) != of_file:
        dropped = [n for n in stored if n.startswith("method.")]
        stored = {n: v for n, v in stored.items() if n not in dropped}
        if dropped:
            notes.append(f"the file's {', '.join(dropped)} belong to another method, and are left out.")
    slug = str(asked.get("method", of_file))
    cls = type(method) if method is not None else registry.load(slug)
    asked = _full_names(cls, asked)
    if twice := own.keys() & asked.keys():
        raise UserError(f"{', '.join(sorted(twice))}: given by the method's object and besides; leave one out.")
    user = _full_names(cls, stored) | asked | own
    fitting = _fitting(cls.info.needs, user)
    recipe: dict[str, Any] = {}
    if user.get("recipes", True) is not False:
        model, data = (str((fitting | user).get(n, getattr(Experiment(), n))) for n in ("model", "data"))
        recipe = recipes.find(slug, cls.info.family, model, data, {p.name for p in registry.parameters(cls)})
    if "baseline" in user and user["baseline"] is not None:
        recipe.pop("baselines", None)  # a baseline is not compared with itself
    settings = fitting | recipe | user
    made = _laid_over(method, _parameters(settings)) if method is not None else registry.build(slug, _parameters(settings))
    known = registry.values(made)
    experiment = checked({n: v for n, v in settings.items() if not n.startswith("method.")} | {"parameters": known}, known)
    _check_robust(experiment, made)
    origin = {n: "user" if n in user else "recipe" if n in recipe else "default" for n in experiment.flat()}
    given = method is not None and (slug not in registry.infos() or registry.load(slug) is not cls)
    return Resolved(experiment, made, origin, tuple(notes), given)


def _check_robust(x: Experiment, method: Method) -> None:
    """Refuse a robust rule that can't work with this method or with so few clients, before anything is loaded."""
    from weft.federation.robust import Robust

    rule = Robust(x.robust, x.robust_norm, x.robust_share)
    if x.baseline not in ("local", "central"):
        rule.check(method.info, max(round(x.participation * x.clients), 1))


def _fitting(needs: tuple[str, ...], user: Mapping[str, Any]) -> dict[str, str]:
    """Model and data for those who named none, where the usual ones are not what the method or the data need."""
    from weft.backbones.names import usual
    from weft.data.hub_sets import IMAGE, catalogue

    pictures = {entry.name for entry in catalogue() if entry.kind == IMAGE}
    if "images" not in needs and user.get("data") not in pictures:
        return {}
    return {"data": "glyphs", "model": usual({"images", *needs})}


def checked(settings: Mapping[str, Any], parameters: Iterable[str] = ()) -> Experiment:
    """An experiment from its own settings.

    Raises:
        UserError: unknown names, wrong types or ranges.
    """
    own: dict[str, Any] = {n: None if v == "none" and n in _OPTIONAL else v for n, v in settings.items()}
    try:
        return Experiment(**own)
    except ValidationError as e:
        problems: dict[str, list[Any]] = {}
        for error in e.errors():
            problems.setdefault(str(error["loc"][0]), []).append(error)
        raise UserError("; ".join(_said(n, p, parameters) for n, p in problems.items()) + ".") from None


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names from a nested table: ``{"method": {"name": "fedit", "optim": {"lr": 1}}}`` gives ``method`` and
    ``method.optim.lr``; ``parameters`` stands for ``method`` in Python.
    """
    found: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                add(f"{prefix}.{name}", inner)
        else:
            found["method" if prefix == "method.name" else prefix] = value

    for name, value in settings.items():
        if name != "format":
            add("method" if name == "parameters" else str(name), value)
    return found


def assignment(text: str) -> tuple[str, Any]:
    """``method.rank=16`` as a name and a value; what is no TOML value is a text.

    Raises:
        UserError: there is no ``=``.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UserError(f'"{text}" sets nothing: write NAME=VALUE, as in --set method.rank=16.')
    try:
        return name.strip(), tomllib.loads(f"v = {value.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
    except RecursionError:
        raise UserError(f"the value of {name.strip()} is nested too deeply.") from None


def assignments(texts: Iterable[str], typed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Several of them, over what was typed otherwise.

    Raises:
        UserError: one sets nothing, or a name is set twice.
    """
    found = dict(typed or {})
    for name, value in map(assignment, texts):
        if name in found:
            raise UserError(f"{name} is given twice: leave one out.")
        found[name] = value
    return found


# files ------------------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """The settings in an experiment file.

    Raises:
        UserError: there is no such file, or it is no TOML, or of another format.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        flatten(settings)
    except OSError as e:
        raise UserError(f"can't read the experiment file {path}: {(e.strerror or str(e)).lower()}.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"the experiment file {path} is not valid TOML: {e}.") from e
    except RecursionError:
        raise UserError(f"the experiment file {path} is nested too deeply.") from None
    if settings.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has format {settings['format']}, and this version of Weft reads format {FORMAT}.")
    return settings


def to_toml(experiment: Experiment, pinned: Mapping[str, Any]) -> str:
    """A complete, replayable file.

    Args:
        pinned: what ``auto`` turned out to be; a file that chose anew might give other numbers.
    """
    import tomli_w

    settings = experiment.flat() | dict(pinned) | {"recipes": False}
    for name in ("name", "runs"):  # a replay is a run of its own
        settings.pop(name)
    table: dict[str, Any] = {"format": FORMAT}
    method: dict[str, Any] = {"name": settings.pop("method")}
    for name, value in settings.items():
        plain = "none" if value is None else list(value) if isinstance(value, tuple) else value
        if name.startswith("method."):
            *above, last = name.split(".")[1:]
            inner = method
            for step in above:
                inner = inner.setdefault(step, {})
            inner[last] = plain
        else:
            table[name] = plain
    text = tomli_w.dumps(table | {"method": method})
    return f"# Every setting of this run, with nothing left to defaults and recipes: `weft run` this file to repeat it.\n\n{text}"


# names and sentences ----------------------------------------------------------------------------------------------------

_OPTIONAL = {n for n, f in Experiment.model_fields.items() if type(None) in getattr(f.annotation, "__args__", ())}


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {n.removeprefix("method."): v for n, v in settings.items() if n.startswith("method.")}


def _laid_over(method: Method, wanted: Mapping[str, Any]) -> Method:
    """The object, or one like it where a file or a recipe says something else."""
    from weft.methods import registry

    def plain(value: Any) -> Any:
        return "none" if value is None else list(value) if isinstance(value, tuple) else value

    now = registry.values(method)
    changes = {n: v for n, v in wanted.items() if n not in now or plain(v) != plain(now[n])}
    return registry.configure(type(method), changes, method) if changes else method


def _full_names(cls: type[Method], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, those of the method under full names (``method.lr`` is ``method.optim.lr``)."""
    from weft.methods import registry

    own = {n: v for n, v in settings.items() if not n.startswith("method.")}
    return own | {f"method.{n}": v for n, v in registry.canonical(cls, _parameters(settings)).items()}


def _said(name: str, errors: list[Any], parameters: Iterable[str]) -> str:
    """One clause on what is wrong with one setting."""
    given = errors[0]["input"]
    if errors[0]["type"] == "extra_forbidden":
        leaf = name.rsplit(".", 1)[-1]
        for full in parameters:
            if full in (name, leaf) or full.endswith(f".{leaf}"):
                return f'there is no setting "{name}", but one of the method: write method.{full}'
        choices = [*(set(Experiment.model_fields) - {"parameters"}), *(f"method.{p}" for p in parameters)]
        return f'there is no setting "{name}"{_near(name, choices)}'
    wanted = " or ".join(dict.fromkeys(_wanted(e) for e in errors))
    near = _near(given, _choices(errors)) if isinstance(given, str) else ""
    return f"{name} is {_shown(given)}, but must be {wanted}{near}"


def _near(name: str, choices: Iterable[str]) -> str:
    hint = nearest(name, choices).strip()
    return f" ({hint[0].lower()}{hint[1:]})" if hint else ""


def _wanted(error: Mapping[str, Any]) -> str:
    kind, bounds = error["type"], error.get("ctx", {})
    words = {
        "int_type": "a whole number",
        "float_type": "a number",
        "string_type": "a text",
        "bool_type": "true or false",
        "list_type": "a list",
        "finite_number": "a finite number",
        "string_too_short": "a name",
        "none_required": "none",
        "greater_than_equal": f"at least {bounds.get('ge')}",
        "greater_than": f"more than {bounds.get('gt')}",
        "less_than_equal": f"at most {bounds.get('le')}",
        "less_than": f"less than {bounds.get('lt')}",
        "literal_error": str(bounds.get("expected")).replace("'", '"'),
    }
    return words.get(kind) or str(error["msg"]).removeprefix("Input should be ")


def _choices(errors: list[Any]) -> list[str]:
    import re

    return [w for e in errors for w in re.findall(r"'([^']*)'", str(e.get("ctx", {}).get("expected", "")))]


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
