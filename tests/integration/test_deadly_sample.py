"""A sample whose decoder takes the process with it: found, refused, and refused again on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config import load_config
from pipeline.index.build import load_index
from pipeline.index.read import read_sample
from pipeline.launch.prepare import prepare_source
from pipeline.launch.run import run_training
from pipeline.run_folder.restarts import RESTARTS_FILE
from pipeline.stream.refused import REFUSED_FILE
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, run

HEADERS = ["data.check_images=header"]  # so that the index does not decode what must not be decoded
DEADLY = """
import ctypes, zlib
import simplejpeg
decode = simplejpeg.decode_jpeg
def decode_or_die(data, *arguments, **options):
    if zlib.crc32(data) == {crc32}:
        ctypes.string_at(0)  # a real segmentation fault, in this thread and at once
    return decode(data, *arguments, **options)
simplejpeg.decode_jpeg = decode_or_die
"""


@pytest.fixture
def deadly(write_config: WriteConfig, tmp_path: Path) -> tuple[int, str]:
    """Return the id of a sample and a PYTHONPATH under which decoding its image ends the process."""
    config = load_config(write_config("look")).with_absolute_paths()
    source = prepare_source(config, console=Console(quiet=True))
    sample_id, crc32 = next(
        (idx, member["crc32"])
        for idx, members in enumerate(source.index.samples["members"].to_pylist())
        for member in members
        if idx > 20 and member["ext"] == "jpg"
    )
    assert read_sample(source.index, sample_id).images
    (tmp_path / "sitecustomize.py").write_text(DEADLY.format(crc32=crc32))
    return sample_id, str(tmp_path)


@pytest.mark.chaos
def test_sample_that_kills_its_data_worker_is_found_and_left_out_also_on_resume(
    write_config: WriteConfig, tmp_path: Path, deadly: tuple[int, str]
) -> None:
    sample_id, python_path = deadly
    config = str(write_config("run"))
    output = run("jobs", "pretrain", "-c", config, *HEADERS, "cluster.data_workers=1", PYTHONPATH=python_path)
    assert f"sample {sample_id} ends the process that decodes it: ended by signal SIGSEGV" in output
    assert_refused(tmp_path / "run", sample_id)
    looked = ("jobs", "inspect", "-c", config, *HEADERS)
    run(*looked, PYTHONPATH=python_path)
    assert "rejected, decoder_crash: ended by signal SIGSEGV" in run(
        *looked, "--sample", f"0:{sample_id}", PYTHONPATH=python_path
    )
    assert_trains_like_a_run_that_was_told(write_config, tmp_path)


@pytest.mark.ray
@pytest.mark.chaos
def test_sample_that_kills_ray_data_workers_is_found_and_left_out(
    write_config: WriteConfig, tmp_path: Path, deadly: tuple[int, str]
) -> None:
    sample_id, python_path = deadly
    on_ray = ["cluster.launcher=ray", "cluster.data_workers=2"]
    run("jobs", "pretrain", "-c", str(write_config("run")), *HEADERS, *on_ray, PYTHONPATH=python_path)
    assert_refused(tmp_path / "run", sample_id)
    starts = [json.loads(line) for line in (tmp_path / "run" / RESTARTS_FILE).read_text().splitlines()]
    assert len(starts) == 2  # one to meet it, one without it
    assert_trains_like_a_run_that_was_told(write_config, tmp_path)


@pytest.mark.chaos
@pytest.mark.parametrize("launcher", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_sample_that_kills_the_process_that_indexes_it_is_rejected_by_name_and_the_run_goes_on(
    write_config: WriteConfig, tmp_path: Path, deadly: tuple[int, str], launcher: str
) -> None:
    sample_id, python_path = deadly
    config, on = str(write_config("run")), [f"cluster.launcher={launcher}", "cluster.data_workers=1"]
    run("jobs", "pretrain", "-c", config, *on, PYTHONPATH=python_path)
    rejected = assert_rejected_by_the_index(tmp_path / "run", sample_id)
    assert rejected["detail"] == "ended by signal SIGSEGV when decoded alone in a sandbox"
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "decoder_crash" not in metrics  # it was never planned
    output = run("jobs", "inspect", "-c", config, PYTHONPATH=python_path)  # neither does it harm those who look
    assert "rejected: decoder_crash" in output


def assert_rejected_by_the_index(run_dir: Path, sample_id: int) -> dict[str, Any]:
    index = load_index(run_dir / "index")
    [row] = (row for row in index.samples.to_pylist() if row["reason"])
    assert row["key"] == index.samples["key"][sample_id].as_py()
    assert row["reason"] == "decoder_crash"
    return dict(row)


def assert_refused(run_dir: Path, sample_id: int) -> None:
    refused = [json.loads(line) for line in (run_dir / REFUSED_FILE).read_text().splitlines()]
    assert [(entry["sample_id"], entry["reason"]) for entry in refused] == [(sample_id, "decoder_crash")]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["metrics"]
    assert last["data/quarantined/decoder_crash"] == last["data/samples_quarantined"] >= 1


def assert_trains_like_a_run_that_was_told(write_config: WriteConfig, tmp_path: Path) -> None:
    """Where the decoder works, a run that holds the same verdict must train the same."""
    verdict = tmp_path / "told" / REFUSED_FILE
    verdict.parent.mkdir(parents=True)
    verdict.write_bytes((tmp_path / "run" / REFUSED_FILE).read_bytes())
    run_training(load_config(write_config("told"), HEADERS))
    assert_same_run(tmp_path / "run", tmp_path / "told")
