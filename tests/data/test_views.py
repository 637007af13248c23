"""A view depends on its arguments alone, and shows what the policies promise."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from trainables.config import POLICIES_WITH_MAGNITUDE, AugmentationConfig, PolicyName
from trainables.data import finishes, views
from trainables.data.finishes import OPERATION_NAMES, apply_operation
from trainables.data.packing import pack
from trainables.data.sources import open_source
from trainables.data.table import ImageTable
from trainables.data.views import crop_box, eval_view, view, view_index

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
RANDOM_POLICIES = POLICIES[1:]
Photo = Callable[..., Image.Image]
ID = "5f" * 32


@pytest.fixture
def image(photo: Photo) -> torch.Tensor:
    """uint8 [3, 48, 64] in channels-last memory, as tables give them."""
    return torch.from_numpy(np.array(photo(64, 48, seed=3))).permute(2, 0, 1)


def digests(path: str, order_seed: int, num_threads: int) -> dict[str, str]:
    """The digest of every view of a table at two sizes, computed in a shuffled order."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(order_seed)
    table = ImageTable.open(path)
    rows = range(len(table))
    wanted = [(row, name, index, px) for row in rows for name in POLICIES for index in range(3) for px in (30, 225)]
    random.Random(order_seed).shuffle(wanted)
    found = {}
    for row, name, index, size_px in wanted:
        policy = AugmentationConfig(policy=name, magnitude=20)
        seen = view(table.image(row), policy, table.id_of(row), index, size_px)
        found[f"{row} {name} {index} {size_px}"] = hashlib.sha256(seen.contiguous().numpy().tobytes()).hexdigest()
    return found


def test_views_are_the_same_across_processes_orders_and_threads(folder: Callable[..., Path], tmp_path: Path) -> None:
    path = str(pack(open_source(str(folder(ants=2, bees=2))), tmp_path / "t", side_px=16).path)
    threads = torch.get_num_threads()
    try:
        here = digests(path, 1, 1)
    finally:
        torch.set_num_threads(threads)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(digests, (path, 2, 3))
    assert here == there
    # Different pictures, and different views of one picture, differ: nothing above compares equal by being blank.
    assert len({digest for name, digest in here.items() if "flip_crop" in name}) == 4 * 3 * 2


@pytest.mark.parametrize("policy", POLICIES)
def test_neither_the_input_nor_any_random_state_is_touched(policy: PolicyName, image: torch.Tensor) -> None:
    before = image.clone()
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for index in range(30):
        seen = view(image, AugmentationConfig(policy=policy, magnitude=25), ID, index, 48)
        seen.zero_()  # a view is memory of its own
    assert image.equal(before)
    assert torch.get_rng_state().equal(torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state


@pytest.mark.parametrize("policy", POLICIES)
def test_making_views_never_writes_to_the_picture(
    policy: PolicyName, folder: Callable[..., Path], tmp_path: Path
) -> None:
    table = ImageTable.open(pack(open_source(str(folder(ants=3, bees=3))), tmp_path / "t", side_px=16).path)
    for row in range(len(table)):
        image = table.image(row)
        for index in range(20):
            view(image, AugmentationConfig(policy=policy), table.id_of(row), index, 16).add_(1)
        assert image.equal(table.image(row))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (8, 8), (1, 1), (3, 500), (700, 5)])
def test_shape_type_and_layout(policy: PolicyName, height: int, width: int) -> None:
    image = torch.arange(height * width * 3).remainder(256).to(torch.uint8).view(height, width, 3).permute(2, 0, 1)
    for size_px in (8, 33):
        for index in range(6):
            seen = view(image, AugmentationConfig(policy=policy), ID, index, size_px)
            assert seen.shape == (3, size_px, size_px)
            assert seen.dtype == torch.uint8
            assert seen.permute(1, 2, 0).is_contiguous()
            assert seen.equal(view(image.contiguous(), AugmentationConfig(policy=policy), ID, index, size_px))


def test_evaluation_is_the_middle_square_resized(photo: Photo) -> None:
    square = torch.from_numpy(np.array(photo(60, 60))).permute(2, 0, 1)
    standard = v2.Compose([v2.Resize(40, antialias=True), v2.CenterCrop(40)])
    assert eval_view(square, 40).equal(standard(square))
    for size in ((90, 60), (60, 90)):
        image = torch.from_numpy(np.array(photo(*size))).permute(2, 0, 1)
        # Cut before resizing instead of after: only the outermost pixels see less of their surroundings.
        assert (eval_view(image, 40).int() - standard(image).int()).abs().float().mean() < 1.5
    assert eval_view(square, 60).equal(square)


