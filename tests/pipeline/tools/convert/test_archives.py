"""Archives of annotations with pictures are read as the folder they hold; damaged or hostile ones are named."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.tools.convert.archives import unpack
from pipeline.tools.convert.formats import SourceOptions, look_for_source
from pipeline.tools.convert.run import convert, unpacked_folder
from tests.pipeline.samples.pictures import picture
from tests.pipeline.tools.convert.datasets import turns
from tests.pipeline.tools.convert.reading import ROOMY, answers, samples_of


def files(prefix: str = "") -> dict[str, bytes]:
    rows = [
        {"id": str(idx), "image": f"coco/{idx}.jpg", "conversations": turns(answer=f"Answer {idx}.")}
        for idx in range(3)
    ]
    pictures = {f"{prefix}images/coco/{idx}.jpg": picture(5 + idx, 7, "JPEG") for idx in range(3)}
    return {**pictures, f"{prefix}chat.json": json.dumps(rows).encode()}


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    ending = path.name.casefold()
    mode = "w:gz" if ending.endswith("gz") else "w:xz" if ending.endswith("xz") else "w"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # the mode is chosen by name
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def run(tmp_path: Path, *paths: Path, out: str = "out") -> tuple[list[str], tuple[str, ...]]:
    folder = tmp_path / out
    opened = look_for_source(
        [str(path) for path in paths], options=SourceOptions(unpack_to=str(unpacked_folder(folder)))
    )
    result = convert(opened.source, folder, limits=ROOMY)
    assert not result.skipped
    return answers(samples_of(result, tmp_path / f"{out}-index")), opened.notes


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.TGZ", "a.tar.xz", "a.tar"])
@pytest.mark.parametrize("prefix", ["", "set/"])
def test_archive_of_annotations_and_pictures_is_read_as_its_folder(tmp_path: Path, name: str, prefix: str) -> None:
    write: Callable[[Path, dict[str, bytes]], Path] = write_zip if name.endswith("zip") else write_tar
    texts, notes = run(tmp_path, write(tmp_path / name, {**files(prefix), "__MACOSX/._chat.json": b"x"}))
    assert texts == ["Answer 0.", "Answer 1.", "Answer 2."]
    assert any(note.startswith("unpacked: ") for note in notes)
    assert any("picture names begin at: " in note and note.split(",")[0].endswith("images") for note in notes)


def test_pictures_in_an_archive_of_their_own_serve_the_annotations_next_to_it(tmp_path: Path) -> None:
    content = files()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "chat.json").write_bytes(content.pop("chat.json"))
    packed = write_zip(tmp_path / "in" / "images.zip", content)
    assert run(tmp_path, tmp_path / "in" / "chat.json", packed)[0] == ["Answer 0.", "Answer 1.", "Answer 2."]
    assert run(tmp_path, tmp_path / "in", out="folder")[0] == ["Answer 0.", "Answer 1.", "Answer 2."]


def test_archive_in_a_folder_with_data_is_passed_over_and_named(tmp_path: Path) -> None:
    for name, data in files().items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    write_zip(tmp_path / "in" / "all.zip", files())
    texts, notes = run(tmp_path, tmp_path / "in")
    assert len(texts) == 3
    assert any("passed over: all.zip" in note for note in notes)


@pytest.mark.parametrize("name", ["shard.tar.gz", "shard.tar"])
def test_compressed_shard_is_read_as_a_shard(tmp_path: Path, name: str) -> None:
    content = {"b.jpg": picture(5, 7, "JPEG"), "b.txt": b"second", "a.jpg": picture(6, 7, "JPEG"), "a.txt": b"first"}
    assert run(tmp_path, write_tar(tmp_path / name, content))[0] == ["second", "first"]


def test_same_archive_gives_the_same_shards_in_any_folder(tmp_path: Path) -> None:
    packed = write_zip(tmp_path / "a.zip", files())
    run(tmp_path, packed, out="one")
    run(tmp_path, packed, out="two")
    assert (tmp_path / "one" / "train-000000.tar").read_bytes() == (tmp_path / "two" / "train-000000.tar").read_bytes()


def test_unpack_names_what_is_wrong(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", files()).read_bytes()
    place = whole.index(b"chat.json") - 40
    cases = {
        "cut.zip": whole[:-30],
        "flipped.zip": whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :],
        "cut.tar.gz": write_tar(tmp_path / "w.tar.gz", files()).read_bytes()[:-40],
        "no.tgz": b"<html></html>",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}: damaged or cut .*fetch or write the file again"):
            unpack(str(tmp_path / name), tmp_path / "to")
    hostile = write_zip(tmp_path / "h.zip", {"../../evil.json": b"[]"})
    with pytest.raises(ValueError, match=r"evil\.json' leaves the archive's own folder"):
        unpack(str(hostile), tmp_path / "to")
    assert not (tmp_path / "evil.json").exists()
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a.json", "[1]")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.json", "[2]")
    with pytest.raises(ValueError, match=r"two files named 'a\.json'"):
        unpack(str(twice), tmp_path / "to")
    link = tmp_path / "link.tar.gz"
    with tarfile.open(link, "w:gz") as archive:
        entry = tarfile.TarInfo("a.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(tarfile.TarInfo("b.json.gz"))
        archive.addfile(entry)
    with pytest.raises(ValueError, match=r"'a\.jpg' is a link or device"):
        unpack(str(link), tmp_path / "to")
    assert not list((tmp_path / "to").glob("[!.]*"))
