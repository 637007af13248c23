"""Points that common advice would try first.

In: a space. Out: searched fields of points, as a careful practitioner would set them, moved into what the space
declares. Nothing is known of the pictures here; what a probe says of them is the matter of `seeding`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from search_spaces.dimension import Value
from search_spaces.space import Point, SearchSpace

# What a careful practitioner starts from; names in order of preference. The rate is AdamW's, SGD's is ten times it.
COMMON_LR = 1e-3
_COMMON: dict[str, tuple[Value, ...]] = {
    "optimizer": ("adamw", "sgd"),
    "weight_decay": (1e-4,),
    "warmup_epochs": (1.0,),
    "grad_clip_norm": (1.0,),
    "augmentation": ("flip_crop", "flip", "none", "randaugment"),
    "magnitude": (9,),
    "num_views": (4,),
    "batch_size": (32,),
    "label_smoothing": (0.1,),
    "layer_decay": (1.0,),
    "start_size": (1.0, 0.5),
    "schedule": ("cosine", "linear", "one_cycle", "constant"),
    "mixup_alpha": (0.0, 0.2),
    "cutmix_alpha": (0.0, 1.0),
    "class_balance": ("none", "weighted", "balanced"),
    "ema_decay": (None, 0.99),
    "grad_accumulation": (1,),
    "bn_mode": ("update", "keep"),
    "head": ("linear", "cosine", "mlp"),
    "head_init": ("probe", "random"),
    "dropout": (None, 0.2),
    "precision": ("bf16", "fp32"),
}

_MOST_OF_RULES = 6
"""Points of common advice over several backbones."""


def rules_of_thumb(space: SearchSpace, **of_head: Value) -> list[Point]:
    """Searched fields of the points that common advice would try first.

    Only the head; half of the backbone, at a tenth of the head's rate; everything, at a tenth of the rate. Values are
    moved into the declared space, and a depth that is not in it takes its rule away. Of several backbones each has its
    turn: every network's head, then every half, then every whole. Trials are few: the foremost count.

    Args:
        space: What may vary.
        of_head: What the first of them has instead of the common values.
    """
    if space.is_joint:
        turns = in_turns([space.named(name, rules_of_thumb(space.alone(name), **of_head)) for name in space.backbones])
        return turns[: max(_MOST_OF_RULES, len(space.backbones))]
    rules = [
        common_point(space, depth=space.num_stages, lr=COMMON_LR, ratio=1.0, **of_head),
        common_point(space, depth=space.num_stages // 2, lr=COMMON_LR, ratio=0.1),
        common_point(space, depth=0, lr=COMMON_LR / 10, ratio=1.0),
    ]
    return distinct_points(rules)


def common_point(space: SearchSpace, *, depth: int, lr: float, ratio: float, **wanted: Value) -> Point | None:
    """Searched fields of a point of one backbone as a careful practitioner would set them, moved into the space.

    Args:
        space: Of one backbone.
        depth: Stages to freeze; where it is not in the space there is no point.
        lr: Rate of the head for AdamW; SGD gets ten times that. Where the space wants another ratio, the rate moves so
            that the geometric mean of both rates stays.
        ratio: Of the backbone's rate to the head's.
        wanted: Values of other fields, where these differ from common advice.
    """
    if depth not in space.dimension("freeze_depth"):
        return None
    optimizer = space.dimension("optimizer").nearest(_COMMON["optimizer"])
    if depth < space.num_stages:
        nearest = space.dimension("backbone_lr_ratio").nearest((ratio,))
        assert isinstance(nearest, (int, float))
        lr *= math.sqrt(ratio / nearest)
    values: dict[str, tuple[Value, ...]] = {
        **_COMMON,
        **{name: (value, *_COMMON[name]) for name, value in wanted.items()},
        "freeze_depth": (depth,),
        "lr": (lr * 10 if optimizer == "sgd" else lr,),
        "backbone_lr_ratio": (ratio,),
    }
    point: Point = {}
    for name in space.fields:
        if space.is_active(name, point):
            point[name] = space.dimension(name).nearest(values[name])
    return space.asked(point)


def distinct_points(points: Iterable[Point | None]) -> list[Point]:
    """The points that there are, each once, in order."""
    distinct: list[Point] = []
    for point in points:
        if point is not None and point not in distinct:
            distinct.append(point)
    return distinct


def in_turns(lists: Sequence[Sequence[Point]]) -> list[Point]:
    """The first of each list, then the second of each, and so on."""
    return [point for turn in zip_longest(*lists) for point in turn if point is not None]
