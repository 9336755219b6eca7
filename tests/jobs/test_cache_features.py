"""The cache-features command: fills, then finds everything there; without a folder it says what is missing."""

from pathlib import Path

from tests.integration.conftest import WriteConfig, shards, write_config
from tests.jobs.conftest import RunCommand

__all__ = ["shards", "write_config"]


def test_cache_features_fills_the_folder_once(
    run_command: RunCommand, write_config: WriteConfig, tmp_path: Path
) -> None:
    command = ("cache-features", "-c", str(write_config("run")), f"data.feature_cache={tmp_path / 'features'}")
    first, again = run_command(*command), run_command(*command)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "1 shards written, 0 were there: 61 images, 61 tiles" in " ".join(first.output.split())
    assert "0 shards written, 1 were there: 0 images" in " ".join(again.output.split())
    assert [path.name for path in tmp_path.glob("features/*/*.tmp")] == []


def test_cache_features_without_a_folder_ends_with_two(run_command: RunCommand, write_config: WriteConfig) -> None:
    ended = run_command("cache-features", "-c", str(write_config("run")))
    assert ended.exit_code == 2
    assert "data.feature_cache is not set" in ended.messages
