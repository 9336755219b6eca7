"""Links that lead out of a run folder are refused before anything is written through them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.run_folder.lease import hold_checkpoints, hold_run
from pipeline.run_folder.links import check_links


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    outside.mkdir()
    (outside / "precious").write_text("precious")
    return run, outside


@pytest.mark.parametrize(
    "name", ["projector", "metrics.jsonl", "lease.lock", "checkpoints/.tmp-x", "checkpoints/step-00000003/a"]
)
@pytest.mark.parametrize("target", ["precious", "not-there", "."])
def test_link_out_of_the_run_folder_is_refused_with_its_target(
    folders: tuple[Path, Path], name: str, target: str
) -> None:
    run, outside = folders
    (run / name).symlink_to(outside / target)
    with pytest.raises(ValueError, match="is a link to") as refused, hold_run(run):
        pytest.fail("the run folder was held")
    assert f"{name} is a link to {outside / target if target != '.' else outside}, outside" in str(refused.value)
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert not (run / "lease.json").exists()


def test_link_within_the_folder_and_a_folder_that_is_a_link_are_accepted(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    run, _ = folders
    (run / "latest").symlink_to(run / "checkpoints" / "step-00000003")
    (run / "relative").symlink_to("checkpoints")
    (tmp_path / "other-name").symlink_to(run)
    check_links(tmp_path / "other-name")
    with hold_run(tmp_path / "other-name") as attempt:
        assert attempt == 1


def test_chain_of_links_that_ends_outside_is_refused(folders: tuple[Path, Path]) -> None:
    run, outside = folders
    (run / "b").symlink_to(outside)
    (run / "a").symlink_to("b")
    with pytest.raises(ValueError, match=r"run_dir .*: a is a link to"):
        check_links(run)


def test_checkpoint_folder_is_looked_at_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-00000001").symlink_to(tmp_path)
    with (
        pytest.raises(ValueError, match=r"checkpoint\.folder .*: step-00000001 is a link"),
        hold_checkpoints(str(folder)),
    ):
        pytest.fail("it was held")
