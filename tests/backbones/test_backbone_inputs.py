"""What a user's own weights expect of pictures: stated in their file, adapted with a remark, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torchvision.models import GoogLeNet, Inception3

from trainables.backbones.families import build_model, normalisation, outer_normalisation
from trainables.backbones.inputs import read_stated
from trainables.backbones.weights import resolve_weights
from trainables.backbones.zoo import load_backbone
from trainables.config import WeightsFile
from trainables.data.batches import Normaliser
from trainables.errors import InputError

State = dict[str, torch.Tensor]
HALF = (0.5, 0.5, 0.5)
OWN: dict[str, Any] = {"mean": [0.25, 0.5, 0.75], "std": [0.5, 0.25, 0.125]}


@pytest.fixture
def lenet() -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model("lenet").state_dict()


def resolved(path: Path, root: Path) -> tuple[WeightsFile, list[str]]:
    remarks: list[str] = []
    file = resolve_weights(str(path), "lenet", root, remarks.append)
    assert file is not None
    return file, remarks


@pytest.mark.parametrize(
    "metadata",
    [
        OWN,
        {"mean": [63.75, 127.5, 191.25], "std": [127.5, 63.75, 31.875]},
        {"image_mean": OWN["mean"], "image_std": OWN["std"]},
        {"pretrained_cfg": {**OWN, "input_size": [3, 96, 96]}},
    ],
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_the_normalisation_that_a_file_states_is_used(
    lenet: State, tmp_path: Path, metadata: dict[str, Any], kind: str
) -> None:
    path = tmp_path / f"own.{kind}"
    if kind == "pth":
        torch.save({"state_dict": lenet, **metadata}, path)
    else:
        safetensors.torch.save_file(lenet, path, {name: json.dumps(value) for name, value in metadata.items()})
    file, remarks = resolved(path, tmp_path / "stored")
    backbone = load_backbone("lenet", file, num_classes=2, input_size_px=16, seed=0)
    assert backbone.mean == pytest.approx(OWN["mean"])
    assert backbone.std == pytest.approx(OWN["std"])
    assert any("mean 0.25, 0.5, 0.75, std 0.5, 0.25, 0.125" in remark for remark in remarks)
    assert ("0 to 255" in " ".join(remarks)) == (metadata.get("mean", [0])[0] > 1)
    assert ("96 px" in " ".join(remarks)) == ("pretrained_cfg" in metadata)
    assert all(remark.startswith(f"model.weights: {path}: ") for remark in remarks)


@pytest.mark.parametrize(("name", "kind"), [("googlenet", GoogLeNet), ("inception_v3", Inception3)])
def test_networks_that_rescale_within_see_what_the_file_states(name: str, kind: Any) -> None:
    mean, std = (torch.tensor(OWN[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    outer = outer_normalisation(name, tuple(OWN["mean"]), tuple(OWN["std"]))
    images = torch.rand(2, 3, 4, 4)
    outer_mean, outer_std = (torch.tensor(values).view(1, 3, 1, 1) for values in outer)
    seen = kind._transform_input(SimpleNamespace(transform_input=True), (images - outer_mean) / outer_std)
    torch.testing.assert_close(seen, (images - mean) / std)
    for of_half, known in zip(outer_normalisation(name, HALF, HALF), normalisation(name), strict=True):
        assert of_half == pytest.approx(known)
    assert outer_normalisation("resnet18", HALF, HALF) == (HALF, HALF)


def test_weights_that_say_nothing_are_normalised_as_ever(lenet: State, tmp_path: Path) -> None:
    torch.save({"state_dict": lenet, "epoch": 3, "mean": 0.5}, tmp_path / "own.pth")
    file, remarks = resolved(tmp_path / "own.pth", tmp_path / "stored")
    assert (file.mean, file.std, remarks, file.key) == (None, None, [], file.sha256)
    backbone = load_backbone("lenet", file, num_classes=2, input_size_px=16, seed=0)
    assert (backbone.mean, backbone.std) == normalisation("lenet")


def test_equal_tensors_of_other_normalisation_are_other_weights(lenet: State, tmp_path: Path) -> None:
    torch.save({"state_dict": lenet, **OWN}, tmp_path / "own.pth")
    torch.save(lenet, tmp_path / "plain.pth")
    own, plain = (resolved(tmp_path / name, tmp_path / "stored")[0] for name in ("own.pth", "plain.pth"))
    assert own.sha256 == plain.sha256
    assert own.key != plain.key


def test_a_network_for_grey_pictures_computes_what_it_computed(lenet: State, tmp_path: Path) -> None:
    """On grey pictures: of its own first convolution, on one channel normalised with its own mean and std."""
    first = next(name for name, tensor in lenet.items() if tensor.ndim == 4)
    grey = {**lenet, first: lenet[first].sum(1, keepdim=True)}
    torch.save({"state_dict": grey, "mean": 0.25, "std": [0.5]}, tmp_path / "grey.pth")
    file, remarks = resolved(tmp_path / "grey.pth", tmp_path / "stored")
    assert any("the mean of red, green and blue" in remark for remark in remarks)
    backbone = load_backbone("lenet", file, num_classes=2, input_size_px=16, seed=0)
    images_NCHW = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    normalise = Normaliser(backbone.mean, backbone.std, torch.device("cpu"), torch.contiguous_format)
    adapted = torch.conv2d(normalise(images_NCHW.repeat(1, 3, 1, 1)), backbone.model.state_dict()[first])
    own = torch.conv2d((images_NCHW / 255 - 0.25) / 0.5, grey[first])
    torch.testing.assert_close(adapted, own, rtol=1e-4, atol=1e-5)


def test_other_numbers_of_channels_are_refused(lenet: State, tmp_path: Path) -> None:
    first = next(name for name, tensor in lenet.items() if tensor.ndim == 4)
    torch.save({**lenet, first: lenet[first].repeat(1, 2, 1, 1)}, tmp_path / "six.pth")
    with pytest.raises(InputError, match=r"pictures of 6 channels .*; take weights"):
        resolved(tmp_path / "six.pth", tmp_path / "stored")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5, 0.5], [0.5, 0.5]),
        (0.5, 0),
        ([-1, 0, 0], 1),
        ("half", 1),
        (float("nan"), 1),
        (70_000, 3),
        (0.5, [True] * 3),
    ],
)
def test_a_normalisation_that_no_pictures_have_is_refused(mean: Any, std: Any) -> None:
    with pytest.raises(InputError, match=r"own\.pth states the mean .*; state those"):
        read_stated({"mean": mean, "std": std}, "model.weights: own.pth")
