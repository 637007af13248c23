"""Whether an MLflow server, or a database of MLflow's, lets this user in: asked once, before anything is started.

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
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from trainables.errors import InputError, first_line

TIMEOUT_S = 3.0
_REFUSED = (401, 403)
_DATABASES = ("postgresql", "mysql", "mssql")
_PATIENCE = {
    "postgresql": "connect_timeout", "postgresql+psycopg2": "connect_timeout", "postgresql+psycopg": "connect_timeout",
    "postgresql+pg8000": "timeout", "mysql": "connect_timeout", "mysql+mysqldb": "connect_timeout",
    "mysql+pymysql": "connect_timeout", "mssql": "timeout", "mssql+pyodbc": "timeout",
}  # fmt: skip
"""By which name a driver takes how many seconds it waits for an answer."""
_REFUSED_WORDS = ("password", "access denied", "authentication", "login failed")


def check_access(tracking_uri: str, environ: Mapping[str, str] | None = None) -> None:
    """Asks a server for one experiment, as MLflow's client would, or a database for a connection; a file is not asked.

    Args:
        tracking_uri: MLflow's address, maybe with a user and a password in it.
        environ: Where ``MLFLOW_TRACKING_USERNAME``, ``..._PASSWORD`` and ``..._TOKEN`` are.

    Raises:
        InputError: It does not take the user, or the database's driver is not installed.
    """
    if tracking_uri.partition(":")[0].partition("+")[0] in _DATABASES:
        _check_database(tracking_uri)
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
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from None
    except (OSError, HTTPException, ValueError):
        return  # away, or no MLflow: what cannot be told waits, and is said while the sweep runs


def _check_database(uri: str) -> None:
    import sqlalchemy  # only who keeps MLflow's records in such a database waits for it
    import sqlalchemy.exc

    place, kind = without_password(uri), uri.partition(":")[0]
    patience = {_PATIENCE[kind]: round(TIMEOUT_S)} if kind in _PATIENCE else {}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=patience)
    except ImportError as error:
        raise InputError(
            f"tracking.uri: MLflow at {place} needs a driver that is not installed here ({error}): install it"
        ) from None
    except sqlalchemy.exc.ArgumentError as error:
        raise InputError(f"tracking.uri: {place} is no database's address ({first_line(error)}): correct it") from None
    try:
        with engine.connect():
            return
    except sqlalchemy.exc.DBAPIError as error:
        said = first_line(error.orig or error)
        if any(word in str(error.orig).lower() for word in _REFUSED_WORDS):
            raise InputError(
                f"tracking.uri: the database at {place} does not take this user and password ({said}); give "
                f"{kind}://USER:PASSWORD@HOST/NAME by MLFLOW_TRACKING_URI, and no tracking.uri in the spec"
            ) from None
    finally:
        engine.dispose()


def without_password(uri: str) -> str:
    """An address that may be shown: without a user, and without options, among which there may be a password too."""
    if uri.startswith("sqlite:"):
        return uri
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def holds_password(uri: str) -> bool:
    """Whether a password stands in an address, be it among its options."""
    parts = urlsplit(uri)
    return parts.password is not None or any(
        word in name.lower() for name, _ in parse_qsl(parts.query) for word in ("pass", "pwd", "secret", "token")
    )


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
