from pathlib import Path

import pytest

from pipeline.stream.marks import WorkMarks


class DiedError(BaseException):
    """Stands for the end of a process: nothing is cleaned up."""


def die_over(marks: WorkMarks, monkeypatch: pytest.MonkeyPatch, step: int, sample_ids: list[int]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(DiedError), marks.working_on(step, 0, sample_ids):
            raise DiedError
    # another process would have another name
    for path in Path(marks.folder).glob(f"{step}-*"):
        path.rename(path.with_stem(f"{path.stem}-{len(list(Path(marks.folder).iterdir()))}"))


def test_finished_work_leaves_no_suspects(tmp_path: Path) -> None:
    marks = WorkMarks(tmp_path / "working")
    assert marks.suspects(died=True) == []
    with marks.working_on(3, 1, [7, 11]):
        assert len(list(Path(marks.folder).iterdir())) == 1
    assert marks.suspects(died=True) == []


def test_samples_are_suspected_at_the_second_death_over_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = WorkMarks(tmp_path / "working")
    die_over(marks, monkeypatch, 3, [7, 11])
    die_over(marks, monkeypatch, 4, [13, 2])
    assert marks.suspects(died=False) == []
    die_over(marks, monkeypatch, 3, [7, 11])
    assert marks.suspects(died=False) == [7, 11]
    assert marks.suspects(died=False) == []


def test_samples_are_suspected_at_once_after_retries_or_a_known_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = WorkMarks(tmp_path / "working")
    for _ in range(3):
        die_over(marks, monkeypatch, 5, [17])
    assert marks.suspects(died=False) == [17]
    die_over(marks, monkeypatch, 6, [19, 23])
    assert marks.suspects(died=True) == [19, 23]


def test_mark_that_was_only_half_written_counts_as_none(tmp_path: Path) -> None:
    marks = WorkMarks(tmp_path)
    (tmp_path / "3-0-host-1-1.json").write_text("[7, 1")
    assert marks.suspects(died=True) == []
    assert not list(tmp_path.glob("3-*"))
