"""Which failures of a worker another start may mend: by where they were raised and of what kind they are."""

from __future__ import annotations

import pytest
import ray.exceptions
import torch
from safetensors import SafetensorError

from pipeline.config import ConfigError
from pipeline.errors import DataError, Reason
from pipeline.launch.mendable import judge, unwrap
from pipeline.stream.cached_features import FeatureCacheError
from pipeline.stream.rank_step import PlanMismatchError


class LibraryError(Exception):
    """Of a library that knows nothing of this project."""


@pytest.mark.parametrize(
    ("error", "building", "training"),
    [
        (ValueError("shapes differ"), "final", "final"),
        (ConfigError("no such option"), "final", "final"),
        (TypeError("Got unsupported ScalarType"), "final", "final"),
        (NotImplementedError("no kernel on this device"), "final", "final"),
        (ImportError("no module"), "final", "final"),
        (FeatureCacheError("a table is damaged"), "final", "final"),
        (DataError(Reason.JSON_INVALID, "cut"), "final", "final"),
        (FileNotFoundError(2, "no such file"), "final", "unclear"),
        (SafetensorError("header"), "final", "unclear"),
        (LibraryError("strange"), "final", "unclear"),
        (RuntimeError("FlexAttention does not support backward on CPU"), "final", "unclear"),
        (RuntimeError("this kernel needs a CUDA device"), "final", "unclear"),
        (RuntimeError("[gloo/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711"), "mendable", "mendable"),
        (RuntimeError("CUDA error: an illegal memory access"), "mendable", "mendable"),
        (torch.distributed.DistBackendError("NCCL"), "mendable", "mendable"),
        (torch.OutOfMemoryError("no memory"), "mendable", "mendable"),
        (OSError(5, "Input/output error"), "mendable", "mendable"),
        (TimeoutError("storage"), "mendable", "mendable"),
        (ConnectionResetError("storage"), "mendable", "mendable"),
        (PlanMismatchError("another order"), "mendable", "mendable"),
        (ray.exceptions.ObjectLostError("ab" * 14, None, ""), "mendable", "mendable"),
        (ray.exceptions.ActorUnavailableError("away", None), "mendable", "mendable"),
    ],
    ids=lambda value: f"{type(value).__name__}: {value}"[:40] if isinstance(value, Exception) else value,
)  # fmt: skip
def test_judge_asks_where_an_error_was_raised_and_of_what_kind_it_is(
    error: Exception, building: str, training: str
) -> None:
    assert judge(error, has_begun=False) == building
    assert judge(error, has_begun=True) == training


def test_unwrap_gives_back_the_error_of_a_task_without_what_ray_adds() -> None:
    cause = FeatureCacheError("a table is damaged\nFailed to apply UDF transform after 1/1 attempts (total backoff).")
    wrapped = ray.exceptions.RayTaskError("get", "a traceback", cause).as_instanceof_cause()
    found = unwrap(wrapped)
    assert type(found) is FeatureCacheError
    assert str(found) == "a table is damaged"
    assert judge(found, has_begun=True) == "final"
