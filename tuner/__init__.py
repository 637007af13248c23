"""What runs on the driver: sweeps, their journal, MLflow, the command line.

From Python::

    from tuner import run_sweep, load_spec

    result = run_sweep(load_spec("digits"))
    result.trials      # a pandas DataFrame, best trial first
    result.champion    # its scores, its settings, its model in MLflow
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_spaces.loading import load_spec
    from search_spaces.spec import SweepSpec
    from tuner.progress import Progress
    from tuner.report.result import SweepResult
    from tuner.sweep import resume_sweep, run_sweep

__all__ = ["Progress", "SweepResult", "SweepSpec", "load_spec", "resume_sweep", "run_sweep"]
_PLACES = {
    "Progress": "tuner.progress",
    "SweepResult": "tuner.report.result",
    "SweepSpec": "search_spaces.spec",
    "load_spec": "search_spaces.loading",
    "resume_sweep": "tuner.sweep",
    "run_sweep": "tuner.sweep",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: `thaw --help` and Tune's light actors need nothing of this."""
    import importlib

    if name not in _PLACES:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
