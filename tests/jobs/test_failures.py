import importlib

import pytest

from jobs.failures import EXIT_CODES, Failure, classify
from jobs.ray_job import JobActiveError, SubmitError
from pipeline.config import ConfigError
from pipeline.errors import Reason, ShardError


@pytest.mark.parametrize("name", EXIT_CODES)
def test_every_known_error_exists_under_its_name(name: str) -> None:
    module, _, qualname = name.rpartition(".")
    kind = getattr(importlib.import_module(module), qualname)
    assert f"{kind.__module__}.{kind.__qualname__}" == name


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("x"), 2),
        (SubmitError("x"), 2),
        (ShardError(Reason.SHARD_EMPTY, "0 bytes"), 3),
        (FileNotFoundError("x"), 2),
        (PermissionError("x"), 6),
        (ConnectionRefusedError("x"), 6),
        (JobActiveError("x"), 7),
        (KeyboardInterrupt(), 130),
    ],
)
def test_error_of_a_known_kind_ends_with_its_code_and_no_traceback(error: BaseException, expected: int) -> None:
    assert classify(error) == Failure(expected, True)


@pytest.mark.parametrize("error", [RuntimeError("x"), AssertionError("x"), KeyError("x"), TypeError("x")])
def test_error_that_explains_nothing_ends_with_one_and_a_traceback(error: Exception) -> None:
    assert classify(error) == Failure(1, False)
