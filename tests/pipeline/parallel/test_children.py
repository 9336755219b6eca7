"""Children that die, raise or work: what becomes of their items, and of those of their neighbours."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.parallel.children import Child, ChildDiedError, _run, run_on_cores, survive_in_tasks
from pipeline.parallel.run_map import run_serially
from pipeline.parallel.stop_signals import STOP_SIGNALS

FATAL = 5


@dataclass(frozen=True)
class Square:
    """Squares numbers, writes down which, and dies of `FATAL`."""

    log: Path

    def __call__(self, number: int) -> int:
        with self.log.open("a") as file:
            file.write(f"{number}\n")
        if number == FATAL:
            os.kill(os.getpid(), signal.SIGSEGV)
        return number * number

    def after_death(self, number: int, how: str) -> str:
        return f"{number} {how} in {os.getpid()}"


def refuse_seven(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return -number


def die(number: int) -> int:
    os._exit(3 + number)


def stop_own_process(signum: int) -> int:
    os.kill(os.getpid(), signum)
    return signum


def process_id(_: int) -> int:
    return os.getpid()


@dataclass(frozen=True)
class Unloadable:
    """Ends the process that unpickles it, before it has an item."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (1,)

    def __call__(self, number: int) -> int:
        return number

    def after_death(self, number: int, how: str) -> str:
        return f"{number} {how}"


def worked_on(log: Path) -> list[int]:
    return sorted(map(int, log.read_text().split()))


@pytest.mark.parametrize("num_children", [1, 3])
def test_item_that_kills_its_child_goes_to_after_death_and_no_other_is_repeated(
    tmp_path: Path, num_children: int
) -> None:
    square = Square(tmp_path / "log")
    found = list(_run(square, range(11), num_children))
    expected: Sequence[object] = [number * number for number in range(11)]
    assert found[:FATAL] == expected[:FATAL]
    assert found[FATAL] == f"{FATAL} ended by signal SIGSEGV in {os.getpid()}"
    assert found[FATAL + 1 :] == expected[FATAL + 1 :]
    assert worked_on(tmp_path / "log") == list(range(11))


def test_task_of_another_map_outlives_what_it_runs(tmp_path: Path) -> None:
    found = list(survive_in_tasks(run_serially)(Square(tmp_path / "log"), [4, FATAL]))
    assert found == [16, f"{FATAL} ended by signal SIGSEGV in {os.getpid()}"]


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_child_goes_on_after_a_stop_signal_that_its_whole_job_gets(signum: int) -> None:
    child = Child(stop_own_process)
    child.send(int(signum))
    assert child.result() == signum
    child.close()


def test_environment_of_other_programs_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    before = dict(os.environ)
    child = Child(abs)
    assert dict(os.environ) == before
    child.send(-1)
    assert child.result() == 1
    child.close()


def test_errors_of_the_function_reach_the_caller() -> None:
    found: list[int] = []
    with pytest.raises(ValueError, match="seven"):
        found.extend(_run(refuse_seven, [1, 2, 7, 3], 2))
    with pytest.raises(RuntimeError, match="a process of this machine ended with exit code 5 while it worked on 2"):
        list(_run(die, [2, 2], 2))
    assert list(run_on_cores(refuse_seven, [])) == []


def test_child_that_does_not_start_is_an_error_and_no_fault_of_its_item() -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 1 during its startup"):
        list(_run(Unloadable(), [1, 2], 2))


def test_child_that_takes_too_long_is_killed() -> None:
    child = Child(signal.sigwait)
    child.send([signal.SIGUSR1])
    with pytest.raises(ChildDiedError, match="was killed"):
        child.result(timeout_s=0.1)
    child.close()


def test_children_end_with_the_iteration() -> None:
    iteration = _run(process_id, range(30), 2)
    child = next(iteration)
    os.kill(child, 0)
    iteration.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
