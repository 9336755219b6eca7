"""A function as the ranks of one machine, each in a process of its own, ended when their time is up.

The ranks join as under torchrun, so that what runs in them may be a whole training run. A measurement that hangs or
runs out of memory takes nothing else with it.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist

from pipeline.parallel.ranks import Workers, join_torchrun

Measure = Callable[[Workers], Any]
"""Runs on every rank; picklable, and what it returns on rank 0 is fit for JSON."""

_POLL_S: Final = 0.05
_GRACE_S: Final = 15.0
"""What other ranks get when one has failed: they wait for it in a collective."""
_DUMP_S: Final = 5.0
_RESULT: Final = "result.json"
_ERROR: Final = "error-*.txt"


class RanksFailedError(RuntimeError):
    """A rank failed, or the time was up before all had finished."""


class _Place(NamedTuple):
    """Where a rank is."""

    rank: int
    num_ranks: int
    port: int
    use_gpu: bool
    folder: Path
    deadline: float
    """When the rank will be ended, by `time.time()`."""


def run_ranks(measure: Measure, num_ranks: int, *, use_gpu: bool, timeout_s: float) -> Any:
    """Run `measure` on ranks 0 to `num_ranks` - 1 of a group and return what it returns on rank 0.

    Args:
        measure: what to run.
        num_ranks: processes; with GPUs one for each.
        use_gpu: NCCL and a GPU per rank, else gloo and the CPU.
        timeout_s: from start to end.

    Raises:
        RanksFailedError: with the error of the first rank that failed.
        torch.OutOfMemoryError: a rank ran out of device memory.
    """
    context = multiprocessing.get_context("spawn")  # fork would copy CUDA and the locks of threads
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), _free_port()
        deadline = time.time() + timeout_s
        places = [_Place(rank, num_ranks, port, use_gpu, folder, deadline) for rank in range(num_ranks)]
        processes = [context.Process(target=_work, args=(measure, place)) for place in places]
        try:
            for process in processes:
                process.start()
            in_time = _wait(processes, timeout_s)
        finally:
            _end(processes)
        return _collect(folder, [process.exitcode for process in processes], timeout_s if not in_time else None)


def _collect(folder: Path, exit_codes: Sequence[int | None], timeout_s: float | None) -> Any:
    """Return the result that the ranks left in `folder`; `timeout_s` is given where it ran out."""
    files = sorted(folder.glob(_ERROR), key=lambda path: path.stat().st_mtime_ns)  # later ones are consequences
    errors = [path.read_text(encoding="utf-8") for path in files]
    full = next((error for error in errors if error.startswith(torch.OutOfMemoryError.__name__)), None)
    if full is not None:
        raise torch.OutOfMemoryError(full)
    if errors:
        raise RanksFailedError(errors[0])
    if timeout_s is not None:
        raise RanksFailedError(f"not finished after {timeout_s:.0f} s; exit codes {list(exit_codes)}")
    if any(exit_codes):
        raise RanksFailedError(f"ranks ended with exit codes {list(exit_codes)} and without a message")
    return json.loads((folder / _RESULT).read_text(encoding="utf-8"))


def _work(measure: Measure, place: _Place) -> None:
    """Be one rank."""
    os.setsid()  # so that everything this rank starts can be ended with it
    left_s = place.deadline - time.time()
    faulthandler.dump_traceback_later(max(_DUMP_S, left_s - _DUMP_S))  # says where it hangs, if it does
    os.environ.update(
        RANK=str(place.rank),
        LOCAL_RANK=str(place.rank),
        WORLD_SIZE=str(place.num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(place.port),
    )
    try:
        result = measure(join_torchrun(place.use_gpu))
        if place.rank == 0:
            (place.folder / _RESULT).write_text(json.dumps(result), encoding="utf-8")
        if dist.is_initialized():
            dist.barrier()  # rank 0 holds the store that the others still ask
            dist.destroy_process_group()
    except Exception as error:
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        (place.folder / _ERROR.replace("*", str(place.rank))).write_text(text, encoding="utf-8")
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may still hold tensors, and abort a process whose interpreter shuts down


def _wait(processes: Sequence[BaseProcess], timeout_s: float) -> bool:
    """Wait until all processes have ended, or some seconds after one has failed; False when the time is up before."""
    deadline, failed_at = time.monotonic() + timeout_s, None
    while any(process.is_alive() for process in processes):
        now = time.monotonic()
        if failed_at is None and any(process.exitcode for process in processes):
            failed_at = now
        if failed_at is not None and now > failed_at + _GRACE_S:
            return True
        if now > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _end(processes: Sequence[BaseProcess]) -> None:
    """Kill what is left of the ranks and of the processes that they have started."""
    for process in processes:
        if process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # it may not have come to its own group yet
            process.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
