"""A file system without locks is named with what to do, wherever a lock is needed."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from jobs.failures import classify
from pipeline.run_folder.lease import hold_checkpoints, hold_run
from pipeline.tools.doctor.run_folder import check_file_system


def answer(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_missing_locks_are_named_with_folder_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    answer(number, monkeypatch)
    with pytest.raises(OSError, match=f"the file system of {tmp_path} has no locks") as refused, hold_run(tmp_path):
        pytest.fail("it was held")
    assert str(refused.value).endswith("or choose another run_dir")
    assert classify(refused.value) == (6, True)
    (finding,) = check_file_system(tmp_path)
    assert (finding.check, finding.status) == ("run folder", "error")
    assert f"the file system of {tmp_path} has no locks" in finding.detail
    with pytest.raises(OSError, match=r"or choose another checkpoint\.folder"), hold_checkpoints(str(tmp_path / "c")):
        pytest.fail("it was held")


def test_stale_handle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(errno.ESTALE, monkeypatch)
    with (
        pytest.raises(OSError, match=r"lease\.lock is gone on the server that shares it .* mount it again"),
        hold_run(tmp_path),
    ):
        pytest.fail("it was held")
