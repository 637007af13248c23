"""The pictures and weights that a sweep begins with, in its ``data.json``: what a resume must find again.

In: prepared pictures. Out: what is kept of them; or an `InputError` where a sweep goes on with others, since its trials
could not be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from search_spaces.spec import SweepSpec
from trainables.config import WeightsFile
from trainables.errors import InputError
from tuner.paths import SweepPaths
from tuner.pictures.dealt import PreparedData


def summarise(data: PreparedData, first_weights: Mapping[str, WeightsFile | None]) -> dict[str, Any]:
    """The pictures by side and class, what was set aside, and the weights that networks begin with."""
    return {
        "fingerprint": data.config.fingerprint,
        "test_digest": data.test_digest,
        "sides_digest": data.sides_digest,
        "weights": {name: weights.model_dump() for name, weights in first_weights.items() if weights is not None},
        "pictures": data.counts,
        "set_aside": [{"name": bad.name, "reason": bad.reason} for bad in data.report.bad_files],
    }


def refuse_other_pictures(paths: SweepPaths, spec: SweepSpec, data: PreparedData) -> None:
    """Compares with what the sweep began with.

    Args:
        paths: The sweep's.
        spec: What it is to be now.
        data: The pictures that it would go on with.

    Raises:
        InputError: They are others, or on other sides.
    """
    first = json.loads(paths.data.read_bytes())
    if first["fingerprint"] != data.config.fingerprint:
        raise InputError(
            f"resume: the pictures at {spec.data.source} have changed since sweep {spec.name!r} began, its trials "
            "could not be compared: start a new sweep under another name"
        )
    # Of a sweep that began before all sides were kept, only the test side is known.
    sides = first.get("sides_digest", data.sides_digest), first["test_digest"]
    if sides != (data.sides_digest, data.test_digest):
        raise InputError(
            f"resume: the pictures at {spec.data.source} are on other sides than when sweep {spec.name!r} began, as "
            "after files were renamed by which data.group_pattern goes (which once looked at folders too): name them "
            "as they were, or start a new sweep under another name"
        )
