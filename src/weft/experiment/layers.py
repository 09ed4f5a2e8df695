"""The layers of an experiment: a person's settings over a file's, over recipes, over defaults."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft import recipes
from weft.errors import UserError
from weft.experiment import as_played, handed, hidden, watts
from weft.experiment.names import flatten
from weft.experiment.sentences import checked
from weft.experiment.whole import Experiment

if TYPE_CHECKING:
    from weft.federation.method import Method


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

    @functools.cached_property
    def played(self) -> Method:
        """The method with the options of LoRA and the rule that the experiment has over it."""
        return as_played.played(self.experiment, self.method)


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
    from weft.backbones.prompts import spelt_out
    from weft.communication.codecs import codec, for_downloads
    from weft.methods import registry

    notes: list[str] = []
    asked, stored = flatten(typed or {}), flatten(file or {})
    own: dict[str, Any] = {}
    if method is not None:
        asked["method"] = method.info.slug
        if idle := registry.idle(method):
            raise UserError(f"{method.info.slug} was made with {', '.join(idle)}, of no effect on what it does: leave it out.")
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
    asked = full_names(cls, asked)
    if twice := own.keys() & asked.keys():
        raise UserError(f"{', '.join(sorted(twice))}: given by the method's object and besides; leave one out.")
    user = full_names(cls, stored) | asked | own
    own_ways = {"codec": cls.info.codec, "download_codec": cls.info.download_codec, "baseline": cls.info.baseline}
    fitting = _fitting(cls.info.needs, user) | {n: text for n, text in own_ways.items() if text}
    recipe: dict[str, Any] = {}
    if user.get("recipes", True) is not False:
        model, data = (str((fitting | user).get(n, getattr(Experiment(), n))) for n in ("model", "data"))
        recipe = recipes.find(slug, cls.info.family, model, data, {p.name for p in registry.parameters(cls)})
    if "baseline" in user and user["baseline"] is not None:
        recipe.pop("baselines", None)  # a baseline is not compared with itself
    if user.get("start") not in (None, "none"):
        recipe.pop("start_head", None)  # an adapter brings its own
    if user.get("privacy") not in (None, "none"):
        recipe.pop("start_head", None)  # which is trained before anything is hidden
    settings = fitting | recipe | user
    if isinstance(file_or_text := settings.get("template"), str):
        settings["template"] = spelt_out(file_or_text)  # a run keeps what its file says, and sites get it
    made = _laid_over(method, _parameters(settings)) if method is not None else registry.build(slug, _parameters(settings))
    known = registry.values(made)
    experiment = checked({n: v for n, v in settings.items() if not n.startswith("method.")} | {"parameters": known}, known)
    for_downloads(experiment.download_codec)
    if cls.info.codec and codec(cls.info.codec).unbiased and not codec(experiment.codec).unbiased:
        raise UserError(
            f"{slug} needs a codec that is right on average, and {experiment.codec} is not: take {cls.info.codec}, or another "
            "that is unbiased."
        )
    if cls.info.codec and codec(cls.info.codec).alpha(1) > 0 and codec(experiment.codec).alpha(1) == 0:
        raise UserError(
            f"{slug} is what its codec's shift makes of it, and {experiment.codec} has none: take {cls.info.codec}, or another "
            "with shift+ before it."
        )
    as_played.check(experiment, made)
    _check_robust(experiment, made)
    notes += hidden.check(experiment, as_played.played(experiment, made))
    handed.check(experiment, made)
    watts.check(experiment)
    notes += _public(experiment, made)
    origin = {n: "user" if n in user else "recipe" if n in recipe else "default" for n in experiment.flat()}
    given = method is not None and (slug not in registry.infos() or registry.load(slug) is not cls)
    return Resolved(experiment, made, origin, tuple(notes), given)


def _check_robust(x: Experiment, method: Method) -> None:
    """Refuse a robust rule that can't work with this method or with so few clients, before anything is loaded."""
    from weft.federation.robust_mean import Robust

    rule = Robust(x.robust, x.robust_norm, x.robust_share)
    if x.baseline not in ("local", "central"):
        cohort = max(round(x.participation * x.clients), 1)
        rule.check(method.info.slug, method.sums, cohort, bool(method.in_part))


def _public(x: Experiment, method: Method) -> list[str]:
    """What is to be said of public rows.

    Raises:
        UserError: some are given to a method that has no use for them, or counted where there are none.
    """
    from weft.methods import registry

    slug, without = method.info.slug, method.info.public
    if x.public is None and x.public_rows is not None:
        raise UserError("public_rows counts the rows of --public data: name those too, or leave it out.")
    if x.public is not None and not without:
        others = [other for other, info in registry.infos().items() if info.public]
        raise UserError(
            f"the server of {slug} trains on nothing, and has no use for public rows: leave --public out, or choose "
            f"{', '.join(others)}."
        )
    return [f"{slug} gets no public rows (--public): {without}."] if x.public is None and without and x.baseline is None else []


def _fitting(needs: tuple[str, ...], user: Mapping[str, Any]) -> dict[str, str]:
    """Model and data for those who named none, where the usual ones are not what the method or the data need."""
    from weft.backbones.short_names import usual
    from weft.data.hub_sets import GENERATION, IMAGE, ITEMS, QUESTIONS, catalogue

    kinds = (IMAGE, ITEMS, QUESTIONS)
    pictures, items, questions = ({entry.name for entry in catalogue() if entry.kind == kind} for kind in kinds)
    if "connector" in needs:
        return {"task": "generation", "data": "glyph_questions", "model": usual(needs)}
    pictured = {entry.name for entry in catalogue() if entry.kind == GENERATION and entry.image is not None}
    if user.get("data") in pictured or (user.get("task") == "generation" and user.get("data") in questions):
        return {"model": usual({"questions to write"})}
    if user.get("task") == "generation":
        return {"data": "docstrings", "model": "smollm2"}
    if user.get("task") == "preference":
        return {"data": "docstring_preferences", "model": "smollm2"}
    if "items" in needs or user.get("task") == "next-item" or user.get("data") in items:
        return {"data": "shops", "model": usual({"items"})}
    if user.get("task") == "vqa" or user.get("data") in questions:
        return {"data": "glyph_questions", "model": usual({"questions"})}
    if "label words" in needs:
        return {"model": usual(needs)}
    if "hidden words" in needs:
        return {"task": "masked", "data": "docstrings", "model": usual(needs)}
    if "images" not in needs and user.get("data") not in pictures:
        return {}
    return {"data": "glyphs", "model": usual({"images", *needs})}


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


def full_names(cls: type[Method], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, those of the method under full names (``method.lr`` is ``method.optim.lr``)."""
    from weft.methods import registry

    own = {n: v for n, v in settings.items() if not n.startswith("method.")}
    return own | {f"method.{n}": v for n, v in registry.canonical(cls, _parameters(settings)).items()}
