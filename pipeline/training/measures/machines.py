"""How busy the machines of a run are: processor, memory, disk, network and GPUs, named as MLflow's pages expect.

A look costs a gather, so it happens every ten seconds; all ranks take it at the same step.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import psutil
import torch

from pipeline.parallel.ranks import Workers
from pipeline.training.notices import Interval

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 10.0
_MB: Final = 1e6


class Look(NamedTuple):
    """What one rank sees."""

    host: str
    machine: dict[str, float]
    gpu: dict[str, float]
    """Of this rank's device; empty on a CPU."""


class MachineWatch:
    """Looks at this rank's machine and device, and joins what all ranks saw."""

    def __init__(self, workers: Workers, run_dir: Path) -> None:
        """Watch; `run_dir` names the disk."""
        self._workers, self._run_dir = workers, run_dir
        self._interval, self._is_first_look = Interval(LOOK_INTERVAL_S), True
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the next call gives the share since this one

    def is_due(self) -> bool:
        """Whether this rank would look now: at the first step, then every ten seconds."""
        due = self._is_first_look or self._interval.is_over()
        self._is_first_look = False
        return due

    def look(self) -> dict[str, float]:
        """Return metrics `system/HOST/...` of all machines; a collective."""
        own = Look(re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()), self._machine(), self._gpu())
        return join_looks(self._workers.gather(own))

    def _machine(self) -> dict[str, float]:
        memory, disk, before = psutil.virtual_memory(), psutil.disk_usage(str(self._run_dir)), self._network
        load = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / _MB,
        }
        now = psutil.net_io_counters()
        if now is not None and before is not None:  # a container without network devices has none
            load["network_receive_megabytes"] = (now.bytes_recv - before.bytes_recv) / _MB
            load["network_transmit_megabytes"] = (now.bytes_sent - before.bytes_sent) / _MB
        self._network = now
        return load

    def _gpu(self) -> dict[str, float]:
        device = self._workers.device
        if device.type != "cuda":
            return {}
        free, total = torch.cuda.mem_get_info(device)
        found = {
            "memory_usage_megabytes": (total - free) / _MB,
            "memory_usage_percentage": 100 * (total - free) / total,
        }
        try:
            found["utilization_percentage"] = float(torch.cuda.utilization(device))
            found["power_usage_watts"] = torch.cuda.power_draw(device) / 1000
            found["temperature_celsius"] = float(torch.cuda.temperature(device))
        except Exception as error:  # NVML is missing, or does not know this device (a part of one, say)
            logger.debug("%s tells no utilization: %s", device, error)
        return found


def join_looks(looks: Iterable[Look]) -> dict[str, float]:
    """Return the metrics of all machines: one set per host, and its GPUs in the order of their ranks."""
    metrics: dict[str, float] = {}
    gpus: dict[str, int] = {}
    for look in looks:
        if look.host not in gpus:
            gpus[look.host] = 0
            metrics |= {f"system/{look.host}/{name}": value for name, value in look.machine.items()}
        if look.gpu:
            number = gpus[look.host]
            gpus[look.host] += 1
            metrics |= {f"system/{look.host}/gpu_{number}_{name}": value for name, value in look.gpu.items()}
    return metrics
