import numpy as np
import torch

from pipeline.training.measures.memory import (
    memory_peak_bytes,
    peak_resident_bytes,
    reset_peak_resident,
    resident_bytes,
)


def test_peak_covers_what_was_freed_again() -> None:
    before = peak_resident_bytes()
    held = np.ones(before // 8, dtype=np.float64)  # as much again, so that the mark must rise
    del held
    assert peak_resident_bytes() >= 1.3 * before
    assert memory_peak_bytes(torch.device("cpu")) == peak_resident_bytes() >= resident_bytes()
    reset_peak_resident()
    assert peak_resident_bytes() < 1.3 * before
