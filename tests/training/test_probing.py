"""Probes of a frozen network and the heads that start from them: right, the same bits everywhere, and of use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from training_support import DEVICE, RankGroup, assert_same_bits, copied, finish, num_stages, train

from trainables.backbones.zoo import load_backbone
from trainables.config import BackboneConfig, FeatureSettings, SplitConfig, TrialConfig, WeightsFile
from trainables.data.packing import PackReport
from trainables.features.probes import fit_probe, head_from_probe
from trainables.jobs import ProbeJob, parse_job
from trainables.ranks import Ranks
from trainables.training import probing
from trainables.training.loop import TrialRun
from trainables.training.probing import LEAST_STD, MODEST_OUTPUT, head_key, probed_head, run_probe
from trainables.training.workbench import Workbench

MORE = SplitConfig(train=0.4, val=0.3, test=0.3)
# Heads behind global pooling, behind dropout, behind linear layers, instead of a convolution.
HEADS = ["lenet", "resnet18", "mobilenet_v2", "squeezenet1_1", "alexnet", "convnext_tiny"]


def probe(config: TrialConfig, bench: Workbench | None = None, **kept: object) -> dict:
    job = ProbeJob.of(config, num_stages(config.backbone.name, config.data.image_size_px), **kept)
    assert parse_job(job.model_dump(mode="json")) == job
    return run_probe(job, bench or Workbench(), Ranks(DEVICE))


def by_hand(config: TrialConfig, name: str, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of one side's pictures behind a depth, in canonical batches, by the whole network's front."""
    with_data = TrialRun(config, Workbench(), Ranks(DEVICE))
    side, rows = with_data.side(name), []
    for _, features in with_data.visit(name, [depth]):
        rows.append(features[depth])
    return torch.cat(rows), torch.from_numpy(side.labels)


def test_each_depth_is_what_a_probe_of_its_features_says(config: Callable[..., TrialConfig]) -> None:
    trial = config("lenet", split=MORE)
    stages = load_backbone("lenet", None, num_classes=5, input_size_px=16, seed=0).graph.stages
    message = probe(trial)
    assert [found["depth"] for found in message["probes"]] == list(range(1, len(stages) + 1))
    frozen = ProbeJob.of(trial, len(stages)).config
    for found, stage in zip(message["probes"], stages, strict=True):
        train_side, val_side = (by_hand(frozen, name, found["depth"]) for name in ("train", "val"))
        expected = fit_probe(*train_side, 5, validation=val_side, least_std=LEAST_STD)
        assert found["stage"] == stage.name
        assert found["num_features"] == stage.output_shape[0]
        assert (found["probe_accuracy"], found["loo_accuracy"]) == (expected.val_accuracy, expected.loo_accuracy)
        assert found["log_me"] == pytest.approx(expected.logme, rel=1e-12)
        num_train, num_val = len(train_side[1]), len(val_side[1])
        right = expected.loo_accuracy * num_train + expected.val_accuracy * num_val
        assert found["accuracy"] == pytest.approx(right / (num_train + num_val))
        assert found["num_judged"] == num_train + num_val
    assert set(message["metrics"]) == {"time/pass_s", "time/fit_s"}


def test_a_feature_that_hardly_stirs_gets_no_large_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    told = torch.randn(60, 4, generator=generator).double() + labels[:, None]
    still = 1e-3 * torch.randn(60, 1, generator=generator).double()
    features = torch.cat([told, still], dim=1)
    free, bound = (fit_probe(features, labels, 2, least_std=least).weight_KD for least in (0.0, LEAST_STD))
    assert free[:, 4].abs().max() > 10 * free[:, :4].abs().max(), "what the bound is for"
    assert bound[:, 4].abs().max() < bound[:, :4].abs().max()


@pytest.mark.parametrize("backbone", HEADS)
def test_a_head_from_the_probe_is_as_good_as_the_probe(config: Callable[..., TrialConfig], backbone: str) -> None:
    size_px = 16 if backbone == "lenet" else 64
    deepest = num_stages(backbone, size_px)
    trial = config(backbone, deepest, size_px=size_px, split=MORE, head_init="probe")
    bench = Workbench()
    last = probe(trial, bench)["probes"][-1]
    reached = TrialRun(trial, bench, Ranks(DEVICE)).evaluate("val").metrics["accuracy"]
    # float32 instead of float64: a picture on the border may fall on its other side.
    assert reached == pytest.approx(last["probe_accuracy"], abs=0.01)
    assert (
        reached
        > TrialRun(config(backbone, deepest, size_px=size_px, split=MORE), bench, Ranks(DEVICE))
        .evaluate("val")
        .metrics["accuracy"]
    )


