"""Whether an MLflow server lets this user in: asked once, before training.

In: a tracking address. Out: nothing, or an `InputError`. A server that is away is no mistake (records wait for it); one
that answers and refuses the user would refuse every record until the end.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from urllib.parse import unquote, urlsplit, urlunsplit

from trainables.errors import InputError

TIMEOUT_S = 3.0
_REFUSED = (401, 403)


def check_access(tracking_uri: str, environ: Mapping[str, str] | None = None) -> None:
    """Asks a server for one experiment, as MLflow's client would; other addresses are not asked.

    Args:
        tracking_uri: MLflow's address, maybe with a user and a password in it.
        environ: Where ``MLFLOW_TRACKING_USERNAME``, ``..._PASSWORD`` and ``..._TOKEN`` are.

    Raises:
        InputError: The server does not take the user.
    """
    if not tracking_uri.startswith(("http://", "https://")):
        return
    place = without_password(tracking_uri)
    request = urllib.request.Request(
        f"{place.rstrip('/')}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers={
            "Content-Type": "application/json",
            **_credentials(tracking_uri, os.environ if environ is None else environ),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _REFUSED:
            raise InputError(
                f"tracking.uri: MLflow at {place} does not take this user and password (it answers {error.code}); "
                "correct them in the address, http://USER:PASSWORD@HOST, or set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            ) from None
    except (OSError, HTTPException, ValueError):
        return  # away, or no MLflow: what cannot be told waits, and is said while the sweep runs


def without_password(uri: str) -> str:
    """An address that may be shown."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _credentials(uri: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What MLflow's client sends: the environment's user, its token, or the address's user."""
    user, password = environ.get("MLFLOW_TRACKING_USERNAME"), environ.get("MLFLOW_TRACKING_PASSWORD")
    if not (user and password) and (token := environ.get("MLFLOW_TRACKING_TOKEN")):
        return {"Authorization": f"Bearer {token}"}
    parts = urlsplit(uri)
    if not (user and password) and parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    if not user:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode()}
