"""Devices that an estimate can be made for: memory and peak rate by name, or those of this machine."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import torch

from pipeline.training.measures.flops import peak_of

_MEMORY_GB: Final = {
    "B200": 180,
    "GH200": 96,
    "H200": 141,
    "H100 PCIe": 80,
    "H100 NVL": 94,
    "H100": 80,
    "A100-SXM4-40GB": 40,
    "A100-PCIE-40GB": 40,
    "A100": 80,
    "A800": 80,
    "A10G": 24,
    "A10": 24,
    "A40": 48,
    "A30": 24,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "RTX 6000 Ada": 48,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "MI300X": 192,
    "MI250X": 64,
}
"""Memory of one device as the vendor states it, GB, by part of its name; the first that fits counts."""
_USABLE: Final = 0.95
"""Share of the stated memory that a process can have: drivers reserve some, and a GB is less than a GiB."""


class Device(NamedTuple):
    """What a rank runs on."""

    name: str
    usable_bytes: int
    """Memory that a rank may fill."""
    peak_flops: float | None
    """Dense bfloat16 peak, FLOP/s; None where it is not known."""


def device_named(name: str) -> Device:
    """Return a listed device.

    Raises:
        ValueError: it is not listed; names those that are.
    """
    memory_gb = next((memory for part, memory in _MEMORY_GB.items() if part.lower() in name.lower()), None)
    if memory_gb is None:
        raise ValueError(f"device {name!r} is not known; known: {', '.join(_MEMORY_GB)}")
    listed = next(part for part in _MEMORY_GB if part.lower() in name.lower())
    return Device(listed, int(memory_gb * 1e9 * _USABLE), peak_of(listed))


def device_here(*, use_gpu: bool, num_ranks: int) -> Device | None:
    """Return this machine's GPU or, for a run on CPUs, a rank's share of its memory; None without a GPU to look at."""
    if not use_gpu:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device("this machine's memory", int(memory * _USABLE) // num_ranks, None)
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return Device(name, int(torch.cuda.get_device_properties().total_memory * _USABLE), peak_of(name))
