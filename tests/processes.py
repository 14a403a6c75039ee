"""Start a script in several processes of one group, as a launcher would."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from tests.forked import ForkedProcess

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun_environments(nodes: int, per_node: int) -> list[dict[str, str]]:
    """What torchrun sets for each process of a job on some nodes, all of them here."""
    port = str(free_port())
    return [
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(nodes * per_node),
            "RANK": str(node * per_node + local),
            "GROUP_RANK": str(node),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(per_node),
            "TORCHELASTIC_RUN_ID": "test",
        }
        for node in range(nodes)
        for local in range(per_node)
    ]


def slurm_environments(nodes: int, per_node: int) -> list[dict[str, str]]:
    """What srun sets for each process of a job on some nodes, all of them here."""
    port = str(free_port())
    return [
        {
            "SLURM_JOB_ID": "4242",
            "SLURM_JOB_NAME": "fit",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes * per_node),
            "SLURM_NTASKS_PER_NODE": str(per_node),
            "SLURM_PROCID": str(node * per_node + local),
            "SLURM_NODEID": str(node),
            "SLURM_LOCALID": str(local),
            "MASTER_PORT": port,
        }
        for node in range(nodes)
        for local in range(per_node)
    ]


def environments_by_hand(nodes: int, per_node: int) -> list[dict[str, str]]:
    """What a person sets on each node, where Lightning starts the other processes."""
    port = str(free_port())
    return [
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)}
        for node in range(nodes)
    ]


LAUNCHERS = {
    "torchrun": torchrun_environments,
    "slurm": slurm_environments,
    "by hand": environments_by_hand,
}


def start(
    environments: list[dict[str, str]], *command: str | Path, **settings: Any
) -> list[ForkedProcess]:
    """Start the command, a script and its arguments, once in each environment."""
    common = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    script = list(map(str, command))
    return [
        ForkedProcess(script, environment=common | environment, **settings)
        for environment in environments
    ]


def finish(processes: list[ForkedProcess], timeout: float = 280) -> list[str]:
    """Wait for all of them and return their outputs; none stays behind if one fails."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stderr[-3000:]
    return [stdout for stdout, _ in outputs]
