"""A cluster that loses machines: one that has had notice, one that dies, one that nobody can reach for a while."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from faults_support import TITLES, Sweep
from heads import STORE, RayNode, running_head, running_node

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

CUT_S = 30
NOTICED_S = 20
"""Ray Train looks for notices every five seconds, and once more than twelve were too few."""
DRAIN = """
import sys, time, ray
from ray._raylet import GcsClient

address, name = sys.argv[1:]
ray.init(address, log_to_driver=False)
(node,) = [node["NodeID"] for node in ray.nodes() if name in node["Resources"]]
deadline_ms = int(1000 * (time.time() + 600))
accepted, why = GcsClient(address=address).drain_node(node, 2, "the machine is wanted back", deadline_ms)
assert accepted, why
"""


def of_worker(sweep: Sweep, nodes: list[RayNode]) -> RayNode:
    """Where the trial under way is trained."""
    (node,) = [node for node in nodes if node.has(sweep.processes(*TITLES["worker"]))]
    return node


def test_a_node_that_has_had_notice_and_one_that_dies(patient_sweep: Sweep, undisturbed: Sweep) -> None:
    """The head has no processor to train on, so each move is to the node that is left."""
    sweep = patient_sweep
    sweep.plant(["3-pause", "2-pause"])
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(running_head(0, STORE))
        nodes = [stack.enter_context(running_node(head, name, 2, STORE, **sweep.environment)) for name in ("a", "b")]
        process = sweep.start(**head.environ, RAY_ADDRESS=head.gcs)
        sweep.await_pause(process)
        drained = of_worker(sweep, nodes)
        drain = [sys.executable, "-c", DRAIN, head.gcs, drained.name]
        subprocess.run(drain, env=head.environ, check=True, capture_output=True, timeout=60)
        drained_at = time.time() + NOTICED_S
        time.sleep(NOTICED_S)
        sweep.go_on()
        sweep.await_pause(process)
        moved = of_worker(sweep, nodes)
        assert moved is not drained
        assert drained.is_up, "the trial moved before its machine was gone"
        stack.enter_context(running_node(head, "c", 2, STORE, **sweep.environment))
        moved.kill()
        killed_at = time.time()
        sweep.go_on()
        out, err = process.communicate(timeout=240)
        found, _ = sweep.start("doctor", **head.environ, RAY_ADDRESS=head.gcs).communicate(timeout=60)
    assert process.returncode == 0, err
    assert sweep.numbers() == undisturbed.numbers()
    assert "models:/faulty/1" in out
    sweep.note_recovery("a node drained, from the trial's next step on", drained_at)
    sweep.note_recovery("a node of two killed", killed_at)
    assert "placement groups, none of a driver that has ended" in found
    sweep.assert_nothing_is_left()


@pytest.fixture
def wire() -> Iterator[tuple[str, str, str, str]]:
    """A network of two: the namespace's name, its end of the wire's address, ours, and the name of our end."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command here")
    name = f"thaw{secrets.token_hex(3)}"
    ours, theirs = f"{name}a", f"{name}b"
    subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {ours} type veth peer name {theirs} netns {name}",
        f"ip address add {subnet}.1/24 dev {ours}",
        f"ip link set {ours} up",
        f"ip -n {name} address add {subnet}.2/24 dev {theirs}",
        f"ip -n {name} link set {theirs} up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        pytest.skip(f"no network namespace can be made here: {error.stderr}")
    yield name, f"{subnet}.2", f"{subnet}.1", ours
    subprocess.run(["ip", "netns", "delete", name], check=True)


def test_a_cut_wire(patient_sweep: Sweep, undisturbed: Sweep, wire: tuple[str, str, str, str]) -> None:
    """Half a minute without a network: the node's worker, or the one that takes over, goes on where it was."""
    sweep = patient_sweep
    namespace, their_address, our_address, our_end = wire
    sweep.plant(["3-pause"])
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(running_head(0, STORE, f"--node-ip-address={our_address}"))
        within = ["ip", "netns", "exec", namespace]

        def start_node(name: str) -> RayNode:
            options = (STORE, f"--node-ip-address={their_address}")
            return stack.enter_context(running_node(head, name, 2, *options, within=within, **sweep.environment))

        node = start_node("far")
        process = sweep.start(**head.environ, RAY_ADDRESS=head.gcs)
        sweep.await_pause(process)
        subprocess.run(["ip", "link", "set", our_end, "down"], check=True)
        sweep.go_on()
        time.sleep(CUT_S)
        assert len(sweep.trials()[0].epochs) == 2, "nothing came over the wire"
        subprocess.run(["ip", "link", "set", our_end, "up"], check=True)
        joined_at = time.time()
        deadline = time.monotonic() + 40
        while node.is_up and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        if not node.is_up:
            start_node("far again")  # what `ray up` or a service manager does for a node that the head has given up
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert sweep.numbers() == undisturbed.numbers()
    assert "models:/faulty/1" in out
    sweep.note_recovery("no network for 30 s, from its return on", joined_at)
    sweep.assert_nothing_is_left()
