"""What a frozen network's features say of the classes, depth by depth, and the head that follows from them.

In: a run that freezes every stage, so that one pass over the pictures gives the features of every cut. Out: a ridge
probe and a LogME score for each depth, and weights for a head to start from. Pictures are seen as evaluation sees
them, and nothing is drawn at random: the same pictures and weights give the same bits in every process.

Axes: N pictures, D features, K classes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from trainables.config import SplitName, TrialConfig
from trainables.data.splits import clusters_of
from trainables.features.probes import ProbeResult, fit_probe, head_from_probe, pool, representative_rows
from trainables.jobs import DepthProbe, Message, ProbeJob
from trainables.ranks import Ranks
from trainables.training.loop import TrialRun
from trainables.training.threads import one_thread
from trainables.training.workbench import Workbench

# A fit takes N * D * D multiplications where pictures are many: as many as a core does in a few seconds.
_MOST_WORK = 2e10
_FEWEST_ROWS, _MOST_ROWS = 3_000, 50_000

# Weights on features that hardly stir grow large, and a trained part that moves those features makes them explode: on
# magnetic tiles, without this bound, a first training loss of 34 and 70% instead of 92% accuracy after 8 epochs.
LEAST_STD = 1.0
# A head that is sure of every picture leaves a trained part nothing to learn; see `probed_head`.
MODEST_OUTPUT = 0.5

HeadWeights = tuple[torch.Tensor, torch.Tensor]
"""Weight [K, D] and bias [K] of a linear layer, float32 on the CPU."""


def run_probe(job: ProbeJob, bench: Workbench, ranks: Ranks) -> Message:
    """Probes every depth in one pass over the training and the validation pictures; keeps the head that it finds.

    With several ranks the first works alone, so that their number does not matter; only its answer counts.

    Raises:
        InputError: Features are not finite, or the pictures are of fewer than two classes.
    """
    if not ranks.is_first:
        return {"kind": "probe"}
    started = time.perf_counter()
    with closing(TrialRun(job.config, bench, Ranks(ranks.device), job.cuts_to_keep)) as run:
        stages, num_classes = run.stages, len(job.config.data.class_names)
        cuts = range(1, len(stages) + 1)
        train, val = (_collect(run, name, cuts) for name in ("train", "val"))
    passed, probes = time.perf_counter(), list[DepthProbe]()
    with one_thread():
        for depth, stage in zip(cuts, stages, strict=True):
            began = time.perf_counter()
            features_ND, labels_N, clusters_N = train[depth]
            judged = (val[depth].features_ND, val[depth].labels_N) if depth in val else None
            result = fit_probe(
                features_ND, labels_N, num_classes, validation=judged, clusters_N=clusters_N, least_std=LEAST_STD
            )
            seconds = time.perf_counter() - began
            probes.append(_describe(depth, stage.name, result, len(judged[1]) if judged else 0, seconds))
    bench.heads[head_key(job.config)] = result
    metrics = {"time/pass_s": passed - started, "time/fit_s": time.perf_counter() - passed}
    return {"kind": "probe", "probes": probes, "metrics": metrics}


def probed_head(config: TrialConfig, num_stages: int, bench: Workbench, ranks: Ranks) -> HeadWeights:
    """The head as a ridge classifier on what stands in front of it (see `features.probes`).

    Where only the head is trained, its outputs are scaled to calibrated logits. Where more is, they lie between plus
    and minus `MODEST_OUTPUT`: a sure head gives the backbone no gradient to learn from, and large ones once BatchNorm
    in training changes what it stands on. Measured with mobilenet_v2 (ants and bees at depths 5 and 6 of 7, magnetic
    tiles at 6; three pairs of rates, two seeds; the validation side on which this form was chosen): 4 points more
    accuracy than a random head after the first epoch, and as much at the end. Calibrated logits there ended 1 to 4
    points below a random head (ants and bees, three seeds).

    Fitted once per process, on the first rank; every rank must call this and gets the same bits.

    Args:
        config: Of a trial that freezes any depth.
        num_stages: Of its backbone.
        bench: Keeps the fit.
        ranks: This process among the lane's workers.

    Raises:
        InputError: As `run_probe`.
    """
    key = head_key(config)
    if ranks.is_first and key not in bench.heads:
        with closing(TrialRun(ProbeJob.of(config, num_stages).config, bench, Ranks(ranks.device))) as run:
            seen = _collect(run, "train", [num_stages])[num_stages]
        with one_thread():
            bench.heads[key] = fit_probe(
                seen.features_ND,
                seen.labels_N,
                len(config.data.class_names),
                clusters_N=seen.clusters_N,
                least_std=LEAST_STD,
                with_logme=False,
            )
    is_whole = config.freeze_depth == num_stages
    with ranks.while_first_works():
        head: HeadWeights = ranks.agree(_head_of(bench.heads[key], is_whole) if ranks.is_first else None)
    return head


def _head_of(result: ProbeResult, is_all_that_learns: bool) -> HeadWeights:
    if is_all_that_learns:
        return head_from_probe(result)
    weight_KD, bias_K = head_from_probe(result, as_logits=False)
    return MODEST_OUTPUT * weight_KD, MODEST_OUTPUT * bias_K


def head_key(config: TrialConfig) -> str:
    """Everything that decides the head's bits within a process, and nothing that does not."""
    weights, compute = config.backbone.weights, config.compute
    decisive = [
        config.data.model_copy(update={"table": ""}).canonical_json(),
        config.backbone.name,
        f"seed {config.seed}" if weights is None else weights.key,
        compute.prefix_precision,
        compute.prefix_batch_size,
        compute.channels_last,
    ]
    return json.dumps(decisive)


