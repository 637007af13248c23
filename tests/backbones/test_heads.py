"""Kinds of heads, on a network of each family: the same names and cuts, and what each kind computes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from family_sizes import SIZES_PX
from torch import nn

from trainables.backbones.heads import FIRST_SCALE, CosineHead, MlpHead, fresh_head, head_flops
from trainables.backbones.zoo import load_backbone
from trainables.config import HeadKind
from trainables.training.trained_part import DROPOUT_NAME, replace_dropout

KINDS: tuple[HeadKind, ...] = ("linear", "mlp", "cosine")
SLOW = ("vgg11", "vgg11_bn", "inception_v3", "alexnet", "googlenet", "densenet121", "convnext_tiny")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in SIZES_PX])
def test_every_family_takes_every_head_and_any_dropout_in_front_of_it(name: str) -> None:
    size_px = SIZES_PX[name]
    backbone = load_backbone(name, None, num_classes=5, input_size_px=size_px, seed=0)
    images = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    for kind in KINDS:
        other = backbone.with_head(5, 0, kind)
        graph = other.graph
        assert graph.head.flops == head_flops(kind, graph.head.in_features, 5)
        for depth in (0, graph.num_stages):
            prefix, tail = graph.split(depth)
            replace_dropout(tail, graph.head_name, 0.25)
            rates = {name: layer.p for name, layer in tail.named_modules() if isinstance(layer, nn.Dropout)}
            assert list(rates.values()).count(0.25) == 1
            assert (DROPOUT_NAME in rates) != any(rate == 0.25 for at, rate in rates.items() if at != DROPOUT_NAME)
            assert set(tail.state_dict()) == set(graph.tail_keys(depth))
            with torch.no_grad():
                features = prefix(images)
                assert torch.equal(tail.eval()(features), other.model(images))
        assert share_dropped(tail.train(), graph.head_name, torch.ones_like(features)) == pytest.approx(0.25, abs=0.1)


def share_dropped(tail: nn.Module, head_name: str, features: torch.Tensor) -> float:
    caught: list[torch.Tensor] = []
    with tail.get_submodule(head_name).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])):
        torch.manual_seed(0)
        tail(features)
    return (caught[0] == 0).float().mean().item()


def test_a_head_is_drawn_from_the_seed_alone() -> None:
    for kind in KINDS:
        torch.manual_seed(0)
        state = torch.get_rng_state()
        first, second, third = (fresh_head(kind, 600, 7, seed).state_dict() for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not all(torch.equal(first[name], third[name]) for name in first)
        assert all(tensor.device.type == "cpu" for tensor in first.values())


def test_a_cosine_head_sees_angles_alone() -> None:
    head = fresh_head("cosine", 16, 3, seed=0)
    assert isinstance(head, CosineHead)
    features_BD = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    cosines = F.cosine_similarity(features_BD[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(features_BD), FIRST_SCALE * cosines)
    torch.testing.assert_close(head(100 * features_BD), head(features_BD))
    assert torch.isfinite(head(torch.zeros(1, 16))).all()
    with torch.no_grad():
        head.log_scale += math.log(2)
    torch.testing.assert_close(head(features_BD), 2 * FIRST_SCALE * cosines)


def test_an_mlp_head_has_one_hidden_layer_of_at_most_512() -> None:
    for width, hidden in ((1280, 512), (100, 100)):
        head = fresh_head("mlp", width, 3, seed=0)
        assert isinstance(head, MlpHead)
        shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        assert shapes == {
            "hidden.weight": (hidden, width), "hidden.bias": (hidden,),
            "output.weight": (3, hidden), "output.bias": (3,),
        }  # fmt: skip


@pytest.mark.parametrize(("name", "has_some"), [("resnet18", True), ("lenet", True), ("squeezenet1_1", False)])
def test_a_network_knows_behind_which_stage_it_has_no_batch_norm_any_more(name: str, has_some: bool) -> None:
    graph = load_backbone(name, None, num_classes=2, input_size_px=SIZES_PX[name], seed=0).graph
    counts = [
        sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in graph.tail(depth).modules())
        for depth in range(graph.num_stages + 1)
    ]
    assert graph.batch_norm_depth == sum(count > 0 for count in counts)
    assert (graph.batch_norm_depth > 0) == has_some
