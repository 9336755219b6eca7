import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs.failures import classify
from pipeline.checkpoint.store import CheckpointStore
from pipeline.run_folder.held import LeaseLostError, RunHeldError
from pipeline.run_folder.lease import (
    check_lease,
    describe_holder,
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
    assert "lease.json is not a JSON object and is ignored" in caplog.text


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


def test_hold_run_names_the_holder_in_its_file_and_in_the_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run_folder.lease.time.time", lambda: 1_700_000_000.0)
    with hold_run(tmp_path / "new" / "run"):
        holder = json.loads((tmp_path / "new" / "run" / "lease.json").read_text())
        assert holder == {"attempt": 1, "host": socket.gethostname(), "pid": os.getpid(), "since": 1_700_000_000.0}
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
        message = rf"held by process {os.getpid()} on {socket.gethostname()} since {since} \(attempt 1\)"
        with pytest.raises(RunHeldError, match=message), hold_run(tmp_path / "new" / "run"):
            pass


def test_hold_run_is_let_go_when_the_block_ends_by_an_error(tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), hold_run(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), hold_checkpoints(str(tmp_path / "a" / "b")):
        raise ZeroDivisionError
    with hold_run(tmp_path) as attempt, hold_checkpoints(str(tmp_path / "a" / "b")):
        assert attempt == 2
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_lock_file_may_be_read_by_others_and_is_the_one_that_is_documented(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with hold_run(tmp_path):
            assert (tmp_path / "lease.lock").stat().st_mode & 0o777 == 0o644
        with hold_checkpoints(str(tmp_path / "kept")):
            assert [path.name for path in (tmp_path / "kept").iterdir()] == ["checkpoints.lock"]
    finally:
        os.umask(before)


def test_describe_holder_of_an_old_lease_says_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text(json.dumps({"attempt": 3, "pid": 17}))
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0))
    assert f"process 17 on None since {since} (attempt 3)" in describe_holder(tmp_path)


def test_check_lease_that_nobody_ever_held_is_lost(tmp_path: Path) -> None:
    with pytest.raises(LeaseLostError, match="attempt 1 "):
        check_lease(tmp_path, 1)


def test_link_that_leads_out_is_refused_by_the_field_that_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("run", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"run_dir .*: metrics is a link to"), hold_run(tmp_path / "run"):
        pass
    with (
        pytest.raises(ValueError, match=r"checkpoint\.folder .*: metrics is a link"),
        hold_checkpoints(str(tmp_path / "kept")),
    ):
        pass


def test_url_of_checkpoints_makes_no_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with hold_checkpoints("s3://bucket/run"):
        assert list(tmp_path.iterdir()) == []


def test_file_system_without_locks_says_what_to_choose_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pipeline.run_folder.lease.fcntl.flock", without_locks)
    with pytest.raises(OSError, match=r"choose another run_dir$"), hold_run(tmp_path):
        pass
    with pytest.raises(OSError, match=r"choose another checkpoint\.folder$"), hold_checkpoints(str(tmp_path / "kept")):
        pass
