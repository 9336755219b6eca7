"""Whether starting the workers again can mend a failure: a rule over where it was raised and what kind it is.

Building model, optimizer and data is the same work at every start, so only causes outside the program can differ:
a machine, a network, storage. Once training has begun, errors of the program itself stay final; those that could be
either are tried again, and are final when they come back with the same words at the same step.
"""

from __future__ import annotations

import re
from typing import Literal

from pipeline.errors import TransientError

Verdict = Literal["final", "mendable", "unclear"]

_PROGRAM = (
    ValueError, TypeError, LookupError, AttributeError, NameError, ImportError, NotImplementedError, AssertionError,
    ArithmeticError, SyntaxError,
)  # fmt: skip
"""Kinds that Python code raises about its own inputs."""
_PATH_ERRORS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_OUTSIDE = (OSError, MemoryError, EOFError)
_OUTSIDE_CLASSES = frozenset(
    {
        "ray.exceptions.RayError",  # its RayTaskError stands for an error of a task and is unwrapped before
        "torch.OutOfMemoryError",
        "torch.AcceleratorError",
        "torch.distributed.DistError",
    }
)
"""By name, since neither library may be imported for a question about an error of the other."""
_OUTSIDE_WORDS = re.compile(
    r"CUDA error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|out of memory|"
    r"NCCL|gloo|[Cc]onnection|[Ss]ocket|[Tt]imed? ?out|timeout|\bpeer\b"
)
"""What C++ code writes into a plain RuntimeError about devices and other ranks."""
_OWN_PACKAGES = ("pipeline", "model", "jobs")


def judge(error: BaseException, *, has_begun: bool) -> Verdict:
    """Return whether starting again can help.

    Args:
        error: as the worker's code raised it, without Ray's wrapping (see `unwrap`).
        has_begun: model and optimizer were built and the data opened; the error was raised while training.
    """
    if isinstance(error, TransientError):
        return "mendable"
    if isinstance(error, _PATH_ERRORS):
        return "unclear" if has_begun else "final"
    if isinstance(error, _PROGRAM) or _is_own(error):
        return "final"
    if isinstance(error, _OUTSIDE) or _is_outside(error):
        return "mendable"
    return "unclear" if has_begun else "final"


def unwrap(error: BaseException) -> BaseException:
    """Return the error that a task raised in another process, which Ray wraps in one of its own.

    Ray Data adds advice about its own settings to the message, which is taken off again.
    """
    if _is_named(error, "ray.exceptions.RayTaskError"):
        cause = error.__dict__.get("cause")
        if isinstance(cause, BaseException):
            error = unwrap(cause)
    if error.args and isinstance(error.args[0], str):
        error.args = (error.args[0].split("\nFailed to apply UDF transform after ")[0], *error.args[1:])
    return error


def _is_own(error: BaseException) -> bool:
    """Whether the class is this project's: such an error would occur again."""
    return type(error).__module__.partition(".")[0] in _OWN_PACKAGES and not isinstance(error, OSError)


def _is_outside(error: BaseException) -> bool:
    if any(_is_named(error, name) for name in _OUTSIDE_CLASSES):
        return True
    return isinstance(error, RuntimeError) and _OUTSIDE_WORDS.search(str(error)) is not None


def _is_named(error: BaseException, name: str) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" == name for kind in type(error).__mro__)
