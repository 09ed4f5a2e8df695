"""How a setting is declared: once, with its type, bounds, default and the words that help, pages and errors have for it.

A group of settings is a class in a file of its own, and :class:`weft.experiment.Experiment` is composed of the groups. Whatever
lists settings reads the declarations: the options of the command line, the tables of docs/cli.md, tables in experiment files,
and what a coordinator and its sites agree on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[str], Field(strict=False), BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class Group(BaseModel):
    """Settings that belong together. In a file they may stand in a table that is called as the class is, in small letters.

    Attributes:
        title: heading in help and on pages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    title: ClassVar[str] = ""


@dataclass(frozen=True)
class Setting:
    """What is declared of one setting.

    Attributes:
        name: flat, as in Python and in files. group: name of its table. title: of the group. kind: type, without bounds.
        default: as declared. unset: what stands in the place of a default that is None or empty, in words.
        help: a sentence in Markdown. more: sentences that only pages add.
        option: has an option of its own on the command line. flags: short names of the option. everyday: is shown by ``--help``.
        common: holds for a coordinator and all its sites.
        when: another setting, and the values with which this one has an effect; none: any but its default.
    """

    name: str
    group: str
    title: str
    kind: Any
    default: Any
    help: str
    more: str
    unset: str
    option: bool
    flags: tuple[str, ...]
    everyday: bool
    common: bool
    when: tuple[str, Sequence[Any]] | None

    @property
    def kinds(self) -> list[Any]:
        """What it may be, but for None, without bounds."""
        found = [self.kind]
        if get_origin(self.kind) not in (list, Literal, None):
            found = [kind for kind in get_args(self.kind) if kind is not NoneType]
        return [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in found]

    @property
    def usual(self) -> str:
        """The default in words, ``""`` where there is nothing to tell."""
        if isinstance(self.default, bool):
            return "on" if self.default else ""
        return self.unset if self.default in (None, "", [], {}) else str(self.default)


def setting(
    default: Any,
    help: str,
    more: str = "",
    *,
    unset: str = "",
    option: bool = True,
    flags: Sequence[str] = (),
    everyday: bool = False,
    common: bool = False,
    when: tuple[str, Sequence[Any]] | None = None,
) -> Any:
    """The right-hand side of a field: ``rounds: Count = setting(10, "Exchanges between server and clients.")``.

    Args:
        default: where neither recipe nor person says anything.
        help, more, unset, option, flags, everyday, common, when: see :class:`Setting`.
    """
    about: dict[str, Any] = {
        "more": more,
        "unset": unset,
        "option": option,
        "flags": list(flags),
        "everyday": everyday,
        "common": common,
        "when": when,
    }
    return Field(default, description=help, json_schema_extra=about)


def declared(group: type[Group]) -> dict[str, Setting]:
    """The settings that a group declares itself, by name.

    Raises:
        TypeError: a field is no :func:`setting`.
    """
    found = {}
    for name in group.__annotations__:
        if name not in group.model_fields:
            continue
        field = group.model_fields[name]
        about: Any = field.json_schema_extra
        if not isinstance(about, dict) or not field.description:
            raise TypeError(f"{group.__name__}.{name} is not declared by setting(…).")
        words = {**about, "flags": tuple(about["flags"])}
        table, default = group.__name__.lower(), field.get_default(call_default_factory=True)
        found[name] = Setting(name, table, group.title, field.annotation, default, field.description, **words)
    return found