def test_none_is_evaluation_for_every_index(image: torch.Tensor) -> None:
    policy = AugmentationConfig(policy="none", seed=3)
    assert all(view(image, policy, ID, index, 32).equal(eval_view(image, 32)) for index in range(3))


def test_flip_mirrors_half_of_the_views(image: torch.Tensor) -> None:
    plain, policy = eval_view(image, 32), AugmentationConfig(policy="flip")
    seen = [view(image, policy, ID, index, 32) for index in range(400)]
    mirrored = sum(each.equal(plain.flip(-1)) for each in seen)
    assert mirrored + sum(each.equal(plain) for each in seen) == 400
    assert abs(mirrored - 200) < 40  # four standard deviations


@pytest.mark.parametrize("policy", RANDOM_POLICIES)
def test_seed_picture_and_index_each_make_another_view(policy: PolicyName, image: torch.Tensor) -> None:
    def seen(seed: int = 0, image_id: str = ID, first: int = 0) -> bytes:
        config = AugmentationConfig(policy=policy, seed=seed)
        return b"".join(view(image, config, image_id, first + step, 24).numpy().tobytes() for step in range(12))

    assert len({seen(), seen(seed=1), seen(image_id="6" * 64), seen(first=12)}) == 4
    assert seen() == seen()


def test_magnitude_counts_where_it_is_said_to(image: torch.Tensor) -> None:
    for policy in RANDOM_POLICIES:
        weak, strong = (AugmentationConfig(policy=policy, magnitude=magnitude) for magnitude in (2, 28))
        same = all(view(image, weak, ID, i, 24).equal(view(image, strong, ID, i, 24)) for i in range(8))
        assert same == (policy not in POLICIES_WITH_MAGNITUDE), policy


def test_industrial_views_are_never_mirrored_and_move_a_little(photo: Photo) -> None:
    image = torch.from_numpy(np.array(photo(64, 64))).permute(2, 0, 1)
    plain = eval_view(image, 64).float()
    for index in range(40):
        seen = view(image, AugmentationConfig(policy="industrial", magnitude=9), ID, index, 64).float()
        assert torch.corrcoef(torch.stack([plain.flatten(), seen.flatten()]))[0, 1] > 0.8
        assert (plain.mean() - seen.mean()).abs() < 0.2 * plain.mean()
    still = view(image, AugmentationConfig(policy="industrial", magnitude=0), ID, 0, 64)
    assert still.equal(eval_view(image, 64))


def test_erasing_blanks_one_patch_of_half_of_the_views(image: torch.Tensor) -> None:
    erased = 0
    for index in range(200):
        seen = view(image, AugmentationConfig(policy="erasing"), ID, index, 40)
        values, counts = seen.reshape(3, -1).unique(dim=1, return_counts=True)
        assert values.shape[0] == 3
        erased += int(counts.max() >= 0.015 * 1600)
    assert abs(erased - 100) < 30  # four standard deviations


