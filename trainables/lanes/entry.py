"""What a lane's workers are started with: importable without torch, so that whoever starts a lane need not wait."""

from __future__ import annotations

from typing import Any


def run_lane(settings: dict[str, Any]) -> None:
    """`lane.lane_loop`, whose imports take seconds and are the workers' business alone."""
    from trainables.lanes.lane import lane_loop

    lane_loop(settings)
