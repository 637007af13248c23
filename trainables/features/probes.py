"""How good features are, without training: a closed-form linear classifier, and the LogME score.

In: features of one cut and the labels of their pictures. Out: a ridge classifier whose strength of regularisation was
chosen by leave-one-out, its accuracy, weights that can start a trial's head, and the log evidence of the features. All
sums run in float64 on the CPU and draw no random numbers. Where features come from, and what is done with the ranking,
is for others.

Axes: N pictures, D features, K classes, R rank of the features, A strengths of regularisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainables.errors import InputError

# Strengths of regularisation that are tried, for each picture; standardised features have one unit of variance each.
_ALPHAS_PER_PICTURE = tuple(10.0 ** (half / 2) for half in range(-12, 7))
_SCALES = (1e-3, 1e3)
_BISECTIONS = 40
_CONSTANT = 1e-9  # A standard deviation below this share of the largest value is rounding.
_LEAST_NOISE = 1e-9  # Variance of LogME's noise: without a bound, an exact fit has infinite evidence.
_FIXED_POINT_STEPS = 100
_MOST_LEFT_OUT = 200  # A larger group is left out in pieces: leaving it out takes the cube of its size.
_LEAST_FREE = 1e-10  # Of a group that the others say nothing of, rounding would leave a singular matrix.


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """A ridge classifier on one cut's features, and what it says about them.

    Attributes:
        weight_KD: float64, for features as they come (not standardised).
        bias_K: float64. ``features @ weight.T + bias`` is near 1 for the class and near -1 for all others.
        alpha: Chosen strength of regularisation, of standardised features.
        scale: What the outputs must be multiplied by to be logits, fitted on leave-one-out outputs.
        loo_accuracy: Share of the pictures that are told right by a classifier that has not seen them.
        val_accuracy: Share of the validation pictures that are told right; None without any.
        logme: Log evidence per picture and class, see `log_me`; None where it was not asked for.
        num_pictures: N.
    """

    weight_KD: torch.Tensor
    bias_K: torch.Tensor
    alpha: float
    scale: float
    loo_accuracy: float
    val_accuracy: float | None
    logme: float | None
    num_pictures: int


def fit_probe(
    features: torch.Tensor,
    labels_N: torch.Tensor,
    num_classes: int,
    *,
    validation: tuple[torch.Tensor, torch.Tensor] | None = None,
    clusters_N: torch.Tensor | None = None,
    alphas: Sequence[float] | None = None,
    least_std: float = 0.0,
    with_logme: bool = True,
) -> ProbeResult:
    """Fits a one-versus-rest ridge classifier in closed form.

    Of the strengths of regularisation that with the least squared leave-one-out error is taken, of equal ones the
    strongest (Allen 1974's PRESS, for all strengths from one eigendecomposition of N x N or D x D, whichever is
    smaller; Golub, Heath & Wahba 1979). The scale of the standardised features counts the left-out picture too.

    Args:
        features: [N, D], or [N, D, ...] which is averaged over its other dimensions; any floating dtype and device.
        labels_N: Whole numbers from 0 to ``num_classes`` - 1.
        num_classes: Rows of the result; a class without pictures gets zero weights.
        validation: Features and labels of other pictures, to take the accuracy on.
        clusters_N: The number of what each picture belongs to, a part or a patient, whose pictures are then left out
            together (of more than 200 in pieces): of one shot the others would tell. None: each is left out alone.
        alphas: Strengths to choose from, on standardised features; by default a grid over nine decades.
        least_std: Features whose standard deviation is below this share of their root mean square are not scaled up to
            one unit of variance: a weight on what hardly ever stirs is large, and noise elsewhere.
        with_logme: Also compute `log_me`, which takes a second decomposition.

    Raises:
        InputError: The shapes or labels do not fit each other, a feature is not finite, or only one class is present.
    """
    pooled_ND = pool(features)
    labels_N = _checked(pooled_ND, labels_N, num_classes)
    mean_D, std_D = _moments(pooled_ND, least_std)
    targets_NK = 2.0 * _one_hot(labels_N, num_classes) - 1.0
    ridge = _Ridge((pooled_ND - mean_D) / std_D, targets_NK, clusters_N)
    alpha, loo_NK = _choose(ridge, alphas or [len(pooled_ND) * value for value in _ALPHAS_PER_PICTURE])
    weight_KD = ridge.weight(alpha).T / std_D
    bias_K = targets_NK.mean(0) - weight_KD @ mean_D
    return ProbeResult(
        weight_KD=weight_KD,
        bias_K=bias_K,
        alpha=alpha,
        scale=_fit_scale(loo_NK, labels_N),
        loo_accuracy=_accuracy(loo_NK, labels_N),
        val_accuracy=None if validation is None else probe_accuracy(weight_KD, bias_K, *validation),
        logme=log_me(pooled_ND, labels_N, num_classes) if with_logme else None,
        num_pictures=len(pooled_ND),
    )


def probe_accuracy(
    weight_KD: torch.Tensor, bias_K: torch.Tensor, features: torch.Tensor, labels_N: torch.Tensor
) -> float:
    """Share of the pictures whose class has the largest output; NaN without pictures.

    Raises:
        InputError: The shapes or labels do not fit each other, or a feature is not finite.
    """
    pooled_ND = pool(features)
    if pooled_ND.shape[1] != weight_KD.shape[1]:
        raise InputError(
            f"features: {pooled_ND.shape[1]} per picture, and the probe was fitted on {weight_KD.shape[1]}"
        )
    labels_N = _checked(pooled_ND, labels_N, len(weight_KD), to_fit=False)
    return _accuracy(pooled_ND @ weight_KD.T + bias_K, labels_N)


def head_from_probe(result: ProbeResult, *, as_logits: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [K, D] and bias [K] in float32, for a linear layer on the features the probe was fitted on.

    Args:
        result: Of the cut in front of the head, whatever depth the trial freezes: that is where the head stands.
        as_logits: Scale the outputs so that their softmax is calibrated, instead of lying between -1 and 1.
    """
    scale = result.scale if as_logits else 1.0
    return (scale * result.weight_KD).float(), (scale * result.bias_K).float()


