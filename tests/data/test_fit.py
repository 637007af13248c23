"""How pictures that are no squares are brought to one: nothing at their ends is lost unless somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from typer.testing import CliRunner

from search_spaces.data_spec import DataSpec
from search_spaces.loading import dump_spec, load_kept_spec, load_spec, parse_spec
from search_spaces.spec import SweepSpec
from trainables.config import AugmentationConfig, Fit, PolicyName
from trainables.data.fit import PAD_COLOUR, choose_fit, fitted_size, lost_by_crop
from trainables.data.views import crop_box, eval_view, view
from trainables.errors import InputError
from tuner.cli import app
from tuner.networks.preparing import settle_fit
from tuner.paths import HomePaths
from tuner.pictures.contact_sheet import SheetRow, contact_sheet
from tuner.pictures.dealing import prepare_data

Photo = Callable[..., Image.Image]
FITS: tuple[Fit, ...] = get_args(Fit)
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
WITHOUT_PARTS: tuple[PolicyName, ...] = ("none", "flip", "color")
HALF = {"train": 0.5, "val": 0.25, "test": 0.25}
ID = "a7" * 32
SHAPES = [(40, 120), (120, 40), (60, 90), (700, 5)]


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def pixels(image_CHW: torch.Tensor) -> np.ndarray:
    return image_CHW.permute(1, 2, 0).numpy()


def marked(height: int, width: int) -> torch.Tensor:
    """Grey, with green at one end of the longer side: a tenth of the picture."""
    image = torch.full((height, width, 3), 128, dtype=torch.uint8)
    tenth = max(height, width) // 10
    (image[:tenth] if height > width else image[:, -tenth:])[:] = torch.tensor([0, 255, 0], dtype=torch.uint8)
    return image.permute(2, 0, 1)


def greens(image_CHW: torch.Tensor) -> int:
    red, green, blue = image_CHW.int()
    return int(((green - red > 60) & (green - blue > 60)).sum())


@pytest.mark.parametrize(("height", "width"), [(40, 120), (120, 40), (100, 40)])
def test_what_lies_at_an_end_is_in_every_view_by_default_and_not_under_crop(height: int, width: int) -> None:
    alike = choose_fit("auto", np.array([height] * 3), np.array([width] * 3)).fit
    mixed = choose_fit("auto", np.array([height, width]), np.array([width, height])).fit
    assert (alike, mixed) == ("squash", "pad")
    image = marked(height, width)
    for policy in WITHOUT_PARTS:
        for index in range(6):
            config = AugmentationConfig(policy=policy, magnitude=5)
            for fit in (alike, mixed):
                assert greens(view(image, config, ID, index, 32, fit)) >= 32, (policy, fit)
            assert greens(view(image, config, ID, index, 32, "crop")) == 0


def test_squash_is_torchvisions_resize_of_all_of_the_picture(photo: Photo) -> None:
    for size in ((90, 60), (60, 200)):
        image = tensor(photo(*size))
        assert eval_view(image, 40, "squash").equal(v2.Resize((40, 40), antialias=True)(image))
        pillow = np.array(photo(*size).resize((40, 40), Image.Resampling.BILINEAR))
        # Two implementations of one filter in fixed point: off by one where they round.
        assert np.abs(pixels(eval_view(image, 40, "squash")).astype(int) - pillow).max() <= 1


def test_pad_is_pillows(photo: Photo) -> None:
    for size in ((90, 60), (60, 200), (33, 32)):
        expected = ImageOps.pad(photo(*size), (40, 40), Image.Resampling.BILINEAR, color=PAD_COLOUR)
        found = pixels(eval_view(tensor(photo(*size)), 40, "pad")).astype(int)
        assert np.abs(found - np.array(expected)).max() <= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_square_pictures_look_the_same_under_every_fit(policy: PolicyName, photo: Photo) -> None:
    image, config = tensor(photo(50, 50)), AugmentationConfig(policy=policy, magnitude=20)
    for index in range(4):
        cropped, *others = (view(image, config, ID, index, 32, fit) for fit in FITS)
        assert all(other.equal(cropped) for other in others)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_views_of_every_fit_are_fresh_squares(policy: PolicyName, height: int, width: int) -> None:
    image = marked(height, width)
    before = image.clone()
    for fit in FITS:
        seen = view(image, AugmentationConfig(policy=policy), ID, 1, 24, fit)
        assert seen.shape == (3, 24, 24)
        assert seen.permute(1, 2, 0).is_contiguous()
        assert seen.equal(view(image.contiguous(), AugmentationConfig(policy=policy), ID, 1, 24, fit))
        seen.zero_()
    assert image.equal(before)


def test_parts_have_the_pictures_own_shape_where_all_of_it_is_used() -> None:
    draws = np.random.Generator(np.random.Philox(key=1)).random((200, 41)).tolist()
    for height, width in SHAPES[:3]:
        for fit in ("squash", "pad"):
            boxes = [crop_box(height, width, drawn, fit) for drawn in draws]
            shares = [box.height * box.width / (height * width) for box in boxes]
            ratios = [box.width / box.height * height / width for box in boxes]
            assert 0.45 < min(shares) < 0.55
            assert max(shares) > 0.9
            assert 0.7 < min(ratios) < max(ratios) < 1.43  # 3:4 to 4:3, and a pixel more or less


def test_nothing_is_left_of_a_thread_but_a_line() -> None:
    assert fitted_size(1000, 3, "pad", 32) == (32, 1)
    assert fitted_size(3, 1000, "pad", 32) == (1, 32)
    assert fitted_size(1000, 3, "squash", 32) == (32, 32)


def test_auto_goes_by_the_shapes_and_says_why() -> None:
    sides = np.array([30, 40, 64])
    assert choose_fit("auto", sides, sides).fit == "pad", "a longer picture may come when the model is used"
    assert "square" in choose_fit("auto", sides, sides).reason
    wide = choose_fit("auto", np.full(20, 100), np.arange(120, 160, 2))
    assert wide.fit == "squash"
    assert "a centre crop would lose 28% of the pictures' area, of one 37%" in wide.reason
    # One odd picture among twenty alike ones decides nothing.
    assert choose_fit("auto", np.array([100] * 39 + [500]), np.full(40, 150)).fit == "squash"
    assert choose_fit("auto", np.array([100, 150] * 20), np.array([150, 100] * 20)).fit == "pad"
    for fit in FITS:
        assert choose_fit(fit, np.array([10]), np.array([99])).fit == fit
    assert lost_by_crop(np.array([10, 20]), np.array([10, 80])).tolist() == [0, 0.75]


def spec_of(place: Path, **data: object) -> SweepSpec:
    section = {"source": f"folder:{place}", "image_size_px": 16, "split": HALF, **data}
    return parse_spec({"name": "x", "data": section, "model": {"backbone": "lenet"}}, SweepSpec, "test")


def test_a_sweep_keeps_the_fit_it_began_with(folder: Callable[..., Path], tmp_path: Path) -> None:
    spec = spec_of(folder(ants=12, bees=12))  # 20 x 16 each
    data = prepare_data(spec.data, HomePaths.at(tmp_path / "home"), lambda *_: None)
    notes: list[str] = []
    settled = settle_fit(spec, data, notes.append)
    assert (spec.data.fit, settled.data.fit, data.config.fit) == ("auto", "squash", "squash")
    assert notes[0].startswith("data.fit: squash: a centre crop would lose 20% of the pictures' area")
    assert settle_fit(settled, data, notes.append) == settled
    assert len(notes) == 1
    kept = tmp_path / "spec.yaml"
    kept.write_text(dump_spec(settled))
    assert load_kept_spec(kept) == settled
    # Sweeps that began before there was a choice go on as they began.
    old = "\n".join(line for line in dump_spec(spec).splitlines() if not line.startswith("  fit:"))
    kept.write_text(old)
    assert load_kept_spec(kept).data.fit == "crop"
    assert load_spec(kept).data.fit == "auto"


def test_a_preview_shows_every_fit_of_long_pictures(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THAW_HOME", str(tmp_path / "home"))
    place, sheet = folder(ants=12, bees=12), tmp_path / "sheet.png"
    kept = tmp_path / "spec.yaml"
    kept.write_text(dump_spec(spec_of(place)))
    sheets = {}
    for fit in ("auto", "crop"):
        arguments = ["augment", "preview", str(kept), "--out", str(sheet), "--set", f"data.fit={fit}"]
        run = CliRunner().invoke(app, arguments)
        assert run.exit_code == 0, run.output
        with Image.open(sheet) as opened:
            sheets[fit] = np.array(opened)
    # As they are, three fits, and then the policies: none, flip, flip_crop, RandAugment at both ends.
    rows = contact_sheet([SheetRow("", [np.zeros((4, 4, 3), np.uint8)])] * 9)
    assert sheets["auto"].shape[0] == sheets["crop"].shape[0] == rows.height
    assert not np.array_equal(sheets["auto"], sheets["crop"])


def test_a_fit_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"fit.*strech"):
        parse_spec({"source": "digits", "fit": "strech"}, DataSpec, "test")
