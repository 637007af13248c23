"""The machines of a Ray cluster: those that are up, and those that its autoscaler may still start.

In: a running Ray. Out: CPUs and GPUs per machine. On a cluster of ``ray up`` the workers may all be away, because
nobody needed them; what a sweep may count on is then written in the launcher's file, which lies on the head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Machine = dict[str, float]
"""Ray's resources of one machine: ``CPU``, ``GPU``."""

LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where ``ray up`` leaves its settings on the head, which is where a job's driver runs."""

_NODE_TYPE = "ray.io/node-group"
"""The label in which a launched machine bears the name of its type in those settings."""


@dataclass(frozen=True)
class Capacity:
    """What lanes may be planned on.

    Attributes:
        present: Machines that are up.
        potential: Machines that come when something asks for them; none on a fixed cluster.
    """

    present: tuple[Machine, ...]
    potential: tuple[Machine, ...] = ()

    @property
    def machines(self) -> tuple[Machine, ...]:
        """All of them."""
        return self.present + self.potential


def find_capacity(launcher_file: Path = LAUNCHER_FILE) -> Capacity:
    """What the cluster that this driver has joined is, and may become."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    present = tuple(_machine(node["Resources"]) for node in nodes)
    types = Counter(node.get("Labels", {}).get(_NODE_TYPE, "") for node in nodes)
    try:
        text = launcher_file.expanduser().read_text(encoding="utf-8")
    except OSError:
        return Capacity(present)
    import yaml

    settings = yaml.safe_load(text)
    # A file of an earlier cluster may have been left on this machine: its head is then not among the nodes.
    if not isinstance(settings, dict) or settings.get("head_node_type") not in types:
        return Capacity(present)
    return Capacity(present, potential_machines(settings, types))


def potential_machines(settings: Mapping[str, Any], present: Mapping[str, int]) -> tuple[Machine, ...]:
    """The machines that the autoscaler may add, those with the most GPUs first.

    Args:
        settings: The launcher's, with ``available_node_types`` and ``max_workers`` (the head not counted).
        present: Machines that are up, by type.
    """
    head = settings["head_node_type"]
    workers = {name: kind for name, kind in settings["available_node_types"].items() if name != head}
    left = settings.get("max_workers", 0) - sum(present.get(name, 0) for name in workers)
    machines: list[Machine] = []
    for name, kind in workers.items():
        most = kind.get("max_workers", settings.get("max_workers", 0))
        machines += [_machine(kind.get("resources", {}))] * max(0, most - present.get(name, 0))
    machines.sort(key=lambda machine: (machine["GPU"], machine["CPU"]), reverse=True)
    return tuple(machine for machine in machines[: max(0, left)] if machine["CPU"] or machine["GPU"])


def _machine(resources: Mapping[str, float]) -> Machine:
    return {kind: float(resources.get(kind, 0)) for kind in ("CPU", "GPU")}
