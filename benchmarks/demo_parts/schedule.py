"""The learning-rate curve used for teaching the demo's backbones."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, num_steps: int, warmup_fraction: float = 0.05) -> float:
    """Return the learning rate's factor at a step: linear from 0 to 1, then half a cosine down to 0."""
    warmup = max(1, round(num_steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
