"""Models in a real registry: logged, promoted fairly, found again by what people write, and loaded."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tracking_networks import CLASSES, card, tiny_network

from trainables.errors import InputError
from tuner.models.classifier import Classifier
from tuner.models.model_file import load_card, save_model
from tuner.models.promotion import Decision, Score, decide, promote
from tuner.models.registry import (
    Moment,
    RegisteredVersion,
    backbone_tags,
    fetched_model,
    find_backbone,
    load_weights,
    log_run,
    register_model,
    resolve_model,
)
from tuner.paths import HomePaths
from tuner.tracking.mlflow_client import ensure_experiment, open_client

_counter = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry") / "model"
    save_model(tiny_network(), card(), path)
    return path


@pytest.fixture(scope="module")
def run_id(client: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("artifacts").as_uri()
    return str(client.create_run(ensure_experiment(client, "registry", place)).info.run_id)


@pytest.fixture
def name() -> str:
    """A registered model of this test alone."""
    return f"model-{next(_counter)}"


def _score(accuracy: float | None, digest: str | None = "same", classes: tuple[str, ...] = CLASSES) -> Score:
    return Score(accuracy, digest, classes)


def _never(uri: str) -> float:
    raise AssertionError(f"{uri} need not have been evaluated")


@pytest.mark.parametrize(
    ("new", "present", "alias", "reason"),
    [
        (_score(0.1), None, "champion", "there was no champion"),
        (_score(None, None), None, "champion", "there was no champion"),
        (_score(0.9), _score(0.8), "champion", "0.9000 against the champion's 0.8000"),
        (_score(0.8), _score(0.8), "challenger", "not better"),
        (_score(0.7), _score(0.8), "challenger", "not better"),
        (_score(0.9), _score(0.8, "other"), "challenger", "no result on the same test pictures"),
        (_score(0.9), _score(None), "challenger", "no result on the same test pictures"),
        (_score(None), _score(0.8), "challenger", "it has no test accuracy"),
        (_score(0.9, classes=("bees", "wasps", "ants")), _score(0.8), "champion", "0.9000"),
        (_score(0.9, classes=("ants", "flies")), _score(0.8), "challenger", "gains flies and loses bees, wasps"),
    ],
)
def test_the_decision(new: Score, present: Score | None, alias: str, reason: str) -> None:
    decision = decide(new, present)
    assert decision.alias == alias
    assert reason in decision.reason


def test_a_decision_is_by_the_metric_of_the_sweep() -> None:
    costs = ((0.0, 1.0, 1.0), (5.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    low, high = (Score(value, "same", CLASSES, "cost", costs) for value in (0.2, 0.3))
    assert decide(low, high).alias == "champion"
    assert decide(high, low) == Decision(
        "challenger", "test cost 0.3000 against the champion's 0.2000 on the same pictures: not better"
    )
    assert decide(Score(0.9, "same", CLASSES, "auroc"), Score(0.8, "same", CLASSES, "auroc")).alias == "champion"
    # Neither another metric nor other costs say which is better.
    assert "no result" in decide(low, _score(0.8)).reason
    assert "no result" in decide(low, Score(0.3, "same", CLASSES, "cost", ((0.0, 1.0, 1.0),) * 3)).reason
    # The same costs, the classes in another order.
    order = [2, 0, 1]
    turned = tuple(tuple(costs[true][decided] for decided in order) for true in order)
    assert low.is_comparable(Score(0.3, "same", tuple(CLASSES[place] for place in order), "cost", turned))


def test_a_score_of_an_older_thaw_or_of_another_metric_is_read_or_measured_anew(
    folder: Path, name: str, run_id: str, tracking_uri: str, client: Any
) -> None:
    versions = [register_model(folder, name, tracking_uri, run_id=run_id, time_s=1.0) for _ in range(3)]
    old = {"accuracy": 0.7, "test_digest": "same", "class_names": CLASSES}
    client.set_model_version_tag(name, "1", "thaw.test", json.dumps(old))
    client.set_registered_model_alias(name, "champion", "1")
    assert promote(versions[1], _score(0.6), tracking_uri, _never).alias == "challenger"
    by_cost = Score(0.5, "same", CLASSES, "cost", ((0.0, 1.0, 1.0), (5.0, 0.0, 1.0), (1.0, 1.0, 0.0)))
    assert promote(versions[1], by_cost, tracking_uri, lambda uri: 0.8).alias == "champion"
    # What was kept of it is read back whole.
    assert (
        "0.6000 against the champion's 0.5000"
        in promote(versions[2], replace(by_cost, value=0.6), tracking_uri, _never).reason
    )


def test_a_registered_model_is_the_model(folder: Path, name: str, run_id: str, tracking_uri: str, client: Any) -> None:
    version = register_model(
        folder,
        name,
        tracking_uri,
        run_id=run_id,
        time_s=1_700_000_000.0,
        metrics={"test/accuracy": 0.9},
        tags={"thaw.trial": "7"},
        description="from a test",
    )
    assert version == RegisteredVersion(name, 1)
    classifier = Classifier.load(version.uri, tracking_uri)
    assert classifier.card == card()
    pictures = [torch.full((3, 16, 16), 40 * index, dtype=torch.uint8) for index in range(3)]
    assert torch.equal(classifier.probabilities(pictures), Classifier.load(folder).probabilities(pictures))

    stored = client.get_model_version(name, "1")
    assert (stored.run_id, stored.description, stored.tags["thaw.trial"]) == (run_id, "from a test", "7")
    run = client.get_run(run_id)
    (logged,) = [
        model
        for model in client.search_logged_models([run.info.experiment_id], filter_string=f"name = '{name}'")
        if model.source_run_id == run_id
    ]
    assert {metric.key: metric.value for metric in logged.metrics} == {"test/accuracy": 0.9}
    assert logged.model_id in [output.model_id for output in run.outputs.model_outputs]
    assert name in logged.tags["mlflow.modelVersions"]


def test_metrics_that_the_run_has_already_are_not_repeated(
    folder: Path, name: str, tracking_uri: str, client: Any, tmp_path: Path
) -> None:
    from mlflow.entities import Metric

    run = client.create_run(ensure_experiment(client, "registry-repeat", tmp_path.as_uri())).info.run_id
    epochs = [Metric("val/accuracy", value, 1_700_000_000_000 + step, step) for step, value in ((1, 0.7), (2, 0.8))]
    client.log_batch(run, [Metric("test/accuracy", 0.9, 1_700_000_000_123, 0), *epochs])
    metrics = {"test/accuracy": 0.9, "val/accuracy": 0.8}
    best = Moment(2, 1_700_000_000.002)
    register_model(folder, name, tracking_uri, run_id=run, time_s=1_700_000_000.123, metrics=metrics, epoch=best)
    assert len(client.get_metric_history(run, "test/accuracy")) == 1
    curve = client.get_metric_history(run, "val/accuracy")
    assert [(point.step, point.value) for point in curve] == [(1, 0.7), (2, 0.8)]
    models = client.search_logged_models([client.get_run(run).info.experiment_id], filter_string=f"name = '{name}'")
    (logged,) = (model for model in models if model.source_run_id == run)
    assert {metric.key: metric.value for metric in logged.metrics} == metrics


def test_plain_mlflow_loads_by_alias(folder: Path, name: str, run_id: str, tracking_uri: str, client: Any) -> None:
    """What a user types who knows MLflow and not Thaw."""
    import mlflow

    version = register_model(folder, name, tracking_uri, run_id=run_id, time_s=1.0)
    promote(version, _score(0.5), tracking_uri, _never)
    place = client.get_model_version_by_alias(name, "champion")
    local = mlflow.artifacts.download_artifacts(
        artifact_uri=client.get_model_version_download_uri(name, place.version), tracking_uri=tracking_uri
    )
    assert mlflow.models.Model.load(local).run_id == run_id


def test_the_alias_moves_only_on_a_fair_win(
    folder: Path, name: str, run_id: str, tracking_uri: str, client: Any
) -> None:
    def next_version(score: Score, evaluate: Any = _never) -> Decision:
        version = register_model(folder, name, tracking_uri, run_id=run_id, time_s=1.0)
        return promote(version, score, tracking_uri, evaluate)

    def aliases() -> dict[str, int]:
        return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}

    asked: list[str] = []

    def champion_reaches(accuracy: float) -> Any:
        return lambda uri: (asked.append(uri), accuracy)[1]

    assert next_version(_score(0.7)).alias == "champion"
    assert next_version(_score(0.7)).alias == "challenger"
    assert aliases() == {"champion": 1, "challenger": 2}
    assert next_version(_score(0.8)).alias == "champion"
    assert aliases() == {"champion": 3, "challenger": 2}

    # Other test pictures: the champion (0.8 on its own) is measured on the new ones.
    assert next_version(_score(0.6, "new"), champion_reaches(0.6)).alias == "challenger"
    assert next_version(_score(0.6, "new"), champion_reaches(0.5)).alias == "champion"
    assert asked == [f"models:/{name}/3"] * 2
    assert aliases() == {"champion": 5, "challenger": 4}

    # Other classes, or a champion that cannot be read any more: never a win.
    assert next_version(_score(0.9, "new", ("ants", "flies")), _never).alias == "challenger"

    def is_lost(uri: str) -> float:
        raise FileNotFoundError(f"{uri} is gone")

    lost = next_version(_score(0.9, "newer"), is_lost)
    assert lost.alias == "challenger"
    assert "could not be tested" in lost.reason
    assert "is gone" in client.get_model_version(name, "7").tags["thaw.decision"]
    assert aliases() == {"champion": 5, "challenger": 7}


@pytest.mark.parametrize("odd", ["labels.csv", "rev-1.0", "100%", "o'brien's \"best\"", "部品.v2"])
def test_any_name_of_a_registered_model_will_do(
    folder: Path, name: str, run_id: str, tracking_uri: str, odd: str
) -> None:
    version = register_model(folder, f"{name} {odd}", tracking_uri, run_id=run_id, time_s=1.0)
    assert promote(version, _score(0.7), tracking_uri, _never).alias == "champion"
    with fetched_model(version.uri, tracking_uri) as fetched:
        assert load_card(fetched).class_names == CLASSES


def test_of_very_many_classes_the_score_leaves_the_names_to_the_card(
    tmp_path: Path, name: str, run_id: str, tracking_uri: str
) -> None:
    classes = tuple(f"class number {number:05d} of very many" for number in range(3000))
    save_model(tiny_network(), card().model_copy(update={"class_names": classes}), tmp_path / "model")
    for value, alias in ((0.7, "champion"), (0.6, "challenger"), (0.8, "champion")):
        version = register_model(tmp_path / "model", name, tracking_uri, run_id=run_id, time_s=1.0)
        assert promote(version, _score(value, classes=classes), tracking_uri, _never).alias == alias
    fewer = promote(version, _score(0.9, classes=classes[1:]), tracking_uri, _never)
    assert fewer.alias == "champion"  # it is decided already
    version = register_model(tmp_path / "model", name, tracking_uri, run_id=run_id, time_s=1.0)
    decision = promote(version, _score(0.9, classes=classes[1:]), tracking_uri, _never)
    assert "it loses class number 00000" in decision.reason


def test_a_champion_that_people_appointed_is_measured_too(
    folder: Path, name: str, run_id: str, tracking_uri: str, client: Any
) -> None:
    """It has no recorded score; its classes are read from its card."""
    versions = [register_model(folder, name, tracking_uri, run_id=run_id, time_s=1.0) for _ in range(2)]
    client.set_registered_model_alias(name, "champion", "1")
    assert promote(versions[1], _score(0.9), tracking_uri, lambda uri: 0.95).alias == "challenger"
    assert promote(versions[1], _score(0.9), tracking_uri, lambda uri: 0.85).alias == "champion"
    # Said again after a crash, nothing changes.
    assert promote(versions[1], _score(0.9), tracking_uri, _never).alias == "champion"


def test_a_pretrained_backbone_is_found_by_its_recipe(
    folder: Path, name: str, tracking_uri: str, client: Any, tmp_path: Path
) -> None:
    recipe = '{"backbone":"tiny","name":"' + name + '"}'
    assert find_backbone(recipe, tracking_uri) is None
    run_id = log_run(
        HomePaths.at(tmp_path),
        tracking_uri,
        experiment=name,
        name="pretraining",
        params={"lr": 0.1},
        epochs=[{"epoch": 1, "val/accuracy": 0.5}, {"epoch": 2, "val/accuracy": 0.75}],
        time_s=(10.0, 20.0),
    )
    for _ in range(2):
        registered = register_model(folder, name, tracking_uri, run_id=run_id, time_s=20.0, tags=backbone_tags(recipe))
    assert find_backbone(recipe, tracking_uri) == registered == RegisteredVersion(name, 2)
    assert find_backbone(recipe + " ", tracking_uri) is None
    state = load_weights(registered.uri, tracking_uri)["state_dict"]
    assert all(torch.equal(state[key], tensor) for key, tensor in tiny_network().state_dict().items())
    run = client.get_run(run_id)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 10_000, 20_000)
    assert [point.value for point in client.get_metric_history(run_id, "val/accuracy")] == [0.5, 0.75]


def test_names_that_people_write(folder: Path, name: str, run_id: str, tracking_uri: str, tmp_path: Path) -> None:
    home = HomePaths.at(tmp_path)
    for accuracy in (0.5, 0.7, 0.6):
        version = register_model(folder, name, tracking_uri, run_id=run_id, time_s=1.0)
        promote(version, _score(accuracy), tracking_uri, _never)
    for text, number in {
        name: 2,
        f"{name}@champion": 2,
        f"{name}@challenger": 3,
        f"{name}/1": 1,
        f"models:/{name}@champion": 2,
        f"models:/{name}/1": 1,
    }.items():
        assert resolve_model(text, home, tracking_uri) == f"models:/{name}/{number}", text
    with fetched_model(f"models:/{name}@champion", tracking_uri) as fetched:
        assert fetched.joinpath("MLmodel").is_file()
    assert resolve_model(str(folder), home, tracking_uri) == str(folder)


def test_models_are_found_in_a_home_that_was_moved(folder: Path, tmp_path: Path) -> None:
    old, new = HomePaths.at(tmp_path / "old"), HomePaths.at(tmp_path / "new")
    uri = old.tracking_uri(None, {})
    client = open_client(uri)
    run = client.create_run(ensure_experiment(client, "parts", old.artifact_location(uri))).info.run_id
    register_model(folder, "parts", uri, run_id=run, time_s=1.0)
    Path(old.root).rename(new.root)
    with fetched_model("models:/parts/1", new.tracking_uri(None, {})) as fetched:
        assert fetched.is_relative_to(new.root)
        assert load_card(fetched).class_names == CLASSES
    shutil.rmtree(new.artifacts)
    with (
        pytest.raises(InputError, match="the files of models:/parts/1 are not at"),
        fetched_model("models:/parts/1", new.tracking_uri(None, {})),
    ):
        pass


@pytest.mark.parametrize("text", ["nobody", "nobody@champion", "models:/nobody/1", "{name}/99", "{name}@nobody"])
def test_what_is_not_there_is_answered_with_what_there_is(
    folder: Path, name: str, run_id: str, tracking_uri: str, text: str
) -> None:
    version = register_model(folder, name, tracking_uri, run_id=run_id, time_s=1.0)
    promote(version, _score(0.5), tracking_uri, _never)
    text = text.format(name=name)
    with pytest.raises(InputError, match=rf"there is no '{text}'\. There are: .*model-"):
        resolve_model(text, HomePaths.at("unused"), tracking_uri)
    with pytest.raises(InputError, match="there is no"):
        load_weights(text, tracking_uri)


def test_champion_alone_must_be_clear(tmp_path: Path, folder: Path) -> None:
    """In a home of its own: none, one, then two."""
    home = HomePaths.at(tmp_path)
    uri = home.tracking_uri(None, {})
    with pytest.raises(InputError, match="there are no models yet; run a sweep first"):
        resolve_model("champion", home, uri)
    assert find_backbone("{}", uri) is None
    assert not home.mlflow_db.exists()

    run_id = log_run(home, uri, experiment="e", name="r", params={}, epochs=[], time_s=(1.0, 2.0))
    with pytest.raises(InputError, match=r"no model has a champion\. There are no models yet"):
        resolve_model("champion", home, uri)
    for name in ("digits", "photos"):
        version = register_model(folder, name, uri, run_id=run_id, time_s=2.0)
        if name == "digits":
            promote(version, _score(0.5), uri, _never)
            assert resolve_model("champion", home, uri) == "models:/digits/1"
    with pytest.raises(InputError, match=r"no model has a challenger\. There are: digits@champion, photos/1"):
        resolve_model("challenger", home, uri)
    promote(version, _score(0.5), uri, _never)
    with pytest.raises(InputError, match="2 models have a champion; say which: digits@champion, photos@champion"):
        resolve_model("champion", home, uri)
    with pytest.raises(InputError, match="names no model; write NAME"):
        resolve_model("a/b/c", home, uri)


def test_a_server_that_is_away_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow at http://127.0.0.1:9 does not answer") as caught:
        resolve_model("champion", HomePaths.at(tmp_path), "http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_no_password_is_shown_where_a_server_does_not_answer() -> None:
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer") as error:
        load_weights("models:/parts@champion", "http://kim:secret@127.0.0.1:9")
    assert "secret" not in str(error.value)
