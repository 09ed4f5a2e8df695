"""Settings of a codec as text, ``qsgd:levels=7,bucket=512``, and back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from weft import typed
from weft.errors import UserError


@dataclass(frozen=True)
class Configured:
    """Something with a name whose fields are its settings, each of the type and within the bounds that it is annotated with.

    Attributes:
        called: what it is, for sentences.

    Raises:
        UserError: a value is not.
    """

    name: ClassVar[str]
    called: ClassVar[str] = "codec"

    def __post_init__(self) -> None:
        typed.check(self)

    @property
    def text(self) -> str:
        """The name with every setting, in the order of the fields."""
        written = ",".join(f"{f.name}={_spelled(getattr(self, f.name))}" for f in fields(self))
        return f"{self.name}:{written}" if written else self.name


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


C = TypeVar("C", bound=Configured)


def configured(cls: type[C], text: str) -> C:
    """One of this class from ``setting=value,setting=value``; what is not given keeps its default.

    Raises:
        UserError: unknown names, and values that do not fit, all of them in one sentence.
    """
    hints = typed.hints(cls)
    problems: list[str] = []
    given: dict[str, Any] = {}
    for piece in text.split(",") if text else ():
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not name:
            problems.append(f'"{piece}" is no setting: write name=value')
        elif name in given:
            problems.append(f"{name} is given twice")
        elif name not in hints:
            problems.append(typed.stray(name, hints))
        else:
            try:
                given[name] = typed.convert(value, hints[name])
            except typed.Misfit as e:
                given[name] = None
                problems.append(e.clause(name))
    if problems:
        raise UserError(typed.sentence(f'{cls.called} "{cls.name}"', problems))
    return cls(**given)
