"""MLflow's model registry: how a model's folder gets in, and how it is found and fetched again.

In: folders of `tuner.models.model_file`, and the names that people give. Out: versions, folders, tensors. Everything
goes through a client of its own; MLflow's global address is neither read nor set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from trainables.errors import InputError
from trainables.files.typed_path import expand, path_problem
from tuner.paths import ARTIFACTS, HomePaths, sqlite_file
from tuner.tracking.access import without_password
from tuner.tracking.mlflow_client import MISSING, ensure_experiment, gist, log_values, open_client, outages
from tuner.tracking.projection import MetricPoint, RunUpdate, as_param

_PRETRAIN_TAG = "thaw.pretrain"
_ALIASES = ("champion", "challenger")
_MOST_LISTED = 12
_REFERENCE = re.compile(r"(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<version>\d+))?")
_EXISTS = ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


class MLflowAwayError(InputError):
    """MLflow does not answer."""


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: int

    @property
    def uri(self) -> str:
        """The version as MLflow addresses it."""
        return f"models:/{self.name}/{self.version}"


class Moment(NamedTuple):
    """A step of a run, and when it was, in seconds."""

    step: int
    time_s: float


def register_model(
    folder: Path,
    name: str,
    tracking_uri: str,
    *,
    run_id: str,
    time_s: float,
    metrics: Mapping[str, float] | None = None,
    epoch: Moment | None = None,
    tags: Mapping[str, str] | None = None,
    description: str | None = None,
) -> RegisteredVersion:
    """Logs a model's folder as a model of a run, and registers it as the next version of ``name``.

    Args:
        folder: From `tuner.models.model_file.save_model`; it learns the ids of its run and model.
        name: The registered model; created if need be.
        tracking_uri: MLflow's address.
        run_id: The run that it comes from.
        time_s: When the metrics were measured. Metrics that the run has from that moment already are not repeated.
        metrics: Kept with the logged model, by which MLflow ranks models; MLflow counts them as the run's too.
        epoch: When the run itself was told those of the validation side: they are the same points then, and no more.
        tags: For the version.
        description: For the version.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.models import Model

    client = open_client(tracking_uri)
    run = client.get_run(run_id)
    # MLflow refuses dots and quotes here, which the name of a registered model may have.
    logged = client.create_logged_model(
        run.info.experiment_id, name=re.sub(r"[^\w-]", "-", name), source_run_id=run_id, model_type="classifier"
    )
    record = Model.load(str(folder))
    record.run_id, record.model_id, record.artifact_path = run_id, logged.model_id, logged.artifact_location
    record.save(str(folder / "MLmodel"))
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    now = Moment(0, time_s)
    moments = {key: epoch if epoch is not None and key.startswith("val/") else now for key in metrics or {}}
    points = [
        Metric(key, value, round(moments[key].time_s * 1000), moments[key].step, model_id=logged.model_id)
        for key, value in (metrics or {}).items()
    ]
    client.log_batch(run_id, metrics=points)
    _ensure_registered(client, name)
    # The place itself, not models:/<id>, which MLflow's SQLite store would look up at its global address.
    created = client.create_model_version(
        name,
        logged.artifact_location,
        run_id=run_id,
        tags=dict(tags or {}),
        description=description,
        model_id=logged.model_id,
    )
    version = RegisteredVersion(name, int(created.version))
    # What MLflow itself notes, so that its UI leads from the run's model to the version.
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
    return version


def register_once(
    folder: Path,
    name: str,
    tracking_uri: str,
    *,
    run_id: str,
    time_s: float,
    metrics: Mapping[str, float] | None = None,
    epoch: Moment | None = None,
    tags: Mapping[str, str] | None = None,
) -> RegisteredVersion:
    """`register_model`, or the version that the run's model has already: whoever was killed after it comes again."""
    known = _version_of_run(name, run_id, tracking_uri)
    if known is not None:
        return known
    return register_model(
        folder, name, tracking_uri, run_id=run_id, time_s=time_s, metrics=metrics, epoch=epoch, tags=tags
    )


def _version_of_run(name: str, run_id: str, tracking_uri: str) -> RegisteredVersion | None:
    """The version of ``name`` that a run's model was registered as; None where it was not."""
    found = open_client(tracking_uri).search_model_versions(f"run_id = '{run_id}'")
    newest = max((int(version.version) for version in found if version.name == name), default=None)
    return None if newest is None else RegisteredVersion(name, newest)


