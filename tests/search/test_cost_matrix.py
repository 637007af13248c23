"""What mistakes cost: both ways to write it, and what is refused."""

import pytest

from search_spaces.cost_matrix import cost_matrix
from search_spaces.loading import dump_spec, load_spec, read_spec
from trainables.errors import InputError

NAMES = ("crack", "good", "scratch")


def costs_of(*overrides):
    return load_spec("digits", ["metric=val/cost", *overrides]).costs


def test_a_mapping_fills_in_0_for_right_and_1_for_wrong():
    expected = ((0.0, 50.0, 1.0), (1.0, 0.0, 1.0), (1.0, 8.0, 0.5))
    assert cost_matrix({"crack": {"good": 50}, "scratch": {"good": 8, "scratch": 0.5}}, NAMES) == expected
    assert cost_matrix(expected, NAMES) == expected
    assert cost_matrix(None, NAMES) is None


def test_class_names_that_are_numbers_are_names_and_the_spec_survives_its_dump():
    assert costs_of("costs={0: {1: 5}}") == costs_of("costs.0.1=5") == {"0": {"1": 5.0}}
    assert costs_of("costs=[[0, 1], [2.5, 0]]") == ((0.0, 1.0), (2.5, 0.0))
    for costs in ("{0: {1: 5}}", "[[0, 1], [2.5, 0]]"):
        spec = load_spec("digits", [f"costs={costs}"])
        assert read_spec(dump_spec(spec), [], "again") == spec


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("metric=val/cost", "metric: val/cost is what mistakes cost, and costs does not say; add costs: {true class"),
        ("costs=5", "costs: 5 is no cost matrix; write {true class: {predicted class: cost}}, or a list of rows"),
        ("costs={good: 5}", "costs: {'good': 5} is no cost matrix"),
        ("costs={good: {crack: -1}}", "costs.good.crack: -1 is not allowed: it should be greater than or equal to 0"),
        ("costs=[[0, x], [1, 0]]", "costs[0][1]: 'x' is not allowed"),
        ("costs={}", "costs: no cost is given"),
    ],
)
def test_what_is_no_cost_is_refused_with_the_field(override, line):
    with pytest.raises(InputError) as caught:
        load_spec("digits", [override])
    assert str(caught.value).startswith(f"digits: {line}")


@pytest.mark.parametrize(
    ("costs", "line"),
    [
        ({"crak": {"good": 5}}, "costs: no class 'crak': did you mean 'crack'?"),
        ({"crack": {"Gut": 5}}, "costs.crack: no class 'Gut': there are crack, good, scratch"),
        (((0, 1), (1, 0)), "costs: a matrix of 2 rows of 2 costs, and there are 3 classes: give 3 rows of 3, in the "),
        (((0, 1, 1), (1, 0), (1, 1, 0)), "costs: a matrix of 3 rows of 2 or 3 costs, and there are 3 classes"),
        (
            {"crack": {"crack": 2}},
            "costs: a picture of 'crack' costs 2 when it is recognised, and 1 when it is taken for",
        ),
        (((0, 0, 0),) * 3, "costs: no mistake costs more than a right decision"),
    ],
)
def test_costs_that_do_not_fit_the_classes_are_refused(costs, line):
    with pytest.raises(InputError) as caught:
        cost_matrix(costs, NAMES)
    assert str(caught.value).startswith(line)
