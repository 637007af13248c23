"""Champion or challenger: which alias a new version of a registered model takes.

In: test figures of the new model and of the present champion. Out: a decision with its reason, and the alias set.
`decide` is a function of values; `promote` carries it out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from search_spaces.cost_matrix import CostMatrix
from tuner.metric_names import is_small_good, title
from tuner.models.model_file import load_card
from tuner.models.registry import RegisteredVersion, aliases_of, fetched_model
from tuner.tracking.mlflow_client import gist, open_client

Alias = Literal["champion", "challenger"]

_SCORE_TAG = "thaw.test"
_LONGEST_TAG = 50_000
"""MLflow takes twice as many letters."""
_DECISION_TAG = "thaw.decision"
_MOST_NAMES = 5


@dataclass(frozen=True)
class Score:
    """What a model reached on a test side.

    Attributes:
        value: Of the metric; None when it was not tested.
        test_digest: Names the test pictures with their labels; figures compare only when it is equal.
        class_names: The classes that the model knows; their order does not matter.
        metric: What was measured, without its side; figures compare only when it is equal.
        costs: Where the metric is ``cost``: what it is reckoned by, in the order of the class names.
    """

    value: float | None
    test_digest: str | None
    class_names: tuple[str, ...]
    metric: str = "accuracy"
    costs: CostMatrix | None = None

    def is_comparable(self, other: Score) -> bool:
        """Whether both figures measure the same on the same pictures."""
        return (self.test_digest, self.metric, self._named_costs()) == (
            other.test_digest,
            other.metric,
            other._named_costs(),
        )

    def _named_costs(self) -> dict[tuple[str, str], float] | None:
        if self.costs is None:
            return None
        names = self.class_names
        return {
            (true, decided): cost
            for true, row in zip(names, self.costs, strict=True)
            for decided, cost in zip(names, row, strict=True)
        }


@dataclass(frozen=True)
class Decision:
    """Which alias a new model takes, and why."""

    alias: Alias
    reason: str


def decide(new: Score, present: Score | None) -> Decision:
    """Whether a new model becomes champion: when there is none, or when it is strictly better on the same test side.

    Args:
        new: The new model's score.
        present: The champion's, measured on the new model's test side where its own was another.
    """
    if present is None:
        return Decision("champion", "there was no champion")
    if set(new.class_names) != set(present.class_names):
        return Decision("challenger", _difference(set(new.class_names), set(present.class_names)))
    if new.value is None:
        return Decision("challenger", f"it has no test {title(new.metric)}")
    if present.value is None or not new.is_comparable(present):
        return Decision("challenger", "the champion has no result on the same test pictures")
    both = f"test {title(new.metric)} {new.value:.4f} against the champion's {present.value:.4f} on the same pictures"
    if (new.value < present.value) if is_small_good(new.metric) else (new.value > present.value):
        return Decision("champion", both)
    return Decision("challenger", f"{both}: not better")


def promote(
    version: RegisteredVersion, score: Score, tracking_uri: str, evaluate_present: Callable[[str], float]
) -> Decision:
    """Gives ``version`` the alias that it has earned, and keeps its score and the reason with it.

    Args:
        version: Registered already.
        score: Its score.
        tracking_uri: MLflow's address.
        evaluate_present: From the champion's ``models:/`` URI to its value of ``score.metric`` on the new model's test
            side; called only when the champion was tested on other pictures, or for another metric, and knows the same
            classes.
    """
    from mlflow.exceptions import MlflowException

    client = open_client(tracking_uri)
    number = str(version.version)
    champion = aliases_of(client, version.name).get("champion")
    if champion == version.version:  # decided by an earlier attempt: the alias comes last
        return Decision("champion", client.get_model_version(version.name, number).tags.get(_DECISION_TAG, ""))
    try:
        present = None
        if champion is not None:
            uri = RegisteredVersion(version.name, champion).uri
            present = _score_of(client, version.name, champion, tracking_uri)
            if _needs_evaluation(score, present):
                present = replace(score, value=evaluate_present(uri))
        decision = decide(score, present)
    except (ValueError, OSError, RuntimeError, MlflowException) as error:
        decision = Decision("challenger", f"the champion could not be tested on the same pictures: {gist(error)}")
    client.set_model_version_tag(version.name, number, _SCORE_TAG, _score_text(score))
    client.set_model_version_tag(version.name, number, _DECISION_TAG, decision.reason)
    client.set_registered_model_alias(version.name, decision.alias, number)
    return decision


def _score_text(score: Score) -> str:
    """A score as its tag holds it: of very many classes without their names and costs, which the card has too."""
    stored = asdict(score)
    text = json.dumps(stored)
    return text if len(text) <= _LONGEST_TAG else json.dumps({**stored, "class_names": None, "costs": None})


def _needs_evaluation(new: Score, present: Score) -> bool:
    return (
        new.value is not None
        and set(new.class_names) == set(present.class_names)
        and (present.value is None or not new.is_comparable(present))
    )


def _score_of(client: Any, name: str, version: int, tracking_uri: str) -> Score:
    """The score that `promote` kept; for a version that people registered themselves, what its card says."""
    text = client.get_model_version(name, str(version)).tags.get(_SCORE_TAG)
    if text is None:
        with fetched_model(RegisteredVersion(name, version).uri, tracking_uri) as folder:
            return Score(None, None, load_card(folder).class_names)
    stored = json.loads(text)
    if "accuracy" in stored:  # as an older Thaw kept it
        stored["value"] = stored.pop("accuracy")
    if stored["class_names"] is None:
        with fetched_model(RegisteredVersion(name, version).uri, tracking_uri) as folder:
            card = load_card(folder)
        stored |= {"class_names": card.class_names, "costs": card.costs}
    return Score(
        **{
            **stored,
            "class_names": tuple(stored["class_names"]),
            "costs": None if stored.get("costs") is None else tuple(map(tuple, stored["costs"])),
        }
    )


def _difference(new: set[str], present: set[str]) -> str:
    parts = [
        f"{verb} {', '.join(sorted(names)[:_MOST_NAMES])}{' and others' if len(names) > _MOST_NAMES else ''}"
        for verb, names in (("gains", new - present), ("loses", present - new))
        if names
    ]
    return f"its classes are not the champion's: it {' and '.join(parts)}"
