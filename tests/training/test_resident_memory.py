"""A store ten times larger than a limit of resident memory is trained from within that limit, in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from training_support import DEVICE, SMALL_SPLIT, build_config

from trainables.config import FeatureSettings, SplitConfig, TrialConfig
from trainables.data.packing import PackReport
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench

LIMIT_BYTES = 120 << 20
NUM_VIEWS = 8
ALLOWANCE = 1.2
HERE = Path(__file__).parent


def trial(report: PackReport) -> TrialConfig:
    """Maps of 102 kB for each of 1,600 digits in 8 views, and not much arithmetic behind them."""
    config = build_config(
        report, "lenet", 1, size_px=80, split=SplitConfig(train=0.9, val=0.1, test=0.0), epochs=NUM_VIEWS, batch_size=16
    )
    data = config.data.model_copy(update={"class_names": tuple("0123456789")})
    policy = config.augmentation.model_copy(update={"num_views": NUM_VIEWS})
    return config.model_copy(update={"data": data, "augmentation": policy})


def resident() -> dict[str, int]:
    """Bytes of this process in memory: in all, its own, and mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "Rss"))}
    return {"all": found["VmRSS"], "own": found["RssAnon"], "mapped": found["RssFile"]}


class Watch(threading.Thread):
    """The most that was in memory at any moment that was looked at."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = resident()
        self.peak = dict(self.before)
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.is_set():
            now = resident()
            self.peak = {kind: max(self.peak[kind], now[kind]) for kind in now}
            time.sleep(0.002)

    def grown(self) -> dict[str, int]:
        self._is_over.set()
        self.join()
        return {kind: self.peak[kind] - self.before[kind] for kind in self.peak}


def main(config: str, folder: str, limit: str) -> None:
    """A whole trial; prints by how much memory grew, and how many pictures were read."""
    settings = FeatureSettings(directory=folder, resident_bytes=int(limit))
    bench, whole = Workbench(features=settings), TrialConfig.model_validate_json(config)
    # A few small pictures first: torch loads code when it first trains, and that is no feature's memory.
    small = whole.data.model_copy(update={"image_size_px": 16, "split": SMALL_SPLIT})
    TrialRun(whole.model_copy(update={"data": small, "epochs": 1}), Workbench(), Ranks(DEVICE)).run_epoch()
    run = TrialRun(whole, bench, Ranks(DEVICE))
    run.side("train")
    watch = Watch()
    watch.start()
    read = sum(run.run_epoch()["compute/images_from_store"] for _ in range(run.config.epochs))
    assert bench.store is not None
    print(json.dumps({"read": read, "stored": sum(e.num_bytes for e in bench.store.entries()), **watch.grown()}))
    run.close()


def train_in_a_process(config: TrialConfig, folder: Path, limit_bytes: int) -> dict[str, int]:
    paths = [str(HERE), str(HERE.parents[1])]
    program = f"import sys; sys.path[:0] = {paths!r}; import test_resident_memory as t; t.main(*sys.argv[1:])"
    command = [sys.executable, "-c", program, config.model_dump_json(), str(folder), str(limit_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what is in memory")
def test_a_store_ten_times_the_limit_is_trained_from_within_it(digits: PackReport, tmp_path: Path) -> None:
    config = trial(digits)
    # A third of the limit is for mapped pages, the rest for batches and what training makes of them.
    filled = train_in_a_process(config, tmp_path, LIMIT_BYTES // 3)
    assert filled["read"] < filled["stored"] / 100e3, "every view was new; only validation was read again"
    assert filled["stored"] >= 10 * LIMIT_BYTES
    bounded = train_in_a_process(config, tmp_path, LIMIT_BYTES // 3)
    free = train_in_a_process(config, tmp_path, 1 << 40)
    assert bounded["read"] == free["read"] > NUM_VIEWS * 1600
    print({"filling": filled, "bounded": bounded, "free": free})
    # Everything counts: batches, activations, and the mapped pages of the store while they are this process's.
    assert bounded["all"] <= ALLOWANCE * LIMIT_BYTES, bounded
    assert bounded["own"] <= ALLOWANCE * LIMIT_BYTES, bounded
    assert free["mapped"] > 2 * LIMIT_BYTES, "without the limit the pages stay"
