"""``thaw ui``: MLflow's web page of all sweeps."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from trainables.errors import InputError


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine's loopback.")] = 5000,
) -> None:
    """Opens MLflow's web page of all sweeps, on loopback."""
    from tuner.paths import HomePaths, sqlite_file
    from tuner.tracking.access import without_password

    home = HomePaths.from_env()
    uri = home.tracking_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"MLflow runs at {without_password(uri)}: open it in a browser.")
        return
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        raise InputError(f"ui: there is nothing to show at {uri} yet; run a sweep first, such as `thaw sweep digits`")
    typer.echo(f"MLflow: http://127.0.0.1:{port}   (Ctrl-C ends it)")
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if location := home.artifact_location(uri):
        options += ["--default-artifact-root", location]
    # MLflow's runner of jobs judges language models: eight processes that nothing here uses.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # not an option: everybody sees those, and a password may be in it
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *options], environment)
