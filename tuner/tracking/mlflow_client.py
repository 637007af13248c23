"""MLflow as Thaw opens and talks to it: without side doors, in few calls, and with its ways of failing named.

In: a tracking address. Out: a client, an experiment, values in a run. MLflow is imported when `open_client` is called
and not before, because that takes seconds. Nothing here uses MLflow's global state.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainables.files.half_written import half_written, remove_half_written
from tuner.paths import sqlite_file
from tuner.tracking.projection import RunUpdate

# MLflow takes 1000 entities per call in all, and 100 parameters and 100 tags.
_METRICS_PER_CALL, _SETTINGS_PER_CALL = 800, 90
_SECRET = re.compile(r"://[^/@\s]+@")
_NO_LINKS_HERE = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
MISSING = "RESOURCE_DOES_NOT_EXIST"
# A run that people deleted, or a value that MLflow refuses: no later attempt can mend these.
HOPELESS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", MISSING, "INVALID_STATE")


def open_client(tracking_uri: str) -> Any:
    """An ``MlflowClient`` for that address; imports MLflow and creates a SQLite file that is not there yet."""
    _set_environment()
    import mlflow

    _quieten()
    database = sqlite_file(tracking_uri)
    if database is not None:
        remove_half_written(database)
        if not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True)
            _create_whole(database)
    return mlflow.MlflowClient(tracking_uri=tracking_uri)


def _create_whole(database: Path) -> None:
    """Has MLflow make its tables under another name and moves them to their place.

    A database in which some are missing, because the disk was full or the process was killed, it refuses for ever.
    """
    import mlflow

    with half_written(database) as temporary:
        address = f"sqlite:///{temporary}"
        try:
            mlflow.MlflowClient(tracking_uri=address).search_experiments(max_results=1)
            with suppress(FileExistsError):  # somebody else was faster
                try:
                    os.link(temporary, database)
                except OSError as error:
                    if error.errno not in _NO_LINKS_HERE:
                        raise
                    if not database.exists():
                        temporary.rename(database)
        finally:
            _forget(address)


def _forget(address: str) -> None:
    """Closes the connections that MLflow keeps to a database: an open file that was removed still takes its room."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = getattr(SqlAlchemyStore, "_engine_map", {}).pop(address, None)
    if engine is not None:
        engine.dispose()


def open_pytorch() -> Any:
    """The module ``mlflow.pytorch``, imported without the warnings that MLflow gives about itself."""
    _set_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        import mlflow.pytorch
    _quieten()
    return mlflow.pytorch


def ensure_experiment(client: Any, name: str, artifact_location: str | None) -> str:
    """The id of the experiment ``name``, created or brought back from the bin where needed."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # The kind decides which columns MLflow's UI shows.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(name, artifact_location=artifact_location, tags=tags))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def outages() -> tuple[type[BaseException], ...]:
    """What an absent, slow or locked server or store shows as; a library that is not loaded has raised nothing."""
    families = (
        ("mlflow.exceptions", "MlflowException"),
        ("requests.exceptions", "RequestException"),
        ("sqlalchemy.exc", "SQLAlchemyError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("boto3.exceptions", "Boto3Error"),
        ("google.api_core.exceptions", "GoogleAPIError"),
        ("azure.core.exceptions", "AzureError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in families if module in sys.modules))


def log_values(client: Any, run_id: str, update: RunUpdate) -> None:
    """Parameters, tags and metrics in as few calls as MLflow's limits allow."""
    from mlflow.entities import Metric, Param, RunTag

    params = [Param(name, value) for name, value in update.params.items()]
    tags = [RunTag(name, value) for name, value in update.tags.items()]
    metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in update.metrics]
    most_settings = max(len(params), len(tags))
    num_calls = max(math.ceil(len(metrics) / _METRICS_PER_CALL), math.ceil(most_settings / _SETTINGS_PER_CALL))
    for call in range(num_calls):
        client.log_batch(
            run_id,
            metrics=_part(metrics, call, _METRICS_PER_CALL),
            params=_part(params, call, _SETTINGS_PER_CALL),
            tags=_part(tags, call, _SETTINGS_PER_CALL),
        )


def _part(items: list[Any], index: int, size: int) -> list[Any]:
    return items[index * size : (index + 1) * size]


def has_run(client: Any, run_id: str) -> bool:
    """Whether MLflow knows a run, be it in the bin."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        return False
    return True


def search_runs(client: Any, experiment_id: str, sweep_id: str) -> Iterator[Any]:
    """All runs of the sweep that MLflow has, whoever created them."""
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], f"tags.`thaw.sweep` = '{sweep_id}'", max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def gist(error: BaseException) -> str:
    """The gist of an error: MLflow's messages run over many lines, and repeat addresses with their passwords."""
    text = _SECRET.sub("://", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}"


def _set_environment() -> None:
    """What MLflow reads at its import, where the user has not decided otherwise."""
    # MLflow would else report usage to its makers, and ask for a git program.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # A dead server is found out in seconds, not in the four minutes of the default.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


def _quieten() -> None:
    """MLflow narrates its database's creation on standard error, across a live display."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A full or locked database gives its traceback there before it is raised; who catches it says it in a line.
    logging.getLogger("mlflow.store.db.utils").addFilter(_has_no_traceback)
