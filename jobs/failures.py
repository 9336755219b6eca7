"""The exit code of each kind of failure, and whether a traceback helps.

0 done, 1 defect of the program, 2 config or usage, 3 too many bad samples, 4 corrupt data or account, 5 numbers not
finite or no memory, 6 storage, network or cluster, 7 run already active, 8 workers fail again and again,
129, 130, 143 stopped by SIGHUP, SIGINT or SIGTERM: 128 + the signal's number.
"""

import errno
from typing import NamedTuple

from pipeline.parallel.stop_signals import StopRequestedError

EXIT_CODES = {
    "pipeline.config.load.ConfigError": 2,
    "pipeline.errors.DataError": 3,
    "pipeline.training.bookkeeping.RejectedBudgetError": 3,
    "pipeline.training.measures.metrics.LedgerError": 4,
    "pipeline.checkpoint.manifest.CheckpointError": 4,
    "pipeline.stream.rank_step.PlanMismatchError": 4,
    "pipeline.stream.feature_files.FeatureCacheError": 4,
    "pipeline.training.loop.NonFiniteError": 5,
    "pipeline.training.measures.idle.NothingLearnedError": 5,
    "pipeline.tools.parity.check.ParityError": 4,
    "torch.OutOfMemoryError": 5,
    "pipeline.run_folder.restarts.CrashLoopError": 8,
    "pipeline.launch.on_ray.train.ClusterCapacityError": 6,
    "jobs.ray_job.JobActiveError": 7,
    "pipeline.run_folder.held.RunHeldError": 7,
    "pipeline.run_folder.held.LeaseLostError": 7,
    "pipeline.parallel.stop_signals.StopRequestedError": 143,
    "builtins.KeyboardInterrupt": 130,
    "builtins.FileNotFoundError": 2,
    "builtins.FileExistsError": 2,
    "builtins.IsADirectoryError": 2,
    "builtins.NotADirectoryError": 2,
    "builtins.OSError": 6,
    "builtins.ValueError": 2,  # a contract of ours that the message explains
}
"""Exit code of every error that explains itself. By name, since importing the classes would load torch for seconds."""


_NOT_ALLOWED = "this user may not; NFS may map root to another user (root_squash): run as the owner of the folder"
_REMEDIES = {
    errno.ESTALE: "the server that shares it has it no more: mount it again; the same command continues",
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "it is mounted for reading only: mount it for writing, or choose another folder",
    errno.ENOLCK: "its file system has no locks: mount NFS 4, or NFS 3 with a lock service, or choose another folder",
    errno.ENOSPC: "the disk is full: make room; the same command continues",
    errno.EDQUOT: "the quota is used up: make room; the same command continues",
    errno.EIO: "the disk or its server failed: look at the kernel's log; the same command continues",
    errno.ETIMEDOUT: "the server that shares it did not answer; the same command continues",
}
"""What to do about an error of a file system that names a file and nothing else."""


def remedy(error: BaseException) -> str:
    """Return what helps against an error of the system about a file; empty where the message says it already."""
    if not isinstance(error, OSError) or error.filename is None:
        return ""
    found = _REMEDIES.get(error.errno or 0, "")
    return f" ({found})" if found else ""


class Failure(NamedTuple):
    """How to end after an error."""

    exit_code: int
    is_explained: bool
    """The message says all a user needs; otherwise the traceback is shown too."""


def classify(error: BaseException) -> Failure:
    """Return how the program ends on `error`: by its own class, else by the nearest base class that is known."""
    if isinstance(error, StopRequestedError):
        return Failure(128 + error.signum, True)
    for kind in type(error).__mro__:
        exit_code = EXIT_CODES.get(f"{kind.__module__}.{kind.__qualname__}")
        if exit_code is not None:
            return Failure(exit_code, True)
    return Failure(1, False)