def pool(features: torch.Tensor) -> torch.Tensor:
    """Features [N, D, ...] averaged over all dimensions behind the second: float64 [N, D] on the CPU.

    Raises:
        InputError: There are fewer than two dimensions, or the values are not floating point.
    """
    if features.dim() < 2 or not features.is_floating_point():  # noqa: PLR2004
        raise InputError(f"features: {features.dtype} {list(features.shape)}; give floating point numbers [N, D, ...]")
    spatial = tuple(range(2, features.dim()))
    pooled = features.detach().mean(spatial, dtype=torch.float64) if spatial else features.detach().double()
    return pooled.cpu()


def representative_rows(labels_N: torch.Tensor, limit: int) -> torch.Tensor:
    """Ascending positions of at most ``limit`` pictures, the classes' shares kept and each class spread evenly.

    A probe's time grows with the cube of the smaller of N and D; a few thousand pictures say as much.
    """
    if len(labels_N) <= limit:
        return torch.arange(len(labels_N))
    by_class_N = torch.argsort(labels_N.cpu(), stable=True)
    chosen = (torch.arange(limit, dtype=torch.float64) + 0.5) * len(labels_N) / limit
    return by_class_N[chosen.long()].sort().values


@torch.no_grad()
def log_me(features: torch.Tensor, labels_N: torch.Tensor, num_classes: int) -> float:
    """LogME: the largest log evidence of a Bayesian linear model of the labels, per picture, averaged over classes.

    You et al., ICML 2021 (arXiv 2102.11005), on features as they are. The prior's and the noise's precision follow
    their fixed point (shown to converge in You et al., JMLR 2022), which here starts from the best point of a grid
    that scales with the features, so that neither their unit nor a second maximum decides.

    Args:
        features: As for `fit_probe`.
        labels_N: As for `fit_probe`.
        num_classes: Classes without pictures do not count.

    Raises:
        InputError: As `fit_probe`.
    """
    pooled_ND = pool(features)
    labels_N = _checked(pooled_ND, labels_N, num_classes)
    targets_NK = _one_hot(labels_N, num_classes)[:, torch.bincount(labels_N, minlength=num_classes) > 0]
    spectrum = _Spectrum(pooled_ND)
    squares_RK = (spectrum.left_NR.T @ targets_NK).square()
    rest_K = (targets_NK.square().sum(0) - squares_RK.sum(0)).clamp(min=0.0)
    return float(_largest_evidence(spectrum.squares_R, squares_RK, rest_K, len(pooled_ND)).mean() / len(pooled_ND))