def log_run(
    home: HomePaths,
    tracking_uri: str,
    *,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    epochs: list[dict[str, Any]],
    time_s: tuple[float, float],
) -> str:
    """Writes a run that has ended, such as a pretraining, and returns its id.

    Args:
        home: Where a new experiment's files lie when there is no server.
        tracking_uri: MLflow's address.
        experiment: Name of its experiment.
        name: What people see.
        params: Its settings.
        epochs: Metrics of each epoch, ``epoch`` among them.
        time_s: When it began and ended.
    """
    client = open_client(tracking_uri)
    experiment_id = ensure_experiment(client, experiment, home.artifact_location(tracking_uri))
    begin_ms, end_ms = (round(1000 * seconds) for seconds in time_s)
    run = client.create_run(experiment_id, start_time=begin_ms, run_name=name, tags={"mlflow.source.name": "thaw"})
    update = RunUpdate("", name, begin_ms, params={key: as_param(value) for key, value in params.items()})
    update.metrics = [
        MetricPoint(key, float(value), end_ms, epoch["epoch"])
        for epoch in epochs
        for key, value in epoch.items()
        if key != "epoch"
    ]
    log_values(client, run.info.run_id, update)
    client.set_terminated(run.info.run_id, "FINISHED", end_ms)
    return str(run.info.run_id)


def backbone_tags(recipe: str) -> dict[str, str]:
    """The tags under which `find_backbone` finds a version again.

    Args:
        recipe: Canonical JSON of what decides its weights.
    """
    return {_PRETRAIN_TAG: hashlib.sha256(recipe.encode()).hexdigest()}


def find_backbone(recipe: str, tracking_uri: str) -> RegisteredVersion | None:
    """The newest version that was pretrained by that recipe; None when there is none.

    Raises:
        MLflowAwayError: It does not answer.
    """
    if _is_empty(tracking_uri):
        return None
    ((tag, digest),) = backbone_tags(recipe).items()
    with _said_clearly(tracking_uri):
        found = open_client(tracking_uri).search_model_versions(f"tags.`{tag}` = '{digest}'")
    newest = max(found, key=lambda version: version.creation_timestamp, default=None)
    return None if newest is None else RegisteredVersion(newest.name, int(newest.version))


def aliases_of(client: Any, name: str) -> dict[str, int]:
    """Version by alias."""
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def resolve_model(text: str, home: HomePaths, tracking_uri: str | None = None) -> str:
    """From what people write to a version's ``models:/NAME/VERSION``, or to a model's folder.

    ``champion`` and ``challenger`` alone mean the only model that has such a version; ``NAME`` means its champion;
    ``NAME@alias``, ``NAME/3`` and the same behind ``models:/`` mean what they say; an existing model folder, itself.

    Raises:
        InputError: There is no such model, or several; the message lists what there is.
    """
    if path_problem(text) is None and (folder := expand(text, "model")).joinpath("MLmodel").is_file():
        return str(folder)
    uri = tracking_uri or home.tracking_uri()
    if _is_empty(uri):
        raise InputError(f"model: no {text!r}: there are no models yet; run a sweep first (thaw sweep SPEC)")
    with _said_clearly(uri):
        return _resolve(open_client(uri), text).uri


@contextmanager
def fetched_model(text: str, tracking_uri: str) -> Iterator[Path]:
    """The folder of the model behind a ``models:/`` URI; what was downloaded for it goes with the section.

    Raises:
        InputError: There is no such model, its files are gone, or MLflow does not answer.
    """
    if _is_empty(tracking_uri):
        raise InputError(
            f"model: no {text!r}: there are no models at {tracking_uri}; register one, or give a file of weights"
        )
    with ExitStack() as stack:
        with _said_clearly(tracking_uri):
            client = open_client(tracking_uri)
            version = _resolve(client, text)
            place = client.get_model_version_download_uri(version.name, str(version.version))
            if place.startswith("models:/"):
                place = client.get_logged_model(place.removeprefix("models:/")).artifact_location
            if (folder := _local_folder(place, tracking_uri)) is None:
                import mlflow.artifacts

                temporary = stack.enter_context(TemporaryDirectory(prefix="thaw-model-"))
                folder = Path(mlflow.artifacts.download_artifacts(place, dst_path=temporary, tracking_uri=tracking_uri))
        if not folder.is_dir():
            raise InputError(
                f"model: the files of {version.uri} are not at {folder}: bring them back, or take another version"
            )
        yield folder


