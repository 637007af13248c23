"""What mistakes cost: by class names or as a matrix, as the field ``costs`` of a spec says it.

In: a mapping from true class to predicted class to cost, or rows in the order of the classes. Out: one row per class,
in the order of the classes, with nothing left open. Costs of computing are in `search_spaces.costs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias, Union

from pydantic import BeforeValidator, Discriminator, Tag

from search_spaces.mistakes import nearest
from search_spaces.ranges import CHOICES, RANGE, ClassName, NonNegative, at_most
from trainables.errors import InputError
from trainables.wording import shorten

Cost: TypeAlias = Annotated[NonNegative, at_most(1e12)]
CostTable: TypeAlias = dict[ClassName, dict[ClassName, Cost]]
CostRows: TypeAlias = tuple[tuple[Cost, ...], ...]
CostMatrix: TypeAlias = tuple[tuple[float, ...], ...]
_MOST_NAMED = 12


def _check_form(value: Any) -> Any:
    """Refuses what is neither form, before pydantic reports it once for each."""
    rows = list(value.values()) if isinstance(value, dict) else value
    wanted: Any = dict if isinstance(value, dict) else (list, tuple)
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, wanted) for row in rows):
        raise ValueError(
            f"{shorten(value)} is no cost matrix; write {{true class: {{predicted class: cost}}}}, or a list of rows"
        )
    if not rows:
        raise ValueError("no cost is given; write {true class: {predicted class: cost}}, or leave costs out")
    return value


Costs: TypeAlias = Annotated[
    Union[Annotated[CostTable, Tag(RANGE)], Annotated[CostRows, Tag(CHOICES)]],  # noqa: UP007
    Discriminator(lambda value: RANGE if isinstance(value, dict) else CHOICES),
    BeforeValidator(_check_form),
]


def cost_matrix(costs: CostTable | CostRows | None, class_names: Sequence[str]) -> CostMatrix | None:
    """Costs by true class (rows) and by decision (columns), in the order of the classes; None without any.

    What a mapping leaves out costs 0 where the decision is right, and 1 where it is wrong.

    Raises:
        InputError: A class is unknown, a matrix has another size, or the costs make no sense.
    """
    if costs is None:
        return None
    rows = _named(costs, class_names) if isinstance(costs, dict) else costs
    num_classes = len(class_names)
    if len(rows) != num_classes or any(len(row) != num_classes for row in rows):
        widths = " or ".join(map(str, sorted({len(row) for row in rows})))
        raise InputError(
            f"costs: a matrix of {len(rows)} rows of {widths} costs, and there are {num_classes} classes: "
            f"give {num_classes} rows of {num_classes}, in the order {_listed(class_names)}"
        )
    for true, row in enumerate(rows):
        if (cheapest := min(range(num_classes), key=row.__getitem__)) != true and row[cheapest] < row[true]:
            raise InputError(
                f"costs: a picture of {class_names[true]!r} costs {row[true]:g} when it is recognised, and "
                f"{row[cheapest]:g} when it is taken for {class_names[cheapest]!r}: a mistake must not cost less; rows "
                "are true classes, so make the cost on the diagonal the least of its row"
            )
    if all(cost == row[true] for true, row in enumerate(rows) for cost in row):
        raise InputError("costs: no mistake costs more than a right decision: give mistakes a cost, or leave costs out")
    return tuple(tuple(float(cost) for cost in row) for row in rows)


def _named(costs: CostTable, class_names: Sequence[str]) -> CostRows:
    for true, row in costs.items():
        _check_known(true, f"costs: no class {shorten(true)}", class_names)
        for decided in row:
            _check_known(decided, f"costs.{true}: no class {shorten(decided)}", class_names)
    return tuple(
        tuple(costs.get(true, {}).get(decided, float(decided != true)) for decided in class_names)
        for true in class_names
    )


def _check_known(name: str, problem: str, class_names: Sequence[str]) -> None:
    if name in class_names:
        return
    match = nearest(name, class_names)
    raise InputError(f"{problem}: " + (f"did you mean {match!r}?" if match else f"there are {_listed(class_names)}"))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
