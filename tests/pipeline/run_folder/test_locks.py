"""A file system without locks is named with what to do, wherever a lock is needed."""

from __future__ import annotations

import errno
import fcntl
import os
from io import FileIO
from pathlib import Path

import pytest

from jobs.failures import classify, remedy
from pipeline.checkpoint.storage import FolderStorage
from pipeline.run_folder.files import ask_server, write_line
from pipeline.run_folder.lease import check_lease, hold_checkpoints, hold_run
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


def test_error_of_an_open_file_names_it_and_what_to_do(tmp_path: Path) -> None:
    class Gone(FileIO):
        def write(self, _content: object, /) -> int:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with Gone(tmp_path / "metrics.jsonl", "a+") as file, pytest.raises(OSError, match="Stale file handle") as refused:
        write_line(file, "1")
    assert str(tmp_path / "metrics.jsonl") in str(refused.value)
    assert "mount it again; the same command continues" in remedy(refused.value)
    assert classify(refused.value) == (6, True)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "root_squash"),
        (errno.EPERM, "root_squash"),
        (errno.EROFS, "reading only"),
        (errno.EDQUOT, "quota"),
    ],
)
def test_error_of_a_file_system_has_a_remedy(number: int, said: str) -> None:
    assert said in remedy(OSError(number, os.strerror(number), "/shared/run"))
    assert remedy(OSError(number, "a message of ours")) == ""


def test_lease_and_shares_are_looked_for_at_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Path]()
    monkeypatch.setattr("pipeline.run_folder.lease.ask_server", asked.append)
    monkeypatch.setattr("pipeline.checkpoint.storage.ask_server", asked.append)
    with hold_run(tmp_path) as attempt:
        check_lease(tmp_path, attempt)
    assert not FolderStorage(tmp_path).exists("place", "part")
    assert asked == [tmp_path, tmp_path / "place"]
    ask_server(tmp_path)
    ask_server(tmp_path / "missing")