def _local_folder(place: str, tracking_uri: str) -> Path | None:
    """Where a model's files lie on this machine; None for what a server or a storage has.

    MLflow keeps whole paths: in a home that was moved since, they lie as before beside the database.
    """
    scheme, _, _ = place.partition(":")
    if scheme not in ("file", place):
        return None
    folder = Path(unquote(urlsplit(place).path)) if scheme == "file" else Path(place)
    database = sqlite_file(tracking_uri)
    if folder.is_dir() or database is None or ARTIFACTS not in folder.parts:
        return folder
    moved = database.parent.joinpath(*folder.parts[folder.parts.index(ARTIFACTS) :])
    return moved if moved.is_dir() else folder


def load_weights(text: str, tracking_uri: str) -> dict[str, Any]:
    """A registered model, ``models:/NAME@alias`` or ``models:/NAME/3``, as a training checkpoint (see `store_weights`).

    Its tensors by their names, and beside them how its pictures are normalised, unless as torchvision's network is.

    Raises:
        InputError: There is no such model, its format is another, or it holds pickled code.
    """
    from trainables.backbones.families import normalisation
    from tuner.models.model_file import load_card, load_state

    with fetched_model(text, tracking_uri) as folder:
        loaded: dict[str, Any] = {"state_dict": load_state(folder)}
        with suppress(ValueError):  # a network of somebody else's, which says nothing
            card = load_card(folder)
            if (card.mean, card.std) != normalisation(card.backbone):
                loaded |= {"mean": card.mean, "std": card.std}
    return loaded


def _resolve(client: Any, text: str) -> RegisteredVersion:
    name = text.removeprefix("models:/")
    if name in _ALIASES and name == text:
        return _only_one_with(client, name)
    match = _REFERENCE.fullmatch(name)
    if match is None:
        raise InputError(f"model: {text!r} names no model; write NAME, NAME@champion or NAME/3. {_listing(client)}")
    version = match["version"]
    if version is None:
        version = _aliases_or_none(client, match["name"]).get(match["alias"] or "champion")
    if version is None or not _exists(client, match["name"], version):
        raise InputError(f"model: there is no {text!r}. {_listing(client)}")
    return RegisteredVersion(match["name"], int(version))


def _only_one_with(client: Any, alias: str) -> RegisteredVersion:
    found = [model.name for model in _registered(client) if alias in model.aliases]
    if not found:
        raise InputError(f"model: no model has a {alias}. {_listing(client)}")
    if len(found) > 1:
        raise InputError(f"model: {len(found)} models have a {alias}; say which: {_listed(found, f'@{alias}')}")
    return RegisteredVersion(found[0], aliases_of(client, found[0])[alias])


def _registered(client: Any) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _aliases_or_none(client: Any, name: str) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        return aliases_of(client, name)
    except MlflowException as error:
        if error.error_code == MISSING:
            return {}
        raise


def _exists(client: Any, name: str, version: int | str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code == MISSING:
            return False
        raise
    return True


def _listing(client: Any) -> str:
    """What there is, as people would write it."""
    names = []
    for model in _registered(client):
        newest = max((int(version.version) for version in model.latest_versions or ()), default=0)
        names += [f"{model.name}@{alias}" for alias in sorted(model.aliases)] or [f"{model.name}/{newest}"]
    return f"There are: {_listed(names)}" if names else "There are no models yet: run a sweep first"


def _listed(names: list[str], suffix: str = "") -> str:
    shown = ", ".join(f"{name}{suffix}" for name in names[:_MOST_LISTED])
    return shown if len(names) <= _MOST_LISTED else f"{shown} and {len(names) - _MOST_LISTED} more"


def _ensure_registered(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in _EXISTS:
            raise


def _is_empty(tracking_uri: str) -> bool:
    """Whether the SQLite file is not there: then nothing need be imported, or created, to know that it has nothing."""
    database = sqlite_file(tracking_uri)
    return database is not None and not database.exists()


@contextmanager
def _said_clearly(tracking_uri: str) -> Iterator[None]:
    try:
        yield
    except outages() as error:
        raise MLflowAwayError(
            f"MLflow at {without_password(tracking_uri)} does not answer: start it, or name another ({gist(error)})"
        ) from error
