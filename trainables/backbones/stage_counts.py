"""How many stages each network has: ``python -m trainables.backbones.stage_counts`` prints the table.

In a file, because finding it out takes a look at the network: a minute for all of them.
"""

from __future__ import annotations

NUM_STAGES: dict[str, int] = {
    "alexnet": 7, "convnext_base": 7, "convnext_large": 7, "convnext_small": 7, "convnext_tiny": 6, "densenet121": 7,
    "densenet161": 7, "densenet169": 7, "densenet201": 7, "efficientnet_b0": 7, "efficientnet_b1": 7,
    "efficientnet_b2": 7, "efficientnet_b3": 7, "efficientnet_b4": 7, "efficientnet_b5": 7, "efficientnet_b6": 7,
    "efficientnet_b7": 7, "efficientnet_v2_l": 7, "efficientnet_v2_m": 6, "efficientnet_v2_s": 6, "googlenet": 7,
    "inception_v3": 6, "lenet": 4, "mnasnet0_5": 6, "mnasnet0_75": 7, "mnasnet1_0": 8, "mnasnet1_3": 8,
    "mobilenet_v2": 7, "mobilenet_v3_large": 8, "mobilenet_v3_small": 8, "regnet_x_16gf": 7, "regnet_x_1_6gf": 8,
    "regnet_x_32gf": 7, "regnet_x_3_2gf": 8, "regnet_x_400mf": 9, "regnet_x_800mf": 7, "regnet_x_8gf": 8,
    "regnet_y_128gf": 8, "regnet_y_16gf": 8, "regnet_y_1_6gf": 8, "regnet_y_32gf": 8, "regnet_y_3_2gf": 8,
    "regnet_y_400mf": 7, "regnet_y_800mf": 7, "regnet_y_8gf": 8, "resnet101": 8, "resnet152": 8, "resnet18": 6,
    "resnet34": 6, "resnet50": 7, "resnext101_32x8d": 8, "resnext101_64x4d": 8, "resnext50_32x4d": 7,
    "shufflenet_v2_x0_5": 5, "shufflenet_v2_x1_0": 6, "shufflenet_v2_x1_5": 6, "shufflenet_v2_x2_0": 6,
    "squeezenet1_0": 7, "squeezenet1_1": 7, "vgg11": 9, "vgg11_bn": 9, "vgg13": 7, "vgg13_bn": 7, "vgg16": 9,
    "vgg16_bn": 9, "vgg19": 9, "vgg19_bn": 9, "wide_resnet101_2": 8, "wide_resnet50_2": 7,
}  # fmt: skip


def _main() -> None:
    from trainables.backbones.families import backbone_names
    from trainables.backbones.published import published
    from trainables.backbones.zoo import load_backbone

    for name in backbone_names():
        stated = published(name)
        size_px = 224 if stated is None else stated.input_px
        graph = load_backbone(name, None, num_classes=1000, input_size_px=size_px, seed=0).graph
        print(f'"{name}": {graph.num_stages},', end=" ", flush=True)


if __name__ == "__main__":
    _main()
