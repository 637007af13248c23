"""Pictures that grow while a trial trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_support import DEVICE, assert_same_bits, copied, num_stages, numbers

from search_spaces.loading import load_spec
from trainables.config import FeatureSettings, TrialConfig
from trainables.errors import InputError
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.sizes import share_at, size_at, thirds
from trainables.training.workbench import Workbench
from tuner.networks.network import prepare_networks
from tuner.paths import HomePaths


def shares(start: float, epochs: int) -> list[float]:
    return [share_at(epoch, start, epochs) for epoch in range(epochs)]


@given(st.floats(0.25, 1), st.integers(1, 60), st.integers(8, 1024))
def test_sizes_grow_to_the_full_one(start: float, epochs: int, full_px: int) -> None:
    sizes = [size_at(share, full_px) for share in shares(start, epochs)]
    assert len(sizes) == epochs
    assert sizes == sorted(sizes)
    assert sizes[-1] == full_px
    assert min(sizes) >= 8
    assert len(set(sizes)) <= 3
    if start == 1:
        assert set(sizes) == {full_px}


def test_thirds() -> None:
    assert shares(0.5, 6) == [0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    assert shares(0.5, 8) == [0.5, 0.5, 0.75, 0.75, 0.75, 1.0, 1.0, 1.0]
    assert shares(0.5, 1) == [1.0]
    assert thirds(0.5, 8) == ((0.5, 2), (0.75, 3), (1.0, 3))
    assert [size_at(share, 224) for share in (0.5, 0.75, 1.0)] == [112, 168, 224]


@pytest.mark.parametrize(("backbone", "depth"), [("lenet", 2), ("mobilenet_v3_small", 3), ("shufflenet_v2_x0_5", 2)])
def test_each_epoch_is_that_of_a_trial_at_its_size(
    config: Callable[..., TrialConfig], backbone: str, depth: int
) -> None:
    """Which is made of three trials, each at one size, that hand on what they have learnt."""
    size_px = 16 if backbone == "lenet" else 64
    grown = TrialRun(config(backbone, depth=depth, size_px=size_px, start_size=0.5), Workbench(), Ranks(DEVICE))
    handed = None
    for epoch, size in enumerate((size_px // 2, size_px * 3 // 4, size_px)):
        found = numbers(grown.run_epoch())
        alone = TrialRun(config(backbone, depth=depth, size_px=size), Workbench(), Ranks(DEVICE))
        if handed is not None:
            alone.restore(handed)
        wanted = numbers(alone.run_epoch())
        assert found["train/loss"] == wanted["train/loss"], f"epoch {epoch + 1}"
        handed = alone.checkpoint()
        assert_same_bits(copied(grown.checkpoint().tail), copied(handed.tail))
    assert found == wanted, "the last epoch is judged at the size it was trained at"


def test_small_pictures_cost_less_and_what_is_stored_is_of_the_full_size(
    config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    bench = Workbench(features=FeatureSettings(directory=str(tmp_path)))
    full = TrialRun(config("resnet18", depth=2, size_px=64, augmentation={"policy": "none"}), bench, Ranks(DEVICE))
    full.run_epoch()
    grown = TrialRun(
        config("resnet18", depth=2, size_px=64, start_size=0.5, augmentation={"policy": "none"}), bench, Ranks(DEVICE)
    )
    assert grown.config.freeze_depth < num_stages("resnet18")
    epochs = [numbers(grown.run_epoch()) for _ in range(3)]
    grown.close()
    full.close()
    num_train, num_val = len(grown.side("train")), len(grown.side("val"))
    assert [epoch["compute/images_from_store"] for epoch in epochs] == [num_val, num_val, num_val + num_train]
    stages = grown.stages
    prefix = sum(stage.flops for stage in stages[:2])
    tail = sum(stage.flops for stage in stages[2:]) + 2 * 512 * 5
    for epoch, share in zip(epochs, (0.25, 0.5625, 1), strict=True):
        computed = num_train * share * (3 * tail + (prefix if share < 1 else 0)) + num_val * tail
        assert epoch["compute/gflops"] == pytest.approx(computed / 1e9)


def test_pictures_that_begin_too_small_for_the_network_are_refused(
    config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    changes = [
        "model.backbone=squeezenet1_1",
        "model.weights=none",
        "data.image_size_px=32",
        "search.start_size=[0.5, 1]",
    ]
    home = HomePaths.resolve(tmp_path)

    def prepare(*more: str) -> None:
        spec = load_spec("digits", [*changes, *more])
        data = config(size_px=spec.data.image_size_px).data
        prepare_networks(spec, data, home, home.tracking_uri(), lambda *_: None)

    with pytest.raises(InputError, match=r"search.start_size: 0.5 of 32 px is 16 px, too few for squeezenet1_1; give"):
        prepare("search.start_size=[0.5, 1]")
    prepare("search.start_size=0.75")
    prepare("search.start_size={low: 0.5, high: 1}", "data.image_size_px=64")
