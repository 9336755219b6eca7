"""Names of image files: every way to write a place in the folder, and no way out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.tools.convert.image_folder import image_size_bytes, read_image_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images, next to a file that must not be read."""
    images = tmp_path / "im ages"
    (images / "d").mkdir(parents=True)
    for name in ("a.jpg", "img:1.jpg", "C:1.jpg", "back\\slash.jpg", "d/b.jpg"):
        (images / name).write_bytes(name.encode())
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "im ages2").mkdir()
    (tmp_path / "im ages2" / "c.jpg").write_bytes(b"secret")
    return images


def refusal(folder: Path, name: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_image_file(str(folder), name)
    return caught.value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("img:1.jpg", "img:1.jpg"),
        ("C:1.jpg", "C:1.jpg"),
        ("back\\slash.jpg", "back\\slash.jpg"),
        ("./d//b.jpg", "d/b.jpg"),
        ("{folder}/d/b.jpg", "d/b.jpg"),
        ("{folder}/d/../a.jpg", "a.jpg"),
        ("file://{folder}/a.jpg", "a.jpg"),
        ("FILE://{folder}/im%67:1.jpg", "img:1.jpg"),
    ],
)
def test_image_in_the_folder_is_read_however_it_is_named(folder: Path, name: str, expected: str) -> None:
    assert read_image_file(str(folder), name.format(folder=folder)) == expected.encode()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg",
        "d/../../secret.jpg",
        "{folder}/../secret.jpg",
        "{folder}2/c.jpg",
        "file://{folder}/../secret.jpg",
        "file://{folder}/%2e%2e/secret.jpg",
        "file://{folder}/%2e%2e%2fsecret.jpg",
        "{folder}/d/b.jpg\0",
        "file://{folder}/a.jpg%00",
        "/etc/passwd",
    ],
)
def test_path_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    error = refusal(folder, name.format(folder=folder))
    assert (error.reason, error.what.partition(":")[0]) == (
        "missing_image",
        "an image path that leaves the image folder",
    )


@pytest.mark.parametrize("name", ["http://h/a.jpg", "file://host{folder}/a.jpg", "file:///{folder}/a.jpg", "//h/a.jpg"])
def test_image_on_another_host_is_refused(folder: Path, name: str) -> None:
    assert refusal(folder, name.format(folder=folder)).reason == "remote_image_forbidden"


@pytest.mark.parametrize("name", ["C:\\imgs\\a.jpg", "d\\b.jpg", "c:/imgs/a.jpg", "file:///C:/imgs/a.jpg"])
def test_windows_path_is_called_one(folder: Path, name: str) -> None:
    error = refusal(folder, name)
    assert (error.reason, "a Windows path" in error.what) == ("missing_image", True)


def test_missing_image_is_named_escaped_and_cut(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        image_size_bytes(str(folder), "d/\x1b[2J" + "n" * 99)
    assert caught.value.what == "an image file that is not in the image folder: 'd/\\x1b[2J" + "n" * 74 + "'"
