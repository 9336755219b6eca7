"""Work in child processes that may crash: over all cores of this machine, or in one child of a Ray task.

A child serves one item after the other through a pipe. When it dies, only the item it worked on is concerned; a
function that is `Survivable` decides what to do about it.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import popen_forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, Protocol, runtime_checkable

from pipeline.parallel.cpus import usable_cpus
from pipeline.parallel.exits import READY, START_TIMEOUT_S, describe_exit
from pipeline.parallel.own_code import own_code
from pipeline.parallel.run_map import RunMap
from pipeline.parallel.stop_signals import STOP_SIGNALS

# fork would copy the locks of this process's threads in their current state
_CONTEXT = multiprocessing.get_context("forkserver")


class _Popen(popen_forkserver.Popen):
    """A process that is killed where it would be asked to end, for it ignores that."""

    def terminate(self) -> None:
        self.kill()


class _Process(ForkServerProcess):
    _Popen = _Popen


class ChildDiedError(RuntimeError):
    """A child process ended during its work; the message says how."""


@runtime_checkable
class Survivable(Protocol):
    """A picklable function that knows what to do when its process dies."""

    def __call__(self, item: Any, /) -> Any:
        """Work on an item, in a child."""
        ...

    def after_death(self, item: Any, how: str, /) -> Any:
        """Return the result for an item over which a child died; called outside the child."""
        ...


class Child:
    """A process that applies a function to items; killed by `close`, and gone when this process is."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _Process(target=_serve, args=(theirs, function), daemon=True)
        with _own_code_first():
            self._process.start()
        self._is_ready = False
        theirs.close()

    def send(self, item: Any) -> None:
        """Give it the next item; `result` tells if it is dead.

        Raises:
            RuntimeError: it did not even start, for which no item is to blame.
        """
        if not self._is_ready:
            self._wait_until_ready()
        with suppress(BrokenPipeError):
            self.connection.send(item)

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the result of the item that was sent.

        Raises:
            ChildDiedError: the child ended, or took longer than `timeout_s` and was killed.
            Exception: what the function raised.
        """
        if not self.connection.poll(timeout_s):
            self._process.kill()
        try:
            is_result, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise ChildDiedError(describe_exit(self._process.exitcode or 0)) from None
        if not is_result:
            raise answer
        return answer

    def _wait_until_ready(self) -> None:
        try:
            self._is_ready = self.result(START_TIMEOUT_S) == READY
        except ChildDiedError as death:
            raise RuntimeError(
                f"a process that reads shards {death} during its startup; see its output above. A script of "
                'your own must start training under `if __name__ == "__main__":`, since its processes import it'
            ) from death

    def close(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join()
        self.connection.close()


@contextmanager
def _own_code_first() -> Iterator[None]:
    """Let the fork server, which imports before it knows this process's path, find this project's packages first.

    In a Ray job with a working directory, PYTHONPATH begins with that directory, and processes run in it. Afterwards
    the environment is as it was: other programs that this process starts have their own imports.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    root, path = own_code().root, before["PYTHONPATH"]
    os.environ["PYTHONSAFEPATH"] = "1"
    if not path:
        os.environ["PYTHONPATH"] = root
    elif path.split(os.pathsep)[0] != root:
        os.environ["PYTHONPATH"] = os.pathsep.join((root, path))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    for signum in STOP_SIGNALS:  # sent to all processes of a job; the parent then ends its children
        signal.signal(signum, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        connection.send((True, READY))
        while True:
            item = connection.recv()
            try:
                answer = True, function(item)
            except Exception as error:
                error.add_note(traceback.format_exc())  # of which only the error itself would travel
                connection.send((False, error))
            else:
                connection.send(answer)


def run_in_processes(num_workers: int) -> RunMap:
    """Return a `RunMap` over so many processes of this machine.

    Raises:
        ValueError: fewer than one.
    """
    if num_workers < 1:
        raise ValueError(f"{num_workers} workers: expected at least 1")

    def run(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterable[Any]:
        return _run(function, items, num_workers)

    return run


def run_on_cores(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterable[Any]:
    """Run in one process per core that this process may use: the `RunMap` of a machine without Ray."""
    return _run(function, items, usable_cpus())


def _run(function: Callable[[Any], Any], items: Sequence[Any], num_children: int) -> Generator[Any, None, None]:
    num_children = min(num_children, len(items))
    if num_children <= 1 and not isinstance(function, Survivable):
        yield from map(function, items)
        return
    idle: list[Child] = []
    working: dict[Connection, tuple[Child, int]] = {}
    done: dict[int, Any] = {}
    sent = 0
    try:
        idle += (Child(function) for _ in range(num_children))
        for number in range(len(items)):
            while number not in done:
                # results that wait for an earlier one are few, however many items there are
                while idle and sent < min(len(items), number + 2 * num_children):
                    child = idle.pop()
                    child.send(items[sent])
                    working[child.connection] = child, sent
                    sent += 1
                for connection in wait(list(working)):
                    assert isinstance(connection, Connection)
                    child, ready = working[connection]
                    try:
                        done[ready] = child.result()
                    except ChildDiedError as death:
                        child.close()
                        done[ready] = _after_death(function, items[ready], death)
                        child = Child(function)
                    del working[connection]
                    idle.append(child)
            yield done.pop(number)
    finally:
        for child in [*idle, *(child for child, _ in working.values())]:
            child.close()


def survive_in_tasks(run_map: RunMap) -> RunMap:
    """Let the tasks of another `RunMap` outlive the functions that they run, where these are `Survivable`."""

    def run(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterable[Any]:
        if isinstance(function, Survivable):
            return run_map(functools.partial(_run_in_child, function), items)
        return run_map(function, items)

    return run


def _run_in_child(function: Survivable, item: Any) -> Any:
    # every item gets a child of its own, but only the first one waits for the imports: 1.2 s, then 0.2 s
    _CONTEXT.set_forkserver_preload([type(function).__module__])
    [result] = _run(function, [item], 1)
    return result


def _after_death(function: Callable[[Any], Any], item: Any, death: ChildDiedError) -> Any:
    if isinstance(function, Survivable):
        return function.after_death(item, str(death))
    raise RuntimeError(f"a process of this machine {death} while it worked on {str(item)[:200]}") from death
