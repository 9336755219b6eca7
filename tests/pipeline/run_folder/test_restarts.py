from pathlib import Path

import pytest

from pipeline.run_folder.restarts import (
    FAILURES_FILE,
    RESTARTS_FILE,
    CrashLoopError,
    has_come_back,
    last_attempt,
    record_failure,
    record_start,
)


def test_restarts_from_one_step_end_with_a_diagnosis_of_each(tmp_path: Path) -> None:
    record_start(tmp_path, attempt=1, step=0, max_restarts=2)
    for number in range(3):
        record_start(tmp_path, attempt=1, step=40, max_restarts=2)
        if number != 1:
            record_failure(tmp_path, 1, rank=3, step=43, error=ValueError(f"broken {number}"))
    with pytest.raises(CrashLoopError) as caught:
        record_start(tmp_path, attempt=1, step=40, max_restarts=2)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 starts from step 40 ended without a new checkpoint")
    assert lines[1] == "  start 2: rank 3 at step 43: ValueError: broken 0"
    assert lines[2] == "  start 3: ended from outside: out of memory, lost node, signal"
    assert lines[3] == "  start 4: rank 3 at step 43: ValueError: broken 2"
    assert "inspect --step 43" in lines[4]


def test_progress_and_a_new_launcher_reset_the_count(tmp_path: Path) -> None:
    for step in (2, 2, 4, 4, 6, 6):
        record_start(tmp_path, attempt=1, step=step, max_restarts=1)
    for _ in range(2):
        record_start(tmp_path, attempt=2, step=6, max_restarts=1)
    with pytest.raises(CrashLoopError):
        record_start(tmp_path, attempt=2, step=6, max_restarts=1)


def test_half_line_of_a_killed_launcher_does_not_stop_the_starts_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_start(tmp_path, attempt=1, step=0, max_restarts=1)
    for name in (RESTARTS_FILE, FAILURES_FILE):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"attempt": 2, "st')
    for _ in range(2):
        record_start(tmp_path, attempt=3, step=4, max_restarts=1)
        record_failure(tmp_path, 3, rank=0, step=5, error=ValueError("broken"))
    with pytest.raises(CrashLoopError, match="start 3: rank 0 at step 5: ValueError: broken"):
        record_start(tmp_path, attempt=3, step=4, max_restarts=1)
    assert f"{tmp_path / RESTARTS_FILE}, line 2: no JSON object" in caplog.text
    assert last_attempt(tmp_path) == 3


def test_change_of_the_number_of_workers_is_no_restart_unless_it_follows_a_failure(tmp_path: Path) -> None:
    for ranks in (2, 3, 4, 5, 6, 7):  # machines come one after the other
        record_start(tmp_path, attempt=1, step=0, max_restarts=1, num_ranks=ranks)
    record_failure(tmp_path, 1, rank=0, step=3, error=ValueError("broken"))
    record_start(tmp_path, attempt=1, step=0, max_restarts=1, num_ranks=6)
    record_failure(tmp_path, 1, rank=0, step=3, error=ValueError("broken again"))
    with pytest.raises(CrashLoopError) as caught:
        record_start(tmp_path, attempt=1, step=0, max_restarts=1, num_ranks=7)
    assert str(caught.value).splitlines()[1:3] == [
        "  start 6: rank 0 at step 3: ValueError: broken",
        "  start 7: rank 0 at step 3: ValueError: broken again",
    ]


def test_failure_comes_back_when_an_earlier_start_ended_at_the_same_step_with_the_same_words(tmp_path: Path) -> None:
    ended = [(5, "strange"), (7, "strange"), (7, "stranger"), (7, "strange")]
    found = []
    for step, text in ended:
        record_start(tmp_path, attempt=4, step=4, max_restarts=9)
        record_failure(tmp_path, 4, rank=1, step=step, error=ValueError(text))
        found.append(has_come_back(tmp_path, 4, rank=1))
    assert found == [False, False, False, True]
    record_start(tmp_path, attempt=5, step=4, max_restarts=9)
    record_failure(tmp_path, 5, rank=1, step=7, error=ValueError("strange"))
    assert not has_come_back(tmp_path, 5, rank=1)  # a person has started it again, perhaps on other machines