def _describe(depth: int, stage: str, result: ProbeResult, num_val: int, seconds: float) -> DepthProbe:
    num_train, right_of_val = result.num_pictures, (result.val_accuracy or 0.0) * num_val
    return DepthProbe(
        depth=depth,
        stage=stage,
        probe_accuracy=math.nan if result.val_accuracy is None else result.val_accuracy,
        loo_accuracy=result.loo_accuracy,
        accuracy=(result.loo_accuracy * num_train + right_of_val) / (num_train + num_val),
        num_judged=num_train + num_val,
        log_me=math.nan if result.logme is None else result.logme,
        num_features=result.weight_KD.shape[1],
        seconds=seconds,
    )


class _Seen(NamedTuple):
    """What a probe is fitted on, or judged by: features in float64, and of whom each picture is."""

    features_ND: torch.Tensor
    labels_N: torch.Tensor
    clusters_N: torch.Tensor


def _collect(run: TrialRun, name: SplitName, cuts: Collection[int]) -> dict[int, _Seen]:
    """One side's pictures, or enough of them, for each cut."""
    clusters_N = torch.tensor(clusters_of(run.side(name), run.config.data), dtype=torch.int64)
    labels_N = torch.from_numpy(np.ascontiguousarray(run.side(name).labels))
    chosen: dict[int, np.ndarray] = {}
    pieces: dict[int, list[torch.Tensor]] = {cut: [] for cut in cuts}
    for positions, features in run.visit(name, sorted(cuts)):
        for cut, rows in features.items():
            pooled_ND = pool(run.head_inputs(rows) if cut == len(run.stages) else rows)
            if cut not in chosen:
                chosen[cut] = representative_rows(labels_N, _num_rows(pooled_ND.shape[1])).numpy()
            wanted = np.isin(positions, chosen[cut], assume_unique=True)
            pieces[cut].append(pooled_ND[torch.from_numpy(wanted)])
    return {
        cut: _Seen(torch.cat(pieces[cut]), labels_N[torch.from_numpy(rows)], clusters_N[torch.from_numpy(rows)])
        for cut, rows in chosen.items()
    }


def _num_rows(num_features: int) -> int:
    """Most pictures to fit a probe of so many features on."""
    return min(max(int(_MOST_WORK / num_features**2), _FEWEST_ROWS), _MOST_ROWS)
