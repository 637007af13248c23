"""One network of each family, with the side of a small picture that leaves something to pool."""

from __future__ import annotations

SIZES_PX = {
    "lenet": 16,
    "resnet18": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "efficientnet_b0": 32,
    "convnext_tiny": 32,
    "densenet121": 32,
    "squeezenet1_1": 32,
    "shufflenet_v2_x0_5": 32,
    "mnasnet0_5": 32,
    "regnet_y_400mf": 32,
    "googlenet": 32,
    "inception_v3": 80,
    "alexnet": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
}
