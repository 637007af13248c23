"""What this process computes with, as a part of the feature key.

In: a device and a frozen part. Out: names of everything that may round differently elsewhere. Asked for once per
trial, after the number of threads is set.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import numpy as np
import torch
import torchvision

from trainables.backbones.zoo import Backbone
from trainables.features.key import FrozenPart, Machine

# oneDNN and MKL choose other kernels by these.
_ENVIRONMENT = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE")
# And by these, which are in the key only where they are set: or what was stored before they were known would be lost.
_RARE_ENVIRONMENT = (
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS",
    "MKL_ENABLE_INSTRUCTIONS", "TORCH_MKLDNN_MATMUL_MIN_DIM",
)  # fmt: skip

CUBLAS_WORKSPACE = ":4096:8"
"""With one of a fixed size cuBLAS repeats itself; of another size it may choose other kernels."""


def describe_machine(device: torch.device) -> Machine:
    """Device, libraries and switches of this process, as they are now."""
    software = {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    numerics = {name: os.environ.get(name, "") for name in _ENVIRONMENT}
    numerics |= {name: os.environ[name] for name in _RARE_ENVIRONMENT if os.environ.get(name)}
    numerics["matmul"] = torch.get_float32_matmul_precision()
    numerics["deterministic"] = str(torch.are_deterministic_algorithms_enabled())
    numerics["mkldnn"] = str(torch.backends.mkldnn.enabled)
    if device.type == "cuda":
        cudnn = torch.backends.cudnn
        software |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn.version())}
        numerics["cudnn"] = f"{cudnn.enabled} {cudnn.benchmark} {cudnn.deterministic} {cudnn.allow_tf32}"
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
        if workspace != CUBLAS_WORKSPACE:
            numerics["cublas_workspace"] = workspace
        numerics["bf16_sums"] = str(torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction)
        major, minor = torch.cuda.get_device_capability(device)
        processor, threads = f"{torch.cuda.get_device_name(device)} {major}.{minor}", 0
    else:
        processor, threads = _cpu(), torch.get_num_threads()
    return Machine(
        device="cuda" if device.type == "cuda" else "cpu",
        processor=processor,
        threads=threads,
        software=tuple(sorted(software.items())),
        numerics=tuple(sorted(numerics.items())),
    )


def describe_prefix(backbone: Backbone, cut: int) -> FrozenPart:
    """The first ``cut`` stages of a backbone as the key knows them."""
    graph = backbone.graph
    return FrozenPart(
        backbone=backbone.name,
        cut=tuple(stage.name for stage in graph.stages[:cut]),
        program=graph.program(cut),
        prefix_hash=graph.prefix_hash(cut),
        mean=backbone.mean,
        std=backbone.std,
    )


@functools.cache
def _cpu() -> str:
    """Model and instruction sets: oneDNN blocks its sums by both, and by cache sizes, which go with the model."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size")
    flags = " ".join(sorted((fields.get("flags") or fields.get("Features") or "").split()))
    model = " ".join(fields[name] for name in wanted if name in fields) or platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {model} {capability} {hashlib.sha256(flags.encode()).hexdigest()[:16]}"
