"""Backbones by name: the same arguments give the same bits, and nothing leaks from one to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainables.backbones.families import build_model, normalisation
from trainables.backbones.weights import store_weights
from trainables.backbones.zoo import Backbone, backbone_names, check_name, load_backbone
from trainables.config import WeightsFile
from trainables.errors import InputError

SMALL = "shufflenet_v2_x0_5"


def load(name: str = SMALL, weights: WeightsFile | None = None, *, num_classes: int = 3, seed: int = 0) -> Backbone:
    return load_backbone(name, weights, num_classes=num_classes, input_size_px=32, seed=seed)


@pytest.fixture
def weights(tmp_path: Path) -> WeightsFile:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return store_weights(build_model(SMALL).state_dict(), SMALL, tmp_path)


def same(left: nn.Module, right: nn.Module, *, without: str = "-") -> bool:
    others = right.state_dict()
    assert left.state_dict().keys() == others.keys()
    return all(
        torch.equal(value, others[key]) for key, value in left.state_dict().items() if not key.startswith(without)
    )


def test_names_are_cnns_and_lenet() -> None:
    names = backbone_names()
    assert {"lenet", "resnet18", "convnext_tiny", "inception_v3", "vgg16_bn"} <= set(names)
    assert not [name for name in names if name.startswith(("vit", "swin", "maxvit"))]
    assert list(names) == sorted(names)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("resnet-18", r"did you mean .*resnet18"),
        ("mobilnet_v2", r"did you mean .*mobilenet_v2"),
        ("EfficientNet_B0", r"did you mean .*efficientnet_b0"),
        ("vit_b_16", "transformers have no stages"),
        ("???", "take one such as resnet18"),
    ],
)
def test_unknown_names_are_refused_with_a_remedy(name: str, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy) as error:
        check_name(name)
    assert repr(name) in str(error.value)
    with pytest.raises(InputError, match=remedy):
        load(name)


def test_random_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = load(seed=7)
    torch.manual_seed(2)
    assert same(first.model, load(seed=7).model)
    other = load(seed=8)
    assert not torch.equal(first.model.state_dict()["conv5.0.weight"], other.model.state_dict()["conv5.0.weight"])
    assert not torch.equal(first.model.state_dict()["fc.weight"], other.model.state_dict()["fc.weight"])


def test_global_random_state_is_left_alone(weights: WeightsFile) -> None:
    before = torch.random.get_rng_state()
    load()
    load(weights=weights)
    load("lenet")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pretrained_weights_are_loaded_and_the_head_is_fresh(weights: WeightsFile) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        original = build_model(SMALL)
    backbone = load(weights=weights, num_classes=1000)
    assert same(backbone.model, original, without="fc.")
    head = backbone.model.state_dict()["fc.weight"]
    assert not torch.equal(head, original.state_dict()["fc.weight"])
    # The head is the seed's own, whatever it stands on.
    assert torch.equal(head, load(num_classes=1000).model.state_dict()["fc.weight"])
    assert abs(float(head.std()) - 1 / (3 * 1024) ** 0.5) < 1e-3  # uniform in +-1/sqrt(fan_in), as nn.Linear


def test_a_trained_tail_leaks_into_no_later_backbone(weights: WeightsFile) -> None:
    first = load(weights=weights)
    before = {key: value.clone() for key, value in first.model.state_dict().items()}
    _, tail = first.graph.split(0)
    with torch.no_grad():
        tail.train()(torch.randn(2, 3, 32, 32))
        for parameter in tail.parameters():
            parameter.add_(1)
        for parameter in first.model.parameters():  # even the pattern itself may be lost
            parameter.zero_()
    again = load(weights=weights).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in before.items())


def test_heads_of_any_number_of_classes() -> None:
    for name in (SMALL, "squeezenet1_1", "lenet"):
        backbone = load(name, num_classes=4)
        assert backbone.num_classes == backbone.graph.head.num_classes == 4
        assert backbone.model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
        assert backbone.graph.head.flops == 2 * 4 * backbone.graph.head.in_features


def test_weights_of_another_backbone_are_refused(weights: WeightsFile) -> None:
    with pytest.raises(InputError, match="does not fit lenet"):
        load("lenet", weights)


def test_pictures_too_small_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"image_size_px: 16 px are too few for alexnet; take 64 px or more"):
        load_backbone("alexnet", None, num_classes=2, input_size_px=16, seed=0)


def test_normalisation_is_that_of_the_published_weights() -> None:
    assert normalisation("resnet18") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("efficientnet_v2_l")[0] == (0.5, 0.5, 0.5)
    assert load("lenet").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("size_px", [8, 16, 28, 64])
def test_lenet_takes_small_pictures(size_px: int) -> None:
    backbone = load_backbone("lenet", None, num_classes=5, input_size_px=size_px, seed=0)
    assert backbone.model(torch.zeros(2, 3, size_px, size_px)).shape == (2, 5)
    assert [stage.name for stage in backbone.graph.stages] == ["block1", "block2", "block3", "hidden"]