def test_augmix_stays_near_its_picture_and_trivialaugment_uses_every_magnitude(
    image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def note(seen: torch.Tensor, name: str, magnitude: int, *, negative: bool) -> torch.Tensor:
        drawn.append(magnitude)
        return seen

    monkeypatch.setattr(finishes, "apply_operation", note)
    for index in range(400):
        view(image, AugmentationConfig(policy="trivialaugment"), ID, index, 8)
    assert set(drawn) == set(range(31))
    drawn.clear()
    plain = view(image, AugmentationConfig(policy="augmix", magnitude=5), ID, 3, 32)
    assert drawn == [5] * 9
    # Mixing pictures that nothing was done to gives the picture.
    assert plain.equal(view(image, AugmentationConfig(policy="augmix", magnitude=5), ID, 3, 32))
    assert plain.float().std() > 10


def test_a_smaller_view_shows_the_same_part(photo: Photo) -> None:
    image = torch.from_numpy(np.array(photo(200, 160))).permute(2, 0, 1)
    for index in range(8):
        large, small = (view(image, AugmentationConfig(policy="flip_crop"), ID, index, size) for size in (128, 32))
        assert (eval_view(large, 32).int() - small.int()).abs().float().mean() < 2


@given(st.integers(1, 600), st.integers(1, 600), st.lists(st.floats(0, 1, exclude_max=True), min_size=45, max_size=45))
def test_crops_lie_within_and_keep_their_bounds(height: int, width: int, draws: list[float]) -> None:
    box = crop_box(height, width, draws)
    assert box.top >= 0
    assert box.left >= 0
    assert 0 < box.height <= height - box.top
    assert 0 < box.width <= width - box.left
    if 3 / 4 <= width / height <= 4 / 3 and min(height, width) > 50:
        assert 0.47 < box.height * box.width / (height * width) <= 1
        assert 3 / 4 - 0.03 < box.width / box.height < 4 / 3 + 0.03


def test_crops_spread_as_those_of_torchvision() -> None:
    """2,000 crops of one picture: their area, shape and place have the same mean and spread."""
    policy = AugmentationConfig(policy="flip_crop")
    boxes = np.array([crop_box(100, 80, views._draws(policy, ID, index)) for index in range(2000)])
    reference, blank = v2.RandomResizedCrop(8, scale=(0.5, 1.0)), [torch.zeros(3, 100, 80)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [reference.make_params(blank) for _ in range(2000)]
    expected = np.array([[each[key] for key in ("top", "left", "height", "width")] for each in drawn])
    # Standard error of a difference of means: spread x sqrt(2 / 2000); five of them.
    assert (np.abs(boxes.mean(0) - expected.mean(0)) < 5 * expected.std(0) * np.sqrt(2 / 2000)).all()
    np.testing.assert_allclose(boxes.std(0), expected.std(0), rtol=0.1)
    assert (boxes[:, :2].min(0) == 0).all()
    assert ((boxes[:, :2] + boxes[:, 2:]).max(0) == (100, 80)).all()


def test_draws_are_pinned_for_ever() -> None:
    """A change here changes every view, and with it every stored feature."""
    draws = views._draws(AugmentationConfig(policy="randaugment", magnitude=9, seed=5), ID, 2)
    assert len(draws) == 45
    assert draws[:3] == [0.16263627256249202, 0.03796894403098683, 0.9638067038181136]


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_operations_are_those_of_torchvision(name: str, image: torch.Tensor) -> None:
    reference = v2.RandAugment()
    magnitudes_of, signed = reference._AUGMENTATION_SPACE[name]
    for magnitude in (0, 5, 9, 15, 22, 30):
        bins = magnitudes_of(31, 48, 64)
        strength = 0.0 if bins is None else float(bins[magnitude])
        for negative in (False, True) if signed else (False,):
            expected = reference._apply_image_or_video_transform(
                image, name, -strength if negative else strength, interpolation=reference.interpolation, fill={}
            )
            seen = apply_operation(image, name, magnitude, negative=negative)
            # Strengths in float32 there and float64 here: a value at a threshold or half a level may round otherwise.
            assert (seen.int() - expected.int()).abs().ne(0).float().mean() < 0.01


def test_all_operations_are_known() -> None:
    assert set(OPERATION_NAMES) == set(v2.RandAugment._AUGMENTATION_SPACE)


def test_randaugment_draws_all_operations_in_both_directions(
    image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = set()

    def note(seen: torch.Tensor, name: str, magnitude: int, *, negative: bool) -> torch.Tensor:
        drawn.add((name, negative))
        assert magnitude == 7
        return seen

    monkeypatch.setattr(finishes, "apply_operation", note)
    for index in range(400):
        view(image, AugmentationConfig(policy="randaugment", magnitude=7), ID, index, 8)
    assert drawn == {(name, negative) for name in OPERATION_NAMES for negative in (False, True)}


def test_epochs_take_turns() -> None:
    def indices(**settings: object) -> list[int]:
        return [view_index(AugmentationConfig(**settings), epoch) for epoch in range(6)]

    assert indices(policy="flip", num_views=4) == [0, 1, 2, 3, 0, 1]
    assert indices(policy="flip", num_views=1) == [0] * 6
    assert indices(policy="flip", num_views="unlimited") == [0, 1, 2, 3, 4, 5]
    assert indices(policy="none", num_views="unlimited") == [0] * 6
    with pytest.raises(ValueError, match="give at least 1"):
        view_index(AugmentationConfig.model_construct(policy="flip", num_views=0), 3)


@pytest.mark.shared_data
def test_views_of_real_photographs_keep_their_subject(shared_data: Path, tmp_path: Path) -> None:
    """A view is nearer to its own picture than to others': cropping and operations do not lose it."""
    table = ImageTable.open(pack(open_source(str(shared_data / "hymenoptera_data")), tmp_path, side_px=96).path)
    rows = list(range(0, 398, 12))
    plain = torch.stack([eval_view(table.image(row), 8) for row in rows]).float()
    for policy in RANDOM_POLICIES:
        config = AugmentationConfig(policy=policy)
        seen = torch.stack([view(table.image(row), config, table.id_of(row), 1, 64) for row in rows])
        small = torch.stack([eval_view(each, 8) for each in seen]).float()
        mirrored = torch.minimum(
            torch.cdist(small.flatten(1), plain.flatten(1)), torch.cdist(small.flip(-1).flatten(1), plain.flatten(1))
        )
        assert (mirrored.argmin(dim=1) == torch.arange(len(rows))).float().mean() > 0.6  # by chance: 0.03