class _Spectrum:
    """The singular values and vectors of a matrix, by the smaller of its two Gram matrices.

    Attributes:
        squares_R: Squares of the singular values that are not rounding.
        left_NR: Left singular vectors.
        right_DR: Right singular vectors.
    """

    def __init__(self, matrix_ND: torch.Tensor) -> None:
        is_tall = matrix_ND.shape[0] >= matrix_ND.shape[1]
        gram = matrix_ND.T @ matrix_ND if is_tall else matrix_ND @ matrix_ND.T
        squares, vectors = torch.linalg.eigh(gram)
        kept = squares > squares[-1].clamp(min=0.0) * max(matrix_ND.shape) * torch.finfo(torch.float64).eps
        self.squares_R, near = squares[kept], vectors[:, kept]
        far = (matrix_ND @ near if is_tall else matrix_ND.T @ near) / self.squares_R.sqrt()
        self.left_NR, self.right_DR = (far, near) if is_tall else (near, far)


class _Ridge:
    """Ridge regression with a free intercept, for every strength of regularisation."""

    def __init__(
        self, centred_ND: torch.Tensor, targets_NK: torch.Tensor, clusters_N: torch.Tensor | None = None
    ) -> None:
        self._spectrum = _Spectrum(centred_ND)
        self._targets_NK = targets_NK
        left_NR = self._spectrum.left_NR
        centred_NK = targets_NK - targets_NK.mean(0)
        self._parts_RK = left_NR.T @ centred_NK
        # What no strength can fit, kept apart from what shrinks: their difference would cancel for weak strengths.
        self._outside_NK = centred_NK - left_NR @ self._parts_RK
        self._leverages_NR = left_NR.square()
        self._free_N = (1.0 - 1.0 / len(left_NR) - self._leverages_NR.sum(1)).clamp(min=0.0)
        self._groups = [] if clusters_N is None else _several_by_size(clusters_N)

    def weight(self, alpha: float) -> torch.Tensor:
        """Coefficients [D, K]."""
        squares_R = self._spectrum.squares_R
        return self._spectrum.right_DR @ (self._parts_RK * (squares_R.sqrt() / (squares_R + alpha))[:, None])

    def leave_one_out(self, alpha: float) -> torch.Tensor:
        """Outputs [N, K], each by a fit without that picture, or without all those of its group."""
        shrunk_R = alpha / (self._spectrum.squares_R + alpha)
        residual_NK = self._outside_NK + self._spectrum.left_NR @ (self._parts_RK * shrunk_R[:, None])
        left_free_N = (self._free_N + self._leverages_NR @ shrunk_R).clamp(min=1e-12)
        left_out_NK = residual_NK / left_free_N[:, None]
        for rows_Gm in self._groups:
            left_GmR = self._spectrum.left_NR[rows_Gm]
            hat_Gmm = (left_GmR * (1.0 - shrunk_R)) @ left_GmR.mT + 1.0 / len(residual_NK)
            free_Gmm = torch.eye(rows_Gm.shape[1], dtype=hat_Gmm.dtype) * (1.0 + _LEAST_FREE) - hat_Gmm
            left_out_NK[rows_Gm] = torch.linalg.solve(free_Gmm, residual_NK[rows_Gm])
        return self._targets_NK - left_out_NK

    def leave_one_out_error(self, alpha: float) -> float:
        """Mean squared error of `leave_one_out`."""
        return float((self.leave_one_out(alpha) - self._targets_NK).square().mean())


