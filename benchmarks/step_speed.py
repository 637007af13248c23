"""Training steps on a CPU with torch's defaults, with freed memory kept, and without slow kernels: images per second.

Bare steps (forward, backward, fused AdamW) of a torchvision network with random weights on one batch in memory. Each
cell is the median step of a process of its own, because what glibc does with freed memory is the process's setting.
What is compared is `trainables.memory` and `trainables.training.kernels`; there is no bar.

    python benchmarks/step_speed.py
    python benchmarks/step_speed.py --backbones efficientnet_b0 --px 224
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import torch
from measuring import conclude, median, parser, report, span
from torch.nn import functional as F
from torchvision import models

from trainables.memory import keep_freed_memory
from trainables.training.kernels import choose_kernels

VARIANTS = ("defaults", "memory kept", "and kernels")
_WARM_STEPS, _STEPS = 3, 10


def images_per_s(backbone: str, precision: str, variant: str, options: argparse.Namespace) -> float:
    """Measured in this process."""
    if variant != VARIANTS[0]:
        keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = getattr(models, backbone)(num_classes=10).train().to(memory_format=torch.channels_last)
    if variant == VARIANTS[2]:
        choose_kernels(model, torch.device("cpu"), precision)  # type: ignore[arg-type]
    images = torch.randn(options.batch_size, 3, options.px, options.px).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (options.batch_size,))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    times = []
    for _ in range(_WARM_STEPS + _STEPS):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return options.batch_size / median(times[_WARM_STEPS:])


def main() -> int:
    options = parser(__doc__, repeats=3)
    options.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "efficientnet_b0", "resnet18"])
    options.add_argument("--px", type=int, default=128)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    wanted = options.parse_args()
    if wanted.child:
        print(images_per_s(*wanted.child, wanted))
        return 0
    common = ["--px", str(wanted.px), "--batch-size", str(wanted.batch_size), "--threads", str(wanted.threads)]
    cases = []
    for backbone in wanted.backbones:
        for precision in ("fp32", "bf16"):
            found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            for _ in range(wanted.repeats):
                for variant in VARIANTS:
                    command = [sys.executable, __file__, *common, "--child", backbone, precision, variant]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found[variant].append(float(done.stdout.split()[-1]))
            cases.append({"backbone": backbone, "precision": precision, "images_per_s": found})
    report(
        f"Images per second of a training step, {wanted.px} px, batch {wanted.batch_size}, {wanted.threads} threads",
        ["", *VARIANTS, "all / defaults"],
        [
            [
                f"{case['backbone']} {case['precision']}",
                *(f"{median(case['images_per_s'][variant]):.0f}" for variant in VARIANTS),
                _ratio(case["images_per_s"]),
            ]
            for case in cases
        ],
    )
    return conclude("step_speed", cases, is_met=True, check=wanted.check)


def _ratio(found: dict[str, list[float]]) -> str:
    ratios = [last / first for last, first in zip(found[VARIANTS[2]], found[VARIANTS[0]], strict=True)]
    return f"{median(ratios):.2f} ({span(ratios)})"


if __name__ == "__main__":
    sys.exit(main())
