"""Files of the cache: what was added is found bit by bit, and only a finished shard counts."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.fusion.resolution import ImageView
from pipeline.stream.feature_files import FeatureCacheError, ShardReader, ShardWriter, image_key, table_file

SHARD = "0123456789abcdef" * 4
VIEWS = [ImageView(31, 17), ImageView(5, 7, "single"), ImageView(13, 11, "last_frame")]


def features(seed: int, num_tiles: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num_tiles, 5, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_file_bytes", [1, 1 << 20])
def test_reader_finds_every_image_bit_by_bit(tmp_path: Path, dtype: torch.dtype, max_file_bytes: int) -> None:
    written = {bytes([7 * seed]) * 15 + b"\0": features(seed, seed, dtype) for seed in (3, 1, 2)}
    writer = ShardWriter(tmp_path, SHARD, max_file_bytes)
    for (key, own), view in zip(written.items(), VIEWS, strict=True):
        writer.add(key, view, own)
    writer.finish()
    reader = ShardReader(tmp_path, SHARD)
    for (key, own), view in zip(written.items(), VIEWS, strict=True):
        found = reader.find(key)
        assert found is not None
        assert found.view == view
        assert found.features.dtype == dtype
        assert torch.equal(found.features, own)
    assert reader.find(b"\xff" * 16) is None
    assert reader.find(b"\1" * 16) is None


def test_files_may_be_read_like_any_other_new_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SHARD)
    writer.add(b"k" * 16, VIEWS[0], features(1, 2))
    writer.finish()
    (tmp_path / "other").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_writer_that_ends_before_finish_leaves_no_shard_and_no_temporary_name(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SHARD, max_file_bytes=1)
    writer.add(b"k" * 16, VIEWS[0], features(1, 2))
    assert [path.name for path in tmp_path.iterdir()] == [f"{SHARD[:32]}.00000.safetensors"]
    assert not table_file(tmp_path, SHARD).exists()
    with pytest.raises(FileNotFoundError):
        ShardReader(tmp_path, SHARD)


def test_writer_whose_disk_refuses_keeps_the_finished_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    writer = ShardWriter(tmp_path, SHARD)
    writer.add(b"k" * 16, VIEWS[0], features(1, 2))
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def _write_and_die(folder: Path) -> None:
    writer = ShardWriter(folder, SHARD, max_file_bytes=1)
    writer.add(b"j" * 16, VIEWS[1], features(2, 3))
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    writer.add(b"k" * 16, VIEWS[0], features(1, 2))


def test_shard_whose_writer_is_killed_is_not_there_and_is_written_again(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path,))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors", ".tmp"]
    assert not table_file(tmp_path, SHARD).exists()
    writer = ShardWriter(tmp_path, SHARD)
    writer.add(b"k" * 16, VIEWS[0], features(1, 2))
    writer.finish()
    assert [path for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    found = ShardReader(tmp_path, SHARD).find(b"k" * 16)
    assert found is not None
    assert torch.equal(found.features, features(1, 2))


def test_image_key_differs_by_content_and_by_role() -> None:
    keys = {image_key(data, role) for data in (b"a", b"b") for role in ("image", "single")}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}


def write_shard(folder: Path, num_images: int = 5) -> dict[bytes, torch.Tensor]:
    """Write a shard of several files; returns its images."""
    images = {
        bytes([number + 1]) * 16: features(number, 1 + number % 3, torch.bfloat16) for number in range(num_images)
    }
    writer = ShardWriter(folder, SHARD, max_file_bytes=100)
    for key, own in images.items():
        writer.add(key, VIEWS[0], own)
    writer.finish()
    return images


def read_all(folder: Path, images: dict[bytes, torch.Tensor]) -> list[torch.Tensor]:
    reader = ShardReader(folder, SHARD)
    reader.check_files()
    found = [reader.find(key) for key in images]
    return [image.features for image in found if image is not None]


def test_no_turned_byte_of_any_file_is_read_without_being_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    images = write_shard(folder)
    generator = torch.Generator().manual_seed(11)
    noticed = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(40):
            at = int(torch.randint(len(whole), (), generator=generator))
            harmed = bytearray(whole)
            harmed[at] ^= 1 << int(torch.randint(8, (), generator=generator))
            path.write_bytes(harmed)
            try:
                found = read_all(folder, images)
            except FeatureCacheError as error:
                noticed += path.name in str(error)
            else:  # a blank of the header's padding, say: what is read must be what was written
                assert all(torch.equal(own, other) for own, other in zip(images.values(), found, strict=True))
        path.write_bytes(whole)
    assert noticed > 100


@pytest.mark.parametrize("harm", [lambda data: data[:-7], lambda data: b"", lambda data: data[: len(data) // 2], None])
@pytest.mark.parametrize("ending", ["table.safetensors", "00001.safetensors"])
def test_cut_empty_or_lost_file_is_named_with_what_to_do(
    tmp_path: Path, harm: Callable[[bytes], bytes] | None, ending: str
) -> None:
    images = write_shard(tmp_path)
    path = tmp_path / f"{SHARD[:32]}.{ending}"
    if harm is None:
        path.unlink()
        expected: type[Exception] = FileNotFoundError if "table" in ending else FeatureCacheError
    else:
        path.write_bytes(harm(path.read_bytes()))
        expected = FeatureCacheError
    with pytest.raises(expected, match=path.name):
        read_all(tmp_path, images)


def test_table_of_another_cache_or_of_another_shard_is_refused(tmp_path: Path) -> None:
    images = write_shard(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    with pytest.raises(FeatureCacheError, match="a table of another cache"):
        read_all(tmp_path / "other", images)
    other = "f" * 64
    for path in list((tmp_path / "one").iterdir()):
        path.rename(path.with_name(path.name.replace(SHARD[:32], other[:32])))
    with pytest.raises(FeatureCacheError, match="a table of another cache"):
        ShardReader(tmp_path / "one", other)


def test_shard_that_is_written_again_smaller_leaves_no_file_of_the_larger_one(tmp_path: Path) -> None:
    write_shard(tmp_path, num_images=7)
    images = write_shard(tmp_path, num_images=2)
    assert len(list(tmp_path.iterdir())) == len(ShardReader(tmp_path, SHARD)._file_bytes) + 1
    assert len(read_all(tmp_path, images)) == 2
