"""Fields that are right one by one and wrong together: pure rules, each with what to change.

A rule looks only at what somebody wrote on purpose: a searched field that keeps its default is not in contradiction
with another that makes it idle, so that fixing one field never forces the user to fix a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from search_spaces.ranges import Range, listed
from search_spaces.search_spec import LISTING_SAMPLERS
from search_spaces.stopping import stopping_contradictions
from trainables.config import POLICIES_WITH_MAGNITUDE
from trainables.wording import shorten

if TYPE_CHECKING:
    from search_spaces.spec import ResourceSpec, SweepSpec
    from trainables.config import SplitConfig

_OF_ONE_LABEL = ("val/accuracy", "val/balanced_accuracy", "val/cost")


def contradictions(spec: SweepSpec, *, begins: bool = True) -> Iterator[str]:
    """One line per contradiction: the field, why, and what to change.

    Args:
        spec: The spec.
        begins: Whether a sweep is to begin with it; one that has is not refused what it was allowed then.
    """
    yield from _backbones(spec)
    yield from _price_of_several(spec)
    yield from _sizes(spec)
    yield from _idle_magnitude(spec)
    if begins:
        yield from _idle_ratio(spec)
        yield from _unlisted_values(spec)
        yield from _nothing_to_store(spec)
        yield from _nothing_to_keep(spec)
    yield from _idle_price(spec)
    yield from _unknown_costs(spec)
    yield from _not_for_these_labels(spec)
    yield from _beyond_the_epochs(spec)
    yield from stopping_contradictions(spec)
    yield from resource_contradictions(spec.budget, "budget")
    yield from _batches_too_small(spec)
    yield from _nothing_to_mix(spec)
    yield from _idle_head_init(spec)
    yield from _two_precisions(spec)


def _nothing_to_store(spec: SweepSpec) -> Iterator[str]:
    augments = set(listed(spec.search.augmentation)) - {"none"}
    if spec.features == "required" and augments and "unlimited" in listed(spec.search.num_views):
        yield (
            "features: required, but views without end (search.num_views: unlimited) are never seen twice and so never "
            "stored; give num_views a number, or set features: auto"
        )


def _unknown_costs(spec: SweepSpec) -> Iterator[str]:
    if spec.metric == "val/cost" and spec.costs is None:
        yield (
            "metric: val/cost is what mistakes cost, and costs does not say; "
            "add costs: {true class: {predicted class: cost}}, or choose another metric"
        )


def _not_for_these_labels(spec: SweepSpec) -> Iterator[str]:
    """What has no meaning where pictures have several labels, and the other way round."""
    if spec.data.labels == "single":
        if spec.metric == "val/map":
            yield "metric: val/map is of pictures with several labels, and data.labels is single; use val/auroc"
        return
    search = spec.search
    balances = set(listed(search.class_balance)) - {"none"}
    problems = {
        "metric": (
            spec.metric in _OF_ONE_LABEL,
            f"{spec.metric} is",
            "use val/map, val/auroc, val/macro_f1 or val/loss",
        ),
        "costs": (spec.costs is not None, "they are", "leave costs out"),
        "search.class_balance": (bool(balances), f"{' and '.join(sorted(balances))} is", "use none"),
        "search.mixup_alpha": (_largest(search.mixup_alpha) > 0, "mixup is", "set it to 0"),
        "search.cutmix_alpha": (_largest(search.cutmix_alpha) > 0, "CutMix is", "set it to 0"),
        "search.head_init": ("probe" in listed(search.head_init), "probe is", "use auto or random"),
        "search.probe": (search.probe == "on", "the probe is", "use auto or off"),
    }
    for field, (is_wrong, subject, remedy) in problems.items():
        if is_wrong:
            yield f"{field}: {subject} for pictures of one class, and data.labels is multi; {remedy}"


def split_contradiction(split: SplitConfig) -> str | None:
    """Why the shares cannot be meant, or None."""
    shares = {"train": split.train, "val": split.val, "test": split.test}
    total = sum(shares.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        return f"the shares {', '.join(f'{k} {v:g}' for k, v in shares.items())} add up to {total:g}; make it 1"
    empty = [name for name in ("train", "val") if shares[name] == 0]
    if empty:
        return f"{empty[0]} has a share of 0, and without it no trial can be judged; give it a share"
    return None


def resource_contradictions(resources: ResourceSpec, place: str) -> Iterator[str]:
    """Demands on GPUs that no scheduler can meet."""
    gpus, workers = resources.gpus_per_worker, resources.workers_per_trial
    if gpus < 1 and workers > 1:
        yield (
            f"{place}.gpus_per_worker: {gpus:g} of a GPU for each of {workers} workers: only a single worker can share "
            f"a GPU; set it to 1, or {place}.workers_per_trial to 1"
        )
    if gpus > 1 and not float(gpus).is_integer():
        yield f"{place}.gpus_per_worker: {gpus:g} is neither a fraction of one GPU nor a whole number; round it"


def _backbones(spec: SweepSpec) -> Iterator[str]:
    model = spec.model
    if model.backbones is None:
        if model.backbone is None:
            yield (
                "model.backbone: missing; name of the network, as torchvision spells it; give it in the spec, or with "
                "--set model.backbone=VALUE; or several as model.backbones"
            )
        yield from _idle_bounds(spec, "one network is named")
        return
    if model.backbone is not None:
        yield (
            f"model.backbones: given beside model.backbone, which is {shorten(model.backbone)}; leave one of the two "
            "out (--set model.backbone=null)"
        )
        return
    if model.weights != "default":
        yield (
            "model.weights: they are those of model.backbone, and model.backbones is given; write them there, as "
            "[{backbone: NAME, weights: WEIGHTS}]"
        )
    if model.backbones == "auto":
        return
    yield from _idle_bounds(spec, "model.backbones names the networks")
    recipes = {
        (entry.backbone, entry.weights.pretrain.model_dump_json()): entry.weights.pretrain.name
        for entry in model.entries
        if not isinstance(entry.weights, str)
    }
    names = list(recipes.values())
    if twice := {name for name in names if names.count(name) > 1}:
        yield f"model.backbones: two networks are pretrained as {shorten(min(twice))}; give each recipe another name"


def _price_of_several(spec: SweepSpec) -> Iterator[str]:
    num_networks = 2 if spec.model.backbones == "auto" else len(spec.model.named)
    if spec.search.cost_aware and max(num_networks, len(listed(spec.search.image_size_px))) > 1:
        yield (
            "search.cost_aware: depth and policy, which decide a price, are proposed apart where there are several "
            "networks or sizes; leave cost_aware out, or search one network at one size"
        )


def _sizes(spec: SweepSpec) -> Iterator[str]:
    most = spec.data.image_size_px
    declared = {"search.image_size_px": spec.search.image_size_px}
    declared |= {
        f"model.backbones[{place}].image_size_px": entry.image_size_px for place, entry in enumerate(spec.model.entries)
    }
    for place, sizes in declared.items():
        largest = max((size for size in listed(sizes) if size is not None), default=0)
        if largest > most:
            yield (
                f"{place}: {largest} is more than the {most} of data.image_size_px, for which pictures are kept; "
                "raise that, with sizes for what is to see smaller ones, or lower this"
            )


def _idle_bounds(spec: SweepSpec, why: str) -> Iterator[str]:
    bounds = type(spec.model).model_fields
    for name in ("max_parameters", "max_gflops", "max_latency_ms"):
        if getattr(spec.model, name) != bounds[name].default:
            default = "null" if bounds[name].default is None else bounds[name].default
            yield (
                f"model.{name}: only backbones: auto keeps to it, and {why}; leave it out (--set model.{name}="
                f"{default}), or write backbones: auto"
            )


def _idle_magnitude(spec: SweepSpec) -> Iterator[str]:
    policies = listed(spec.search.augmentation)
    if _is_searched_on_purpose(spec, "magnitude") and not set(policies) & set(POLICIES_WITH_MAGNITUDE):
        yield (
            f"search.magnitude: searched, but only {', '.join(POLICIES_WITH_MAGNITUDE)} use it and search.augmentation "
            f"is {' or '.join(policies)}; add one of them there, or leave magnitude out"
        )


def _idle_ratio(spec: SweepSpec) -> Iterator[str]:
    if _is_searched_on_purpose(spec, "backbone_lr_ratio") and spec.is_head_only:
        yield (
            "search.backbone_lr_ratio: searched, but search.freeze_depth is 'all' and nothing of the backbone learns; "
            "lower freeze_depth, or leave backbone_lr_ratio out"
        )


def _idle_price(spec: SweepSpec) -> Iterator[str]:
    if spec.search.cost_aware and spec.search.sampler != "tpe":
        yield (
            f"search.cost_aware: only the sampler tpe weighs proposals by cost, and search.sampler is "
            f"{spec.search.sampler}; leave one of the two out"
        )


def _unlisted_values(spec: SweepSpec) -> Iterator[str]:
    search = spec.search
    if search.sampler not in LISTING_SAMPLERS:
        return
    idle = {"backbone_lr_ratio", "layer_decay"} if spec.is_head_only else set()
    ranges = [name for name in type(search).model_fields if _is_unlisted(getattr(search, name)) and name not in idle]
    if ranges:
        yield (
            f"search.sampler: {search.sampler} tries every point, and {', '.join(ranges)} "
            f"{'has' if len(ranges) == 1 else 'have'} ranges, not values; list those to try, as in {ranges[0]}: "
            f"{_some_values(getattr(search, ranges[0]))}, or use another sampler"
        )


def _is_unlisted(field: Any) -> bool:
    return isinstance(field, Range) and not isinstance(field.low, int)


def _some_values(field: Range[float]) -> str:
    middle = math.sqrt(field.low * field.high) if field.log else (field.low + field.high) / 2
    return f"[{field.low:.3g}, {middle:.3g}, {field.high:.3g}]"


def _beyond_the_epochs(spec: SweepSpec) -> Iterator[str]:
    epochs = spec.budget.trial_epochs
    warmup = spec.search.warmup_epochs
    longest = _largest(warmup)
    if longest > spec.budget.epochs:
        yield (
            f"search.warmup_epochs: {longest:g} is more than the {spec.budget.epochs} of budget.epochs; lower it, or "
            "train longer"
        )
    early = spec.early_stopping
    is_default = early.grace_period == type(early).model_fields["grace_period"].default
    if early.scheduler in ("asha", "median") and early.grace_period > epochs and not is_default:
        yield (
            f"early_stopping.grace_period: {early.grace_period} is more than the {epochs} of budget.epochs, so nothing "
            "would ever be stopped; lower it, or set early_stopping.scheduler to none"
        )


def _batches_too_small(spec: SweepSpec) -> Iterator[str]:
    sizes, workers = spec.search.batch_size, spec.budget.workers_per_trial
    smallest = _smallest(sizes)
    if smallest < workers:
        yield (
            f"search.batch_size: {smallest} pictures cannot be shared among {workers} workers; "
            f"use at least {workers}, or lower budget.workers_per_trial"
        )


def _nothing_to_mix(spec: SweepSpec) -> Iterator[str]:
    if _smallest(spec.search.batch_size) > 1:
        return
    for name in ("mixup_alpha", "cutmix_alpha"):
        largest = _largest(getattr(spec.search, name))
        if largest > 0:
            yield (
                f"search.{name}: {largest:g} mixes pictures of one batch, and search.batch_size may be 1; "
                f"use at least 2 there, or set {name} to 0"
            )


def _idle_head_init(spec: SweepSpec) -> Iterator[str]:
    heads = listed(spec.search.head)
    if "probe" in listed(spec.search.head_init) and "linear" not in heads:
        yield (
            f"search.head_init: a probe is a linear head, and search.head is {' or '.join(heads)}; add linear there, "
            "or leave head_init out"
        )


def _nothing_to_keep(spec: SweepSpec) -> Iterator[str]:
    if "keep" not in listed(spec.search.bn_mode):
        return
    if not spec.is_pretrained:
        yield (
            "search.bn_mode: 'keep' keeps pretrained statistics, and model.weights is none; name weights, or leave "
            "bn_mode out"
        )
    elif spec.is_head_only:
        yield (
            "search.bn_mode: search.freeze_depth is 'all', and the frozen part keeps its statistics anyway; lower "
            "freeze_depth, or leave bn_mode out"
        )


def _two_precisions(spec: SweepSpec) -> Iterator[str]:
    if spec.search.precision is None:
        return
    sections = {"compute": spec.compute}
    sections |= {
        f"{spec.model.place_of(each.backbone)}: compute": each.compute for each in spec.model.entries if each.compute
    }
    for place, compute in sections.items():
        if compute.precision != "fp32":
            yield (
                f"{place}.precision: {compute.precision}, but search.precision says what trials have; leave one of "
                "the two out"
            )


def _smallest(field: Any) -> Any:
    return field.low if isinstance(field, Range) else min(listed(field))


def _largest(field: Any) -> Any:
    return field.high if isinstance(field, Range) else max(listed(field))


def _is_searched_on_purpose(spec: SweepSpec, name: str) -> bool:
    field = getattr(spec.search, name)
    is_fixed = isinstance(field, (int, float)) or (isinstance(field, tuple) and len(field) == 1)
    return not is_fixed and field != type(spec.search).model_fields[name].default
