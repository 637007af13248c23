"""Freed memory stays for the next tensor while a job runs, and goes back to the system after it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")

# In a process of its own, because the setting is the process's.
_PROGRAM = """
import json, resource, sys
import torch
from trainables.memory import give_back_freed_memory, keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for size_mb in [60, 50] * 10:  # aligned blocks fit only into somewhat larger gaps; these come with time
    torch.ones(size_mb << 20, dtype=torch.uint8)
before = faults()
for _ in range(20):
    torch.ones(50 << 20, dtype=torch.uint8)
found = {"faults": faults() - before, "kept_mb": resident_mb()}
give_back_freed_memory()
found["after_mb"] = resident_mb()
print(json.dumps(found))
"""


def found_in_a_process(mode: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_freed_memory_is_used_again_and_given_back_when_asked() -> None:
    plain, keeping = found_in_a_process("plain"), found_in_a_process("keep")
    assert plain["faults"] > 10_000, "each of 20 x 50 MB is mapped anew"
    assert keeping["faults"] < 1_000
    assert keeping["after_mb"] < keeping["kept_mb"] - 40
