"""Files of the cache: what was added is found bit by bit, and only a finished shard counts."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from model.fusion.resolution import ImageView
from pipeline.stream.feature_files import ShardReader, ShardWriter, image_key, table_file

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
