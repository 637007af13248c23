"""What only a GPU can show. That a GPU keeps every other promise is shown by this folder's tests with
THAW_TEST_DEVICE=cuda:0, as `make gpu-tests` runs them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from training_support import DoubleRun, assert_same_bits, finish, num_stages, numbers, train

from trainables.config import FeatureSettings, Precision, TrialConfig
from trainables.features.machine import describe_machine
from trainables.jobs import MeasureJob
from trainables.lanes.lane import _explain, _free_memory
from trainables.ranks import Ranks
from trainables.training.checkpoint import load_checkpoint, save_checkpoint
from trainables.training.loop import TrialRun
from trainables.training.measuring import run_measure
from trainables.training.repeatable import make_repeatable
from trainables.training.workbench import Workbench

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "vgg11",
]  # fmt: skip


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    device = torch.device("cuda", 0)
    make_repeatable(device)
    return device


@pytest.fixture
def exact_convolutions() -> Iterator[None]:
    """Convolutions in float32 keep its 24 bits, where a GPU by itself takes 11 (TF32)."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("depth", [0, 2, 4])
@pytest.mark.usefixtures("exact_convolutions")
def test_a_gpu_gives_the_numbers_of_a_cpu(config: Callable[..., TrialConfig], gpu: torch.device, depth: int) -> None:
    trial = config("lenet", depth, augmentation={"policy": "flip_crop", "num_views": 2}, label_smoothing=0.1)
    here, there = (finish(DoubleRun(trial, Workbench(), Ranks(device))) for device in (CPU, gpu))
    for on_cpu, on_gpu in zip(here[0], there[0], strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=1e-4)
    for name, tensor in here[1].items():
        torch.testing.assert_close(there[1][name].cpu(), tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", FAMILIES)
def test_every_family_repeats_itself(
    config: Callable[..., TrialConfig], gpu: torch.device, backbone: str, precision: str
) -> None:
    """That no kernel warns either is seen to by pytest, which makes errors of warnings."""
    size_px = 64
    for depth in (0, num_stages(backbone, size_px) // 2):
        compute = {"precision": precision, "prefix_precision": precision}
        trial = config(backbone, depth, epochs=2, size_px=size_px, compute=compute, batch_size=23)
        first, second = (train(trial, ranks=Ranks(gpu)) for _ in range(2))
        assert first[0] == second[0]
        assert_same_bits(second[1], first[1])


def test_a_gpu_does_not_read_what_a_cpu_stored(
    config: Callable[..., TrialConfig], gpu: torch.device, tmp_path: Path
) -> None:
    def num_read(device: torch.device) -> float:
        run = TrialRun(
            config("lenet", 2, epochs=1), Workbench(features=FeatureSettings(directory=str(tmp_path))), Ranks(device)
        )
        read = run.run_epoch()["compute/images_from_store"]
        run.close()
        return read

    assert [num_read(device) for device in (CPU, gpu, gpu, CPU)] == [0, 0, 71, 71]
    described = describe_machine(gpu)
    assert (described.device, described.threads) == ("cuda", 0)
    assert torch.cuda.get_device_name(gpu) in described.processor


def test_a_trial_goes_on_elsewhere(config: Callable[..., TrialConfig], gpu: torch.device, tmp_path: Path) -> None:
    trial = config("lenet", 1, epochs=2, ema_decay=0.9)
    first = TrialRun(trial, Workbench(), Ranks(gpu))
    first.run_epoch()
    save_checkpoint(str(tmp_path / "last"), first.checkpoint())
    rest = numbers(first.run_epoch())
    for device, tolerance in ((gpu, 0.0), (CPU, 0.02)):
        second = TrialRun(trial, Workbench(), Ranks(device))
        second.restore(load_checkpoint(str(tmp_path / "last")))
        assert numbers(second.run_epoch()) == pytest.approx(rest, rel=tolerance, abs=tolerance)


def test_nothing_of_a_trial_stays_on_the_gpu(config: Callable[..., TrialConfig], gpu: torch.device) -> None:
    bench, held = Workbench(), []
    for seed in range(4):
        # Of each seed another network; the bench keeps the frozen stages of four.
        run = TrialRun(config("squeezenet1_1", 4, epochs=1, seed=seed % 2), bench, Ranks(gpu))
        run.run_epoch()
        run.checkpoint()
        run.close()
        del run
        _free_memory(gpu)
        held.append(torch.cuda.memory_allocated(gpu))
    assert held[3] == held[2] == held[1]


def test_too_large_a_batch_ends_its_trial_alone(config: Callable[..., TrialConfig], gpu: torch.device) -> None:
    small = config("squeezenet1_1", 0, epochs=1, size_px=64, batch_size=4)
    expected = train(small, ranks=Ranks(gpu))
    _free_memory(gpu)
    share = (torch.cuda.memory_reserved(gpu) + 200 * 2**20) / torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(share, gpu)
    try:
        run = TrialRun(config("squeezenet1_1", 0, epochs=1, size_px=512, batch_size=46), Workbench(), Ranks(gpu))
        with pytest.raises(torch.OutOfMemoryError) as full:
            run.run_epoch()
        assert _explain(full.value).startswith("out of memory; a smaller batch_size")
        del run, full
        gc.collect()
        _free_memory(gpu)
        again = train(small, ranks=Ranks(gpu))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert again[0] == expected[0]
    assert_same_bits(again[1], expected[1])


def test_precision_and_layout_are_measured_on_the_gpu(gpu: torch.device, tmp_path: Path) -> None:
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    job = MeasureJob(
        kind="measure", backbone="resnet18", num_classes=3, image_size_px=64, freeze_depth=2, deepest=4, batch_size=32,
        prefix_batch_size=32, precisions=precisions, prefix_precisions=precisions, layouts=(True, False),
        memory=str(tmp_path),
    )  # fmt: skip
    first, again = (run_measure(job, Ranks(gpu)) for _ in range(2))
    assert first["place"] == torch.cuda.get_device_name(gpu)
    assert len(first["timings"]) == 8
    assert all(0 < timing["seconds"] < 1 for timing in first["timings"])
    assert (first["is_remembered"], again["is_remembered"]) == (False, True)
    assert again["timings"] == first["timings"]
    assert run_measure(job.model_copy(update={"precisions": ("fp32",)}), Ranks(CPU))["place"] == "this CPU"
