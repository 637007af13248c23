"""Layers that compute in other ways, for speed or to repeat themselves: nothing but rounding changes."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from trainables.training.kernels import Float32Conv2d, RepeatableAvgPool2d, choose_kernels
from trainables.training.repeatable import make_repeatable

CPU = torch.device("cpu")


def convolution(channels: int = 8, groups: int = 8, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride=stride, padding=kernel // 2, groups=groups)


@pytest.mark.parametrize(
    ("layer", "is_slow"),
    [
        (convolution(stride=2), True),
        (convolution(kernel=5), True),
        (convolution(kernel=5, stride=2), True),
        (convolution(), False),
        (convolution(groups=4, stride=2), False),
        (convolution(groups=1, stride=2), False),
        (convolution(groups=1, kernel=7), False),
        (nn.Conv2d(1, 8, 5, stride=2), False),
    ],
    ids=str,
)
def test_depthwise_layers_with_strides_or_large_kernels_are_the_slow_ones(layer: nn.Conv2d, is_slow: bool) -> None:
    tail = nn.Sequential(layer)
    assert isinstance(choose_kernels(tail, CPU, "bf16")[0], Float32Conv2d) == is_slow


@pytest.mark.parametrize("wanted", [(7, 7), (2, 3), 6, (4, None), (9, 13)], ids=str)
@pytest.mark.parametrize("size", [(7, 7), (2, 3), (5, 11), (9, 13), (1, 1)], ids=str)
def test_repeatable_pooling_is_adaptive_pooling(wanted: object, size: tuple[int, int]) -> None:
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(wanted))
    inputs = torch.randn(3, 4, *size, dtype=torch.float64, requires_grad=True)
    expected = tail(inputs)
    weights = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), inputs)
    found = choose_kernels(tail, torch.device("cuda"), "fp32")(inputs)
    assert type(tail[0]) is RepeatableAvgPool2d
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad((found * weights).sum(), inputs)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


def test_pooling_to_one_place_and_on_a_cpu_stays_as_it_is() -> None:
    for size, device in ((1, "cuda"), ((1, 1), "cuda"), (7, "cpu")):
        tail = choose_kernels(nn.Sequential(nn.AdaptiveAvgPool2d(size)), torch.device(device), "bf16")
        assert type(tail[0]) is nn.AdaptiveAvgPool2d


def test_only_bf16_on_a_cpu_is_concerned() -> None:
    tail = nn.Sequential(convolution(stride=2))
    assert type(choose_kernels(tail, CPU, "fp32")[0]) is nn.Conv2d
    assert type(choose_kernels(tail, torch.device("cuda"), "bf16")[0]) is nn.Conv2d


def test_a_network_keeps_its_names_and_weights_and_rounds_no_worse() -> None:
    torch.manual_seed(0)
    exact = mobilenet_v2(num_classes=3).eval()
    plain = copy.deepcopy(exact)
    fast = choose_kernels(copy.deepcopy(exact), CPU, "bf16")
    assert sum(isinstance(layer, Float32Conv2d) for layer in fast.modules()) == 4
    for (name, tensor), (other, same) in zip(exact.state_dict().items(), fast.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, same)
    images = torch.randn(4, 3, 64, 64)
    outputs, gradients = [], []
    for network, is_bf16 in ((exact, False), (plain, True), (fast, True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16):
            logits = network(images)
        logits.float().square().sum().backward()
        outputs.append(logits.detach().float())
        gradients.append(next(network.parameters()).grad.clone())
    for exact_one, plain_one, fast_one in (outputs, gradients):
        assert torch.linalg.norm(fast_one - exact_one) <= 1.2 * torch.linalg.norm(plain_one - exact_one)


def test_the_neighbours_get_the_type_that_they_would_have_got() -> None:
    layer = choose_kernels(nn.Sequential(convolution(stride=2)), CPU, "bf16")
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.randn(2, 8, 6, 6, dtype=dtype)).dtype == torch.bfloat16


def test_a_cpu_repeats_itself_and_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_repeatable(CPU)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
