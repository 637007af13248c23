"""What stored features were worth, from made-up epochs whose price is known."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from trainables.config import BackboneConfig, DataConfig, FeatureSettings, TrialConfig
from tuner.ending.describing import note
from tuner.paths import HomePaths
from tuner.records.journal import TrialRecord
from tuner.records.reuse import Reuse, bytes_held, reuse_of, seconds_per_flop
from tuner.report.output import show_result
from tuner.report.result import Champion, Standing, SweepResult

PRICE = 2e-11  # seconds per FLOP: 50 GFLOP/s
PREFIX, TAIL, NUM_IMAGES = 4e9, 3e9, 100.0  # FLOPs of an epoch's frozen part and of the rest


def epoch(read: float, noise_s: float = 0.0) -> dict[str, float]:
    """An epoch that read this share of its pictures. Its tail takes four times what its FLOPs would say."""
    computed = (1 - read) * PREFIX
    return {
        "compute/images": NUM_IMAGES,
        "compute/images_from_store": read * NUM_IMAGES,
        "compute/flops_saved": read * PREFIX,
        "compute/gflops": (TAIL + computed) / 1e9,
        "time/train_s": 4 * TAIL * PRICE + computed * PRICE + noise_s,
        "time/val_s": 0.0,
        "val/accuracy": 0.5,
    }


def trial(number: int, depth: int, *epochs: dict[str, float]) -> TrialRecord:
    numbered = tuple({**each, "epoch": float(count)} for count, each in enumerate(epochs, 1))
    return TrialRecord(number, {"freeze_depth": depth}, numbered, "completed")


TRIALS = [
    trial(0, 3, epoch(0.0), epoch(0.5), epoch(1.0), epoch(1.0)),
    trial(1, 5, epoch(1.0), epoch(1.0)),
    trial(2, 0, epoch(0.0), epoch(0.0)),
]


def test_sums_are_those_of_the_trials_that_freeze() -> None:
    reuse = reuse_of(TRIALS, bytes_held=7)
    assert (reuse.images_read, reuse.images_computed) == (450, 150)
    assert reuse.flops_saved == pytest.approx(4.5 * PREFIX)
    assert reuse.rate_by_depth == {3: 0.625, 5: 1.0}
    assert reuse.metrics() == {
        "reuse/images_read": 450.0,
        "reuse/images_computed": 150.0,
        "reuse/hit_rate": 0.75,
        "reuse/flops_saved": pytest.approx(1.8e10),
        "reuse/seconds_saved": pytest.approx(4.5 * PREFIX * PRICE),
        "reuse/bytes_held": 7.0,
        "reuse/hit_rate_depth_03": 0.625,
        "reuse/hit_rate_depth_05": 1.0,
    }


def test_seconds_are_those_of_forward_passes_not_of_whole_epochs() -> None:
    assert seconds_per_flop(TRIALS) == pytest.approx(PRICE)


def test_one_slow_epoch_does_not_decide() -> None:
    warming_up = trial(3, 3, epoch(0.0, noise_s=60.0), epoch(1.0), epoch(1.0))
    others = [trial(number, 3, epoch(0.0), epoch(1.0)) for number in range(4, 8)]
    assert seconds_per_flop([warming_up, *others]) == pytest.approx(PRICE)


def test_what_was_only_read_has_no_price() -> None:
    reuse = reuse_of([trial(0, 3, epoch(1.0), epoch(1.0))])
    assert reuse.seconds_saved is None
    assert "reuse/seconds_saved" not in reuse.metrics()
    assert reuse.sentences() == [
        "Frozen layers: of 200 pictures 200 (100%) were read from the store, 0 computed; that saved 0.008 TFLOPs."
    ]


def test_an_old_journal_and_a_sweep_without_frozen_layers_have_little_to_say() -> None:
    assert reuse_of([trial(2, 0, epoch(0.0))]).sentences() == []
    assert reuse_of([]).rate == 0.0
    old = trial(0, 3, {"val/accuracy": 0.5, "compute/images": 10.0})
    assert reuse_of([old]).images_computed == 10


def test_a_filling_that_only_others_read_saves_nothing_yet() -> None:
    filling = {**epoch(0.0), "compute/flops_saved": -PREFIX, "compute/images_from_store": -NUM_IMAGES}
    reuse = reuse_of([trial(0, 3, filling)])
    assert (reuse.images_read, reuse.flops_saved) == (0, 0.0)


def test_sentences_name_the_depths_and_the_store() -> None:
    first, depths, store = reuse_of(TRIALS, bytes_held=1_234_000_000).sentences()
    assert first.startswith("Frozen layers: of 600 pictures 450 (75%) were read from the store, 150 computed")
    assert depths == "Read, by depth: depth 3 62%, depth 5 100%."
    assert store.startswith("The store holds 1.23 GB")


def test_the_summary_and_the_parent_run_say_it(tmp_path: Path) -> None:
    data = DataConfig(table="t", fingerprint="f", class_names=("a", "b"), image_size_px=16, folds=4)
    config = TrialConfig(data=data, backbone=BackboneConfig(name="lenet"), freeze_depth=2)
    standing = Standing("trial 0", {"accuracy": 0.5, "accuracy_se": 0.02})
    champion = Champion(0, {}, config, standing, "models:/s/1", "champion", "why")
    reuse = reuse_of(TRIALS)
    text = note(champion, [], reuse)
    assert reuse.sentences()[0] in text
    assert "validation accuracy 0.5000 ± 0.0200" in text
    assert "means over 4 folds;" in text
    result = SweepResult(
        name="s",
        home=HomePaths.at(tmp_path),
        tracking_uri="",
        metric="val/accuracy",
        mode="max",
        records=tuple(TRIALS),
        champion=champion,
        reuse=reuse,
    )
    out = io.StringIO()
    show_result(result, Console(file=out, width=250))
    assert reuse.sentences()[0] in out.getvalue()
    assert "50.0 ± 2.0%" in out.getvalue()
    assert "means over 4 folds;" in out.getvalue()
    # There was no test side, and that is said.
    assert "Nothing was tested" in out.getvalue()
    # Other sweeps of this home may have champions too.
    assert "thaw predict PICTURES --model s@champion" in out.getvalue()


def test_bytes_held_are_those_on_disk(tmp_path: Path) -> None:
    assert bytes_held(None) is None
    settings = FeatureSettings(directory=str(tmp_path / "features"))
    assert bytes_held(settings) == 0
    entry = tmp_path / "features" / ("ab" * 32)
    entry.mkdir(parents=True)
    (entry / "shard").write_bytes(b"x" * 1000)
    assert bytes_held(settings) == 1000


def test_nothing_known_is_nothing_said() -> None:
    assert Reuse(0, 0, 0.0).sentences() == []


def test_epochs_on_smaller_pictures_say_nothing_of_the_price() -> None:
    """They train on fewer pixels, which is no work of frozen layers."""
    small = {**epoch(0.0), "compute/gflops": (TAIL + PREFIX) / 4e9, "time/train_s": 0.01}
    assert seconds_per_flop([trial(0, 3, small, epoch(0.0), epoch(1.0))]) == pytest.approx(PRICE)
    assert seconds_per_flop([trial(0, 0, small, epoch(0.0))]) is None
