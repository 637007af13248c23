"""The space a spec declares, over a backbone of so many stages: points proposed, checked, and turned into a trial.

In: `SearchSpec` and the number of stages. Out: points (flat ``{field: value}``), asked of an Optuna trial, and the
`TrialConfig` of a point. A field stands in a point only where it has an effect: the magnitude with policies that have
one, the backbone's rate where some of it learns, the mode of BatchNorm that came with statistics, the start of a linear
head. Fields with one value are in the point and never asked for. Which points are worth trying is the searcher's
business.

Over several backbones a point has a `backbone` too, and its depth is one of that network's. Optuna would take depths of
one name for comparable, so it knows them as ``freeze_depth@resnet18``; nobody else does. A network that is searched at
several sizes counts as several, ``resnet18-96px`` and ``resnet18-128px``, whose depths are comparable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Dimension, Value, dimension_of
from search_spaces.naming import network_of
from search_spaces.ranges import DepthRange, listed
from search_spaces.search_spec import SearchSpec
from trainables.config import POLICIES_WITH_MAGNITUDE, TrialConfig
from trainables.errors import InputError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Point = dict[str, Value]

BACKBONE = "backbone"
"""The field of a point that names its network, where there are several."""
_OF_BACKBONE = ("freeze_depth", "head_init")
"""Fields whose values may differ from network to network."""

# Where a trial's configuration keeps each field; also the order of asking, in which a condition follows what it needs.
_PLACES: dict[str, tuple[str, ...]] = {
    "freeze_depth": ("freeze_depth",),
    "backbone_lr_ratio": ("optimizer", "backbone_lr_ratio"),
    "lr": ("optimizer", "lr"),
    "layer_decay": ("optimizer", "layer_decay"),
    "bn_mode": ("bn_mode",),
    "optimizer": ("optimizer", "name"),
    "schedule": ("optimizer", "schedule"),
    "weight_decay": ("optimizer", "weight_decay"),
    "warmup_epochs": ("optimizer", "warmup_epochs"),
    "grad_clip_norm": ("optimizer", "grad_clip_norm"),
    "augmentation": ("augmentation", "policy"),
    "magnitude": ("augmentation", "magnitude"),
    "num_views": ("augmentation", "num_views"),
    "start_size": ("start_size",),
    "batch_size": ("batch_size",),
    "label_smoothing": ("label_smoothing",),
    "mixup_alpha": ("mixup_alpha",),
    "cutmix_alpha": ("cutmix_alpha",),
    "class_balance": ("class_balance",),
    "ema_decay": ("ema_decay",),
    "grad_accumulation": ("grad_accumulation",),
    "head": ("head",),
    "head_init": ("head_init",),
    "dropout": ("dropout",),
    "precision": ("compute", "precision"),
}

_CONDITIONS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "magnitude": lambda point: point.get("augmentation") in POLICIES_WITH_MAGNITUDE,
    "num_views": lambda point: point.get("augmentation") != "none",
    "warmup_epochs": lambda point: point.get("schedule") != "one_cycle",
    "head_init": lambda point: point.get("head", "linear") == "linear",
}
"""When a field has an effect, where that depends on other fields of the point alone."""

_DEFAULTS: dict[str, Value] = {
    "layer_decay": 1.0,
    "start_size": 1.0,
    "schedule": "cosine",
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "class_balance": "none",
    "ema_decay": None,
    "grad_accumulation": 1,
    "bn_mode": "update",
    "head": "linear",
    "dropout": None,
}
"""Fields that came later, with the values that trials had before."""


@dataclass(frozen=True)
class BackboneShape:
    """What a space has to know of a network.

    Attributes:
        num_stages: That can be frozen.
        is_pretrained: Whether it starts from weights.
        can_probe: Whether its features can be probed, where it does.
        batch_norm_depth: Stages behind which it has no BatchNorm any more; None: it has some in the last one.
        freeze_depth: Its depths as its own entry in the spec declares them; None: as the search does.
    """

    num_stages: int
    is_pretrained: bool = True
    freeze_depth: Any = None
    batch_norm_depth: int | None = None
    can_probe: bool = True

    def has_statistics_to_keep(self, freeze_depth: Any) -> bool:
        """Whether BatchNorm of the trained part came with statistics of its own."""
        depth = self.num_stages if self.batch_norm_depth is None else self.batch_norm_depth
        return self.is_pretrained and isinstance(freeze_depth, int) and freeze_depth < depth


class SearchSpace:
    """What may vary in one sweep over one backbone; see `over` for several."""

    def __init__(
        self, search: SearchSpec, num_stages: int, backbone: str = "the backbone", *, is_pretrained: bool = True
    ) -> None:
        self._declare(search, {backbone: BackboneShape(num_stages, is_pretrained)})

    @classmethod
    def over(cls, search: SearchSpec, shapes: Mapping[str, BackboneShape]) -> SearchSpace:
        """The space over one or more backbones by name.

        Raises:
            InputError: A depth lies beyond the stages of one of them.
        """
        space = cls.__new__(cls)
        space._declare(search, shapes)
        return space

    def _declare(self, search: SearchSpec, shapes: Mapping[str, BackboneShape]) -> None:
        self._search, self._shapes = search, dict(shapes)
        own = {name: _own_dimensions(search, name, shape) for name, shape in shapes.items()}
        # Without a precision of its own a trial has the one that all have.
        self._fields = tuple(name for name in _PLACES if name != "precision" or search.precision is not None)
        common = {name: dimension_of(getattr(search, name)) for name in self._fields if name not in _OF_BACKBONE}
        self._dimensions = {name: {**common, **dimensions} for name, dimensions in own.items()}
        self._depths_known_as = {name: _depths_known_as(name, own) for name in own}

    @property
    def fields(self) -> tuple[str, ...]:
        """All that a point may have, in the order of asking."""
        return (BACKBONE, *self._fields) if self.is_joint else self._fields

    def dimension(self, name: str) -> Dimension:
        """The values of a field of the only backbone."""
        return self._dimensions[self.backbone_of({})][name]

    @property
    def backbones(self) -> tuple[str, ...]:
        """The networks by name."""
        return tuple(self._shapes)

    @property
    def is_joint(self) -> bool:
        """Whether there are several backbones, one of which each point names."""
        return len(self._shapes) > 1

    def alone(self, backbone: str) -> SearchSpace:
        """The space of one of the backbones, whose points do not name it."""
        return SearchSpace.over(self._search, {backbone: self._shapes[backbone]}) if self.is_joint else self

    def backbone_of(self, point: Mapping[str, Any]) -> str:
        """The network that a point is for.

        Raises:
            ValueError: There are several, and the point names none of them.
        """
        if not self.is_joint:
            return self.backbones[0]
        if point.get(BACKBONE) not in self._shapes:
            raise ValueError(f"{dict(point)} names none of {', '.join(self._shapes)}; see `alone`")
        return str(point[BACKBONE])

    def stages_of(self, point: Mapping[str, Any]) -> int:
        """The number of stages that the point's network has."""
        return self._shapes[self.backbone_of(point)].num_stages

    @property
    def num_stages(self) -> int:
        """That of the only backbone."""
        return self.stages_of({})

    def suggest(self, trial: optuna.Trial) -> Point:
        """A point, its searched fields asked of an Optuna trial."""
        point: Point = {}
        for name in self.fields:
            if self.is_active(name, point):
                dimension = self._values(name, point)
                fixed = dimension.choices[0] if dimension.choices and dimension.is_fixed else None
                known_as = self._known_as(name, point)
                point[name] = fixed if dimension.is_fixed else dimension.suggest(trial, known_as)
        return point

    def searched(self, point: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """The distributions of the fields that Optuna chose in this point, under the names that it knows them by."""
        return {self._known_as(name, point): self._values(name, point).distribution() for name in self._chosen(point)}

    def asked(self, point: Mapping[str, Any]) -> dict[str, Value]:
        """The values of those fields, under the same names; of a part of a point, those that it has."""
        return {self._known_as(name, point): point[name] for name in self._chosen(point)}

    def _chosen(self, point: Mapping[str, Any]) -> list[str]:
        return [name for name in point if not self._values(name, point).is_fixed]

    def _known_as(self, name: str, point: Mapping[str, Any]) -> str:
        return self._depths_known_as[self.backbone_of(point)] if self.is_joint and name == "freeze_depth" else name

    def _values(self, name: str, point: Mapping[str, Any]) -> Dimension:
        if name == BACKBONE and self.is_joint:
            return Dimension(choices=self.backbones)
        return self._dimensions[self.backbone_of(point)][name]

    @property
    def fixed(self) -> Point:
        """The fields that have one value, whether or not they have an effect in a point."""
        first, *others = self._dimensions.values()
        return {
            name: dim.choices[0]
            for name in self._fields
            if (dim := first[name]).choices and dim.is_fixed and all(other[name] == dim for other in others)
        }

    def ends_of(self, name: str) -> tuple[Value, ...]:
        """The choices of a field, or the two ends of its range, over all backbones."""
        spaces = (space[name] for space in self._dimensions.values())
        return tuple(value for each in spaces for value in each.choices or (each.low, each.high))

    def values_of(self, name: str) -> tuple[Value, ...]:
        """All values of a field that has finitely many, over all backbones.

        Raises:
            ValueError: It is a range of real numbers.
        """
        return tuple(dict.fromkeys(value for space in self._dimensions.values() for value in space[name].values()))

    def contains(self, point: Mapping[str, Any]) -> bool:
        """Whether `suggest` could have given this point."""
        if self.is_joint and point.get(BACKBONE) not in self._shapes:
            return False
        active = {name for name in self.fields if self.is_active(name, point)}
        # Trials of an older Thaw lack fields that it did not have; where these have their default, nothing differs.
        added = {name for name in active - set(point) if self._values(name, point).choices == (_DEFAULTS.get(name),)}
        return active - added == set(point) and all(point[name] in self._values(name, point) for name in point)

    def named(self, backbone: str, points: Iterable[Point]) -> list[Point]:
        """Points of the space of one backbone (see `alone`) as points of this one."""
        return [{BACKBONE: backbone, **point} if self.is_joint else point for point in points]

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths of the only backbone that may be tried, ascending."""
        depths = self.dimension("freeze_depth")
        return tuple(depth for depth in range(self.num_stages + 1) if depth in depths)

    def trial_config(self, point: Mapping[str, Any], base: TrialConfig) -> TrialConfig:
        """The trial at a point: `base`, which stands on the point's network, with the point's other fields."""
        return apply_params({name: value for name, value in point.items() if name != BACKBONE}, base)

    def digest(self) -> str:
        """SHA-256 of the space: points of equal digests can be compared and continued."""
        contents = {
            backbone: {
                "stages": shape.num_stages,
                **{name: asdict(dim) for name, dim in self._dimensions[backbone].items()},
            }
            for backbone, shape in self._shapes.items()
        }
        content = {"backbones": contents} if self.is_joint else contents[self.backbones[0]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def is_active(self, name: str, point: Mapping[str, Any]) -> bool:
        """Whether a field has an effect beside those that stand in a point."""
        if name in _CONDITIONS:
            return _CONDITIONS[name](point)
        if name in ("backbone_lr_ratio", "layer_decay"):
            return point.get("freeze_depth") != self.stages_of(point)
        if name == "bn_mode":
            return self._shapes[self.backbone_of(point)].has_statistics_to_keep(point.get("freeze_depth"))
        return True


def apply_params(point: Mapping[str, Any], base: TrialConfig) -> TrialConfig:
    """A trial's configuration with some fields set.

    Args:
        point: ``{field of the search: value}``; fields that are not named keep the base's values.
        base: Everything else.

    Raises:
        KeyError: No such field.
    """
    settings: dict[str, Any] = base.model_dump()
    for name, value in point.items():
        *parents, last = _PLACES[name]
        part = settings
        for parent in parents:
            part = part[parent]
        part[last] = value
    return TrialConfig.model_validate(settings)


def check_depths(
    search: SearchSpec, num_stages: int, backbone: str = "the backbone", place: str = "search.freeze_depth"
) -> None:
    """Checks the declared depths against the backbone.

    Raises:
        InputError: A depth lies beyond the stages.
    """
    beyond = [depth for depth in _numbers_of(search.freeze_depth) if depth > num_stages]
    if beyond:
        raise InputError(
            f"{place}: {beyond[0]} is beyond the {num_stages} stages of {backbone}; give at most {num_stages}, or 'all'"
        )


def _own_dimensions(search: SearchSpec, backbone: str, shape: BackboneShape) -> dict[str, Dimension]:
    """The values of the fields that may differ from network to network."""
    place = "search.freeze_depth"
    if shape.freeze_depth is not None:
        search = search.model_copy(update={"freeze_depth": shape.freeze_depth})
        place = f"model.backbones: freeze_depth of {backbone}"
    check_depths(search, shape.num_stages, backbone, place)
    head_init = dimension_of(search.head_init)
    if search.head_init == "auto":
        head_init = Dimension(choices=("probe", "random") if shape.is_pretrained and shape.can_probe else ("random",))
    return {"freeze_depth": dimension_of(search.freeze_depth, shape.num_stages), "head_init": head_init}


def _depths_known_as(name: str, own: Mapping[str, Mapping[str, Dimension]]) -> str:
    """What Optuna calls the depths of a network: at all of its sizes the same, where these are the same depths."""
    sizes = [other for other in own if network_of(other) == network_of(name)]
    is_one = all(own[other]["freeze_depth"] == own[name]["freeze_depth"] for other in sizes)
    return f"freeze_depth@{network_of(name) if is_one else name}"


def _numbers_of(depth: Any) -> Iterator[int]:
    values = (depth.low, depth.high) if isinstance(depth, DepthRange) else listed(depth)
    return (value for value in values if value != "all")
