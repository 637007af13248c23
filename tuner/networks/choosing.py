"""Which networks a sweep searches, and at which sizes: what a spec leaves open or says of all of them, said of each.

In: a spec. Out: the same spec with the networks named, their weights and sizes too, so that whoever goes on with the
sweep searches the same ones. The rule of ``backbones: auto``: by published top-1 from the best down, one network of
each family, within the spec's bounds, as long as its weights can be had and it takes pictures of this size, until there
are `MOST_CHOSEN`. What was left out on the way is told with the reason, but for what is stated of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from search_spaces.model_spec import MOST_CHOSEN, BackboneChoice, ModelSpec
from search_spaces.ranges import listed
from search_spaces.spec import SweepSpec
from trainables.errors import InputError
from tuner.paths import HomePaths

if TYPE_CHECKING:
    from trainables.backbones.published import Published

_MOST_FAILED = 2
"""Downloads that fail before no other one is tried: each takes its time, and one host serves them all."""


def settle_backbones(spec: SweepSpec, home: HomePaths, note: Callable[[str], object]) -> SweepSpec:
    """The spec with its backbones named, each with its sizes; one in which nothing is left open as it is.

    Args:
        spec: Whose `model.backbones` may be 'auto'.
        home: Where weights are kept.
        note: Told each choice with its reason, and what was left out.

    Raises:
        InputError: No network is within the bounds, or the weights of none can be had.
    """
    return _sized(_chosen(spec, home, note) if spec.model.backbones == "auto" else spec)


def _sized(spec: SweepSpec) -> SweepSpec:
    """The spec with the sizes that all networks are tried at given to each that has none of its own."""
    sizes = spec.search.image_size_px
    if sizes is None:
        return spec
    if spec.model.backbone is not None:
        from trainables.backbones.families import check_name

        check_name(spec.model.backbone)  # while messages can name the field that was given
    entries = tuple(
        entry if entry.image_size_px is not None else entry.model_copy(update={"image_size_px": sizes})
        for entry in spec.model.entries
    )
    search = spec.search.model_copy(update={"image_size_px": None})
    return spec.model_copy(update={"model": ModelSpec(backbones=entries), "search": search})


def _chosen(spec: SweepSpec, home: HomePaths, note: Callable[[str], object]) -> SweepSpec:
    """The spec with its networks chosen."""
    from trainables.backbones.published import all_published

    candidates = [each for each in all_published() if is_within(each, spec.model, spec.data.image_size_px)]
    chosen, was_missing = _choose(candidates, spec, home, note)
    if not chosen and was_missing:
        raise InputError(
            f"model.backbones: auto: the weights of no network within {_bounds(spec)} can be had; "
            "fetch some elsewhere and name them: [{backbone: NAME, weights: FILE}]"
        )
    if not chosen:
        raise InputError(
            f"model.backbones: auto: no network is within {_bounds(spec)}; raise the bound"
            + (", or data.image_size_px" if candidates else "")
        )
    choices = tuple(BackboneChoice(backbone=each.name, weights=each.weights) for each in chosen)
    return spec.model_copy(update={"model": ModelSpec(backbones=choices)})


def _bounds(spec: SweepSpec) -> str:
    model, size_px = spec.model, spec.data.image_size_px
    bounds = [f"{model.max_parameters:,} parameters"]
    if model.max_gflops is not None:
        bounds.append(f"{model.max_gflops:g} GFLOPs at {size_px} px")
    if model.max_latency_ms is not None:
        bounds.append(f"{model.max_latency_ms:g} ms for a picture of {size_px} px here")
    return " and ".join(bounds)


def is_within(network: Published, model: ModelSpec, size_px: int) -> bool:
    """Whether a network keeps to the bounds that the spec sets and that need no measurement."""
    is_fast = model.max_gflops is None or network.gflops_at(size_px) <= model.max_gflops
    return network.num_parameters <= model.max_parameters and is_fast


def _choose(
    candidates: Sequence[Published], spec: SweepSpec, home: HomePaths, note: Callable[[str], object]
) -> tuple[list[Published], bool]:
    """The networks, and whether the weights of any that would do could not be had."""
    chosen: list[Published] = []
    num_failed = 0
    for network in candidates:
        if len(chosen) == MOST_CHOSEN:
            break
        is_tried_in_vain = num_failed >= _MOST_FAILED and not network.is_on_disk
        if network.family in {each.family for each in chosen} or is_tried_in_vain:
            continue
        if unfit := _unfit(network, spec, home):
            note(f"backbones: {network.name} is left out: {unfit}")
        elif missing := _missing(network, home):
            note(f"backbones: {network.name} is left out: {missing.removeprefix('model.weights: ')}")
            num_failed += 1
            if num_failed == _MOST_FAILED:
                note("backbones: from here on only networks whose weights this machine has already")
        else:
            chosen.append(network)
            note(f"backbones: {_reason(network, spec, home)}")
    return chosen, num_failed > 0


def _reason(network: Published, spec: SweepSpec, home: HomePaths) -> str:
    size_px = spec.data.image_size_px
    here = "" if spec.model.max_latency_ms is None else f", {_latency_ms(network, size_px, home):.3g} ms a picture here"
    return (
        f"{network.name}: top-1 {network.top1:.1f}%, the best of {network.family} that can be had, "
        f"{network.num_parameters / 1e6:.1f} M parameters, {network.gflops_at(size_px):.2g} GFLOPs at {size_px} px"
        f"{here}"
    )


def _unfit(network: Published, spec: SweepSpec, home: HomePaths) -> str | None:
    """Why a network will not do for these pictures or on this machine."""
    from trainables.training.sizes import size_at

    size_px, most_ms = spec.data.image_size_px, spec.model.max_latency_ms
    least_px = size_at(spec.search.smallest_start_size, min(listed(spec.search.image_size_px or size_px)))
    if too_small := _too_small(network, least_px):
        return too_small
    if most_ms is None or (taken := _latency_ms(network, size_px, home)) <= most_ms:
        return None
    return f"it takes {taken:.3g} ms for a picture of {size_px} px here"


def _too_small(network: Published, size_px: int) -> str | None:
    """Why a network does not take pictures of this size."""
    from tuner.networks.preparing import build_cuts

    try:
        build_cuts(network.name, 2, size_px)
    except InputError as error:
        return str(error)
    return None


def _latency_ms(network: Published, size_px: int, home: HomePaths) -> float:
    from trainables.training.latency import latency_ms

    return latency_ms(network.name, size_px, home.uri_of(home.measured))


def _missing(network: Published, home: HomePaths) -> str | None:
    """Why the weights of a network cannot be had; fetches them."""
    from tuner.networks.preparing import prepare_weights

    try:
        prepare_weights(network.weights, network.name, home, "")
    except InputError as error:
        return str(error)
    return None