def _several_by_size(clusters_N: torch.Tensor) -> list[torch.Tensor]:
    """Rows of the groups that have several, [G, m] for each size m; none where all pictures are of one group."""
    _, places_N, sizes_g = clusters_N.unique(return_inverse=True, return_counts=True)
    if len(sizes_g) == 1:
        return []
    rows_N = places_N.argsort(stable=True)
    sizes_g = torch.cat([_pieces(size) for size in sizes_g.tolist()])
    starts_g = sizes_g.cumsum(0) - sizes_g
    return [
        rows_N[starts_g[sizes_g == size][:, None] + torch.arange(int(size))] for size in sizes_g.unique() if size > 1
    ]


def _pieces(size: int) -> torch.Tensor:
    """Nearly equal parts of a group, none larger than may be left out at once."""
    number = -(-size // _MOST_LEFT_OUT)
    return torch.full((number,), size // number) + (torch.arange(number) < size % number)


def _choose(ridge: _Ridge, alphas: Sequence[float]) -> tuple[float, torch.Tensor]:
    """The best strength, and its leave-one-out outputs [N, K]."""
    if min(alphas) <= 0:
        raise InputError(f"alphas: {min(alphas)} is not above 0")
    alpha = min(sorted(alphas, reverse=True), key=ridge.leave_one_out_error)
    return alpha, ridge.leave_one_out(alpha)


def _fit_scale(outputs_NK: torch.Tensor, labels_N: torch.Tensor) -> float:
    """The factor under which the outputs' softmax has the least cross entropy.

    Targets are softened as Platt 1999 does for two classes, so that outputs without a single error do not ask for an
    infinite factor: a class of n pictures is sure to (n + 1) / (n + 2). The loss is convex in the factor, so its slope
    is bisected.
    """
    num_classes = outputs_NK.shape[1]
    doubt_N = 1.0 / (torch.bincount(labels_N)[labels_N] + 2.0)
    targets_NK = (doubt_N / (num_classes - 1))[:, None].repeat(1, num_classes)
    targets_NK.scatter_(1, labels_N[:, None], (1.0 - doubt_N)[:, None])
    low, high = (math.log(bound) for bound in _SCALES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        slope = ((outputs_NK * math.exp(middle)).softmax(1).sub_(targets_NK) * outputs_NK).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp((low + high) / 2)


def _largest_evidence(
    squares_R: torch.Tensor, squares_RK: torch.Tensor, rest_K: torch.Tensor, num_rows: int
) -> torch.Tensor:
    """Log evidence [K] at the best precisions.

    Args:
        squares_R: Squares of the features' singular values.
        squares_RK: Squares of the targets' parts along the left singular vectors.
        rest_K: Square of the targets' part that lies outside of them.
        num_rows: N.
    """
    if not len(squares_R):
        return _evidence(squares_R, squares_RK, rest_K, num_rows, torch.ones_like(rest_K))
    least, most = float(squares_R[-1]) * 1e-12, float(squares_R[-1]) * 1e8
    grid = torch.logspace(math.log10(least), math.log10(most), 41, dtype=torch.float64)
    on_grid_TK = torch.stack(
        [_evidence(squares_R, squares_RK, rest_K, num_rows, ratio.expand_as(rest_K)) for ratio in grid]
    )
    best_K, place_K = on_grid_TK.max(0)
    ratio_K = grid[place_K]
    for _ in range(_FIXED_POINT_STEPS):
        before_K = ratio_K
        ratio_K = _next_ratio(squares_R, squares_RK, rest_K, num_rows, ratio_K).clamp(least, most)
        best_K = torch.maximum(best_K, _evidence(squares_R, squares_RK, rest_K, num_rows, ratio_K))
        if bool(((ratio_K - before_K).abs() <= 1e-9 * before_K).all()):
            break
    return best_K


def _next_ratio(
    squares_R: torch.Tensor, squares_RK: torch.Tensor, rest_K: torch.Tensor, num_rows: int, ratio_K: torch.Tensor
) -> torch.Tensor:
    """One step of the fixed point, for the prior's precision over the noise's."""
    shrunk_RK = ratio_K / (ratio_K + squares_R[:, None])
    used_K = (1.0 - shrunk_RK).sum(0)
    free_K = num_rows - len(squares_R) + shrunk_RK.sum(0)
    error_K = rest_K + (squares_RK * shrunk_RK.square()).sum(0)
    weights_K = (squares_RK * squares_R[:, None] / (ratio_K + squares_R[:, None]).square()).sum(0)
    return torch.nan_to_num(used_K * error_K / (free_K * weights_K), nan=math.inf)


def _evidence(
    squares_R: torch.Tensor, squares_RK: torch.Tensor, rest_K: torch.Tensor, num_rows: int, ratio_K: torch.Tensor
) -> torch.Tensor:
    """Log evidence [K] for a ratio of the precisions, at the noise that suits it best."""
    error_K = rest_K + (squares_RK * (ratio_K / (ratio_K + squares_R[:, None]))).sum(0)
    noise_K = (error_K / num_rows).clamp(min=_LEAST_NOISE)
    log_det_K = torch.log1p(squares_R[:, None] / ratio_K).sum(0)
    return -0.5 * (num_rows * torch.log(2 * math.pi * noise_K) + error_K / noise_K + log_det_K)


def _moments(pooled_ND: torch.Tensor, least_std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [D]; of a constant feature infinity, so that it has no part in anything."""
    mean_D, std_D = pooled_ND.mean(0), pooled_ND.std(0, correction=0)
    is_constant_D = std_D <= _CONSTANT * pooled_ND.abs().amax(0)
    floored_D = std_D.clamp(min=least_std * float(std_D.square().mean().sqrt()))
    return mean_D, floored_D.masked_fill(is_constant_D, math.inf)


def _checked(pooled_ND: torch.Tensor, labels_N: torch.Tensor, num_classes: int, *, to_fit: bool = True) -> torch.Tensor:
    """The labels as int64 on the CPU."""
    labels_N = labels_N.cpu()
    if labels_N.shape != pooled_ND.shape[:1] or labels_N.is_floating_point():
        raise InputError(
            f"labels: {labels_N.dtype} {list(labels_N.shape)} for {len(pooled_ND)} pictures; give one whole number each"
        )
    if len(labels_N) and not 0 <= int(labels_N.min()) <= int(labels_N.max()) < num_classes:
        raise InputError(f"labels: from {labels_N.min()} to {labels_N.max()}, outside 0 to {num_classes - 1}")
    if not bool(torch.isfinite(pooled_ND).all()):
        raise InputError("features: some are not finite; the frozen part overflows, so take prefix_precision fp32")
    if to_fit and len(labels_N.unique()) < 2:  # noqa: PLR2004
        raise InputError("labels: pictures of fewer than two classes tell nothing apart; give more classes")
    return labels_N.long()


def _one_hot(labels_N: torch.Tensor, num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels_N, num_classes).double()


def _accuracy(outputs_NK: torch.Tensor, labels_N: torch.Tensor) -> float:
    return float((outputs_NK.argmax(1) == labels_N).double().mean())
