"""Values against annotations: what fits, what a text stands for, and what is said of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt

from weft.errors import UserError
from weft.typed import (
    Called,
    Count,
    Misfit,
    NonNegative,
    Positive,
    Share,
    Whole,
    check,
    choices,
    convert,
    hints,
    sentence,
    spelled,
)

T = TypeVar("T")
Odd = Annotated[float, Gt(0), Lt(1)]
Word = Literal["slow", "fast"]
Named = Annotated[Literal["slow", "fast"], Called("pace")]


class Able(Protocol):
    """Something that nothing can be said of."""


@dataclass(frozen=True)
class Thing:
    """A field of each kind."""

    count: Count = 1
    odd: Odd = 0.5
    steps: Count | None = None
    many: tuple[Count, ...] = ()
    pair: tuple[Share, Whole] = (0.5, 0)
    pace: Named = "slow"
    either: Word | int = 3
    flag: bool = False
    name: str = ""
    able: Able | None = None
    free: Any = None
    always: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Other:
    """With a field that is an object."""

    thing: Thing = Thing()


# bounds -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (Count, (1, 7), (0, -1)),
        (Whole, (0, 1), (-1,)),
        (Positive, (1e-9, 3), (0, 0.0, -1.0)),
        (NonNegative, (0, 0.0, 2.5), (-1e-9, -1)),
        (Share, (0, 0.5, 1), (-0.1, 1.1, 2)),
        (Odd, (0.5,), (0, 1, 1.5)),
        (Annotated[int, Interval(ge=2, lt=4)], (2, 3), (1, 4)),
        (Annotated[int | None, Ge(1)], (1, None), (0,)),
        (Count | None, (1, None), (0,)),
        (tuple[Count, ...], ((), (1, 2)), ((1, 0), (0,))),
        (tuple[Share, Whole], ((0.5, 3),), ((2.0, 3), (0.5, -1), (0.5,), (0.5, 1, 1))),
        (tuple[Count | None, ...], ((1, None),), ((0, None),)),
        (Positive | Word, (0.5, "slow"), (0.0, "slw")),
    ],
)
def test_bounds_hold_alone_and_inside_tuples_and_unions(hint: Any, inside: tuple[Any, ...], outside: tuple[Any, ...]) -> None:
    for value in inside:
        assert convert(value, hint) == value
    for value in outside:
        with pytest.raises(Misfit):
            convert(value, hint)


def test_text_stands_for_a_value_when_it_is_converted_and_only_then() -> None:
    assert (convert("3", Count), convert("none", Count | None), convert("1,2", tuple[Count, ...])) == (3, None, (1, 2))
    for text in ("0", "0.5", ""):
        with pytest.raises(Misfit):
            convert(text, Count)
    for wrong in ({"count": "3"}, {"steps": "none"}, {"many": "1,2"}, {"flag": "true"}, {"either": "3"}):
        with pytest.raises(UserError):
            Thing(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, False, 1.0, None, "x", [1], 1j])
def test_a_whole_number_is_no_truth_no_fraction_and_nothing_else(value: Any) -> None:
    with pytest.raises(UserError, match='"count" must be a whole number, not'):
        Thing(count=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, "0.5", 10**400, None])
def test_a_number_is_finite_and_no_truth(value: Any) -> None:
    with pytest.raises(UserError, match='"odd" must be a number, not'):
        Thing(odd=value)
    with pytest.raises(Misfit):
        convert(value if value != "0.5" else "nan", Odd)


def test_numbers_of_numpy_are_numbers() -> None:
    assert Thing(count=np.int64(3), odd=np.float32(0.5)).count == 3
    with pytest.raises(UserError, match="count ≥ 1, not"):
        Thing(count=np.int64(0))


def test_a_truth_is_no_number_among_choices_either() -> None:
    with pytest.raises(Misfit):
        convert(True, Literal[1, 2])
    assert convert("2", Literal[1, 2]) == 2


# sentences ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "Thing: it needs count ≥ 1, not 0."),
        ({"odd": 1}, "Thing: it needs 0 < odd < 1, not 1.0."),
        ({"steps": 0}, "Thing: it needs steps ≥ 1, not 0."),
        ({"steps": "x"}, "Thing: setting \"steps\" must be a whole number ≥ 1 or none, not 'x'."),
        ({"many": (1, 0)}, 'Thing: setting "many" must be a list, of each a whole number ≥ 1, not (1, 0).'),
        ({"pair": (2.0, 0)}, 'Thing: setting "pair" must be (a number ≥ 0 and ≤ 1, a whole number ≥ 0), not (2.0, 0).'),
        ({"pace": "fsat"}, 'Thing: unknown pace "fsat": use slow, fast. Did you mean "fast"?'),
        ({"pace": "never"}, 'Thing: unknown pace "never": use slow, fast.'),
        ({"pace": 3}, 'Thing: setting "pace" must be one of "slow", "fast", not 3.'),
        ({"either": "fsat"}, 'Thing: setting "either" must be one of "slow", "fast" or a whole number, not \'fsat\'.'),
        ({"flag": 1}, 'Thing: setting "flag" must be true or false, not 1.'),
        ({"name": None}, 'Thing: setting "name" must be a text, not None.'),
        (
            {"pace": "fsat", "count": 0, "name": 3},
            'Thing: it needs count ≥ 1, not 0; setting "name" must be a text, not 3; '
            'unknown pace "fsat": use slow, fast. Did you mean "fast"?',
        ),
    ],
)
def test_all_that_is_wrong_with_an_object_is_one_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Thing(**wrong)
    assert str(caught.value) == said


def test_a_choice_goes_by_the_name_of_its_field_without_another() -> None:
    with pytest.raises(Misfit) as caught:
        convert("fsat", Word)
    assert caught.value.clause("outer.mode") == 'unknown mode "fsat": use slow, fast. Did you mean "fast"?'


def test_objects_are_compared_with_their_class_and_the_rest_is_taken() -> None:
    assert Other(Thing(2)).thing.count == 2
    check(Other())
    with pytest.raises(UserError, match='"thing" must be Thing, not 3'):
        check(Other(3))  # type: ignore[arg-type]
    assert convert({"a": 1}, dict[str, int]) == {"a": 1}
    assert convert(object, T) is object


def test_questions_come_last() -> None:
    assert sentence("x", ["is it?", "a", "b"]) == "x: a; b; is it?"
    assert sentence("x", ["a"]) == "x: a."


# annotations --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "text", "words"),
    [
        (Count, "int", ()),
        (Count | None, "int | None", ()),
        (tuple[Share, ...], "tuple[float, ...]", ()),
        (tuple[Count, str], "tuple[int, str]", ()),
        (Word, "str", ("slow", "fast")),
        (Named, "str", ("slow", "fast")),
        (Word | None, "str | None", ("slow", "fast")),
        (Word | int, "str | int", ()),
        (Literal[1, 2], "int", (1, 2)),
        (bool, "bool", ()),
        (Any, "Any", ()),
        (dict[str, int], "dict[str, int]", ()),
        (Annotated[float, Le(1)], "float", ()),
    ],
)
def test_types_are_spelled_plainly_and_choices_apart(hint: Any, text: str, words: tuple[Any, ...]) -> None:
    assert (spelled(hint), choices(hint)) == (text, words)


def test_an_override_with_the_plain_type_keeps_bounds_and_choices() -> None:
    @dataclass(frozen=True)
    class Loose(Thing):
        count: int = 5
        pace: str = "fast"  # type: ignore[assignment]
        odd: Annotated[float, Le(9)] = 9.0
        steps: float | None = 0.5  # type: ignore[assignment]

    assert Loose() == Loose(5, 9.0, 0.5)  # type: ignore[arg-type]
    for wrong in ({"count": 0}, {"pace": "fats"}, {"odd": 10.0}):
        with pytest.raises(UserError):
            Loose(**wrong)  # type: ignore[arg-type]


def test_class_variables_are_no_fields() -> None:
    assert "always" not in hints(Thing)


def test_a_type_that_only_the_type_checker_sees_is_told() -> None:
    @dataclass(frozen=True)
    class Blind:
        path: Elsewhere = None  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(TypeError, match=r"type of Blind\.path, Elsewhere, can't be looked up .* not under TYPE_CHECKING"):
        check(Blind())
