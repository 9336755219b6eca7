"""Refuses a run whose GPUs cannot compute what its config asks for, before data and workers are prepared."""

from __future__ import annotations

from collections.abc import Callable

from model.llava.fp8_linear import MIN_CAPABILITY
from pipeline.config import ConfigError, TrainingConfig

Capability = tuple[int, int]


def check_capability(training: TrainingConfig, ask: Callable[[], Capability | None]) -> None:
    """Refuse FP8 layers on GPUs without such units.

    Args:
        training: what is asked for.
        ask: looks up the CUDA compute capability of the run's GPUs; None where no GPU tells it in time. It is called
            only if the answer matters.

    Raises:
        ConfigError: the GPUs are too old.
    """
    if training.linear_precision != "fp8":
        return
    found = ask()
    if found is not None and found < MIN_CAPABILITY:
        raise ConfigError(
            f"training.linear_precision=fp8 needs GPUs of compute capability {_name(MIN_CAPABILITY)} or more (Hopper), "
            f"found {_name(found)}; set training.linear_precision=null, or run on newer GPUs"
        )


def _name(capability: Capability) -> str:
    return ".".join(map(str, capability))
