"""The three ways to write a searched field: one value, a list of choices, or a range.

`Searched[V, R]` is the type of a field whose fixed values and choices are `V` and whose range is the class `R`;
`Chosen[V]` has no range. Which of the forms was meant is told from the shape alone, so that a mistake is reported once,
against the form the user wrote.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from trainables.config import LEAST_START_SIZE, MOST_ALPHA, Settings
from trainables.wording import shorten

# Pydantic puts these into an error's location. None can be a field's name, so messages can leave them out.
VALUE, CHOICES, RANGE, WORD = "one value", "a list", "a range", "a word"
FORM_TAGS = frozenset({VALUE, CHOICES, RANGE, WORD})

V = TypeVar("V")
R = TypeVar("R")
N = TypeVar("N", bound=float)


class SpecPart(Settings):
    """Base of every part of a spec: as `Settings`, and infinities and NaN are no numbers."""

    model_config = ConfigDict(allow_inf_nan=False)


MOST_LETTERS = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MOST_LETTERS - 1}}}")
NAME_RULE = f"Letters, digits, '.', '_' and '-', at most {MOST_LETTERS}, the first a letter or digit."

# Strict, or true and "8" would pass as numbers.
Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Resource = Annotated[float, Field(strict=True, ge=0.01)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]
SizePx = Annotated[int, Field(strict=True, ge=8, le=1024)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Rate = Annotated[float, Field(strict=True, gt=0, le=1)]
StartSize = Annotated[float, Field(strict=True, ge=LEAST_START_SIZE, le=1)]
Decay = Annotated[float, Field(strict=True, gt=0, lt=1)]
Alpha = Annotated[float, Field(strict=True, ge=0, le=MOST_ALPHA)]
Count = Annotated[int, Field(strict=True, ge=1)]
Magnitude = Annotated[int, Field(strict=True, ge=0, le=30)]


class Range(SpecPart, Generic[N]):
    """All numbers from `low` to `high`, both included."""

    low: N = Field(description="Smallest value.")
    high: N = Field(description="Largest value.")
    log: bool = Field(False, description="Search evenly over orders of magnitude instead of over values.")

    @model_validator(mode="after")
    def _is_a_range(self) -> Range[N]:
        _check_order(self.low, self.high)
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, and low is {self.low}; raise low or leave log out")
        return self


class PositiveRange(Range[Positive]):
    """Numbers above 0."""


class NonNegativeRange(Range[NonNegative]):
    """Numbers from 0 up."""


class ShareRange(Range[Share]):
    """Numbers from 0 to below 1."""


class RateRange(Range[Rate]):
    """Numbers above 0 up to 1."""


class StartSizeRange(Range[StartSize]):
    """Numbers from a quarter to 1."""


class DecayRange(Range[Decay]):
    """Numbers between 0 and 1."""


class AlphaRange(Range[Alpha]):
    """Numbers from 0 to 100."""


class CountRange(Range[Count]):
    """Whole numbers from 1 to 100,000: some samplers write all of them out."""

    @field_validator("high")
    @classmethod
    def _can_be_written_out(cls, high: int, info: ValidationInfo) -> int:
        return _check_most(high, MOST_IN_A_RANGE, info)


class MagnitudeRange(Range[Magnitude]):
    """Whole numbers from 0 to 30."""


KEPT = "kept"
"""In the context of a validation: whether a sweep has begun with the spec already."""


def is_kept(info: ValidationInfo) -> bool:
    """Whether what is checked is kept, and not to be refused for what was once allowed."""
    return bool(info.context and info.context.get(KEPT))


def _check_most(value: Any, most: float, info: ValidationInfo) -> Any:
    if isinstance(value, int | float) and value > most and not is_kept(info):
        raise ValueError(f"{shorten(value)} is more than {most:,.0f}; lower it")
    return value


def at_most(most: float) -> AfterValidator:
    """Bounds a number in new specs; what a sweep has begun with stays."""
    return AfterValidator(lambda value, info: _check_most(value, most, info))


MOST_EPOCHS, MOST_GB, MOST_IN_A_RANGE = 10_000, 1_000_000_000, 100_000
Epochs = Annotated[int, Field(strict=True, ge=1, json_schema_extra={"maximum": MOST_EPOCHS}), at_most(MOST_EPOCHS)]
Gigabytes = Annotated[float, Field(strict=True, gt=0, json_schema_extra={"maximum": MOST_GB}), at_most(MOST_GB)]


def check_name(name: str) -> str:
    """Refuses a name that cannot name a folder everywhere.

    Raises:
        ValueError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{shorten(name)} cannot name a folder everywhere; use letters, digits, '.', '_' and '-', at most 64"
        )
    return name