def test_the_head_is_the_same_from_pictures_from_the_store_and_at_every_depth(
    config: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = config("squeezenet1_1", 2, head_init="probe")
    deepest = num_stages("squeezenet1_1")
    fitted, _ = probed_head(trial, deepest, Workbench(), Ranks(DEVICE))
    for _ in range(2):
        bench = Workbench(features=FeatureSettings(directory=str(tmp_path)))
        assert torch.equal(probed_head(trial, deepest, bench, Ranks(DEVICE))[0], fitted)
    after_probe = Workbench()
    probe(trial, after_probe)
    assert torch.equal(probed_head(trial, deepest, after_probe, Ranks(DEVICE))[0], fitted)
    assert len(after_probe.heads) == 1
    for depth in (0, 2):
        run = TrialRun(trial.model_copy(update={"freeze_depth": depth}), Workbench(), Ranks(DEVICE))
        assert torch.equal(run.checkpoint().tail["classifier.1.weight"].cpu(), fitted.cpu())
    head_only = TrialRun(trial.model_copy(update={"freeze_depth": deepest}), after_probe, Ranks(DEVICE))
    logits = head_only.checkpoint().tail["classifier.1.weight"].cpu()
    scale = after_probe.heads[head_key(trial)].scale
    torch.testing.assert_close(logits, scale / MODEST_OUTPUT * fitted.cpu())
    assert scale > 1


def test_later_trials_begin_with_what_the_probe_stored(config: Callable[..., TrialConfig], tmp_path: Path) -> None:
    bench = Workbench(features=FeatureSettings(directory=str(tmp_path)))
    probe(config("lenet"), bench, cuts_to_keep={"train": (2, 4), "val": (1, 2, 3, 4)})
    as_is = {"augmentation": {"policy": "none"}, "head_init": "probe", "epochs": 1}
    for depth, num_read in ((4, 71), (2, 71), (3, 25)):
        run = TrialRun(config("lenet", depth, **as_is), bench, Ranks(DEVICE), {"train": (), "val": ()})
        assert run.run_epoch()["compute/images_from_store"] == num_read, "46 pictures to learn from, 25 to judge by"
        run.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_from_a_probed_head_has_the_same_bits_from_store_and_pictures(
    config: Callable[..., TrialConfig], tmp_path: Path, precision: str
) -> None:
    compute = {"precision": precision, "prefix_precision": precision}
    trial = config("lenet", 2, head_init="probe", compute=compute)
    plain = train(trial)
    for _ in range(2):
        bench = Workbench(features=FeatureSettings(directory=str(tmp_path)))
        probe(trial, bench)
        stored = train(trial, bench)
        assert_same_bits(stored[1], plain[1])
        assert [epoch["val/loss"] for epoch in stored[0]] == [epoch["val/loss"] for epoch in plain[0]]


def test_a_probed_head_needs_fewer_epochs(config: Callable[..., TrialConfig]) -> None:
    def epochs_to(accuracy: float, head_init: str) -> int:
        trial = config("lenet", 3, split=MORE, epochs=12, optimizer={"lr": 1e-3}, head_init=head_init)
        run, bench_epochs = TrialRun(trial, Workbench(), Ranks(DEVICE)), 0
        while bench_epochs < trial.epochs:
            bench_epochs += 1
            if run.run_epoch()["val/accuracy"] >= accuracy:
                break
        return bench_epochs

    wanted = 0.9
    with_probe, at_random = epochs_to(wanted, "probe"), epochs_to(wanted, "random")
    assert with_probe <= at_random / 2


def test_a_trial_that_goes_on_does_not_fit_its_head_again(
    config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config("lenet", 2, head_init="probe", epochs=3)
    whole = train(trial)
    first = TrialRun(trial, Workbench(), Ranks(DEVICE))
    first.run_epoch()
    checkpoint = first.checkpoint()
    monkeypatch.setattr(probing, "_collect", lambda *_: pytest.fail("the checkpoint holds the head"))
    second = TrialRun(trial, Workbench(), Ranks(DEVICE))
    second.restore(checkpoint)
    epochs, state = finish(second)
    assert_same_bits(state, whole[1])
    assert epochs == whole[0][1:]


def test_a_process_fits_a_head_once(config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    collect = probing._collect
    monkeypatch.setattr(probing, "_collect", lambda *arguments: calls.append(1) or collect(*arguments))
    bench = Workbench()
    for depth, lr in ((1, 0.1), (3, 0.01)):
        TrialRun(config("lenet", depth, head_init="probe", optimizer={"lr": lr}), bench, Ranks(DEVICE)).evaluate("val")
    assert len(calls) == 1
    assert len(bench.heads) == 1


def test_the_key_of_a_head_knows_what_decides_its_bits(config: Callable[..., TrialConfig]) -> None:
    trial = config("lenet", 2)
    key = head_key(trial)
    weights = BackboneConfig(name="lenet", weights=WeightsFile(uri="a", sha256="1"))
    pretrained = trial.model_copy(update={"backbone": weights})
    elsewhere = BackboneConfig(name="lenet", weights=WeightsFile(uri="b", sha256="1"))
    same = [
        trial.model_copy(update={"freeze_depth": 0, "batch_size": 3, "epochs": 99, "label_smoothing": 0.2}),
        trial.model_copy(update={"data": trial.data.model_copy(update={"table": "elsewhere"})}),
        trial.model_copy(update={"compute": trial.compute.model_copy(update={"precision": "bf16"})}),
    ]
    assert {head_key(other) for other in same} == {key}
    assert head_key(pretrained) == head_key(pretrained.model_copy(update={"backbone": elsewhere, "seed": 7})), (
        "the seed draws nothing where weights are given"
    )
    others = [
        pretrained,
        trial.model_copy(update={"seed": 7}),
        *(
            trial.model_copy(update={"data": trial.data.model_copy(update=change)})
            for change in (
                {"fingerprint": "x"},
                {"class_names": ("1", "0")},
                {"image_size_px": 20},
                {"split": SplitConfig(seed=1)},
            )
        ),
        *(
            trial.model_copy(update={"compute": trial.compute.model_copy(update=change)})
            for change in ({"prefix_precision": "bf16"}, {"prefix_batch_size": 8}, {"channels_last": False})
        ),
    ]
    assert len({key, *map(head_key, others)}) == len(others) + 1


def test_nothing_is_drawn_and_the_threads_are_as_before(config: Callable[..., TrialConfig]) -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    probe(config("lenet"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_many_pictures_are_represented_by_some(
    config: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_MOST_WORK", 0)
    monkeypatch.setattr(probing, "_FEWEST_ROWS", 20)
    trial = ProbeJob.of(config("lenet", split=MORE), 4).config
    features_ND, labels_N, _ = probing._collect(TrialRun(trial, Workbench(), Ranks(DEVICE)), "train", [4])[4]
    assert features_ND.shape[0] == len(labels_N) == 20
    assert np.bincount(labels_N.numpy()).tolist() == [4, 4, 4, 4, 4]
    everything, all_labels = by_hand(trial, "train", 4)
    matches = (everything.cpu().double()[:, None] == features_ND[None]).all(-1)
    assert torch.equal(all_labels[matches.int().argmax(0)], labels_N), "each with its own label"


def _evaluated_head(ranks: Ranks, config: TrialConfig) -> dict[str, torch.Tensor]:
    run = TrialRun(config, Workbench(), ranks)
    run.evaluate("val")
    return copied(run.checkpoint().tail)


@pytest.mark.slow
def test_every_rank_has_the_head_of_one(config: Callable[..., TrialConfig], two_ranks: RankGroup) -> None:
    trial = config("lenet", 2, head_init="probe")
    alone = _evaluated_head(Ranks(DEVICE), trial)
    for tail in two_ranks.call(_evaluated_head, trial):
        assert_same_bits(tail, alone)


def _run_probe(ranks: Ranks, job: ProbeJob) -> dict:
    return dict(run_probe(job, Workbench(), ranks))


@pytest.mark.slow
def test_the_first_rank_answers_for_all(
    config: Callable[..., TrialConfig], two_ranks: RankGroup, digits: PackReport
) -> None:
    job = ProbeJob.of(config("lenet"), num_stages("lenet", 16))
    first, second = two_ranks.call(_run_probe, job)
    expected = run_probe(job, Workbench(), Ranks(DEVICE))
    assert second == {"kind": "probe"}
    for found, wanted in zip(first["probes"], expected["probes"], strict=True):
        assert {**found, "seconds": 0} == {**wanted, "seconds": 0}


def test_the_head_is_the_ridge_on_what_stands_in_front_of_it(config: Callable[..., TrialConfig]) -> None:
    trial = ProbeJob.of(config("alexnet", size_px=64, split=MORE), num_stages("alexnet", 64)).config
    features, labels = by_hand(trial, "train", trial.freeze_depth)
    weight, bias = head_from_probe(
        fit_probe(features, labels, 5, least_std=LEAST_STD)
    )  # as logits: nothing else is trained
    found_weight, found_bias = probed_head(trial, trial.freeze_depth, Workbench(), Ranks(DEVICE))
    assert torch.equal(found_weight, weight)
    assert torch.equal(found_bias, bias)
