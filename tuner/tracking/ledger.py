"""What MLflow has been told, on disk: so that another process goes on from there.

In and out: one small JSON file per sweep.
"""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trainables.files.storage import write_bytes
from tuner.tracking.access import without_password
from tuner.tracking.projection import RunState

_log = logging.getLogger(__name__)


@dataclass
class Ledger:
    """What MLflow has been told, kept on disk between processes.

    Attributes:
        tracking_uri: Where it was last told, without a password; for people. Whether MLflow there still knows the runs,
            or another has taken its place, only asking shows.
        sweep_id: Marks this sweep's runs, so that a name can be used again.
        num_sent: Records told.
        offset: Bytes of the journal that they take.
        runs: MLflow's run id by key (see `tuner.tracking.projection`).
        states: What was planned for each run.
        model: The registered version of the champion's model; None while it is not known to be registered.
    """

    tracking_uri: str
    sweep_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    num_sent: int = 0
    offset: int = 0
    runs: dict[str, str] = field(default_factory=dict)
    states: dict[str, RunState] = field(default_factory=dict)
    model: str | None = None

    @classmethod
    def load(cls, path: Path, tracking_uri: str) -> Ledger:
        """The ledger at ``path``; a new one when there is none, or it is damaged."""
        try:
            content = json.loads(path.read_text())
            content["states"] = {key: RunState(**state) for key, state in content["states"].items()}
            ledger = cls(**content)
        except FileNotFoundError:
            return cls(without_password(tracking_uri))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged (%s); MLflow gets the sweep's records anew", path, error)
            return cls(without_password(tracking_uri))
        ledger.tracking_uri = without_password(ledger.tracking_uri)  # an older Thaw kept it whole
        return ledger

    def forgotten(self) -> Ledger:
        """The ledger of an MLflow that knows nothing of the sweep; its runs bear the same mark."""
        return Ledger(self.tracking_uri, self.sweep_id)

    def save(self, path: Path) -> None:
        """Writes the ledger, whole or not at all."""
        write_bytes(str(path), json.dumps(asdict(self), indent=1).encode())
