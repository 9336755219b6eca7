import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run_folder.files import append_line, cut_unfinished_line, read_entries, read_object, replace_file

FULL_DISK = """
import resource, sys
from pathlib import Path
from pipeline.run_folder.files import append_line
resource.setrlimit(resource.RLIMIT_FSIZE, (31, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
append_line(Path(sys.argv[1]), '{"step": 1}')
append_line(Path(sys.argv[1]), '{"step": 2, "text": "longer than what is left"}')
"""


def test_append_to_an_unfinished_line_ends_it_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    append_line(path, '{"step": 3}')
    with path.open("ab") as file:
        file.write(b'{"step": 5, "ti')
    append_line(path, '{"step": 7}')
    assert path.read_bytes() == b'{"step": 3}\n{"step": 5, "ti\n{"step": 7}\n'
    assert list(read_entries(path, ("step",))) == [{"step": 3}, {"step": 7}]
    assert f"{path}, line 2: not a JSON object with step, skipped" in caplog.text


def test_append_on_a_full_disk_raises_and_the_next_line_is_whole(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    path = tmp_path / "lines.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "OSError: [Errno 27]" in done.stderr
    assert path.stat().st_size == 31
    append_line(path, '{"step": 3}')
    assert list(read_entries(path, ("step",))) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize(
    "line", [b"", b"\0\0\0\0", b"\xff\xfe", b"[1]", b'{"other": 1}', b'{"step": 1}{"step": 2}', b"1\r2"]
)
def test_line_that_is_no_entry_is_skipped(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(line + b'\n{"step": 3}\n{"step": 4')
    assert list(read_entries(path, ("step",))) == [{"step": 3}]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{path}, line 1: not a JSON object with step, skipped"]
    cut_unfinished_line(path)
    assert path.read_bytes() == line + b'\n{"step": 3}\n'


@pytest.mark.parametrize("content", [b"", b'{"attempt"', b"\0\0\0", b"[2]"])
def test_unreadable_object_counts_as_absent_saying_so(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    assert read_object(path) == {}
    assert caplog.text == ""
    path.write_bytes(content)
    assert read_object(path) == {}
    assert f"{path} is not a JSON object and is ignored" in caplog.text


def test_replaced_file_holds_the_new_content_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    for number in (3, 5):
        replace_file(tmp_path / "a.json", json.dumps({"n": number}))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read_object(tmp_path / "a.json") == {"n": 5}
