import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.failures import classify
from pipeline.checkpoint.store import CheckpointStore
from pipeline.run_folder.lease import (
    LeaseLostError,
    RunHeldError,
    check_lease,
    hold_checkpoints,
    hold_run,
    read_holder,
)
from pipeline.run_folder.restarts import record_start

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.run_folder.lease import hold_run
from pipeline.run_folder.restarts import record_start
with hold_run(Path(sys.argv[1])) as attempt:
    print(attempt, flush=True)
    time.sleep(600)
"""


def test_hold_run_second_process_is_refused_naming_the_holder_until_it_dies(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    with pytest.raises(RunHeldError, match=rf"held by process {process.pid} on .* \(attempt 1\)"), hold_run(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with hold_run(tmp_path) as attempt:
        assert attempt == 2
    process.stdout.close()


def test_hold_run_each_holder_gets_a_higher_attempt_number(tmp_path: Path) -> None:
    attempts = []
    for _ in range(3):
        with hold_run(tmp_path) as attempt:
            attempts.append(attempt)
    assert attempts == [1, 2, 3]
    assert read_holder(tmp_path)["attempt"] == 3


def test_checkpoint_of_a_survivor_is_refused_once_a_newer_attempt_holds_the_run(tmp_path: Path) -> None:
    with hold_run(tmp_path) as old:
        survivor = CheckpointStore(tmp_path / "checkpoints", 2, may_commit=lambda: check_lease(tmp_path, old))
        survivor.save(3, {"model": {"weight": torch.ones(5)}}, {})
    with hold_run(tmp_path):
        with pytest.raises(LeaseLostError, match="attempt 2 has taken over, this is attempt 1"):
            survivor.save(7, {"model": {"weight": torch.zeros(5)}}, {})
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_unreadable_lease_never_gives_a_number_again_that_workers_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lease.json").write_text('{"attempt": 4}')
    with hold_run(tmp_path) as old:
        record_start(tmp_path, old, step=0, max_restarts=0)
    (tmp_path / "lease.json").write_bytes(b"")
    with pytest.raises(LeaseLostError, match=r"lease\.json is missing or unreadable"):
        check_lease(tmp_path, old)
    with hold_run(tmp_path) as new:
        assert (old, new) == (5, 6)
        check_lease(tmp_path, new)
        with pytest.raises(LeaseLostError, match="attempt 6 has taken over"):
            check_lease(tmp_path, old)
    assert "lease.json is no JSON object and counts as absent" in caplog.text


def test_holder_that_has_not_named_itself_yet_is_said_to_be_unknown(tmp_path: Path) -> None:
    with hold_run(tmp_path):
        (tmp_path / "lease.json").unlink()
        with pytest.raises(RunHeldError, match=r"held by a process that lease\.json does not name"), hold_run(tmp_path):
            pass


def test_run_dir_that_is_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match="expected a folder, found a file") as caught, hold_run(tmp_path / "run"):
        pass
    assert classify(caught.value).exit_code == 2


def test_checkpoint_folder_of_two_runs_is_refused_to_the_second(tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    with hold_checkpoints(shared):
        with pytest.raises(RunHeldError, match="in use by another run"), hold_checkpoints(shared):
            pass
        with hold_checkpoints(None), hold_checkpoints("s3://bucket/run"):
            pass
    with hold_checkpoints(shared):
        assert CheckpointStore(shared, 2).latest() is None
