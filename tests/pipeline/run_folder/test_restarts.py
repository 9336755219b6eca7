import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.run_folder.restarts import (
    FAILURES_FILE,
    RESTARTS_FILE,
    CrashLoopError,
    describe_cause,
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
    assert f"{tmp_path / RESTARTS_FILE}, line 2: not a JSON object" in caplog.text
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


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_starts_and_failures_are_written_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run_folder.restarts.time.time", lambda: 1234.56789)
    record_start(tmp_path, attempt=3, step=8, max_restarts=0, num_ranks=5)
    record_start(tmp_path, attempt=3, step=9, max_restarts=0)
    record_failure(tmp_path, 3, rank=2, step=11, error=ValueError("broken"))
    assert entries(tmp_path / RESTARTS_FILE) == [
        {"attempt": 3, "step": 8, "ranks": 5, "time_s": 1234.568},
        {"attempt": 3, "step": 9, "ranks": 1, "time_s": 1234.568},
    ]
    file = "tracebacks/start-0002-rank-00002.txt"
    assert entries(tmp_path / FAILURES_FILE) == [
        {
            "attempt": 3, "start": 2, "rank": 2, "step": 11, "error": "ValueError: broken", "traceback": file,
            "time_s": 1234.568,
        }
    ]  # fmt: skip
    assert (tmp_path / file).read_text() == "ValueError: broken\n"


@pytest.mark.parametrize(("length", "is_cut"), [(488, False), (489, True), (5000, True)])
def test_long_error_keeps_its_begin_and_its_end(tmp_path: Path, length: int, is_cut: bool) -> None:
    text = "".join(chr(ord("a") + idx % 26) for idx in range(length))
    record_failure(tmp_path, 1, rank=0, step=0, error=ValueError(text))
    whole = f"ValueError: {text}"
    (entry,) = entries(tmp_path / FAILURES_FILE)
    assert entry["error"] == (f"{whole[:60]} ... {whole[-440:]}" if is_cut else whole)
    assert entry["start"] == 0


def test_last_attempt_is_the_highest_and_not_the_last(tmp_path: Path) -> None:
    assert last_attempt(tmp_path) == 0
    for attempt in (1, 4, 2):
        record_start(tmp_path, attempt, step=0, max_restarts=0)
    assert last_attempt(tmp_path) == 4


def test_no_restart_is_tried_where_none_is_allowed(tmp_path: Path) -> None:
    record_start(tmp_path, attempt=1, step=0, max_restarts=0)
    with pytest.raises(CrashLoopError) as caught:
        record_start(tmp_path, attempt=1, step=0, max_restarts=0)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  start 1: ended from outside")
    assert not any("inspect" in line for line in lines)
    assert lines[-1].endswith("lower checkpoint.every_steps.")


def test_diagnosis_names_the_first_step_of_the_starts_in_vain_only(tmp_path: Path) -> None:
    record_start(tmp_path, attempt=1, step=0, max_restarts=1)
    record_failure(tmp_path, 1, rank=0, step=2, error=ValueError("before"))
    for steps in ((9, 7), (8,)):
        record_start(tmp_path, attempt=1, step=4, max_restarts=1)
        for rank, step in enumerate(steps):
            record_failure(tmp_path, 1, rank, step, ValueError(f"on {rank}"))
    with pytest.raises(CrashLoopError) as caught:
        record_start(tmp_path, attempt=1, step=4, max_restarts=1)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("2 starts from step 4")
    assert lines[1] == "  start 2: rank 0 at step 9: ValueError: on 0; rank 1 at step 7: ValueError: on 1"
    assert "inspect --step 7` shows the samples of step 7." in lines[3]


def test_describe_cause_is_the_first_failure_of_that_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        record_start(tmp_path, attempt=1, step=0, max_restarts=9)
    for rank, moment in ((0, 30.0), (1, 20.0)):
        monkeypatch.setattr("pipeline.run_folder.restarts.time.time", lambda moment=moment: moment)
        record_failure(tmp_path, 1, rank, 5, ValueError(f"on {rank}"))
    file = tmp_path / "tracebacks" / "start-0002-rank-00001.txt"
    assert describe_cause(tmp_path, 2) == f"rank 1 at step 5: ValueError: on 1 (traceback in {file})"
    assert describe_cause(tmp_path, 1) == "ended from outside: out of memory, lost node, signal"


def test_describe_cause_of_an_old_failure_has_no_traceback(tmp_path: Path) -> None:
    (tmp_path / FAILURES_FILE).write_text(json.dumps({"start": 1, "rank": 0, "step": 5, "error": "E"}) + "\n")
    assert describe_cause(tmp_path, 1) == "rank 0 at step 5: E"


def test_describe_cause_tells_a_change_of_the_number_of_workers(tmp_path: Path) -> None:
    for ranks in (2, 2, 3, 3):
        record_start(tmp_path, attempt=1, step=0, max_restarts=9, num_ranks=ranks)
    assert [describe_cause(tmp_path, start) for start in (1, 2, 3, 4)] == [
        "ended from outside: out of memory, lost node, signal",
        "the number of workers changed from 2 to 3",
        "ended from outside: out of memory, lost node, signal",
        "ended from outside: out of memory, lost node, signal",
    ]


def test_failure_of_another_rank_or_of_the_same_start_does_not_come_back(tmp_path: Path) -> None:
    record_start(tmp_path, attempt=4, step=4, max_restarts=9)
    assert not has_come_back(tmp_path, 4, rank=1)
    for rank in (0, 1):
        record_failure(tmp_path, 4, rank, 7, ValueError("strange"))
    assert not has_come_back(tmp_path, 4, rank=1)
    record_start(tmp_path, attempt=4, step=4, max_restarts=9)
    record_failure(tmp_path, 4, 2, 7, ValueError("strange"))
    assert has_come_back(tmp_path, 4, rank=2)
    assert not has_come_back(tmp_path, 4, rank=1)


def test_starts_before_a_start_from_another_step_do_not_count(tmp_path: Path) -> None:
    for step in (4, 4, 6, 4, 4):  # the checkpoint of step 6 was damaged later
        record_start(tmp_path, attempt=1, step=step, max_restarts=1)
    with pytest.raises(CrashLoopError, match="2 starts from step 4"):
        record_start(tmp_path, attempt=1, step=4, max_restarts=1)
