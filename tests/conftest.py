"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures and weights: the folder named by THAW_SHARED_DATA, else `shared/data` beside the checkout."""
    root = Path(os.environ.get("THAW_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / "weights").is_dir():
        pytest.skip(f"no real pictures and weights at {root}: set THAW_SHARED_DATA")
    return root
