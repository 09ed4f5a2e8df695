"""How a backbone is to be read: its task, and what a person knows better than the description by structure."""

from __future__ import annotations

from dataclasses import dataclass

from weft.errors import UserError, nearest

LINEAR_ROLES = ("q", "k", "v", "o", "ffn.in", "ffn.gate", "ffn.out")
NO_SITE = "none"  # instead of a role: no place for a part
TEMPLATE = "a photo of a {}."
GENERATION = "generation"
MASKED = "masked"
LANGUAGE = (GENERATION, MASKED)
"""Tasks of models with an output layer over a vocabulary."""


@dataclass(frozen=True)
class Options:
    """What :func:`weft.backbones.load.load` takes beside a name and classes; the last three correct wrong guesses.

    Attributes:
        task: ``auto``, ``classification``, ``similarity``, ``tokens``, ``regression``, ``generation`` or ``masked``.
        template: sentence for class names in a text tower; of generation, how a row becomes a text: a name, a template's text
            (never its file), or "" = as suits the backbone (see :func:`weft.backbones.prompts.template`).
        blocks: path of the list of transformer blocks, as in ``model.layers``.
        roles: of linear layers inside a block by the ends of their names, as in ``Wqkv=q+k+v,wo=o``; ``none`` = no place for
            a part.
        head: names of the modules that make the head, joined by commas.
    """

    task: str = "auto"
    template: str = ""
    blocks: str = ""
    roles: str = ""
    head: str = ""

    def __post_init__(self) -> None:
        _ = self.endings  # a wrong one is said before anything is loaded
        if self.task not in LANGUAGE and self.sentence.count("{}") != 1:
            many = "no" if "{}" not in self.sentence else "more than one"
            raise UserError(
                f'the template "{self.sentence}" has {many} {{}} for the name of a class: write one, as in "{TEMPLATE}".'
            )

    @property
    def sentence(self) -> str:
        """Around the name of a class."""
        return self.template or TEMPLATE

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


def sentence(template: str, name: str) -> str:
    """A class name in its template, in which nothing but ``{}`` has a meaning."""
    return template.replace("{}", spoken(name))


def spoken(name: str) -> str:
    """A class name as words: ``baseball_field`` and ``baseball/field`` have spaces."""
    return " ".join(name.replace("_", " ").replace("/", " ").split())
