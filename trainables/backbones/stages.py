"""Where to cut a network into stages: a pure function of what lies between its cut points.

In: the segments of a network, in order; a segment ends at a point where the network can be cut in two. Out: which
segments end a stage. The rules, in order of application:

1. A stage ends where the spatial size changes: behind a pooling layer, or in front of the block whose own layer makes
   the change. After the network has gone flat, each linear layer is a stage.
2. A stage without weights of its own (only pooling, or one normalisation layer) joins its neighbour.
3. A stage with more than a quarter of the FLOPs is split at block ends, then inside blocks, as evenly as they allow.
4. A cut slides back over pooling, activation and flatten to where the result is smallest, but not over dropout,
   which belongs to whoever trains behind it. It never parts a convolution from its normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_FLOPS_SHARE = 0.25  # of the whole network, for one stage
# A split that leaves less than this share on one side is taken only where there is no better one.
_MIN_SPLIT_SHARE = 0.25
_LEAST_CHANGE = 1.5


@dataclass(frozen=True)
class Stage:
    """A run of layers that is frozen or trained as one.

    Attributes:
        name: The modules it consists of, as ``layer2`` or ``features.2..features.3``.
        num_parameters: Learnable numbers.
        flops: Forward FLOPs for one picture; a multiplication and an addition are two.
        output_shape: For one picture, without the batch dimension.
        output_bytes: For one picture in float32.
    """

    name: str
    num_parameters: int
    flops: int
    output_shape: tuple[int, ...]
    output_bytes: int


@dataclass(frozen=True)
class Segment:
    """The nodes from one cut point (exclusive) to the next (inclusive).

    Attributes:
        flops: Forward FLOPs for one picture.
        has_state: Whether it holds any parameter or buffer.
        has_weights: Whether it holds a parameter of two or more dimensions: a convolution or a linear layer.
        has_dropout: Whether it holds a dropout layer.
        parts_norm: Whether a cut behind it would part a layer from the normalisation that belongs to it.
        num_values: Size of its result for one picture.
        spatial_size: Height and width of its result; (1, 1) where flat.
        is_flat: Whether its result has no spatial dimensions.
        nesting: Number of modules that both its last node and the next node lie in: 0 between top-level modules.
    """

    flops: int
    has_state: bool
    has_weights: bool
    has_dropout: bool
    parts_norm: bool
    num_values: int
    spatial_size: tuple[int, ...]
    is_flat: bool
    nesting: int


def choose_stages(segments: Sequence[Segment]) -> tuple[int, ...]:
    """Indices of the segments that end a stage, ascending; the last segment always does."""
    ends = _join_weightless(segments, _natural_ends(segments))
    total = sum(segment.flops for segment in segments)
    starts = [0, *(end + 1 for end in ends[:-1])]
    split = [
        part for start, end in zip(starts, ends, strict=True) for part in _split_large(segments, start, end, total)
    ]
    return tuple(split)


def _natural_ends(segments: Sequence[Segment]) -> list[int]:
    """Rule 1."""
    last = len(segments) - 1
    ends: list[int] = []
    for index in range(1, len(segments)):
        segment, before = segments[index], segments[index - 1]
        start = ends[-1] + 1 if ends else 0
        if start >= index:
            continue
        is_change = _is_change(before.spatial_size, segment.spatial_size)
        if is_change and segment.has_state:
            end = _block_end(segments, start, index - 1)
        elif is_change or (segment.is_flat and segment.has_weights):
            end = index - 1
        else:
            continue
        if end is not None:
            end = _settle(segments, start, end)
            if end < last:
                ends.append(end)
    return [*ends, last]


def _is_change(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a size changes by more than what a convolution without padding shaves off its edges."""
    small, large = sorted((max(before), max(after)))
    return large >= _LEAST_CHANGE * small


def _block_end(segments: Sequence[Segment], start: int, stop: int) -> int | None:
    """The last of the least nested places to cut within start..stop."""
    allowed = [i for i in range(start, stop + 1) if not segments[i].parts_norm]
    return min(allowed, key=lambda i: (segments[i].nesting, -i), default=None)


def _settle(segments: Sequence[Segment], start: int, end: int) -> int:
    """Rule 4: of all cuts with the same state on either side and no dropout more in front, the one of least values."""
    first = next((i for i in range(end, start, -1) if segments[i].has_state), start)
    best = first
    for index in range(first + 1, len(segments)):
        if segments[index].has_state or segments[index].has_dropout:
            break
        if segments[index].num_values <= segments[best].num_values:
            best = index
    return best


def _join_weightless(segments: Sequence[Segment], ends: list[int]) -> list[int]:
    """Rule 2: joins to the stage before, the first one to the stage after."""
    kept: list[int] = []
    start = 0
    for end in ends:
        if any(segment.has_weights for segment in segments[start : end + 1]):
            kept.append(end)
            start = end + 1
        elif kept:
            kept[-1] = end
            start = end + 1
    return kept


def _split_large(segments: Sequence[Segment], start: int, end: int, total_flops: int) -> list[int]:
    """Rule 3, for the stage start..end: its ends after splitting."""
    stage_flops = _flops(segments, start, end)
    if stage_flops <= MAX_FLOPS_SHARE * total_flops:
        return [end]
    cuts = [
        i
        for i in range(start, end)
        if not segments[i].parts_norm
        and _settle(segments, start, i) == i
        and any(segment.has_weights for segment in segments[start : i + 1])
        and any(segment.has_weights for segment in segments[i + 1 : end + 1])
    ]
    if not cuts:
        return [end]

    def larger_side(cut: int) -> int:
        return max(_flops(segments, start, cut), _flops(segments, cut + 1, end))

    even = [i for i in cuts if larger_side(i) <= (1 - _MIN_SPLIT_SHARE) * stage_flops]
    cut = min(even, key=lambda i: (segments[i].nesting, larger_side(i))) if even else min(cuts, key=larger_side)
    return _split_large(segments, start, cut, total_flops) + _split_large(segments, cut + 1, end, total_flops)


def _flops(segments: Sequence[Segment], start: int, end: int) -> int:
    return sum(segment.flops for segment in segments[start : end + 1])
