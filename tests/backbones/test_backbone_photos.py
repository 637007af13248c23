"""Real weights on real photos: what they see is what their own network sees, whichever way the network is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models
from PIL import Image

from trainables.backbones.families import build_model
from trainables.backbones.weights import load_tensors, resolve_weights
from trainables.backbones.zoo import load_backbone
from trainables.config import WeightsFile

pytestmark = pytest.mark.shared_data

FILES = {
    "squeezenet1_1": "squeezenet1_1_imagenet1k_from-caffe-fp16.pth",
    "mobilenet_v2": "mobilenet_v2_imagenet1k_from-tflite-uint8.pth",
}
# Class and probability at 224 px that came with the weights, given with two digits.
SEEN = {
    "cat_720p.jpg": {"squeezenet1_1": ("Egyptian cat", 0.81), "mobilenet_v2": ("Egyptian cat", 0.94)},
    "parrot.jpg": {"squeezenet1_1": ("macaw", 0.88), "mobilenet_v2": ("macaw", 0.99)},
    "hot_dog.jpg": {"squeezenet1_1": ("hotdog", 0.85), "mobilenet_v2": ("hotdog", 0.99)},
    "bird.bmp": {"squeezenet1_1": ("chickadee", 0.90), "mobilenet_v2": ("chickadee", 0.99)},
    "dragonfly.bmp": {"squeezenet1_1": ("dragonfly", 0.82), "mobilenet_v2": ("dragonfly", 0.96)},
    "sunflower.bmp": {"squeezenet1_1": ("bee", 0.60), "mobilenet_v2": ("daisy", 0.98)},
    "owl.jpg": {"squeezenet1_1": ("ruffed grouse", 0.63), "mobilenet_v2": ("kite", 0.80)},
}


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> torch.Tensor:
    prepare = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    opened = (Image.open(shared_data / "sanity_photos" / name).convert("RGB") for name in SEEN)
    return torch.stack([prepare(photo) for photo in opened])


@pytest.fixture(scope="module")
def stored(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], WeightsFile]:
    root = tmp_path_factory.mktemp("weights")

    def resolve(name: str) -> WeightsFile:
        file = resolve_weights(str(shared_data / "weights" / FILES[name]), name, root)
        assert file is not None
        return file

    return resolve


def assert_seen(logits_BK: torch.Tensor, name: str) -> None:
    categories = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    probabilities, labels = logits_BK.softmax(1).max(1)
    for row, (photo, seen) in enumerate(SEEN.items()):
        category, probability = seen[name]
        assert categories[labels[row]] == category, photo
        assert float(probabilities[row]) == pytest.approx(probability, abs=0.0051), photo  # two digits were given


@torch.no_grad()
@pytest.mark.parametrize("name", FILES)
def test_stored_tensors_classify_the_photos(
    name: str, photos: torch.Tensor, stored: Callable[[str], WeightsFile], shared_data: Path
) -> None:
    whole = torch.load(shared_data / "weights" / FILES[name], weights_only=True)
    model = build_model(name)
    model.load_state_dict(whole | load_tensors(stored(name)))  # the head is not stored
    assert_seen(model(photos), name)


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 3, 7])
def test_cut_mobilenet_with_its_old_head_classifies_the_photos(
    depth: int, photos: torch.Tensor, stored: Callable[[str], WeightsFile], shared_data: Path
) -> None:
    whole = torch.load(shared_data / "weights" / FILES["mobilenet_v2"], weights_only=True)
    backbone = load_backbone("mobilenet_v2", stored("mobilenet_v2"), num_classes=1000, input_size_px=224, seed=0)
    prefix, tail = backbone.graph.split(depth)
    head = {key: whole[key] for key in ("classifier.1.weight", "classifier.1.bias")}
    assert not tail.load_state_dict(head, strict=False).unexpected_keys
    assert_seen(tail(prefix(photos)), "mobilenet_v2")


@torch.no_grad()
def test_cut_squeezenet_gives_the_pooled_features_of_its_own_network(
    photos: torch.Tensor, stored: Callable[[str], WeightsFile], shared_data: Path
) -> None:
    model = build_model("squeezenet1_1")
    model.load_state_dict(torch.load(shared_data / "weights" / FILES["squeezenet1_1"], weights_only=True))
    backbone = load_backbone("squeezenet1_1", stored("squeezenet1_1"), num_classes=2, input_size_px=224, seed=0)
    prefix, tail = backbone.graph.split(backbone.graph.num_stages)
    features = prefix(photos)
    assert torch.equal(features, torch.nn.functional.adaptive_avg_pool2d(model.features(photos), 1).flatten(1))
    assert tail(features).shape == (len(SEEN), 2)
