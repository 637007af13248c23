"""Probes against scikit-learn, LogME against the evidence written out, and what must not matter."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier, RidgeCV
from sklearn.preprocessing import StandardScaler

from trainables.errors import InputError
from trainables.features.probes import (
    ProbeResult,
    fit_probe,
    head_from_probe,
    log_me,
    pool,
    probe_accuracy,
    representative_rows,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread gains little on matrices this small, and on a busy machine they wait for it ten times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(num: int, width: int, num_classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that tell something of the labels, in units far apart and off zero."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    centres = rng.normal(size=(num_classes, width))
    features = (centres[labels] + 2 * rng.normal(size=(num, width))) * rng.uniform(0.1, 10, width) + 5
    return torch.from_numpy(features), torch.from_numpy(labels)


SHAPES = pytest.mark.parametrize(("num", "width"), [(120, 20), (30, 90), (40, 40)])


@SHAPES
def test_the_probe_is_scikit_learns_ridge(num: int, width: int) -> None:
    features, labels = pictures(num, width)
    result = fit_probe(features, labels, 3)
    scaler = StandardScaler().fit(features.numpy())
    reference = RidgeClassifier(alpha=result.alpha).fit(scaler.transform(features.numpy()), labels.numpy())
    ours = features @ result.weight_KD.T + result.bias_K
    theirs = reference.decision_function(scaler.transform(features.numpy()))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.weight_KD.numpy() * scaler.scale_, reference.coef_, rtol=0, atol=1e-9)


@SHAPES
def test_the_strength_is_the_one_that_scikit_learns_leave_one_out_chooses(num: int, width: int) -> None:
    features, labels = pictures(num, width, seed=1)
    alphas = np.logspace(-3, 4, 22)
    result = fit_probe(features, labels, 3, alphas=alphas.tolist())
    targets = 2.0 * np.eye(3)[labels.numpy()] - 1
    standard = StandardScaler().fit_transform(features.numpy())
    assert result.alpha == pytest.approx(RidgeCV(alphas).fit(standard, targets).alpha_)


@SHAPES
def test_leave_one_out_is_what_leaving_each_out_gives(num: int, width: int) -> None:
    features, labels = pictures(num, width, seed=2)
    result = fit_probe(features, labels, 3)
    standard = StandardScaler().fit_transform(features.numpy())
    right = 0
    for place in range(num):
        others = np.arange(num) != place
        model = RidgeClassifier(alpha=result.alpha, tol=1e-12).fit(standard[others], labels.numpy()[others])
        right += int(model.predict(standard[[place]])[0] == labels[place])
    assert result.loo_accuracy == pytest.approx(right / num)


@SHAPES
def test_leaving_a_part_out_is_leaving_all_its_shots_out(num: int, width: int) -> None:
    """Groups of one and of several: what other shots say of a part is nothing that a new part would have."""
    features, labels = pictures(num, width, seed=2)
    clusters = torch.from_numpy(np.repeat(np.arange(num), 1 + np.arange(num) % 4)[:num])
    alphas = np.logspace(-3, 4, 8).tolist()
    result = fit_probe(features, labels, 3, alphas=alphas, clusters_N=clusters)
    standard, errors = StandardScaler().fit_transform(features.numpy()), {}
    for alpha in alphas:
        right, squares = 0, 0.0
        for each in clusters.unique():
            out = (clusters == each).numpy()
            model = RidgeClassifier(alpha=alpha, tol=1e-12).fit(standard[~out], labels.numpy()[~out])
            outputs = model.decision_function(standard[out])
            right += int((outputs.argmax(1) == labels.numpy()[out]).sum())
            squares += ((outputs - (2.0 * np.eye(3)[labels.numpy()[out]] - 1)) ** 2).sum()
        errors[alpha] = squares, right / num
    assert result.alpha == min(alphas, key=lambda alpha: errors[alpha][0])
    assert result.loo_accuracy == pytest.approx(errors[result.alpha][1])


def test_groups_of_one_and_a_single_group_are_left_out_as_before() -> None:
    features, labels = pictures(60, 20)
    plain = fit_probe(features, labels, 3)
    for clusters in (torch.arange(60), torch.zeros(60, dtype=torch.int64)):
        again = fit_probe(features, labels, 3, clusters_N=clusters)
        assert torch.equal(again.weight_KD, plain.weight_KD)
        assert (again.scale, again.loo_accuracy) == (plain.scale, plain.loo_accuracy)


def test_two_classes_give_opposite_rows() -> None:
    features, labels = pictures(60, 8, num_classes=2)
    result = fit_probe(features, labels, 2)
    torch.testing.assert_close(result.weight_KD[0], -result.weight_KD[1])
    reference = RidgeClassifier(alpha=result.alpha).fit(StandardScaler().fit_transform(features.numpy()), labels)
    np.testing.assert_allclose(
        (features @ result.weight_KD[1] + result.bias_K[1]).numpy(),
        reference.decision_function(StandardScaler().fit_transform(features.numpy())),
        atol=1e-9,
    )


def test_digits_are_told_apart_and_the_head_says_the_same() -> None:
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    train, val = order[:1000], order[1000:]
    result = fit_probe(images[train], labels[train], 10, validation=(images[val], labels[val]))
    assert result.val_accuracy is not None
    assert result.val_accuracy > 0.92
    assert result.loo_accuracy == pytest.approx(result.val_accuracy, abs=0.03)
    head = torch.nn.Linear(64, 10)
    weight, bias = head_from_probe(result)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        logits = head(images[val].float())
    assert float((logits.argmax(1) == labels[val]).double().mean()) == pytest.approx(result.val_accuracy, abs=0.002)
    losses = {
        factor: float(torch.nn.functional.cross_entropy(logits * factor, labels[val])) for factor in (0.5, 1.0, 2.0)
    }
    assert losses[1.0] < min(losses[0.5], losses[2.0]) < math.log(10)
    plain_weight, plain_bias = head_from_probe(result, as_logits=False)
    torch.testing.assert_close(plain_weight * result.scale, weight)
    torch.testing.assert_close(plain_bias * result.scale, bias)


def test_units_and_offsets_of_single_features_do_not_matter_to_the_probe() -> None:
    features, labels = pictures(50, 12)
    held_out = pictures(90, 12, seed=0)[0][50:]
    factors, offsets = torch.logspace(-4, 4, 12, dtype=torch.float64), torch.linspace(-9, 9, 12, dtype=torch.float64)
    first, second = fit_probe(features, labels, 3), fit_probe(features * factors + offsets, labels, 3)
    assert first.alpha == second.alpha
    assert first.scale == pytest.approx(second.scale)
    torch.testing.assert_close(
        held_out @ first.weight_KD.T + first.bias_K,
        (held_out * factors + offsets) @ second.weight_KD.T + second.bias_K,
        rtol=0,
        atol=1e-7,  # two roundings of numbers that span eight decades
    )


def test_order_of_pictures_and_names_of_classes_do_not_matter() -> None:
    features, labels = pictures(50, 60)
    order = torch.from_numpy(np.random.default_rng(3).permutation(50))
    renamed = torch.tensor([2, 0, 1])
    first, second = fit_probe(features, labels, 3), fit_probe(features[order], renamed[labels[order]], 3)
    torch.testing.assert_close(first.weight_KD, second.weight_KD[renamed])
    assert first.logme == pytest.approx(second.logme)
    assert first.loo_accuracy == second.loo_accuracy


def test_constant_features_have_no_weight() -> None:
    features, labels = pictures(40, 10)
    wider = torch.cat([features, torch.full((40, 2), 0.1, dtype=torch.float64), torch.zeros(40, 1)], 1)
    first, second = fit_probe(features, labels, 3), fit_probe(wider, labels, 3)
    torch.testing.assert_close(second.weight_KD[:, :10], first.weight_KD)
    assert not second.weight_KD[:, 10:].any()


@pytest.mark.parametrize("with_zeros", [True, False])
def test_features_that_are_all_constant_give_the_most_frequent_class(with_zeros: bool) -> None:
    features = torch.zeros(9, 4) if with_zeros else torch.full((9, 4), 0.7)
    labels = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2, 0])
    result = fit_probe(features, labels, 3, validation=(features, labels))
    assert result.val_accuracy == pytest.approx(5 / 9)
    assert not result.weight_KD.any()
    assert result.logme is not None
    assert math.isfinite(result.logme)


def test_one_picture_per_class_and_an_absent_class() -> None:
    features, _ = pictures(4, 30)
    labels = torch.tensor([0, 1, 2, 4])
    result = fit_probe(features, labels, 5, validation=(features, labels))
    assert result.val_accuracy == 1.0
    assert result.loo_accuracy == 0.0
    assert not result.weight_KD[3].any()
    assert all(part.isfinite().all() for part in head_from_probe(result))
    assert result.logme is not None
    assert math.isfinite(result.logme)


def test_noise_is_regularised_away_and_its_head_says_little() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(200, 100, generator=generator), torch.arange(200) % 4
    result = fit_probe(features, labels, 4)
    weight, bias = head_from_probe(result)
    probabilities = (features @ weight.T + bias).softmax(1)
    assert float(probabilities.max()) < 0.5


def test_spatial_features_are_averaged_and_bf16_is_read() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, labels = torch.randn(30, 8, 5, 5, generator=generator).bfloat16(), torch.arange(30) % 2
    maps[labels == 1, :3] += 1
    torch.testing.assert_close(pool(maps), maps.double().mean((2, 3)))
    result, reference = fit_probe(maps, labels, 2), fit_probe(maps.double().mean((2, 3)), labels, 2)
    torch.testing.assert_close(result.weight_KD, reference.weight_KD)
    assert result.logme == reference.logme
    near = fit_probe(pool(maps).bfloat16(), labels, 2)
    torch.testing.assert_close(near.weight_KD, result.weight_KD, rtol=0.05, atol=0.02)  # bf16 has 8 bits


def test_the_same_input_gives_the_same_bits_and_moves_no_random_state() -> None:
    features, labels = pictures(40, 25)
    state = torch.get_rng_state()
    first, second = fit_probe(features, labels, 3), fit_probe(features.clone(), labels.clone(), 3)
    assert torch.equal(first.weight_KD, second.weight_KD)
    assert (first.alpha, first.scale, first.logme) == (second.alpha, second.scale, second.logme)
    assert torch.equal(state, torch.get_rng_state())


def slow_log_me(features: np.ndarray, labels: np.ndarray) -> float:
    """The evidence as the density of a Gaussian with an N x N covariance, climbed from many places."""
    gram = features @ features.T
    size = len(labels)

    def minus_evidence(precisions: np.ndarray, targets: np.ndarray) -> float:
        covariance = math.exp(-precisions[0]) * gram + math.exp(-precisions[1]) * np.eye(size)
        _, log_det = np.linalg.slogdet(covariance)
        return 0.5 * float(size * math.log(2 * math.pi) + log_det + targets @ np.linalg.solve(covariance, targets))

    total = []
    for label in np.unique(labels):
        targets = (labels == label).astype(float)
        starts = [(a, b) for a in (-4.0, 0.0, 4.0, 8.0) for b in (0.0, 3.0)]
        found = [minimize(minus_evidence, start, (targets,), method="Nelder-Mead", tol=1e-10) for start in starts]
        total.append(-min(result.fun for result in found) / size)
    return float(np.mean(total))


@pytest.mark.parametrize(("num", "width"), [(30, 6), (20, 19), (18, 40)])
def test_log_me_is_the_largest_evidence(num: int, width: int) -> None:
    features, labels = pictures(num, width, seed=num)
    features = (features - 5) / 3
    assert log_me(features, labels, 3) == pytest.approx(slow_log_me(features.numpy(), labels.numpy()), abs=1e-6)


@SHAPES
def test_log_me_ignores_rotation_unit_and_empty_features(num: int, width: int) -> None:
    features, labels = pictures(num, width)
    score = log_me(features, labels, 3)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)).double()).Q
    assert log_me(features @ rotation, labels, 3) == pytest.approx(score, abs=1e-8)
    for unit in (1e-6, 1e6):
        assert log_me(features * unit, labels, 3) == pytest.approx(score, abs=1e-8)
    assert log_me(torch.cat([features, torch.zeros(num, 7)], 1), labels, 3) == pytest.approx(score, abs=1e-8)
    assert log_me(features, labels, 9) == pytest.approx(score)


def test_log_me_ranks_telling_features_first_and_bears_an_exact_fit() -> None:
    features, labels = pictures(60, 10)
    noise = torch.randn(60, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.nn.functional.one_hot(labels).double()
    scores = [log_me(some, labels, 3) for some in (noise, features - 5, exact)]
    assert scores == sorted(scores)
    assert math.isfinite(scores[-1])


@pytest.mark.parametrize("limit", [7, 30, 90, 200])
def test_representative_rows_keep_the_shares_of_classes(limit: int) -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    rows = representative_rows(labels, limit)
    assert len(rows) == len(set(rows.tolist())) == min(limit, 100)
    assert torch.equal(rows, rows.sort().values)
    counts = torch.bincount(labels[rows], minlength=3)
    assert (counts - len(rows) * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 1


@pytest.mark.parametrize(
    ("features", "labels", "mistake"),
    [
        (torch.zeros(3), torch.tensor([0, 1, 0]), r"features: .*give floating point"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.tensor([0, 1, 0]), r"features: torch.int64"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), r"labels: .*3 pictures"),
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 0.0]), r"labels: torch.float32"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), r"labels: from 0 to 2, outside 0 to 1"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), r"labels: from -1"),
        (torch.full((3, 2), math.nan), torch.tensor([0, 1, 0]), r"not finite"),
        (torch.zeros(3, 2), torch.tensor([1, 1, 1]), r"fewer than two classes"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), r"fewer than two classes"),
    ],
)
def test_bad_input_is_named(features: torch.Tensor, labels: torch.Tensor, mistake: str) -> None:
    with pytest.raises(InputError, match=mistake):
        fit_probe(features, labels, 2)
    with pytest.raises(InputError, match=mistake):
        log_me(features, labels, 2)


def test_strengths_and_widths_are_checked() -> None:
    features, labels = pictures(12, 3)
    with pytest.raises(InputError, match=r"alphas: 0.0 is not above 0"):
        fit_probe(features, labels, 3, alphas=[1.0, 0.0])
    result: ProbeResult = fit_probe(features, labels, 3)
    with pytest.raises(InputError, match="4 per picture, and the probe was fitted on 3"):
        probe_accuracy(result.weight_KD, result.bias_K, torch.zeros(1, 4), torch.tensor([0]))


def test_two_thousand_pictures_take_little_time() -> None:
    features, labels = pictures(2000, 1280, num_classes=10)
    started = time.thread_time()
    result = fit_probe(features.float(), labels, 10, with_logme=False)
    seconds = time.thread_time() - started
    assert result.loo_accuracy > 0.9
    assert seconds < 3  # about 0.8 where this was written; of this thread alone, so that a busy machine does not matter
