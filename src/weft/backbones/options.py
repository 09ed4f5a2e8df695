"""How a backbone is to be read: its task, and what a person knows better than the description by structure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from weft.errors import UserError, nearest

LINEAR_ROLES = ("q", "k", "v", "o", "ffn.in", "ffn.gate", "ffn.out")
NO_SITE = "none"  # instead of a role: no place for a part
TEMPLATE = "a photo of a {}."
GENERATION = "generation"
MASKED = "masked"
FILL = "fill"
NEXT_ITEM = "next-item"
QUESTIONS = "vqa"
VQ_REC = "vq-rec"  # what a configuration calls the network that does it
FILLED = "{} It was {mask}."
LANGUAGE = (GENERATION, MASKED)
"""Tasks of models with an output layer over a vocabulary."""


@dataclass(frozen=True)
class Options:
    """What :func:`weft.backbones.load.load` takes beside a name and classes; the last three correct wrong guesses.

    Attributes:
        task: ``auto``, ``classification``, ``similarity``, ``fill``, ``tokens``, ``regression``, ``generation``,
            ``masked``, ``next-item`` or ``vqa``.
        template: sentence for class names in a text tower; of fill, the sentence around a text; of generation, how a row becomes
            a text: a name, a template's text (never its file), or "" = as suits the backbone (see
            :func:`weft.backbones.prompts.template`).
        blocks: path of the list of transformer blocks, as in ``model.layers``.
        roles: of linear layers inside a block by the ends of their names, as in ``Wqkv=q+k+v,wo=o``; ``none`` = no place for
            a part.
        head: names of the modules that make the head, joined by commas.
        label_words: of fill, what stands for a class, as in ``CLASS=word+word,CLASS=word``; its name where none is given.
        calibrate: of fill, logits are what a text adds to those of an empty one.
    """

    task: str = "auto"
    template: str = ""
    blocks: str = ""
    roles: str = ""
    head: str = ""
    label_words: str = ""
    calibrate: bool = False

    def __post_init__(self) -> None:
        _ = self.endings  # a wrong one is said before anything is loaded
        if self.task == FILL:
            _check_places(self.filled, PLACES, FILLED)
        elif self.task not in LANGUAGE:
            _check_places(self.sentence, {"{}": "the name of a class"}, TEMPLATE)

    @property
    def sentence(self) -> str:
        """Around the name of a class."""
        return self.template or TEMPLATE

    @property
    def filled(self) -> str:
        """Around a text, with a mask."""
        return self.template or FILLED

    @property
    def prompt(self) -> str:
        """Name or text of the template of prompts and answers; "" = as suits the backbone."""
        return "" if self.template == TEMPLATE else self.template

    @property
    def endings(self) -> dict[str, str]:
        """Ending of a name -> role.

        Raises:
            UserError: something else than ENDING=ROLE pairs, or an unknown role.
        """
        found: dict[str, str] = {}
        for pair in filter(None, (p.strip() for p in self.roles.split(","))):
            ending, sign, role = (s.strip() for s in pair.partition("="))
            if not sign or not ending:
                raise UserError(f'"{pair}" gives no role to a layer: write ENDING=ROLE, as in --roles Wqkv=q+k+v,wo=o.')
            for one in role.split("+"):
                if one not in LINEAR_ROLES and role != NO_SITE:
                    choices = [*LINEAR_ROLES, NO_SITE]
                    raise UserError(f'unknown role "{one}" in {pair}: use {", ".join(choices)}.{nearest(one, choices)}')
            found[ending] = role
        return found

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(n.strip() for n in self.head.split(",") if n.strip())


def task_for(needs: Collection[str]) -> str:
    """What a backbone is loaded for where only the needs of a method tell (of its identity card)."""
    if "items" in needs:
        return NEXT_ITEM
    if "hidden words" in needs:
        return MASKED
    if "connector" in needs:
        return GENERATION
    return FILL if "label words" in needs else "classification" if "head" in needs else "auto"


PLACES = {"{}": "the text", "{mask}": "the word that tells its class", "{pair}": ""}
"""Of a template of fill, and what they are for; one without a word may be left out."""


def _check_places(template: str, places: Mapping[str, str], example: str) -> None:
    """
    Raises:
        UserError: it lacks one of them, or has one that nothing stands for.
    """
    for place, what in places.items():
        if what and template.count(place) != 1:
            many = "no" if place not in template else "more than one"
            raise UserError(f'the template "{template}" has {many} {place} for {what}: write one, as in "{example}".')
    if unknown := [place for place in re.findall(r"\{\w*\}", template) if place not in places]:
        raise UserError(
            f'the template "{template}" has {unknown[0]}, which nothing stands for: use {" and ".join(places)}, as in '
            f'"{example}".'
        )


def sentence(template: str, name: str) -> str:
    """A class name in its template, in which nothing but ``{}`` has a meaning."""
    return template.replace("{}", spoken(name))


def spoken(name: str) -> str:
    """A class name as words: ``baseball_field`` and ``baseball/field`` have spaces."""
    return " ".join(name.replace("_", " ").replace("/", " ").split())