def listed(field: Any) -> tuple[Any, ...]:
    """The values of a field that is not a range: its choices, or the only one."""
    return field if isinstance(field, tuple) else (field,)


def _number_or_word(value: object) -> str:
    return WORD if isinstance(value, str) else VALUE


CountOrAuto: TypeAlias = Annotated[
    Union[Annotated[Count, Tag(VALUE)], Annotated[Literal["auto"], Tag(WORD)]],  # noqa: UP007
    Discriminator(_number_or_word),
]
CountOrUnlimited: TypeAlias = Annotated[
    Union[Annotated[Count, Tag(VALUE)], Annotated[Literal["unlimited"], Tag(WORD)]],  # noqa: UP007
    Discriminator(_number_or_word),
]
Depth: TypeAlias = Annotated[
    Union[Annotated[int, Field(strict=True, ge=0), Tag(VALUE)], Annotated[Literal["all"], Tag(WORD)]],  # noqa: UP007
    Discriminator(_number_or_word),
]


class DepthRange(SpecPart):
    """Freeze depths from `low` to `high`, both included."""

    low: Int = Field(0, ge=0, description="Smallest depth; 0 trains everything.")
    high: Depth = Field("all", description="Largest depth; 'all' is the number of stages: only the head is trained.")

    @model_validator(mode="after")
    def _is_a_range(self) -> DepthRange:
        if self.high != "all":
            _check_order(self.low, self.high)
        return self


def _check_order(low: float, high: float) -> None:
    if low == high:
        raise ValueError(f"low and high are both {low}; give that one value instead of a range")
    if low > high:
        raise ValueError(f"low {low} is above high {high}; swap them")


def _form(value: object) -> str:
    if isinstance(value, (dict, BaseModel)):
        return RANGE
    return CHOICES if isinstance(value, (list, tuple)) else VALUE


def are_distinct(values: tuple[V, ...]) -> tuple[V, ...]:
    """The values as they are.

    Raises:
        ValueError: One is listed twice.
    """
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{shorten(value)} is listed twice; list each value once")
    return values


def _are_choices(values: tuple[V, ...]) -> tuple[V, ...]:
    if not values:
        raise ValueError("the list is empty; give at least one value")
    return are_distinct(values)


_Choices: TypeAlias = Annotated[tuple[V, ...], AfterValidator(_are_choices), Tag(CHOICES)]
Chosen: TypeAlias = Annotated[
    Union[Annotated[V, Tag(VALUE)], _Choices[V]],  # noqa: UP007
    Discriminator(_form),
]
Searched: TypeAlias = Annotated[
    Union[Annotated[V, Tag(VALUE)], _Choices[V], Annotated[R, Tag(RANGE)]],  # noqa: UP007
    Discriminator(_form),
]


def _int_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


# Class folders are often named 0, 1, 2: YAML reads these as numbers.
ClassName = Annotated[str, BeforeValidator(_int_as_text), WithJsonSchema({"type": ["string", "integer"]})]
ClassNames = Annotated[tuple[ClassName, ...], AfterValidator(are_distinct)]
