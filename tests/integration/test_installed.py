"""The wheel, installed: it holds the product only, and its code runs wherever the command is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import WriteConfig
from tests.integration.runs import ROOT

USER_FILES = {
    "modules": {"model.py": "NAME = 'mine'\n", "pipeline.py": "print('my pipeline runs')\n", "tokenizers.py": ""},
    "packages": {"model/__init__.py": "", "pipeline/__init__.py": "", "tests/__init__.py": ""},
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it; its dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # building leaves files behind
    source.mkdir()
    for name in ("jobs", "model", "pipeline", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(source)], check=True)
    return folder / "site"


def run_installed(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs` as torchrun does: the working directory comes first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    command = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)


def test_wheel_holds_the_product_and_nothing_else(site: Path) -> None:
    found = {path.name for path in site.iterdir() if path.is_dir() and path.suffix != ".dist-info"}
    assert found == {"bin", "jobs", "model", "pipeline"}
    assert (site / "pipeline/tools/demo/weights/tower/model.safetensors").is_file()


@pytest.mark.parametrize("kind", USER_FILES)
def test_command_in_a_folder_with_the_users_own_modules_of_these_names_runs_the_installed_code(
    write_config: WriteConfig, site: Path, tmp_path: Path, kind: str
) -> None:
    for name, text in USER_FILES[kind].items():
        (tmp_path / "user" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "user" / name).write_text(text)
    settings = ["training.max_steps=1", "cluster.data_workers=1"]
    ended = run_installed(site, tmp_path / "user", "pretrain", "-c", str(write_config("run")), *settings)
    assert ended.returncode == 0, ended.stderr
    assert "my pipeline runs" not in ended.stdout
    assert "finished after 1 steps" in ended.stdout


@pytest.mark.ray
def test_ray_workers_of_a_command_in_another_checkout_run_the_code_of_the_command(
    write_config: WriteConfig, site: Path, tmp_path: Path
) -> None:
    for name in ("model", "pipeline"):  # `jobs` there would be the command itself
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pipeline/training/worker.py", "pipeline/stream/rank_step.py"):
        (tmp_path / "checkout" / name).write_text("raise RuntimeError('code of the checkout')\n")
    settings = ["training.max_steps=1", "cluster.launcher=ray", "cluster.data_workers=1"]
    ended = run_installed(site, tmp_path / "checkout", "pretrain", "-c", str(write_config("run")), *settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_package_that_another_one_overwrote_is_named_at_the_start(site: Path, tmp_path: Path) -> None:
    ours = (site / "model" / "__init__.py").read_bytes()
    other = site / "another_model-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: another-model\nVersion: 1.0\n")
    (other / "RECORD").write_text("model/__init__.py,,\n")
    try:
        (site / "model" / "__init__.py").write_text("NAME = 'theirs'\n")
        ended = run_installed(site, tmp_path, "--help")
    finally:
        (site / "model" / "__init__.py").write_bytes(ours)
        shutil.rmtree(other)
    assert ended.returncode == 2
    assert "model/__init__.py is not the file that ray-llava installed: another-model has replaced it" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert run_installed(site, tmp_path, "--help").returncode == 0
