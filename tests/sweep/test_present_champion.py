"""Whether a registered model may be judged on a new sweep's test side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from search_spaces.data_spec import DataSpec
from trainables.config import BackboneConfig, SplitConfig, TrialConfig
from tuner.ending import steps
from tuner.models.classifier import Classifier
from tuner.models.model_file import ModelCard
from tuner.paths import HomePaths
from tuner.pictures.dealing import prepare_data
from tuner.pictures.dealt import PreparedData

Measure = Callable[..., float]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    spec = DataSpec(source="digits", image_size_px=16, max_per_class=30)
    return prepare_data(spec, HomePaths.at(tmp_path_factory.mktemp("home")), lambda *_: None)


@pytest.fixture
def measure(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """The accuracy of a model that says the same of every picture, with what its card says of its pictures."""
    config = TrialConfig(data=data.config, backbone=BackboneConfig(name="lenet"), freeze_depth=0)

    def measure(**changes: Any) -> float:
        card = ModelCard(
            class_names=data.config.class_names,
            image_size_px=16,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            backbone="lenet",
            **{"data_fingerprint": data.config.fingerprint, "split": data.config.split, **changes},
        )

        def probabilities(pictures: Iterable[torch.Tensor]) -> torch.Tensor:
            found = torch.zeros(len(list(pictures)), len(card.class_names))
            found[:, 3] = 1.0
            return found

        classifier = SimpleNamespace(card=card, probabilities=probabilities)
        monkeypatch.setattr(Classifier, "load", lambda *_: classifier)
        return steps._measure("models:/m/1", "sqlite:///unused.db", config, 24, "accuracy")

    return measure


def test_a_model_that_learnt_from_other_pictures_is_judged(measure: Measure, data: PreparedData) -> None:
    assert measure() == data.counts["test"]["3"] / data.size("test")
    fewer = data.config.split.model_copy(update={"val": 0.2, "train": 0.7})
    assert measure(split=fewer) == measure(), "its test side is the same"


@pytest.mark.parametrize(
    "changes",
    [{"split": SplitConfig(seed=1)}, {"group_pattern": r"(\d)$"}, {"split": SplitConfig(test=0.01, train=0.89)}],
    ids=str,
)
def test_a_model_that_may_have_learnt_from_them_is_not(measure: Measure, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it may have learnt from some of them"):
        measure(**changes)


def test_nor_is_one_of_which_that_is_not_known(measure: Measure, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it does not say which pictures it has learnt from"):
        measure(split=None)


def test_nor_is_one_whose_source_dealt_pictures_that_are_others_now(measure: Measure) -> None:
    assert measure(is_dealt_by_source=True) == measure(), "the very same pictures are on the same sides"
    assert measure(data_fingerprint="0" * 64) == measure(), "more pictures move none, where their content decides"
    with pytest.raises(ValueError, match="the sides that the source gave them are not known"):
        measure(is_dealt_by_source=True, data_fingerprint="0" * 64)
