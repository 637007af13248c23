"""Packed digits, one thread, and two ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from training_support import RankGroup, build_config

from trainables.config import TrialConfig
from trainables.data.packing import PackReport, pack
from trainables.data.sources import open_source


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures this small gain nothing from a second thread, and bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> PackReport:
    """The embedded digits as an image table."""
    return pack(open_source("digits"), tmp_path_factory.mktemp("tables"), side_px=16)


@pytest.fixture(scope="session")
def config(digits: PackReport) -> Callable[..., TrialConfig]:
    """Builds trials on the digits: ``config("lenet", depth=1, batch_size=7)``."""

    def build(backbone: str = "lenet", depth: int = 0, **changes: object) -> TrialConfig:
        return build_config(digits, backbone, depth, **changes)

    return build


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """Two processes joined to a group."""
    group = RankGroup(2, tmp_path_factory.mktemp("ranks"))
    yield group
    group.close()
