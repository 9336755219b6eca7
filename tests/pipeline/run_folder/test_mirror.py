from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.run_folder.files import append_line, cut_unfinished_line, replace_file
from pipeline.run_folder.held import LeaseLostError
from pipeline.run_folder.mirror import Mirror
from pipeline.run_folder.place import place_in, shown, working_folder
from pipeline.run_folder.probe import check_conditional_writes
from pipeline.storage.objects import ObjectFolder
from tests.pipeline.run_folder.conftest import address
from tests.pipeline.shards.object_store import FaultRelay


def copy(url: str, folder: Path) -> Mirror:
    folder.mkdir()
    mirror = Mirror(url, folder)
    mirror.pull()
    return mirror


def read(url: str, folder: Path, *prefixes: str) -> dict[str, str]:
    """Return what another process finds in the run folder."""
    mirror = copy(url, folder)
    if prefixes:
        mirror.pull(*prefixes)
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_files_of_all_kinds_arrive_in_another_copy_and_follow_changes(url: str, tmp_path: Path) -> None:
    ours = copy(url, tmp_path / "a")
    replace_file(ours.folder / "config.yaml", "name: x\n")
    append_line(ours.folder / "metrics.jsonl", "1")
    append_line(ours.folder / "quarantine" / "rank-00000.jsonl", "2")
    (ours.folder / "index" / "scans").mkdir(parents=True)
    (ours.folder / "index" / "scans" / "x.parquet").write_text("3")
    (ours.folder / "working").mkdir()
    (ours.folder / "working" / "mark").write_text("4")
    (ours.folder / ".x.tmp").write_text("half")
    ours.push()
    first = {"config.yaml": "name: x\n", "metrics.jsonl": "1\n", "quarantine/rank-00000.jsonl": "2\n"}
    assert read(url, tmp_path / "b") == first
    assert read(url, tmp_path / "c", "index/") == {**first, "index/scans/x.parquet": "3"}
    theirs = copy(url, tmp_path / "d")
    append_line(ours.folder / "metrics.jsonl", "5")
    replace_file(ours.folder / "config.yaml", "name: y\n")
    replace_file(ours.folder / "quarantine" / "rank-00000.jsonl", "")
    ours.push()
    theirs.pull()
    changed = {"config.yaml": "name: y\n", "metrics.jsonl": "1\n5\n", "quarantine/rank-00000.jsonl": ""}
    assert {name: (theirs.folder / name).read_text() for name in first} == changed
    (ours.folder / "config.yaml").unlink()
    ours.push()
    assert "config.yaml" not in read(url, tmp_path / "e")


def test_unchanged_files_are_not_written_again(url: str, tmp_path: Path) -> None:
    ours = copy(url, tmp_path / "a")
    append_line(ours.folder / "metrics.jsonl", "1")
    replace_file(ours.folder / "config.yaml", "name: x\n")
    ours.push()
    before = ours.objects.list()
    ours.push()
    theirs = copy(url, tmp_path / "b")
    theirs.push()
    assert ours.objects.list() == before


def test_half_a_line_is_written_once_it_is_complete(url: str, tmp_path: Path) -> None:
    ours = copy(url, tmp_path / "a")
    with (ours.folder / "metrics.jsonl").open("w") as file:
        file.write("1\n2")
        file.flush()
        ours.push()
        assert read(url, tmp_path / "b") == {"metrics.jsonl": "1\n"}
        file.write("3\n")
    ours.push()
    assert read(url, tmp_path / "c") == {"metrics.jsonl": "1\n23\n"}
    with (ours.folder / "metrics.jsonl").open("a") as file:
        file.write("4")
    ours.push()
    cut_unfinished_line(ours.folder / "metrics.jsonl")
    append_line(ours.folder / "metrics.jsonl", "5")
    ours.push()
    assert read(url, tmp_path / "d") == {"metrics.jsonl": "1\n23\n5\n"}


def test_lines_of_several_writers_are_all_kept(url: str, tmp_path: Path) -> None:
    copies = [copy(url, tmp_path / str(number)) for number in range(3)]
    for round_ in range(4):
        for number, one in enumerate(copies):
            append_line(one.folder / "failures.jsonl", f"{round_}{number}")
        for one in copies:
            one.push()
    lines = read(url, tmp_path / "x")["failures.jsonl"].splitlines()
    assert sorted(lines) == sorted(f"{round_}{number}" for round_ in range(4) for number in range(3))


def test_writer_of_metrics_that_was_followed_by_another_fails_and_adds_nothing(url: str, tmp_path: Path) -> None:
    first = copy(url, tmp_path / "a")
    first.own("metrics.jsonl")
    append_line(first.folder / "metrics.jsonl", "1")
    first.push()
    second = copy(url, tmp_path / "b")
    second.own("metrics.jsonl")
    append_line(first.folder / "metrics.jsonl", "late")
    with pytest.raises(LeaseLostError, match=r"another process goes on with metrics\.jsonl"):
        first.push()
    append_line(second.folder / "metrics.jsonl", "2")
    second.push()
    assert read(url, tmp_path / "c") == {"metrics.jsonl": "1\n2\n"}


def test_copy_is_kept_up_to_date_by_itself(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run_folder.mirror._INTERVAL_S", 0.02)
    ours, theirs = copy(url, tmp_path / "a"), copy(url, tmp_path / "b")
    theirs.follow("metrics.jsonl")
    ours.start()
    append_line(ours.folder / "metrics.jsonl", "1")
    while not (theirs.folder / "metrics.jsonl").exists():
        pass
    ours.stop()
    theirs.stop()
    assert (theirs.folder / "metrics.jsonl").read_text() == "1\n"


def test_places_are_called_by_their_url(url: str) -> None:
    folder = working_folder(url)
    assert folder.name == "a b"
    plain, _, options = url.partition("?")
    assert shown(folder) == plain
    assert shown(folder / "quarantine" / "x") == f"{plain}/quarantine/x"
    assert place_in(folder, "checkpoints") == place_in(url, "checkpoints") == f"{plain}/checkpoints?{options}"
    assert shown("/a") == "/a"
    assert place_in(Path("/a"), "b") == "/a/b"
    assert working_folder(url) == folder


def test_store_that_ignores_conditions_is_refused_and_one_that_has_them_is_not(relay: FaultRelay) -> None:
    relay.ignores_conditions = True
    with pytest.raises(ValueError, match=r"this object store has no conditional writes \(it ignores If-None-Match\)"):
        working_folder(address(relay.port))
    relay.ignores_conditions = False
    objects = ObjectFolder(address(relay.port))
    check_conditional_writes(objects)
    assert objects.list() == []
