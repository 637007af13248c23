"""Features at every cut: the same bits from pictures, from the store, and from a shallower cut; stored in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_sizes import SIZES_PX
from training_support import DEVICE, RankGroup, assert_same_bits, copied, finish, num_stages

from trainables.config import FeatureSettings, Precision, TrialConfig
from trainables.data.batches import ImageBatches, Normaliser
from trainables.data.kept_views import Views
from trainables.features import filling
from trainables.features.source import StoredFeatures, visit
from trainables.frozen_prefix import FrozenPrefix, memory_format
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.workbench import Workbench

TOO_LARGE = ("alexnet", "vgg11")  # vgg11_bn stands for them
FAST = ("lenet", "squeezenet1_1", "shufflenet_v2_x0_5")
FAMILIES = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SIZES_PX if name not in TOO_LARGE
]
Kept = dict[str, Collection[int]]


def bench_at(folder: Path | str, **changes: Any) -> Workbench:
    return Workbench(features=FeatureSettings(directory=str(folder), **changes))


class Subject:
    """A backbone, frozen as a whole, and the training pictures of a trial."""

    def __init__(self, config: TrialConfig, bench: Workbench, cuts: Collection[int] = (), ranks: Any = None) -> None:
        backbone = bench.backbone(config)
        self.graph, layout = backbone.graph, memory_format(config.compute)
        self.cuts = list(range(1, self.graph.num_stages + 1))
        self.prefix = FrozenPrefix(self.graph.stage_modules(len(self.cuts), DEVICE, layout), config.compute)
        views = Views(bench.side(config.data, "train"), config.augmentation, config.data.image_size_px, bench.views)
        self.images = ImageBatches(views, Normaliser(backbone.mean, backbone.std, DEVICE, layout), None)
        self.stored = None
        if bench.store is not None:
            self.stored = StoredFeatures(
                bench.store, config, backbone, ranks=ranks or Ranks(DEVICE), cuts_to_keep={"train": tuple(cuts)}
            )

    def visit(self, cuts: Collection[int]) -> dict[int, torch.Tensor]:
        """All features of some cuts; the positions come in order."""
        blocks = list(visit(self.images, self.stored, self.prefix, 0, sorted(cuts)))
        assert np.array_equal(np.concatenate([block for block, _ in blocks]), np.arange(len(self.images.side)))
        return {cut: torch.cat([features[cut] for _, features in blocks]) for cut in cuts}

    def close(self) -> None:
        assert self.stored is not None
        self.stored.close()


def assert_equal(found: dict[int, torch.Tensor], expected: dict[int, torch.Tensor], what: str) -> None:
    for cut, value in found.items():
        assert value.dtype == expected[cut].dtype
        assert torch.equal(value, expected[cut]), f"{what}: cut {cut}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_cut_has_the_same_bits_however_it_is_come_by(
    config: Callable[..., TrialConfig], backbone: str, precision: Precision, tmp_path: Path
) -> None:
    size_px, depth = SIZES_PX[backbone], num_stages(backbone, SIZES_PX[backbone])
    trial = config(backbone, depth, size_px=size_px, compute={"prefix_precision": precision})
    plain = Subject(trial, Workbench())
    cuts = plain.cuts
    expected = plain.visit(cuts)
    assert {value.dtype for value in expected.values()} == {torch.float32 if precision == "fp32" else torch.bfloat16}
    alone = plain.prefix.between(next(iter_images(plain)), 0, [cuts[-1]])
    first = expected[cuts[-1]][: trial.compute.prefix_batch_size]
    assert torch.equal(alone[cuts[-1]], first), "cuts that are wanted on the way change nothing"

    bench = bench_at(tmp_path / "all")
    filling_all = Subject(trial, bench, cuts)
    assert_equal(filling_all.visit(cuts), expected, "while filling")
    filling_all.close()
    assert bench.store is not None
    assert len(bench.store.entries()) == len(cuts)
    assert all(entry.is_complete for entry in bench.store.entries())
    reading = Subject(trial, bench_at(tmp_path / "all"), cuts)
    assert_equal(reading.visit(cuts), expected, "read")
    reading.close()
    # Each cut from the one before it, and the deepest from each.
    for start in cuts[:-1]:
        step = Subject(trial, bench_at(tmp_path / f"from{start}"), [start])
        assert_equal(step.visit([start]), expected, "alone")
        deeper = step.visit({start + 1, cuts[-1]})
        assert step.stored is not None
        assert set(step.stored.held(step.images, 0, cuts)) == {start}
        assert_equal(deeper, expected, f"from cut {start}")
        step.close()


def iter_images(subject: Subject) -> Any:
    return subject.images.inputs([np.arange(32)], 0)


# --- training ------------------------------------------------------------------------------------------------


def train(config: TrialConfig, bench: Workbench, keep: Kept | None = None) -> tuple[Any, ...]:
    """Numbers of each epoch, the trained tensors, and by epoch what was read and saved."""
    run = TrialRun(config, bench, Ranks(DEVICE), keep)
    epochs, counts = [], []
    while run.epoch < config.epochs:
        metrics = run.run_epoch()
        counts.append((metrics["compute/images_from_store"], metrics["compute/flops_saved"]))
        assert metrics["compute/gflops"] >= 0
        epochs.append({name: value for name, value in metrics.items() if name.startswith(("train/", "val/"))})
    tail = copied(run.checkpoint().tail)
    run.close()
    return epochs, tail, counts


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    assert found[0] == expected[0]
    assert_same_bits(found[1], expected[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "backbone",
    ["lenet", "squeezenet1_1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "resnet18"))],
)
def test_training_from_a_shallower_cut_equals_training_from_pictures(
    config: Callable[..., TrialConfig], backbone: str, precision: Precision, tmp_path: Path
) -> None:
    size_px = 16 if backbone == "lenet" else 64
    compute = {"precision": precision, "prefix_precision": precision}
    deepest = num_stages(backbone, size_px)
    # Nearly the whole network in bf16 takes minutes on a processor without units for it.
    for depth in (2 if precision == "fp32" else deepest // 2, deepest):
        trial = config(backbone, depth, epochs=2, size_px=size_px, compute=compute)
        expected = train(trial, Workbench())
        for near in {1, depth - 1}:
            keep: Kept = {"train": (near,), "val": (near,)}
            assert_same(train(trial, bench_at(tmp_path / f"{depth}{near}"), keep), expected)


def stage_flops(config: TrialConfig) -> list[int]:
    return [stage.flops for stage in Workbench().backbone(config).graph.stages]


def test_reading_is_counted_by_pictures_and_by_flops(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    trial = config("lenet", 3, epochs=3, augmentation={"policy": "flip", "num_views": 1})
    first, second, third, *_ = stage_flops(trial)
    plain = train(trial, Workbench())
    assert plain[2] == [(0, 0)] * 3
    # 46 pictures to learn from and 25 to judge by.
    keep: Kept = {"train": (1,), "val": (1, 2, 3)}
    partly = train(trial, bench_at(tmp_path), keep)
    assert_same(partly, plain)
    later = (25, 46 * first + 25 * (first + second + third))
    assert partly[2] == [(0, 0), later, later]
    again = train(trial, bench_at(tmp_path), keep)
    assert_same(again, plain)
    assert again[2] == [later] * 3
    # The missing cuts are filled from the first one: its FLOPs are saved even then.
    whole = train(trial, bench_at(tmp_path), {"train": (1, 2, 3), "val": (3,)})
    everything = (71, 71 * (first + second + third))
    assert_same(whole, plain)
    assert whole[2] == [(25, later[1]), everything, everything]
    shallower = train(config("lenet", 2, epochs=1, augmentation={"policy": "flip", "num_views": 1}), bench_at(tmp_path))
    assert shallower[2] == [(71, 71 * (first + second))], "stored on the way, and for validation with the first pass"


def test_a_pass_stores_what_lies_on_its_way_and_no_more(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    def held(folder: str) -> set[tuple[int, str]]:
        entries = bench_at(tmp_path / folder).store.entries()  # type: ignore[union-attr]
        assert all(entry.is_complete for entry in entries)
        return {(len(entry.plan.key.frozen.cut), entry.plan.key.view.policy) for entry in entries}

    trial = config("lenet", 3, epochs=1, augmentation={"policy": "flip", "num_views": 1})
    train(trial, bench_at(tmp_path / "a"))
    assert held("a") == {(3, "flip"), (3, "none")}, "without instruction the trial's own"
    train(trial, bench_at(tmp_path / "b"), {"train": (2, 4), "val": (1, 3, 4)})
    assert held("b") == {(2, "flip"), (1, "none"), (3, "none")}
    train(trial, bench_at(tmp_path / "b"), {"train": (1, 3), "val": (2, 3)})
    assert held("b") == {(2, "flip"), (3, "flip"), (1, "none"), (3, "none")}, "2 is behind the pass from 2 to 3"
    train(trial, bench_at(tmp_path / "c"), {"train": (), "val": ()})
    assert held("c") == set()


def test_required_features_are_stored_whatever_the_plan(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    trial = config("lenet", 2, epochs=2, augmentation={"policy": "flip", "num_views": 1})
    read = train(trial, bench_at(tmp_path, mode="required"), {"train": (), "val": ()})[2]
    assert [number for number, _ in read] == [0, 71]


def test_a_disk_that_fails_in_the_middle_costs_no_number_and_counts_nothing_as_read(
    config: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config("lenet", 2, epochs=2)
    real, written = filling.write_shard, []

    def failing(folder: Path, plan: Any, number: int, words_RD: Any) -> Any:
        if written:
            raise OSError(28, "No space left on device")
        written.append(number)
        return real(folder, plan, number, words_RD)

    monkeypatch.setattr(filling, "write_shard", failing)
    stored = train(trial, bench_at(tmp_path), {"train": (1, 2), "val": (1, 2)})
    assert_same(stored, train(trial, Workbench()))
    assert [number for number, _ in stored[2]] == [0, 0]


# --- a warm process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["drawn", "given"])
def test_trials_of_one_process_share_a_body_and_nothing_else(
    config: Callable[..., TrialConfig], weights: str, tmp_path: Path
) -> None:
    from trainables.backbones.families import build_model
    from trainables.backbones.weights import store_weights

    torch.manual_seed(3)
    file = store_weights(build_model("squeezenet1_1").state_dict(), "squeezenet1_1", tmp_path)
    trials = [
        config("squeezenet1_1", depth, epochs=1, size_px=size_px, seed=seed, compute=compute)
        for depth, size_px, seed, compute in (
            (3, 64, 0, {}),
            (5, 64, 1, {"channels_last": False}),
            (2, 64, 0, {"prefix_precision": "bf16", "precision": "bf16"}),
            (0, 64, 0, {}),
            (3, 48, 0, {}),
            (3, 64, 0, {}),
        )
    ]
    if weights == "given":
        trials = [
            trial.model_copy(update={"backbone": trial.backbone.model_copy(update={"weights": file})})
            for trial in trials
        ]
    few = trials[0].model_copy(update={"data": trials[0].data.model_copy(update={"class_names": ("7", "3")})})
    bench = bench_at(tmp_path / "features")
    for trial in [*trials[:2], few, *trials[2:]]:
        run = TrialRun(trial, bench, Ranks(DEVICE))
        warm = finish(run)
        run.close()
        fresh = finish(TrialRun(trial, Workbench(), Ranks(DEVICE)))
        for found, expected in zip(warm[0], fresh[0], strict=True):
            assert found["train/loss"] == expected["train/loss"]
            assert found["val/loss"] == expected["val/loss"]
        assert_same_bits(warm[1], fresh[1])


def test_a_warm_process_keeps_few_backbones(config: Callable[..., TrialConfig]) -> None:
    bench = Workbench()
    first = bench.backbone(config("lenet", 1, seed=0))
    assert bench.backbone(config("lenet", 2, seed=0)).graph.stage_modules(1) == first.graph.stage_modules(1)
    for seed in range(1, 5):
        bench.backbone(config("lenet", 1, seed=seed))
    assert bench.backbone(config("lenet", 1, seed=0)).graph.stage_modules(1) != first.graph.stage_modules(1)


# --- several workers -----------------------------------------------------------------------------------------


def visit_on(ranks: Ranks, config: TrialConfig, folder: str) -> list[bytes]:
    subject = Subject(config, bench_at(folder), range(1, 5), ranks)
    found = subject.visit(subject.cuts)
    subject.close()
    return [value.contiguous().numpy().tobytes() for value in found.values()]


@pytest.mark.slow
def test_two_ranks_visit_at_once(config: Callable[..., TrialConfig], two_ranks: RankGroup, tmp_path: Path) -> None:
    trial = config("lenet", 4)
    first, second = two_ranks.call(visit_on, trial, str(tmp_path))
    assert first == second == visit_on(Ranks(DEVICE), trial, str(tmp_path / "alone"))
    assert all(entry.is_complete for entry in bench_at(tmp_path).store.entries())  # type: ignore[union-attr]


def train_partly(ranks: Ranks, config: TrialConfig, folder: str) -> list[tuple[float, float, float]]:
    run = TrialRun(config, bench_at(folder), ranks, {"train": (1, 2), "val": (1, 3)})
    metrics = [run.run_epoch() for _ in range(config.epochs)]
    run.close()
    names = ("train/loss", "compute/images_from_store", "compute/flops_saved")
    return [tuple(epoch[name] for name in names) for epoch in metrics]  # type: ignore[misc]


@pytest.mark.slow
def test_two_ranks_fill_several_cuts_together_and_count_as_one(
    config: Callable[..., TrialConfig], two_ranks: RankGroup, tmp_path: Path
) -> None:
    trial = config("lenet", 3, epochs=2, augmentation={"policy": "flip", "num_views": 1})
    first, second = two_ranks.call(train_partly, trial, str(tmp_path / "two"))
    alone = train_partly(Ranks(DEVICE), trial, str(tmp_path / "one"))
    assert first == second
    for (loss, *counts), (expected, *expected_counts) in zip(first, alone, strict=True):
        # The tail's sums are cut up differently over two ranks: single precision, a few hundred additions.
        assert loss == pytest.approx(expected, rel=1e-4)
        assert counts == expected_counts
